//! What is written to a store, and the limits that hold in every store.

use crate::StoreError;
use jiff::Timestamp;
use meepo_core::{
    id::RunId,
    run::{OutputChunk, RunRecord, to_millis},
};
use std::collections::HashMap;

/// Largest item in bytes: the data of a chunk, or the text of a run. MongoDB takes
/// documents up to 16 MB; the rest is room for what surrounds it.
pub const MAX_ITEM_BYTES: usize = 8 * 1024 * 1024;

/// Largest sequence number of a chunk (SQLite's integers are signed).
pub const MAX_SEQ: u64 = i64::MAX as u64;

/// One thing to keep.
#[derive(Debug, Clone, PartialEq)]
pub enum LogItem {
    /// Where a run stands.
    Run(RunRecord),
    /// A piece of what it wrote.
    Output(OutputChunk),
}

/// Refuses what no store could keep, before anything is stored.
pub(crate) fn check(batch: &[LogItem]) -> Result<(), StoreError> {
    let refuse = |problem: String, expected: String| {
        Err(StoreError::Refused { op: "append", problem, expected })
    };
    for item in batch {
        let (what, bytes) = match item {
            LogItem::Run(r) => {
                let text = r.cmd.len() + r.message.as_ref().map_or(0, String::len);
                ("command and message of run", text)
            }
            LogItem::Output(c) => ("output of run", c.data.len()),
        };
        let run_id = item.run_id();
        if bytes > MAX_ITEM_BYTES {
            return refuse(
                format!("{what} {run_id}: {bytes} bytes in one item"),
                format!("at most {MAX_ITEM_BYTES} bytes"),
            );
        }
        if let LogItem::Output(c) = item
            && c.seq > MAX_SEQ
        {
            return refuse(
                format!("output of run {run_id}: sequence number {}", c.seq),
                format!("at most {MAX_SEQ}"),
            );
        }
    }
    Ok(())
}

impl LogItem {
    /// The run it belongs to.
    pub fn run_id(&self) -> RunId {
        match self {
            Self::Run(r) => r.run_id,
            Self::Output(c) => c.run_id,
        }
    }

    /// About how many bytes it takes in a message or a transaction.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Run(r) => 512 + r.cmd.len() + r.message.as_ref().map_or(0, String::len),
            Self::Output(c) => 96 + c.data.len(),
        }
    }
}

/// The record as every store keeps it: times cut to milliseconds, counters within
/// the signed 64 bits that BSON has.
pub(crate) fn normalised(r: &RunRecord) -> RunRecord {
    let counter = |n: u64| n.min(i64::MAX as u64);
    let mut r = r.clone();
    r.slot = to_millis(r.slot);
    r.started_at = r.started_at.map(to_millis);
    r.ended_at = r.ended_at.map(to_millis);
    r.output_bytes = counter(r.output_bytes);
    r.dropped_bytes = counter(r.dropped_bytes);
    r
}

/// The runs of a batch, normalised, one record per run: the highest rank, the first
/// of equals. Order of first appearance.
pub(crate) fn runs_of(batch: &[LogItem]) -> Vec<RunRecord> {
    let mut at: HashMap<RunId, usize> = HashMap::new();
    let mut runs: Vec<RunRecord> = Vec::new();
    for item in batch {
        let LogItem::Run(r) = item else { continue };
        match at.get(&r.run_id) {
            None => {
                at.insert(r.run_id, runs.len());
                runs.push(normalised(r));
            }
            Some(&i) => {
                if r.state.rank() > runs[i].state.rank() {
                    runs[i] = normalised(r);
                }
            }
        }
    }
    runs
}

/// `t` in milliseconds since 1970, for storing. Exact for what [`to_millis`] gave.
pub(crate) fn millis(t: Timestamp) -> i64 {
    t.as_millisecond()
}

/// The first millisecond that is not before `t`, so that bounds finer than a
/// millisecond compare rightly with stored times.
pub(crate) fn millis_ceil(t: Timestamp) -> i64 {
    let ms = t.as_millisecond();
    match Timestamp::from_millisecond(ms) {
        Ok(cut) if cut < t => ms + 1,
        _ => ms,
    }
}
