//! What waits to be delivered to the log store: how it is kept in rows.

use jiff::Timestamp;
use meepo_core::{
    id::RunId,
    run::{OutputChunk, RunRecord, Stream},
};
use meepo_logstore::LogItem;

pub(super) const RECORD: i64 = 1;
pub(super) const CHUNK: i64 = 2;

/// What a row costs beyond its payload, roughly, in bytes.
pub(super) const ROW: u64 = 32;
/// Bytes of a chunk's row before its data.
pub(super) const HEAD: u64 = 33;

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

    /// The same record with `bytes` more of its output lost. Anything but a record stays.
    pub(super) fn with_dropped(&self, bytes: u64) -> Self {
        match Self::decode(self.kind, &self.payload) {
            Some(SpoolItem::Record(mut record)) => {
                record.dropped_bytes += bytes;
                Self::record(&record)
            }
            _ => Self { kind: self.kind, run: self.run, payload: self.payload.clone() },
        }
    }

    /// Run id, seq (little endian), stream, time in ms (little endian), the bytes.
    pub(super) fn chunk(c: &OutputChunk) -> Self {
        let mut payload = Vec::with_capacity(HEAD as usize + c.data.len());
        payload.extend_from_slice(c.run_id.0.as_bytes());
        payload.extend_from_slice(&c.seq.to_le_bytes());
        payload.push(u8::from(c.stream == Stream::Stderr));
        payload.extend_from_slice(&c.at.as_millisecond().to_le_bytes());
        payload.extend_from_slice(&c.data);
        Self { kind: CHUNK, run: c.run_id, payload }
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

    pub(super) fn decode(kind: i64, payload: &[u8]) -> Option<SpoolItem> {
        match kind {
            RECORD => serde_json::from_slice(payload).ok().map(SpoolItem::Record),
            CHUNK => decode_chunk(payload).map(SpoolItem::Chunk),
            _ => None,
        }
    }
}

/// A record as JSON.
pub(super) fn json(record: &RunRecord) -> Vec<u8> {
    // Hardly ever has it to grow.
    let mut json = Vec::with_capacity(512 + record.cmd.len());
    // It has only string keys and no failing `Serialize`.
    let _ = serde_json::to_writer(&mut json, record);
    json
}

fn decode_chunk(payload: &[u8]) -> Option<OutputChunk> {
    let (id, rest) = payload.split_first_chunk::<16>()?;
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    let (stream, rest) = rest.split_first()?;
    let (at, data) = rest.split_first_chunk::<8>()?;
    Some(OutputChunk {
        run_id: RunId(uuid::Uuid::from_bytes(*id)),
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
