//! The spool's two lanes: what is new, and the backlog of an outage.
//!
//! ```text
//! id:  1 …                 base = a multiple of 2^40
//!      ├── backlog ──► │   ├── fresh ──►
//! ```
//!
//! Normally there is one lane. When delivery has fallen behind, all that waits becomes the
//! backlog, and what comes afterwards a lane of its own, which need not wait for it. What
//! belongs to a run that may have something in the backlog is put at the backlog's end, so
//! that the items of a run stay in order: such runs are those whose id is not younger than
//! the backlog. With the backlog's last item gone there is one lane again.

use super::{
    engine::Context,
    room,
    spool::{CHUNK, RECORD, ROW, Row, SpoolItem, SpoolStats, WHOLE, born},
};
use jiff::Timestamp;
use meepo_core::id::RunId;
use rusqlite::{Connection, Result, params};
use std::collections::HashMap;

/// Ids of one lane, at most.
const SPAN: i64 = 1 << 40;
/// How far ahead of this clock the id of a run may be, in milliseconds.
const AHEAD: i64 = 24 * 3600 * 1000;

/// See [`State::take`](super::State::take).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// What was put in since there is a backlog; everything, when there is none.
    Fresh,
    /// What waited when delivery had fallen behind or the worker was started.
    Backlog,
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
    /// More was there than fitted in.
    pub more: bool,
    first_id: i64,
    rows: u64,
    /// What all of them count against the limit, in bytes.
    bytes: u64,
    /// Runs whose last record is among them and tells of dropped output.
    told: Vec<RunId>,
}

/// What is acknowledged of a batch.
#[derive(Debug, Clone)]
pub(super) struct Acked {
    first_id: i64,
    last_id: i64,
    rows: u64,
    bytes: u64,
    told: Vec<RunId>,
}

impl From<&Batch> for Acked {
    fn from(b: &Batch) -> Self {
        let told = b.told.clone();
        Self { first_id: b.first_id, last_id: b.last_id, rows: b.rows, bytes: b.bytes, told }
    }
}

/// Ids from the first to the second; none if the second is smaller.
type Ids = (i64, i64);
pub(super) const NONE: Ids = (1, 0);

/// The spool's content as the thread that owns it knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meter {
    pub(super) rows: u64,
    pub(super) backlog: u64,
    pub(super) bytes: u64,
    pub(super) last_id: i64,
    /// Where the fresh lane begins; 0 when there is no backlog.
    base: i64,
    /// The id of the backlog's last item.
    backlog_id: i64,
    /// Runs born later, in milliseconds, have nothing in the backlog.
    backlog_born: i64,
    /// When the youngest run of which anything was put in was born.
    youngest: i64,
    oldest_ms: Option<i64>,
    fresh_oldest_ms: Option<i64>,
    /// Taken and not acknowledged, by lane: perhaps delivered, perhaps not.
    pub(super) doubt: [Ids; 2],
    /// Up to here there is no output that could be dropped.
    pub(super) bare: i64,
    /// Something is in the table `dropped`.
    pub(super) told_of: bool,
    pub(super) dropped_chunks: u64,
    pub(super) dropped_bytes: u64,
    pub(super) dropped_records: u64,
    pub(super) dropped_ms: Option<i64>,
}

impl Meter {
    /// The ids of a lane.
    fn ids(&self, lane: Lane) -> Ids {
        match lane {
            Lane::Fresh => (self.base + 1, i64::MAX),
            Lane::Backlog => (1, self.base),
        }
    }

    /// No row has a higher id.
    pub(super) fn newest(&self) -> i64 {
        self.last_id.max(self.base)
    }

    /// One row less.
    pub(super) fn lose(&mut self, id: i64, size: u64) {
        self.rows = self.rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size);
        if id <= self.base {
            self.backlog = self.backlog.saturating_sub(1);
        }
    }

    /// The id of a new row.
    fn next_id(&mut self, born: i64) -> i64 {
        self.youngest = self.youngest.max(born);
        if self.base > 0 && born <= self.backlog_born {
            self.backlog += 1;
            self.backlog_id += 1;
            // What was looked through has grown.
            self.bare = self.bare.min(self.backlog_id - 1);
            return self.backlog_id;
        }
        // Never used again as long as this process lives: an acknowledgement that comes
        // late must do no harm.
        self.last_id = self.newest() + 1;
        self.last_id
    }
}

impl SpoolStats {
    /// Takes over the meter's figures; answers whether anything changed.
    pub(super) fn update(&mut self, meter: &Meter) -> bool {
        let time = |ms: Option<i64>| ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let now = Self {
            items: meter.rows,
            backlog: meter.backlog,
            bytes: meter.bytes,
            oldest: time(meter.oldest_ms),
            fresh_oldest: time(meter.fresh_oldest_ms),
            last_id: meter.last_id,
            dropped_chunks: meter.dropped_chunks,
            dropped_bytes: meter.dropped_bytes,
            dropped_records: meter.dropped_records,
            dropped_at: time(meter.dropped_ms),
        };
        let changed = *self != now;
        *self = now;
        changed
    }
}

