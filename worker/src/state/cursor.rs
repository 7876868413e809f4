//! How far each job is: the last slot dealt with, and how many scheduled runs began.

use super::{State, StateError, engine::Context};
use jiff::Timestamp;
use meepo_core::id::Name;
use rusqlite::{Connection, OptionalExtension, Result, Row, params};
use std::collections::BTreeMap;

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Its last slot that was started or given up.
    pub slot: Timestamp,
    /// Scheduled runs that began and were guarded by this cursor; slots that were given
    /// up and runs that somebody asked for do not count. Lasts until the job is forgotten.
    pub runs: u64,
}

impl State {
    /// Every job's cursor.
    pub async fn cursors(&self) -> Result<BTreeMap<Name, Cursor>, StateError> {
        self.call(|cx| all(cx.conn)).await
    }

    /// The cursor of `job`.
    pub async fn cursor(&self, job: Name) -> Result<Option<Cursor>, StateError> {
        self.call(move |cx| one(cx.conn, &job)).await
    }

    /// Sends an order to set slots of jobs, be it back, and keep their counts of runs: for
    /// schedules that start anew. A failure to write is logged. Errors: the state is
    /// closed.
    pub async fn restart_cursors_later(
        &self,
        jobs: Vec<(Name, Timestamp)>,
    ) -> Result<(), StateError> {
        self.later(move |cx| jobs.iter().try_for_each(|(job, at)| restart(cx.conn, job, *at))).await
    }

    /// Removes the cursor of a job that is gone, with its count of runs, at `now`.
    pub async fn forget_job(&self, job: Name, now: Timestamp) -> Result<(), StateError> {
        self.call(move |cx| forget(cx.conn, &job, now)).await
    }

    /// Sends [`State::forget_job`]; as [`State::note_runs_later`].
    pub async fn forget_job_later(&self, job: Name, now: Timestamp) -> Result<(), StateError> {
        self.later(move |cx| forget(cx.conn, &job, now)).await
    }

    /// When a cursor was last removed, or else the file made: a job without a cursor has had
    /// no slot here since then.
    pub async fn forgotten_at(&self) -> Result<Timestamp, StateError> {
        self.call(|cx| cx.conn.query_row("SELECT at FROM forgotten", [], |r| r.get(0).map(instant)))
            .await
    }
}

pub(super) fn millis(t: Timestamp) -> i64 {
    t.as_millisecond()
}

pub(super) fn instant(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

/// Moves a cursor forward and counts runs.
pub(super) const ADVANCE: &str = "INSERT INTO cursor (job, slot, runs) VALUES (?1, ?2, ?3)
    ON CONFLICT (job) DO UPDATE SET slot = excluded.slot, runs = runs + excluded.runs
    WHERE excluded.slot > cursor.slot";

/// Moves the cursor forward and counts `runs` that begin with it; answers where it is
/// if it is there already.
pub(super) fn advance(
    cx: &mut Context,
    job: &Name,
    slot: Timestamp,
    runs: u32,
) -> Result<Option<Timestamp>> {
    let advance = cx.hot.advance.on(cx.conn)?;
    if advance.execute(params![job.as_str(), millis(slot), runs])? > 0 {
        return Ok(None);
    }
    Ok(one(cx.conn, job)?.map(|c| c.slot))
}

fn restart(conn: &Connection, job: &Name, slot: Timestamp) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO cursor (job, slot) VALUES (?1, ?2)
         ON CONFLICT (job) DO UPDATE SET slot = excluded.slot",
    )?
    .execute(params![job.as_str(), millis(slot)])
    .map(drop)
}

fn forget(conn: &Connection, job: &Name, now: Timestamp) -> Result<()> {
    let gone = conn.prepare_cached("DELETE FROM cursor WHERE job = ?1")?.execute([job.as_str()])?;
    if gone > 0 {
        conn.prepare_cached("UPDATE forgotten SET at = ?1")?.execute([millis(now)])?;
    }
    Ok(())
}

fn one(conn: &Connection, job: &Name) -> Result<Option<Cursor>> {
    conn.prepare_cached("SELECT slot, runs FROM cursor WHERE job = ?1")?
        .query_row([job.as_str()], |r| cursor(r, 0))
        .optional()
}

fn all(conn: &Connection) -> Result<BTreeMap<Name, Cursor>> {
    let mut statement = conn.prepare("SELECT job, slot, runs FROM cursor")?;
    let rows = statement.query_map([], |r| Ok((r.get::<_, String>(0)?, cursor(r, 1)?)))?;
    rows.filter_map(|row| match row {
        Ok((job, cursor)) => Name::new(&job).ok().map(|job| Ok((job, cursor))),
        Err(e) => Some(Err(e)),
    })
    .collect()
}

fn cursor(row: &Row<'_>, at: usize) -> Result<Cursor> {
    let runs: i64 = row.get(at + 1)?;
    Ok(Cursor { slot: instant(row.get(at)?), runs: runs.cast_unsigned() })
}
