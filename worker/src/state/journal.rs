//! Runs that are under way, and runs seen lately.

use super::{
    cursor::{self, millis},
    engine::Context,
    lanes, room,
    spool::{self, Row, WHOLE},
    tallies,
    waits::{self, WaitEntry},
};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    id::{Name, RunId},
    notify::Outcome,
    run::{Cause, OutputChunk, RunRecord, RunState},
};
use rusqlite::{Connection, Result, params};
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a run id is remembered.
const SEEN_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Old run ids are looked for each time that many have been added.
const PRUNE_EVERY: i64 = 256;

/// Ids in [`Latest`], at most: more runs than are under way at a time.
const LATEST: usize = 2048;

/// How long an id stays there: far less than it is remembered.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// Enters a run.
pub(super) const ENTER: &str = "INSERT OR IGNORE INTO journal (run_id, record) VALUES (?1, ?2)";
/// Takes it out.
pub(super) const CLOSE: &str = "DELETE FROM journal WHERE run_id = ?1";
/// Remembers its id.
pub(super) const REMEMBER: &str = "INSERT OR IGNORE INTO seen (run_id, at) VALUES (?1, ?2)";

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
    run_id: RunId,
    again: bool,
    json: String,
}

impl Entry {
    pub(super) fn new(record: &RunRecord) -> Self {
        let json = String::from_utf8(spool::json(record)).unwrap_or_default();
        Self { run_id: record.run_id, again: may_come_again(record), json }
    }
}

/// The run ids that were remembered last: they are there for long, and need not be looked up.
#[derive(Debug, Default)]
pub(super) struct Latest {
    ids: HashSet<RunId>,
    /// In their order, with the time.
    order: VecDeque<(RunId, Instant)>,
}

