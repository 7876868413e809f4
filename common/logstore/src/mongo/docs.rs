//! Records as BSON, written straight into bytes and read with serde.

use crate::{BoxError, items, names, query::bytes_of};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    id::{Name, RunId},
    job::Executor,
    run::{Cause, OutputChunk, RunRecord, RunState, Stream, to_millis},
};
use mongodb::bson::{
    self, Binary, Bson, DateTime, Document, RawBinaryRef, RawBsonRef, RawDocument, RawDocumentBuf,
    doc, spec::BinarySubtype,
};
use serde::Deserialize;

/// Bytes of a chunk's key.
pub(super) const CHUNK_KEY: usize = 24;

fn date(t: Timestamp) -> DateTime {
    DateTime::from_millis(items::millis(t))
}

fn time(d: DateTime) -> Result<Timestamp, BoxError> {
    Ok(Timestamp::from_millisecond(d.timestamp_millis())?)
}

/// The key of a run.
pub(super) fn run_key(id: RunId) -> Binary {
    run_key_of(bytes_of(id))
}

/// The key of the run with these bytes.
pub(super) fn run_key_of(bytes: [u8; 16]) -> Binary {
    Binary { subtype: BinarySubtype::Uuid, bytes: bytes.to_vec() }
}

/// The key of a chunk: sorts by run, then sequence number.
pub(super) fn chunk_key(id: RunId, seq: u64) -> [u8; CHUNK_KEY] {
    let mut key = [0; CHUNK_KEY];
    key[..16].copy_from_slice(&bytes_of(id));
    key[16..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// The same as a value.
pub(super) fn chunk_key_value(id: RunId, seq: u64) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: chunk_key(id, seq).to_vec() }
}

/// The keys of all chunks of the run with these bytes, as a condition.
pub(super) fn chunks_of(id: [u8; 16]) -> Document {
    let key = |rest: [u8; 8]| Binary {
        subtype: BinarySubtype::Generic,
        bytes: [id.as_slice(), &rest].concat(),
    };
    doc! { "$gte": key([0; 8]), "$lte": key([0xff; 8]) }
}

/// A whole number, however the server chose to write it; `None` for anything else.
pub(super) fn integer(value: Option<&Bson>) -> Option<i64> {
    match value? {
        Bson::Int32(n) => Some(i64::from(*n)),
        Bson::Int64(n) => Some(*n),
        // Exact below 2^53.
        Bson::Double(n) if n.fract() == 0.0 && n.abs() < 9e15 => Some(*n as i64),
        _ => None,
    }
}

fn binary(subtype: BinarySubtype, bytes: &[u8]) -> RawBsonRef<'_> {
    RawBsonRef::Binary(RawBinaryRef { subtype, bytes })
}

/// The document of a run, which must be normalised. `rank` stands beside the record
/// so that the server can compare.
pub(super) fn run_doc(r: &RunRecord) -> RawDocumentBuf {
    // `items::normalised` keeps counters within the signed range.
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut d = RawDocumentBuf::new();
    let id = bytes_of(r.run_id);
    d.append_ref("_id", binary(BinarySubtype::Uuid, &id));
    if let Some(job) = &r.job {
        d.append_ref("job", job.as_str());
    }
    d.append_ref("node", r.node.as_str());
    d.append_ref("slot", date(r.slot));
    d.append_ref("attempt", i64::from(r.attempt));
    d.append_ref("cause", names::cause(r.cause));
    d.append_ref("executor", r.executor.as_str());
    d.append_ref("cmd", r.cmd.as_str());
    if let Some(user) = &r.user {
        d.append_ref("user", user.as_str());
    }
    d.append_ref("state", r.state.as_str());
    d.append_ref("rank", i32::from(r.state.rank()));
    d.append_ref("code", i32::from(r.code.0));
    if let Some(message) = &r.message {
        d.append_ref("message", message.as_str());
    }
    if let Some(n) = r.exit_code {
        d.append_ref("exit_code", n);
    }
    if let Some(n) = r.signal {
        d.append_ref("signal", n);
    }
    if let Some(n) = r.fence {
        d.append_ref("fence", n);
    }
    if let Some(n) = r.pid {
        d.append_ref("pid", i64::from(n));
    }
    if let Some(t) = r.started_at {
        d.append_ref("started_at", date(t));
    }
    if let Some(t) = r.ended_at {
        d.append_ref("ended_at", date(t));
    }
    if let Some(ms) = r.took_ms() {
        d.append_ref("took_ms", ms);
    }
    d.append_ref("output_bytes", signed(r.output_bytes));
    d.append_ref("dropped_bytes", signed(r.dropped_bytes));
    d
}

