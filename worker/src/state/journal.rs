//! Runs that are under way, runs seen lately, and the cursors of jobs.

use super::{
    engine::Context,
    spool::{self, Row},
};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    id::{Name, RunId},
    run::{Cause, RunRecord},
};
use rusqlite::{Connection, OptionalExtension, Result, params};
use std::collections::BTreeMap;

/// How long a run id is remembered.
const SEEN_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Old run ids are looked for each time that many have been added.
const PRUNE_EVERY: i64 = 256;

/// What came of [`State::begin_run`](super::State::begin_run).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The run is in the journal; its process may start.
    New,
    /// A run with this id was begun before; it must not start again.
    KnownRun,
    /// The job's cursor has reached the slot already; it must not start again.
    SlotTaken {
        /// The latest slot that was started or given up.
        cursor: Timestamp,
    },
}

impl Begin {
    /// Whether the process may start.
    pub fn is_new(self) -> bool {
        self == Self::New
    }
}

/// A run that was begun and is not known to have ended.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenRun {
    /// The record as it was when the run began.
    pub record: RunRecord,
    /// Pid and start time of its process (see
    /// [`start_time`](crate::process::start_time)); `None` if the worker died before it
    /// noted them, which leaves open whether a process was started.
    pub process: Option<(u32, u64)>,
}

/// A record as the journal holds it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) run_id: RunId,
    pub(super) json: String,
}

impl Entry {
    pub(super) fn new(record: &RunRecord) -> Self {
        // A record has only string keys and no failing `Serialize`.
        Self { run_id: record.run_id, json: serde_json::to_string(record).unwrap_or_default() }
    }
}

fn millis(t: Timestamp) -> i64 {
    t.as_millisecond()
}