impl Latest {
    fn add(&mut self, run_id: RunId, seen_limit: i64) {
        self.order.push_back((run_id, Instant::now()));
        self.ids.insert(run_id);
        let most = usize::try_from(seen_limit / 2).unwrap_or(0).min(LATEST);
        while self.order.len() > most
            && let Some((oldest, _)) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    fn holds(&mut self, run_id: RunId) -> bool {
        while let Some((oldest, _)) = self.order.front().filter(|(_, at)| at.elapsed() > FRESH) {
            self.ids.remove(oldest);
            self.order.pop_front();
        }
        self.ids.contains(&run_id)
    }
}

/// Remembers a run id; answers whether it was new.
fn remember(cx: &mut Context, run_id: RunId) -> Result<bool> {
    let now = Timestamp::now();
    let new = cx.hot.remember.on(cx.conn)?.execute(params![run_id.0.as_bytes(), millis(now)])?;
    if new == 0 {
        return Ok(false);
    }
    cx.latest.add(run_id, cx.seen_limit);
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

/// See [`State::seen`](super::State::seen).
pub(super) fn seen(conn: &Connection, ids: &[RunId]) -> Result<HashSet<RunId>> {
    let mut find = conn.prepare_cached("SELECT 1 FROM seen WHERE run_id = ?1")?;
    let mut found = HashSet::new();
    for id in ids {
        if find.exists([id.0.as_bytes()])? {
            found.insert(*id);
        }
    }
    Ok(found)
}

/// Whether the same run may be decided on again in a later life: it was claimed, or
/// somebody asked for it. Its id must be remembered. Others are guarded by the cursor of
/// their job or by their wait, which change together with the journal.
fn may_come_again(record: &RunRecord) -> bool {
    record.fence.is_some()
        || !matches!(record.cause, Cause::Schedule | Cause::Misfire | Cause::Reboot)
}

/// See [`State::begin_run`](super::State::begin_run).
pub(super) fn begin(
    cx: &mut Context,
    entry: &Entry,
    cursor: Option<&(Name, Timestamp)>,
) -> Result<Begin> {
    let new = cx.hot.enter.on(cx.conn)?.execute(params![entry.run_id.0.as_bytes(), entry.json])?;
    if new == 0 {
        return Ok(Begin::KnownRun);
    }
    if entry.again && !remember(cx, entry.run_id)? {
        close(cx, entry.run_id)?;
        return Ok(Begin::KnownRun);
    }
    if let Some((job, slot)) = cursor
        && let Some(cursor) = cursor::advance(cx, job, *slot, 1)?
    {
        close(cx, entry.run_id)?;
        return Ok(Begin::SlotTaken { cursor });
    }
    waits::remove(cx, entry.run_id)?;
    Ok(Begin::New)
}

/// Takes a run out of the journal.
fn close(cx: &mut Context, run_id: RunId) -> Result<()> {
    cx.hot.close.on(cx.conn)?.execute([run_id.0.as_bytes()]).map(drop)
}

/// See [`State::started`](super::State::started).
pub(super) fn started(cx: &Context, run_id: RunId, pid: u32, start: u64) -> Result<()> {
    cx.conn
        .prepare_cached("UPDATE journal SET pid = ?2, pid_start = ?3 WHERE run_id = ?1")?
        .execute(params![run_id.0.as_bytes(), pid, start.cast_signed()])
        .map(drop)
}

/// The end of a run, as it is written.
#[derive(Debug)]
pub(super) struct End {
    run_id: RunId,
    again: bool,
    /// The record, with what is left of the output.
    row: Row,
    next: Option<WaitEntry>,
    outcome: Option<(Name, Outcome)>,
}

impl End {
    pub(super) fn new(
        record: &RunRecord,
        output: &[Arc<OutputChunk>],
        next: Option<&WaitEntry>,
        outcome: Option<&Outcome>,
    ) -> Self {
        Self {
            run_id: record.run_id,
            again: may_come_again(record),
            row: Row::whole(record, output),
            next: next.cloned(),
            outcome: record.job.clone().zip(outcome.cloned()),
        }
    }
}

/// See [`State::end_run_with`](super::State::end_run_with).
pub(super) fn end(cx: &mut Context, end: &End) -> Result<u64> {
    close(cx, end.run_id)?;
    if end.again && !cx.latest.holds(end.run_id) {
        // Once more: a long run may have outlived the memory of its beginning.
        remember(cx, end.run_id)?;
    }
    let mut row = &end.row;
    let alone;
    if row.kind == WHOLE
        && !room::fits(cx, row)?
        && let Some((record, output)) = Row::parts(row.kind, &row.payload)
    {
        // As much of it as there is room for.
        output.iter().try_for_each(|chunk| lanes::push(cx, &Row::chunk(chunk)))?;
        alone = Row::record(&record);
        row = &alone;
    }
    let dropped = match cx.meter.told_of {
        true => room::dropped(cx.conn, end.run_id)?,
        false => 0,
    };
    match dropped {
        0 => lanes::push(cx, row)?,
        n => {
            room::forget(cx, end.run_id)?;
            lanes::push(cx, &row.with_dropped(n))?;
        }
    }
    end.next.as_ref().map_or(Ok(()), |wait| waits::put(cx, wait))?;
    if let Some((job, outcome)) = &end.outcome {
        tallies::note(cx, job, outcome)?;
    }
    Ok(dropped)
}

/// The record of a run that was decided against, as the spool takes it.
#[derive(Debug)]
pub(super) struct Note {
    row: Row,
    run_id: RunId,
    /// See [`may_come_again`]: it is recorded once.
    again: bool,
    outcome: Option<(Name, Outcome)>,
}

impl Note {
    pub(super) fn new(record: &RunRecord) -> Self {
        let row = Row::record(record);
        let outcome = record.job.clone().zip(Outcome::of(record, true, false, None));
        // A slot that passed is come to again when the worker dies before its cursor moves.
        let passed = matches!(record.state, RunState::Missed | RunState::Skipped);
        Self { row, run_id: record.run_id, again: passed || may_come_again(record), outcome }
    }
}

/// See [`State::note_runs`](super::State::note_runs).
pub(super) fn note(
    cx: &mut Context,
    notes: &[Note],
    cursor: Option<&(Name, Timestamp)>,
) -> Result<Begin> {
    if let Some((job, slot)) = cursor
        && let Some(cursor) = cursor::advance(cx, job, *slot, 0)?
    {
        return Ok(Begin::SlotTaken { cursor });
    }
    for note in notes {
        waits::remove(cx, note.run_id)?;
        if !note.again || remember(cx, note.run_id)? {
            lanes::push(cx, &note.row)?;
            if let Some((job, outcome)) = &note.outcome {
                tallies::note(cx, job, outcome)?;
            }
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
