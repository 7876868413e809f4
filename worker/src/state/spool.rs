//! What waits to be delivered to the log store: how it is kept in rows.

use jiff::Timestamp;
use meepo_core::{
    id::RunId,
    run::{OutputChunk, RunRecord, Stream},
};
use meepo_logstore::LogItem;
use std::borrow::Borrow;
use uuid::Uuid;

pub(super) const RECORD: i64 = 1;
pub(super) const CHUNK: i64 = 2;
/// A record with all that its run wrote, which mostly are a few lines: one row costs a third of
/// three.
pub(super) const WHOLE: i64 = 3;

/// What a row costs beyond its payload, roughly, in bytes.
pub(super) const ROW: u64 = 32;
/// Bytes of a chunk's row before its data.
pub(super) const HEAD: u64 = 33;
/// Bytes of a run id.
const ID: usize = 16;
/// Bytes of a length.
const LENGTH: usize = 4;

/// Something to deliver.
#[derive(Debug, Clone, PartialEq)]
pub enum SpoolItem {
    /// A run began, or ended.
    Record(RunRecord),
    /// It wrote something.
    Chunk(OutputChunk),
}

impl From<SpoolItem> for LogItem {
    fn from(item: SpoolItem) -> Self {
        match item {
            SpoolItem::Record(r) => Self::Run(r),
            SpoolItem::Chunk(c) => Self::Output(c),
        }
    }
}

/// An item as a row holds it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) kind: i64,
    pub(super) run: RunId,
    pub(super) payload: Vec<u8>,
}

impl Row {
    pub(super) fn record(record: &RunRecord) -> Self {
        Self { kind: RECORD, run: record.run_id, payload: json(record) }
    }

    /// The same record with `bytes` more of its output lost. A chunk stays as it is.
    pub(super) fn with_dropped(&self, bytes: u64) -> Self {
        if let Some((mut record, output)) = Self::parts(self.kind, &self.payload) {
            record.dropped_bytes += bytes;
            return Self::whole(&record, &output);
        }
        Self { kind: self.kind, run: self.run, payload: self.payload.clone() }
    }

    /// Run id, and what [`put_chunk`] puts.
    pub(super) fn chunk(c: &OutputChunk) -> Self {
        let mut payload = Vec::with_capacity(HEAD as usize + c.data.len());
        payload.extend_from_slice(c.run_id.0.as_bytes());
        put_chunk(&mut payload, c);
        Self { kind: CHUNK, run: c.run_id, payload }
    }

    /// A record with the output of its run: run id, the record as JSON, then of each chunk what
    /// [`put_chunk`] puts, both after their lengths (little endian). Without output the record
    /// alone.
    pub(super) fn whole<C: Borrow<OutputChunk>>(record: &RunRecord, output: &[C]) -> Self {
        if output.is_empty() {
            return Self::record(record);
        }
        let bytes: usize = output.iter().map(|c| HEAD as usize + c.borrow().data.len()).sum();
        let mut payload = Vec::with_capacity(512 + record.cmd.len() + bytes);
        payload.extend_from_slice(record.run_id.0.as_bytes());
        sized(&mut payload, |payload| put_json(payload, record));
        for chunk in output {
            sized(&mut payload, |payload| put_chunk(payload, chunk.borrow()));
        }
        Self { kind: WHOLE, run: record.run_id, payload }
    }

    /// A record, and the output that is in the same row.
    pub(super) fn parts(kind: i64, payload: &[u8]) -> Option<(RunRecord, Vec<OutputChunk>)> {
        let (id, mut rest) = match kind {
            RECORD => return Some((serde_json::from_slice(payload).ok()?, Vec::new())),
            WHOLE => payload.split_first_chunk::<ID>()?,
            _ => return None,
        };
        let record = serde_json::from_slice(take_sized(&mut rest)?).ok()?;
        let mut output = Vec::new();
        while !rest.is_empty() {
            output.push(decode_chunk(RunId(Uuid::from_bytes(*id)), take_sized(&mut rest)?)?);
        }
        Some((record, output))
    }

    pub(super) fn item(item: &SpoolItem) -> Self {
        match item {
            SpoolItem::Record(r) => Self::record(r),
            SpoolItem::Chunk(c) => Self::chunk(c),
        }
    }

