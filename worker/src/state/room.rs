//! What goes when the spool is full, or too old.
//!
//! | the spool is full and there comes | what goes |
//! |---|---|
//! | output | the oldest output, or what comes if there is no other |
//! | a record | the oldest output; a record is taken without room too, up to a reserve |
//! | a record, and the reserve is used up | the oldest records |
//!
//! Of a record with the output of its run, in one row, the output goes first, too. What is
//! perhaps delivered already stays. Every byte of output that goes is counted in
//! its run: the table `dropped` has it until the run's last record is delivered.

use super::{
    engine::Context,
    lanes::{self, Meter},
    spool::{CHUNK, HEAD, RECORD, ROW, Row, WHOLE},
};
use jiff::Timestamp;
use meepo_core::id::RunId;
use rusqlite::{Connection, Result, params};
use std::collections::HashMap;

/// Least bytes that records may take beyond the limit.
const RESERVE: u64 = 16 << 20;
/// Rows looked at in one go.
const ROUND: i64 = 256;

/// Bytes that records may take beyond the limit.
fn reserve(limit: u64) -> u64 {
    (limit / 4).max(RESERVE)
}

/// Whether there is room for `row`, or room could be made by dropping output.
pub(super) fn fits(cx: &mut Context, row: &Row) -> Result<bool> {
    let limit = cx.spool_limit;
    if cx.meter.bytes + row.size() > limit && row.size() <= limit {
        // Somewhat more than needed, so that not each row has to look.
        let goal = limit.saturating_sub(row.size() + limit / 64);
        while cx.meter.bytes > goal && drop_oldest(cx, CHUNK, i64::MAX, goal)? {}
    }
    Ok(cx.meter.bytes + row.size() <= limit)
}

/// Makes room for `row`, for which there is none; answers whether it is to be put in.
pub(super) fn make(cx: &mut Context, row: &Row) -> Result<bool> {
    if fits(cx, row)? {
        return Ok(true);
    }
    let limit = cx.spool_limit;
    if row.kind == CHUNK {
        let bytes = (row.payload.len() as u64).saturating_sub(HEAD);
        cx.meter.dropped_chunks += 1;
        cx.meter.dropped_bytes += bytes;
        note(cx, HashMap::from([(row.run, bytes)]))?;
        return Ok(false);
    }
    let most = limit.saturating_add(reserve(limit));
    if cx.meter.bytes + row.size() > most {
        let goal = most.saturating_sub(row.size() + limit / 64);
        while cx.meter.bytes > goal && drop_oldest(cx, RECORD, i64::MAX, goal)? {}
    }
    Ok(true)
}

/// Drops output put in before the first, and records before the second instant, in
/// milliseconds.
pub(super) fn expire(cx: &mut Context, (output, records): (i64, i64)) -> Result<()> {
    while drop_oldest(cx, CHUNK, output, 0)? {}
    while drop_oldest(cx, RECORD, records, 0)? {}
    Ok(())
}

/// One row that is to go.
struct Doomed {
    id: i64,
    size: u64,
    run: Option<RunId>,
    /// Pieces of output in it, and their bytes.
    output: (u64, u64),
    /// What stays of it: the record without the output.
    rest: Option<Row>,
}

impl Doomed {
    /// What a row with this payload holds that is to go. `kind` is that of what is dropped.
    fn of(id: i64, (kind, row): (i64, i64), payload: &[u8]) -> Self {
        let size = payload.len() as u64 + ROW;
        let mut doomed = Self { id, size, run: None, output: (0, 0), rest: None };
        if row == CHUNK {
            doomed.run = Row::decode_chunk(payload).map(|c| c.run_id);
            doomed.output = (1, size.saturating_sub(ROW + HEAD));
        } else if let Some((mut record, output)) = Row::parts(row, payload) {
            let bytes = output.iter().map(|c| c.data.len() as u64).sum();
            doomed.output = (output.len() as u64, bytes);
            if kind == CHUNK {
                record.dropped_bytes += bytes;
                doomed.rest = Some(Row::record(&record));
            }
            // What is dropped of a run is told with its last record.
            doomed.run = record.state.is_final().then_some(record.run_id);
        }
        doomed
    }

    /// Bytes that are free when it is gone.
    fn frees(&self) -> u64 {
        self.size.saturating_sub(self.rest.as_ref().map_or(0, Row::size))
    }
}

