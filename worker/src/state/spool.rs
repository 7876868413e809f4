//! What waits to be delivered to the log store.

use super::engine::Context;
use jiff::Timestamp;
use meepo_core::{
    id::RunId,
    run::{OutputChunk, RunRecord, Stream},
};
use rusqlite::{Connection, Result, params};

const RECORD: i64 = 1;
const CHUNK: i64 = 2;

/// What a row costs beyond its payload, roughly, in bytes.
const ROW: i64 = 32;

/// Something to deliver.
#[derive(Debug, Clone, PartialEq)]
pub enum SpoolItem {
    /// A run began, or ended.
    Record(RunRecord),
    /// It wrote something.
    Chunk(OutputChunk),
}

/// An item as a row holds it.
#[derive(Debug)]
pub(super) struct Row {
    kind: i64,
    payload: Vec<u8>,
}

impl Row {
    pub(super) fn record(record: &RunRecord) -> Self {
        Self { kind: RECORD, payload: json(record) }
    }

    /// The same record with `bytes` more of its output lost. Anything but a record stays.
    pub(super) fn with_dropped(&self, bytes: u64) -> Self {
        match Self::decode(self.kind, &self.payload) {
            Some(SpoolItem::Record(mut record)) => {
                record.dropped_bytes += bytes;
                Self::record(&record)
            }
            _ => Self { kind: self.kind, payload: self.payload.clone() },
        }
    }

    /// Run id, seq (little endian), stream, time in ms (little endian), the bytes.
    pub(super) fn chunk(c: &OutputChunk) -> Self {
        let mut payload = Vec::with_capacity(33 + c.data.len());
        payload.extend_from_slice(c.run_id.0.as_bytes());
        payload.extend_from_slice(&c.seq.to_le_bytes());
        payload.push(u8::from(c.stream == Stream::Stderr));
        payload.extend_from_slice(&c.at.as_millisecond().to_le_bytes());
        payload.extend_from_slice(&c.data);
        Self { kind: CHUNK, payload }
    }

    pub(super) fn item(item: &SpoolItem) -> Self {
        match item {
            SpoolItem::Record(r) => Self::record(r),
            SpoolItem::Chunk(c) => Self::chunk(c),
        }
    }

    fn decode(kind: i64, payload: &[u8]) -> Option<SpoolItem> {
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

/// The spool's content as the thread that owns it knows it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Meter {
    rows: u64,
    bytes: u64,
    pub(super) last_id: i64,
    oldest_ms: Option<i64>,
    dropped_chunks: u64,
    dropped_bytes: u64,
}

/// What the spool holds. See [`State::spool_stats`](super::State::spool_stats).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolStats {
    /// Items.
    pub items: u64,
    /// Their bytes, as counted against the limit.
    pub bytes: u64,
    /// When the oldest item was put in.
    pub oldest: Option<Timestamp>,
    /// The id of the newest item put in, as far as this process knows.
    pub last_id: i64,
    /// Chunks refused since this process started because the spool was full …
    pub dropped_chunks: u64,
    /// … and the bytes of output in them.
    pub dropped_bytes: u64,
}

impl SpoolStats {
    /// Takes over the meter's figures; answers whether anything changed.
    pub(super) fn update(&mut self, meter: &Meter) -> bool {
        let now = Self {
            items: meter.rows,
            bytes: meter.bytes,
            oldest: meter.oldest_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            last_id: meter.last_id,
            dropped_chunks: meter.dropped_chunks,
            dropped_bytes: meter.dropped_bytes,
        };
        let changed = *self != now;
        *self = now;
        changed
    }
}

/// The oldest items. See [`State::peek`](super::State::peek).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// In the order in which they were put in.
    pub items: Vec<SpoolItem>,
    /// The id of the last one; 0 if there was nothing.
    pub last_id: i64,
    /// Items up to `last_id` that cannot be read (written by a newer version, or damaged).
    pub unreadable: u64,
    /// What all of them count against the limit, in bytes.
    bytes: u64,
}

/// What is acknowledged of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Acked {
    last_id: i64,
    rows: u64,
    bytes: u64,
}

