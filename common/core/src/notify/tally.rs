//! What a worker tells of a job's runs on its node: one value a job, which holds how often
//! each thing has happened so far, and the newest of each.
//!
//! It stands in etcd and is replaced, never added to: its size does not depend on how many
//! runs there were, a burst of failures costs a few writes, and whoever reads it learns what
//! he has not seen yet by comparing it with where he stopped ([`Cursor`]).

use super::{Happening, Kind};
use crate::{
    id::RunId,
    run::{Cause, RunRecord, RunState},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// How many of each kind are kept with all that is known of them.
const KEPT: usize = 2;
/// Bytes of the end of a run's output that are told.
pub const MAX_TAIL: usize = 1024;
/// Lines of it.
const MAX_LINES: usize = 15;
/// Bytes of a run's message that are told.
const MAX_MESSAGE: usize = 500;

/// The last lines in `output`, as text of at most [`MAX_TAIL`] bytes.
pub fn tail_of(output: &[u8]) -> Option<String> {
    let cut = output.len().saturating_sub(MAX_TAIL);
    // Not in the middle of a character.
    let from = (cut..output.len()).take(4).find(|i| cut == 0 || output[*i] & 0xc0 != 0x80);
    let text = String::from_utf8_lossy(&output[from.unwrap_or(cut)..]);
    let text = text.trim_end();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(MAX_LINES)..].join("\n");
    // Bytes that are no text take more room as text.
    let from = tail.len().saturating_sub(MAX_TAIL);
    let from = (from..=tail.len()).find(|at| tail.is_char_boundary(*at)).unwrap_or(0);
    Some(tail[from..].to_owned()).filter(|t| !t.is_empty())
}

/// The end of a run, or that it takes long, as a tally takes it in.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What happened. A recovery is any success.
    what: Happening,
    /// A success counts although nothing has failed here.
    heeded: bool,
}

impl Outcome {
    /// What the end of a run means. `last`: no further attempt follows. `heeded`: successes
    /// count in any case, as somebody waits for them, perhaps because of a failure on another
    /// node. `None`: nothing anybody would be told of.
    pub fn of(record: &RunRecord, last: bool, heeded: bool, tail: Option<String>) -> Option<Self> {
        if record.job.is_none() || record.cause == Cause::Task {
            return None;
        }
        let kind = match record.state {
            RunState::Running | RunState::Skipped => return None,
            RunState::Success => Kind::Recovery,
            RunState::Missed => Kind::Missed,
            _ if last => Kind::Failure,
            _ => Kind::Attempt,
        };
        Some(Self { what: happening(record, kind, tail), heeded })
    }

    /// A run takes longer than it should.
    pub fn long(record: &RunRecord, now: Timestamp) -> Option<Self> {
        record.job.as_ref()?;
        let what = Happening { at: now, ..happening(record, Kind::Long, None) };
        Some(Self { what, heeded: false })
    }

    /// What happened.
    pub fn kind(&self) -> Kind {
        self.what.kind
    }

    /// Whether a success counts although nothing has failed here.
    pub fn heeded(&self) -> bool {
        self.heeded
    }
}

fn happening(record: &RunRecord, kind: Kind, tail: Option<String>) -> Happening {
    let cut = |text: &String| text.chars().take(MAX_MESSAGE).collect();
    Happening {
        run_id: Some(record.run_id),
        state: Some(record.state),
        code: Some(record.code),
        exit_code: record.exit_code,
        signal: record.signal,
        attempt: Some(record.attempt),
        slot: Some(record.slot),
        since: record.started_at,
        message: record.message.as_ref().map(cut),
        tail,
        ..Happening::new(kind, record.ended_at.unwrap_or(record.slot))
    }
}

/// Something that happened, and which of all things that happened to the job here it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Noted {
    /// From 1.
    pub seq: u64,
    /// What. Job and node stand in the key.
    #[serde(flatten)]
    pub what: Happening,
}

/// The newest success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Success {
    /// As in [`Noted`].
    pub seq: u64,
    /// The run.
    pub run_id: RunId,
    /// When it ended, UTC.
    pub at: Timestamp,
}

/// The value at `/meepo/outcomes/<ip>/<job>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Another one when counting has begun anew.
    pub epoch: Uuid,
    /// How many things have been noted.
    pub seq: u64,
    /// The last run failed, or was missed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failing: bool,
    /// How often each thing has happened.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<Kind, u64>,
    /// The newest of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub newest: Vec<Noted>,
    /// The newest success that counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<Success>,
}

/// Where a reader of a tally stopped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// Of the tally that was read.
    pub epoch: Uuid,
    /// Up to here.
    pub seq: u64,
    /// How often each thing had happened.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<Kind, u64>,
}

impl Tally {
    /// Nothing has happened yet.
    pub fn new(epoch: Uuid) -> Self {
        Self {
            epoch,
            seq: 0,
            failing: false,
            counts: BTreeMap::new(),
            newest: Vec::new(),
            success: None,
        }
    }

    /// Takes in what happened; answers whether that changes anything.
    pub fn note(&mut self, outcome: &Outcome) -> bool {
        let what = &outcome.what;
        if what.kind == Kind::Recovery {
            if !(self.failing || outcome.heeded) {
                return false;
            }
            let Some(run_id) = what.run_id else { return false };
            self.seq += 1;
            self.failing = false;
            self.success = Some(Success { seq: self.seq, run_id, at: what.at });
            // Nobody needs to know any more what it said.
            self.newest.iter_mut().for_each(|n| n.what.tail = None);
            return true;
        }
        self.seq += 1;
        self.failing |= matches!(what.kind, Kind::Failure | Kind::Missed);
        *self.counts.entry(what.kind).or_default() += 1;
        if what.tail.is_some() {
            self.newest.iter_mut().for_each(|n| n.what.tail = None);
        }
        self.newest.push(Noted { seq: self.seq, what: what.clone() });
        let alike = |n: &Noted| n.what.kind == what.kind;
        if self.newest.iter().filter(|n| alike(n)).count() > KEPT
            && let Some(oldest) = self.newest.iter().position(alike)
        {
            self.newest.remove(oldest);
        }
        true
    }

    /// Where a reader is who has read all of it.
    pub fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, seq: self.seq, counts: self.counts.clone() }
    }

    /// What has happened since `seen`, in order, and the success among it at its place. What
    /// is not kept any more is counted in the oldest of its kind.
    pub fn since(&self, seen: Option<&Cursor>) -> Vec<Noted> {
        let nothing = Cursor { epoch: self.epoch, ..Cursor::default() };
        let seen = seen.filter(|c| c.epoch == self.epoch).unwrap_or(&nothing);
        let mut new: Vec<Noted> =
            self.newest.iter().filter(|n| n.seq > seen.seq).cloned().collect();
        for (kind, count) in &self.counts {
            let before = seen.counts.get(kind).copied().unwrap_or(0);
            let there = new.iter().filter(|n| n.what.kind == *kind).count() as u64;
            let gone = count.saturating_sub(before).saturating_sub(there);
            if let Some(oldest) = new.iter_mut().find(|n| n.what.kind == *kind) {
                oldest.what.times += gone;
            }
        }
        if let Some(success) = self.success.as_ref().filter(|s| s.seq > seen.seq) {
            let what = Happening {
                run_id: Some(success.run_id),
                ..Happening::new(Kind::Recovery, success.at)
            };
            new.push(Noted { seq: success.seq, what });
        }
        new.sort_by_key(|n| n.seq);
        new
    }
}