/// Measures what a file holds when it is opened: all of it is a backlog.
pub(super) fn open(conn: &Connection) -> Result<Meter> {
    let (rows, bytes, last_id) = count(conn, NONE.1)?;
    let (latest, record, chunk): (Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>) = conn.query_row(
        // A record begins with {"run_id":" and the id, anything else with the id's bytes.
        "SELECT max(at), max(CASE kind WHEN ?1 THEN substr(payload, 12, 13) END),
                    max(CASE WHEN kind IN (?2, ?3) THEN substr(payload, 1, 6) END) FROM spooled",
        [RECORD, CHUNK, WHOLE],
        |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
    )?;
    let record = record.and_then(|text| {
        let hex: String = text.iter().map(|b| char::from(*b)).filter(|c| *c != '-').collect();
        i64::from_str_radix(&hex, 16).ok()
    });
    let chunk = chunk.map(|bytes| bytes.iter().fold(0, |n, b| n << 8 | i64::from(*b)));
    let now = Timestamp::now().as_millisecond();
    let born = record.max(chunk).unwrap_or(0).min(now + AHEAD);
    let base = if rows > 0 { next_span(last_id) } else { 0 };
    let told_of = conn.query_row("SELECT EXISTS (SELECT 1 FROM dropped)", [], |r| r.get(0))?;
    let mut meter = Meter {
        rows,
        backlog: rows,
        bytes,
        last_id,
        base,
        backlog_id: last_id,
        backlog_born: now.max(born).max(latest.unwrap_or(0)),
        youngest: born,
        oldest_ms: None,
        fresh_oldest_ms: None,
        doubt: [NONE; 2],
        bare: 0,
        told_of,
        dropped_chunks: 0,
        dropped_bytes: 0,
        dropped_records: 0,
        dropped_ms: None,
    };
    look(conn, &mut meter)?;
    Ok(meter)
}

/// Rows after `after`, their bytes, and the last id.
fn count(conn: &Connection, after: i64) -> Result<(u64, u64, i64)> {
    let (rows, bytes, last): (i64, i64, i64) = conn.query_row(
        "SELECT count(*), coalesce(sum(length(payload) + ?1), 0), coalesce(max(id), 0)
         FROM spooled WHERE id > ?2",
        [ROW.cast_signed(), after],
        |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
    )?;
    Ok((rows.cast_unsigned(), bytes.cast_unsigned(), last))
}

fn next_span(id: i64) -> i64 {
    (id | (SPAN - 1)) + 1
}

/// Looks what is the oldest after something has gone, and whether there is a backlog still.
pub(super) fn look(conn: &Connection, meter: &mut Meter) -> Result<()> {
    if meter.backlog == 0 {
        // The lane goes on with its ids.
        meter.last_id = meter.newest();
        meter.base = 0;
    }
    meter.oldest_ms = oldest(conn, 0)?;
    meter.fresh_oldest_ms = match meter.base {
        0 => meter.oldest_ms,
        base => oldest(conn, base)?,
    };
    Ok(())
}

fn oldest(conn: &Connection, after: i64) -> Result<Option<i64>> {
    let mut s = conn.prepare_cached("SELECT at FROM spooled WHERE id > ?1 ORDER BY id LIMIT 1")?;
    let mut rows = s.query([after])?;
    rows.next()?.map(|r| r.get(0)).transpose()
}

/// Puts a row in.
pub(super) const PUSH: &str = "INSERT INTO spooled (id, kind, at, payload) VALUES (?1, ?2, ?3, ?4)";

/// Puts `row` in, if there is room for it or room can be made; see [`room`].
pub(super) fn push(cx: &mut Context, row: &Row) -> Result<()> {
    if cx.meter.bytes + row.size() > cx.spool_limit && !room::make(cx, row)? {
        return Ok(());
    }
    let now = Timestamp::now().as_millisecond();
    let id = cx.meter.next_id(born(row.run));
    cx.hot.push.on(cx.conn)?.execute(params![id, row.kind, now, row.payload])?;
    cx.meter.rows += 1;
    cx.meter.bytes += row.size();
    cx.meter.oldest_ms.get_or_insert(now);
    if id > cx.meter.base {
        cx.meter.fresh_oldest_ms.get_or_insert(now);
    }
    Ok(())
}

/// Items and bytes, at most; one item at least.
#[derive(Debug, Clone, Copy)]
pub struct Most(pub usize, pub usize);

/// The oldest items after `after`, whatever their lane.
pub(super) fn peek(cx: &Context, after: i64, most: Most) -> Result<Taken> {
    read(cx, (after + 1, i64::MAX), most)
}