impl From<&Batch> for Acked {
    fn from(batch: &Batch) -> Self {
        let rows = batch.items.len() as u64 + batch.unreadable;
        Self { last_id: batch.last_id, rows, bytes: batch.bytes }
    }
}

/// Measures what a file holds when it is opened.
pub(super) fn measure(conn: &Connection) -> Result<Meter> {
    let (rows, bytes, last_id): (i64, i64, i64) = conn.query_row(
        "SELECT count(*), coalesce(sum(length(payload) + ?1), 0),
                coalesce(max(id), 0)
         FROM spooled",
        [ROW],
        |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
    )?;
    Ok(Meter {
        rows: rows.cast_unsigned(),
        bytes: bytes.cast_unsigned(),
        last_id,
        oldest_ms: oldest(conn)?,
        ..Meter::default()
    })
}

fn oldest(conn: &Connection) -> Result<Option<i64>> {
    let mut s = conn.prepare_cached("SELECT at FROM spooled ORDER BY id LIMIT 1")?;
    let mut rows = s.query([])?;
    rows.next()?.map(|r| r.get(0)).transpose()
}

/// Puts `row` in. A full spool refuses output but takes records.
pub(super) fn push(cx: &mut Context, row: &Row) -> Result<()> {
    let size = row.payload.len() as u64 + ROW.cast_unsigned();
    if row.kind == CHUNK && cx.meter.bytes + size > cx.spool_limit {
        let bytes = (row.payload.len() as u64).saturating_sub(33);
        cx.meter.dropped_chunks += 1;
        cx.meter.dropped_bytes += bytes;
        if let Some(id) = row.payload.first_chunk() {
            *cx.refused.entry(RunId(uuid::Uuid::from_bytes(*id))).or_default() += bytes;
        }
        return Ok(());
    }
    let now = Timestamp::now().as_millisecond();
    // Never used again as long as this process lives: an acknowledgement that comes late
    // must do no harm.
    let id = cx.meter.last_id + 1;
    cx.conn
        .prepare_cached("INSERT INTO spooled (id, kind, at, payload) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![id, row.kind, now, row.payload])?;
    cx.meter.rows += 1;
    cx.meter.bytes += size;
    cx.meter.last_id = id;
    cx.meter.oldest_ms.get_or_insert(now);
    Ok(())
}

/// The oldest items after `after`, up to `max_items` and about `max_bytes`, at least one.
pub(super) fn peek(cx: &Context, after: i64, max_items: usize, max_bytes: usize) -> Result<Batch> {
    let mut statement = cx.conn.prepare_cached(
        "SELECT id, kind, payload FROM spooled WHERE id > ?1 ORDER BY id LIMIT ?2",
    )?;
    let mut rows = statement.query(params![after, max_items as i64])?;
    let (mut batch, mut bytes) = (Batch::default(), 0);
    while let Some(row) = rows.next()? {
        let payload = row.get_ref(2)?.as_blob().unwrap_or_default();
        bytes += payload.len();
        if bytes > max_bytes && batch.last_id != 0 {
            break;
        }
        batch.bytes += payload.len() as u64 + ROW.cast_unsigned();
        batch.last_id = row.get(0)?;
        match Row::decode(row.get(1)?, payload) {
            Some(item) => batch.items.push(item),
            None => batch.unreadable += 1,
        }
    }
    Ok(batch)
}

/// Deletes a batch with everything before it.
pub(super) fn ack(cx: &mut Context, batch: &Acked) -> Result<()> {
    let deleted =
        cx.conn.prepare_cached("DELETE FROM spooled WHERE id <= ?1")?.execute([batch.last_id])?
            as u64;
    if deleted == batch.rows {
        cx.meter.rows = cx.meter.rows.saturating_sub(deleted);
        cx.meter.bytes = cx.meter.bytes.saturating_sub(batch.bytes);
        cx.meter.oldest_ms = oldest(&cx.conn)?;
    } else {
        // It was acknowledged before, or what came before it was not: counted anew.
        let found = measure(&cx.conn)?;
        let (rows, bytes, oldest_ms) = (found.rows, found.bytes, found.oldest_ms);
        cx.meter = Meter { rows, bytes, oldest_ms, ..cx.meter };
    }
    cx.freed |= deleted > 0;
    Ok(())
}
