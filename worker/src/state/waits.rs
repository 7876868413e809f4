//! Attempts that were promised and wait for their time.

use super::{
    State, StateError,
    cursor::{instant, millis},
    engine::Context,
};
use jiff::Timestamp;
use meepo_core::id::RunId;
use rusqlite::{Connection, Result, params};

/// What was promised when a run ended: a further attempt, which is there, over any crash,
/// until that run begins, is recorded as not run, or is removed. Or that etcd is told how
/// the part of a task has ended; then `run_id` is the run that has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitEntry {
    /// The run it will be.
    pub run_id: RunId,
    /// When it is to start, millisecond precision.
    pub due: Timestamp,
    /// Whatever is needed to start it, as the one who promises it writes it.
    pub plan: String,
}

impl State {
    /// Every attempt that waits, the first due first; for the start of the worker.
    pub async fn waits(&self) -> Result<Vec<WaitEntry>, StateError> {
        self.call(|cx| all(cx.conn)).await
    }

    /// Gives up an attempt that waits, without a record. Does nothing if it is not there.
    pub async fn remove_wait(&self, run_id: RunId) -> Result<(), StateError> {
        self.call(move |cx| remove(cx, run_id)).await
    }
}

pub(super) fn put(cx: &mut Context, wait: &WaitEntry) -> Result<()> {
    cx.has_waits = true;
    cx.conn
        .prepare_cached("INSERT OR REPLACE INTO waits (run_id, due, plan) VALUES (?1, ?2, ?3)")?
        .execute(params![wait.run_id.0.as_bytes(), millis(wait.due), wait.plan])
        .map(drop)
}

pub(super) fn remove(cx: &Context, run_id: RunId) -> Result<()> {
    if !cx.has_waits {
        return Ok(());
    }
    cx.conn
        .prepare_cached("DELETE FROM waits WHERE run_id = ?1")?
        .execute([run_id.0.as_bytes()])
        .map(drop)
}

/// Whether any attempt waits.
pub(super) fn any(conn: &Connection) -> Result<bool> {
    conn.prepare("SELECT 1 FROM waits LIMIT 1")?.exists([])
}

fn all(conn: &Connection) -> Result<Vec<WaitEntry>> {
    let mut statement = conn.prepare("SELECT run_id, due, plan FROM waits ORDER BY due, run_id")?;
    let rows = statement.query_map([], |r| {
        let run_id = RunId(uuid::Uuid::from_bytes(r.get(0)?));
        Ok(WaitEntry { run_id, due: instant(r.get(1)?), plan: r.get(2)? })
    })?;
    rows.collect()
}