/// Drops some of the oldest that is of a kind and was put in before `before` until no more than
/// `goal` bytes are left; answers whether there may be more of it.
fn drop_oldest(cx: &mut Context, kind: i64, before: i64, goal: u64) -> Result<bool> {
    let after = if kind == CHUNK { cx.meter.bare } else { 0 };
    let (doomed, more) = find(cx.conn, &cx.meter, (kind, after, before), goal)?;
    let mut bytes: HashMap<RunId, u64> = HashMap::new();
    for d in &doomed {
        cx.meter.dropped_chunks += d.output.0;
        cx.meter.dropped_bytes += d.output.1;
        if kind == CHUNK {
            cx.meter.bare = d.id;
        }
        if let Some(rest) = &d.rest {
            cx.conn
                .prepare_cached("UPDATE spooled SET kind = ?2, payload = ?3 WHERE id = ?1")?
                .execute(params![d.id, rest.kind, rest.payload])?;
            cx.meter.bytes = cx.meter.bytes.saturating_sub(d.frees());
            continue;
        }
        cx.conn.prepare_cached("DELETE FROM spooled WHERE id = ?1")?.execute([d.id])?;
        cx.meter.lose(d.id, d.size);
        match (kind, d.run) {
            (CHUNK, Some(run)) => *bytes.entry(run).or_default() += d.output.1,
            (RECORD, Some(run)) => forget(cx, run)?,
            _ => {}
        }
        cx.meter.dropped_records += u64::from(kind == RECORD);
    }
    if !doomed.is_empty() {
        note(cx, bytes)?;
        lanes::look(cx.conn, &mut cx.meter)?;
        cx.freed = true;
    } else if kind == CHUNK && before == i64::MAX {
        cx.meter.bare = cx.meter.newest();
    }
    Ok(more)
}

fn find(
    conn: &Connection,
    meter: &Meter,
    (kind, after, before): (i64, i64, i64),
    goal: u64,
) -> Result<(Vec<Doomed>, bool)> {
    let mut statement = conn.prepare_cached(
        "SELECT id, at, kind, payload FROM spooled WHERE id > ?1 AND kind IN (?2, ?3)
         AND NOT id BETWEEN ?4 AND ?5 AND NOT id BETWEEN ?6 AND ?7 ORDER BY id LIMIT ?8",
    )?;
    let [a, b] = meter.doubt;
    let mut rows = statement.query(params![after, kind, WHOLE, a.0, a.1, b.0, b.1, ROUND])?;
    let (mut doomed, mut left) = (Vec::new(), meter.bytes);
    while left > goal
        && let Some(row) = rows.next()?
    {
        if row.get::<_, i64>(1)? >= before {
            return Ok((doomed, false));
        }
        let payload = row.get_ref(3)?.as_blob().unwrap_or_default();
        let one = Doomed::of(row.get(0)?, (kind, row.get(2)?), payload);
        left = left.saturating_sub(one.frees());
        doomed.push(one);
    }
    let more = doomed.len() as i64 == ROUND;
    Ok((doomed, more))
}

/// Counts output that has gone, by run.
fn note(cx: &mut Context, bytes: HashMap<RunId, u64>) -> Result<()> {
    cx.meter.dropped_ms = Some(Timestamp::now().as_millisecond());
    for (run, bytes) in bytes {
        cx.meter.told_of = true;
        cx.conn
            .prepare_cached(
                "INSERT INTO dropped (run_id, bytes) VALUES (?1, ?2)
                 ON CONFLICT (run_id) DO UPDATE SET bytes = bytes + excluded.bytes",
            )?
            .execute(params![run.0.as_bytes(), bytes.cast_signed()])?;
    }
    Ok(())
}

/// Bytes of a run that have gone and that its last record is yet to tell of.
pub(super) fn dropped(conn: &Connection, run: RunId) -> Result<u64> {
    let mut s = conn.prepare_cached("SELECT bytes FROM dropped WHERE run_id = ?1")?;
    let mut rows = s.query([run.0.as_bytes()])?;
    let found: Option<i64> = rows.next()?.map(|r| r.get(0)).transpose()?;
    Ok(found.unwrap_or(0).cast_unsigned())
}

/// They are told of, or never will be.
pub(super) fn forget(cx: &Context, run: RunId) -> Result<()> {
    if !cx.meter.told_of {
        return Ok(());
    }
    let mut s = cx.conn.prepare_cached("DELETE FROM dropped WHERE run_id = ?1")?;
    s.execute([run.0.as_bytes()]).map(drop)
}