fn instant(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

/// Moves the cursor forward; answers where it is if it is there already.
fn advance(conn: &Connection, job: &Name, slot: Timestamp) -> Result<Option<Timestamp>> {
    let moved = conn
        .prepare_cached(
            "INSERT INTO cursor (job, slot) VALUES (?1, ?2)
             ON CONFLICT (job) DO UPDATE SET slot = excluded.slot
             WHERE excluded.slot > cursor.slot",
        )?
        .execute(params![job.as_str(), millis(slot)])?;
    if moved > 0 {
        return Ok(None);
    }
    conn.prepare_cached("SELECT slot FROM cursor WHERE job = ?1")?
        .query_row([job.as_str()], |r| r.get(0).map(|ms| Some(instant(ms))))
}

/// Remembers a run id; answers whether it was new.
fn remember(cx: &mut Context, run_id: RunId) -> Result<bool> {
    let now = Timestamp::now();
    let new = cx
        .conn
        .prepare_cached("INSERT OR IGNORE INTO seen (run_id, at) VALUES (?1, ?2)")?
        .execute(params![run_id.0.as_bytes(), millis(now)])?;
    if new == 0 {
        return Ok(false);
    }
    let id = cx.conn.last_insert_rowid();
    if id % PRUNE_EVERY == 0 {
        cx.conn.prepare_cached("DELETE FROM seen WHERE id <= ?1")?.execute([id - cx.seen_limit])?;
        // Ids rise with time, so the old ones stand at the front.
        cx.conn
            .prepare_cached(
                "DELETE FROM seen WHERE at < ?1
                 AND id IN (SELECT id FROM seen ORDER BY id LIMIT ?2)",
            )?
            .execute(params![millis(now - SEEN_FOR), PRUNE_EVERY * 2])?;
    }
    Ok(true)
}

/// See [`State::begin_run`](super::State::begin_run).
pub(super) fn begin(
    cx: &mut Context,
    entry: &Entry,
    cursor: Option<&(Name, Timestamp)>,
) -> Result<Begin> {
    let id = entry.run_id.0.as_bytes();
    let known = cx
        .conn
        .prepare_cached(
            "SELECT 1 FROM seen WHERE run_id = ?1 UNION ALL
             SELECT 1 FROM journal WHERE run_id = ?1 LIMIT 1",
        )?
        .exists([id])?;
    if known {
        return Ok(Begin::KnownRun);
    }
    if let Some((job, slot)) = cursor
        && let Some(cursor) = advance(&cx.conn, job, *slot)?
    {
        return Ok(Begin::SlotTaken { cursor });
    }
    cx.conn
        .prepare_cached("INSERT INTO journal (run_id, record) VALUES (?1, ?2)")?
        .execute(params![id, entry.json])?;
    remember(cx, entry.run_id)?;
    Ok(Begin::New)
}

/// See [`State::started`](super::State::started).
pub(super) fn started(cx: &Context, run_id: RunId, pid: u32, start: u64) -> Result<()> {
    cx.conn
        .prepare_cached("UPDATE journal SET pid = ?2, pid_start = ?3 WHERE run_id = ?1")?
        .execute(params![run_id.0.as_bytes(), pid, start.cast_signed()])
        .map(drop)
}

/// See [`State::end_run`](super::State::end_run).
pub(super) fn end(cx: &mut Context, record: &RunRecord) -> Result<u64> {
    let run_id = record.run_id;
    cx.conn
        .prepare_cached("DELETE FROM journal WHERE run_id = ?1")?
        .execute([run_id.0.as_bytes()])?;
    remember(cx, run_id)?;
    let refused = cx.refused.remove(&run_id).unwrap_or(0);
    let row = match refused {
        0 => Row::record(record),
        n => Row::record(&RunRecord { dropped_bytes: record.dropped_bytes + n, ..record.clone() }),
    };
    spool::push(cx, &row)?;
    Ok(refused)
}

/// The record of a run that was decided against, as the spool takes it.
#[derive(Debug)]
pub(super) struct Note {
    row: Row,
    /// Present where the same run may be decided on again in a later life: it was
    /// claimed, or asked for by a key in etcd. It is recorded once.
    once: Option<RunId>,
}

impl Note {
    pub(super) fn new(record: &RunRecord) -> Self {
        let again = record.fence.is_some() || record.cause == Cause::Trigger;
        Self { row: Row::record(record), once: again.then_some(record.run_id) }
    }
}

/// See [`State::note_runs`](super::State::note_runs).
pub(super) fn note(
    cx: &mut Context,
    notes: &[Note],
    cursor: Option<&(Name, Timestamp)>,
) -> Result<Begin> {
    if let Some((job, slot)) = cursor
        && let Some(cursor) = advance(&cx.conn, job, *slot)?
    {
        return Ok(Begin::SlotTaken { cursor });
    }
    for note in notes {
        if note.once.map_or(Ok(true), |run_id| remember(cx, run_id))? {
            spool::push(cx, &note.row)?;
        }
    }
    Ok(Begin::New)
}

/// All open runs, oldest id first. Records that cannot be read are left out and logged.
pub(super) fn open_runs(conn: &Connection) -> Result<Vec<OpenRun>> {
    let mut statement =
        conn.prepare("SELECT run_id, record, pid, pid_start FROM journal ORDER BY run_id")?;
    let mut rows = statement.query([])?;
    let mut runs = Vec::new();
    while let Some(row) = rows.next()? {
        let json: String = row.get(1)?;
        let pid: Option<u32> = row.get(2)?;
        let start: Option<i64> = row.get(3)?;
        match serde_json::from_str(&json) {
            Ok(record) => {
                runs.push(OpenRun { record, process: pid.zip(start.map(i64::cast_unsigned)) })
            }
            Err(error) => {
                tracing::error!(%error, record = json, "an entry of the journal cannot be read");
            }
        }
    }
    Ok(runs)
}

/// Every job's cursor.
pub(super) fn cursors(conn: &Connection) -> Result<BTreeMap<Name, Timestamp>> {
    let mut statement = conn.prepare("SELECT job, slot FROM cursor")?;
    let rows = statement.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get(1)?)))?;
    rows.filter_map(|row| match row {
        Ok((job, slot)) => Name::new(&job).ok().map(|job| Ok((job, instant(slot)))),
        Err(e) => Some(Err(e)),
    })
    .collect()
}

/// One job's cursor.
pub(super) fn cursor(conn: &Connection, job: &Name) -> Result<Option<Timestamp>> {
    conn.prepare_cached("SELECT slot FROM cursor WHERE job = ?1")?
        .query_row([job.as_str()], |r| r.get(0).map(instant))
        .optional()
}

/// Removes a job's cursor.
pub(super) fn forget(conn: &Connection, job: &Name) -> Result<()> {
    conn.prepare_cached("DELETE FROM cursor WHERE job = ?1")?.execute([job.as_str()]).map(drop)
}