/// The document of a chunk.
pub(super) fn chunk_doc(c: &OutputChunk) -> RawDocumentBuf {
    let mut d = RawDocumentBuf::new();
    let key = chunk_key(c.run_id, c.seq);
    d.append_ref("_id", binary(BinarySubtype::Generic, &key));
    d.append_ref("stream", names::stream(c.stream));
    d.append_ref("at", date(to_millis(c.at)));
    d.append_ref("data", binary(BinarySubtype::Generic, &c.data));
    d
}

/// A run as read. Unknown fields are passed over.
#[derive(Deserialize)]
struct RunDoc {
    #[serde(rename = "_id")]
    id: Binary,
    job: Option<Name>,
    node: Name,
    slot: DateTime,
    attempt: u32,
    cause: Cause,
    executor: Executor,
    cmd: String,
    user: Option<String>,
    state: RunState,
    code: u16,
    message: Option<String>,
    exit_code: Option<i32>,
    signal: Option<i32>,
    fence: Option<i64>,
    pid: Option<u32>,
    started_at: Option<DateTime>,
    ended_at: Option<DateTime>,
    #[serde(default)]
    output_bytes: u64,
    #[serde(default)]
    dropped_bytes: u64,
}

/// The run that `raw` holds.
pub(super) fn run_of(raw: &RawDocument) -> Result<RunRecord, BoxError> {
    let d: RunDoc = bson::from_slice(raw.as_bytes())?;
    let id: [u8; 16] =
        d.id.bytes.try_into().map_err(|b: Vec<u8>| format!("a run id of {} bytes", b.len()))?;
    Ok(RunRecord {
        run_id: RunId(uuid::Uuid::from_bytes(id)),
        job: d.job,
        node: d.node,
        slot: time(d.slot)?,
        attempt: d.attempt,
        cause: d.cause,
        executor: d.executor,
        cmd: d.cmd,
        user: d.user,
        state: d.state,
        code: Code(d.code),
        message: d.message,
        exit_code: d.exit_code,
        signal: d.signal,
        fence: d.fence,
        pid: d.pid,
        started_at: d.started_at.map(time).transpose()?,
        ended_at: d.ended_at.map(time).transpose()?,
        output_bytes: d.output_bytes,
        dropped_bytes: d.dropped_bytes,
    })
}

/// The chunk of `run_id` that `raw` holds.
pub(super) fn chunk_of(raw: &RawDocument, run_id: RunId) -> Result<OutputChunk, BoxError> {
    let key = raw.get_binary("_id")?.bytes;
    let seq = key.get(16..CHUNK_KEY).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
    let stream = raw.get_i32("stream")?;
    Ok(OutputChunk {
        run_id,
        seq: seq.ok_or_else(|| format!("a key of {} bytes", key.len()))?,
        stream: stream_of(stream)?,
        at: time(raw.get_datetime("at")?)?,
        data: raw.get_binary("data")?.bytes.to_vec(),
    })
}

fn stream_of(n: i32) -> Result<Stream, BoxError> {
    names::stream_of(n.into()).ok_or_else(|| format!("unknown stream {n}").into())
}

/// Which document `raw` is, for messages and positions.
pub(super) fn key_of(raw: &RawDocument) -> Result<[u8; 16], BoxError> {
    Ok(raw.get_binary("_id")?.bytes.try_into()?)
}