    /// What it counts against the limit, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.payload.len() as u64 + ROW
    }

    /// A chunk that has a row of its own.
    pub(super) fn decode_chunk(payload: &[u8]) -> Option<OutputChunk> {
        let (id, rest) = payload.split_first_chunk::<ID>()?;
        decode_chunk(RunId(Uuid::from_bytes(*id)), rest)
    }

    /// The run of a record, without reading all of it.
    pub(super) fn recorded(kind: i64, payload: &[u8]) -> Option<RunId> {
        match kind {
            // Its JSON begins with the id.
            RECORD => std::str::from_utf8(payload.get(11..47)?).ok()?.parse().ok(),
            WHOLE => Some(RunId(Uuid::from_bytes(*payload.first_chunk::<ID>()?))),
            _ => None,
        }
    }
}

/// A record as JSON.
pub(super) fn json(record: &RunRecord) -> Vec<u8> {
    // Hardly ever has it to grow.
    let mut json = Vec::with_capacity(512 + record.cmd.len());
    put_json(&mut json, record);
    json
}

fn put_json(to: &mut Vec<u8>, record: &RunRecord) {
    // It has only string keys and no failing `Serialize`.
    let _ = serde_json::to_writer(to, record);
}

/// Puts what `put` puts after its length.
fn sized(to: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) {
    let at = to.len();
    to.extend_from_slice(&[0; LENGTH]);
    put(to);
    // What goes into one row with a record is far smaller than 4 GiB.
    let length = u32::try_from(to.len() - at - LENGTH).unwrap_or(u32::MAX);
    to[at..at + LENGTH].copy_from_slice(&length.to_le_bytes());
}

/// Takes off what [`sized`] has put.
fn take_sized<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = from.split_first_chunk::<LENGTH>()?;
    let (taken, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *from = rest;
    Some(taken)
}

/// Seq (little endian), stream, time in ms (little endian), the bytes.
fn put_chunk(to: &mut Vec<u8>, c: &OutputChunk) {
    to.extend_from_slice(&c.seq.to_le_bytes());
    to.push(u8::from(c.stream == Stream::Stderr));
    to.extend_from_slice(&c.at.as_millisecond().to_le_bytes());
    to.extend_from_slice(&c.data);
}

fn decode_chunk(run_id: RunId, payload: &[u8]) -> Option<OutputChunk> {
    let (seq, rest) = payload.split_first_chunk::<8>()?;
    let (stream, rest) = rest.split_first()?;
    let (at, data) = rest.split_first_chunk::<8>()?;
    Some(OutputChunk {
        run_id,
        seq: u64::from_le_bytes(*seq),
        stream: if *stream == 0 { Stream::Stdout } else { Stream::Stderr },
        at: Timestamp::from_millisecond(i64::from_le_bytes(*at)).ok()?,
        data: data.to_vec(),
    })
}

/// When a run was decided on, in milliseconds since 1970, as its id says; 0 if it does not.
pub(crate) fn born(run: RunId) -> i64 {
    match run.0.get_version_num() {
        7 => (run.0.as_u128() >> 80) as i64,
        _ => 0,
    }
}

/// What the spool holds. See [`State::spool_stats`](super::State::spool_stats).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolStats {
    /// Items.
    pub items: u64,
    /// Those among them that are a backlog; see [`Lane`](super::Lane).
    pub backlog: u64,
    /// Their bytes, as counted against the limit.
    pub bytes: u64,
    /// When the oldest item was put in.
    pub oldest: Option<Timestamp>,
    /// When the oldest that is no backlog was put in.
    pub fresh_oldest: Option<Timestamp>,
    /// The id of the newest item put in, as far as this process knows.
    pub last_id: i64,
    /// Chunks dropped since this process started, for want of room or for their age …
    pub dropped_chunks: u64,
    /// … and the bytes of output in them.
    pub dropped_bytes: u64,
    /// Records dropped because they alone had filled the spool, or for their age.
    pub dropped_records: u64,
    /// When something was dropped last.
    pub dropped_at: Option<Timestamp>,
}

impl SpoolStats {
    /// Items that are no backlog.
    pub fn fresh(&self) -> u64 {
        self.items.saturating_sub(self.backlog)
    }
}