/// The oldest items of a lane after `after`, which are in doubt from now on.
pub(super) fn take(cx: &mut Context, lane: Lane, after: i64, most: Most) -> Result<Taken> {
    let (first, last) = cx.meter.ids(lane);
    let taken = read(cx, (first.max(after + 1), last), most)?;
    let batch = &taken.batch;
    if batch.rows > 0 {
        let doubt = &mut cx.meter.doubt[lane as usize];
        *doubt = match *doubt {
            NONE => (batch.first_id, batch.last_id),
            (first, last) => (first.min(batch.first_id), last.max(batch.last_id)),
        };
    }
    Ok(taken)
}

/// A batch as it was read: its items are made of it by who wants them, as that would keep the
/// thread that owns the file.
#[derive(Debug, Default)]
pub(super) struct Taken {
    batch: Batch,
    rows: Vec<(i64, Vec<u8>)>,
    /// Bytes of output that runs in it are to tell of as dropped.
    dropped: HashMap<RunId, u64>,
}

impl Taken {
    pub(super) fn open(self) -> Batch {
        let Self { mut batch, rows, dropped } = self;
        batch.items.reserve(rows.len());
        for (kind, payload) in rows {
            if kind == CHUNK {
                match Row::decode_chunk(&payload) {
                    Some(chunk) => batch.items.push(SpoolItem::Chunk(chunk)),
                    None => batch.unreadable += 1,
                }
                continue;
            }
            let Some((mut record, output)) = Row::parts(kind, &payload) else {
                batch.unreadable += 1;
                continue;
            };
            if record.state.is_final()
                && let Some(bytes) = dropped.get(&record.run_id)
            {
                record.dropped_bytes += bytes;
                batch.told.push(record.run_id);
            }
            batch.items.extend(output.into_iter().map(SpoolItem::Chunk));
            batch.items.push(SpoolItem::Record(record));
        }
        batch
    }
}

fn read(cx: &Context, (first, last): Ids, most: Most) -> Result<Taken> {
    let mut statement = cx.conn.prepare_cached(
        "SELECT id, kind, payload FROM spooled WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3",
    )?;
    let mut rows = statement.query(params![first, last, most.0 as i64])?;
    let (mut taken, mut bytes) = (Taken::default(), 0);
    let batch = &mut taken.batch;
    while let Some(row) = rows.next()? {
        let payload = row.get_ref(2)?.as_blob().unwrap_or_default();
        bytes += payload.len();
        if bytes > most.1 && batch.rows > 0 {
            batch.more = true;
            break;
        }
        let (id, kind) = (row.get(0)?, row.get(1)?);
        if batch.rows == 0 {
            batch.first_id = id;
        }
        batch.last_id = id;
        batch.rows += 1;
        batch.bytes += payload.len() as u64 + ROW;
        if cx.meter.told_of
            && let Some(run) = Row::recorded(kind, payload)
        {
            let dropped = room::dropped(cx.conn, run)?;
            if dropped > 0 {
                taken.dropped.insert(run, dropped);
            }
        }
        taken.rows.push((kind, payload.to_vec()));
    }
    batch.more |= batch.rows == most.0 as u64;
    Ok(taken)
}

/// Deletes a batch.
pub(super) fn ack(cx: &mut Context, batch: &Acked) -> Result<()> {
    let ids = (batch.first_id, batch.last_id);
    let deleted = cx
        .conn
        .prepare_cached("DELETE FROM spooled WHERE id BETWEEN ?1 AND ?2")?
        .execute([ids.0, ids.1])? as u64;
    for run in &batch.told {
        room::forget(cx, *run)?;
    }
    let meter = &mut cx.meter;
    for doubt in &mut meter.doubt {
        if (doubt.0..=doubt.1).contains(&ids.1) {
            *doubt = if doubt.1 > ids.1 { (ids.1 + 1, doubt.1) } else { NONE };
        }
    }
    if deleted == batch.rows {
        meter.rows = meter.rows.saturating_sub(deleted);
        meter.bytes = meter.bytes.saturating_sub(batch.bytes);
        if ids.1 <= meter.base {
            meter.backlog = meter.backlog.saturating_sub(deleted);
        }
    } else {
        // It was acknowledged before: counted anew.
        let (rows, bytes, _) = count(cx.conn, 0)?;
        let fresh = if meter.base > 0 { count(cx.conn, meter.base)?.0 } else { rows };
        (meter.rows, meter.bytes, meter.backlog) = (rows, bytes, rows - fresh);
    }
    look(cx.conn, meter)?;
    cx.freed |= deleted > 0;
    Ok(())
}

/// Makes all that is there a backlog, unless some of the fresh lane may be under way; see
/// [`State::part`](super::State::part).
pub(super) fn part(cx: &mut Context) -> Result<()> {
    let meter = &mut cx.meter;
    if meter.doubt[Lane::Fresh as usize] != NONE || meter.rows == meter.backlog {
        return Ok(());
    }
    meter.backlog = meter.rows;
    meter.backlog_id = meter.last_id;
    meter.base = next_span(meter.last_id);
    meter.backlog_born = Timestamp::now().as_millisecond().max(meter.youngest);
    look(cx.conn, meter)
}
