//! What has happened to the runs of each job, as etcd is to know it. A change is durable
//! together with the end of the run that made it, and is told until etcd has it.

use super::{State, StateError, cursor::millis, engine::Context};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    id::Name,
    notify::{Kind, Outcome, Tally},
};
use rusqlite::{Connection, OptionalExtension, Result, params};
use std::{collections::HashSet, sync::Arc};
use tokio::sync::Notify;
use uuid::Uuid;

/// Jobs that are remembered, at most; those that changed last stay.
const MOST: i64 = 20_000;
/// How long a job is remembered to which nothing happens.
const KEPT: SignedDuration = SignedDuration::from_hours(90 * 24);

/// A tally that etcd does not know yet.
#[derive(Debug, Clone, PartialEq)]
pub struct DueTally {
    /// The job.
    pub job: Name,
    /// How far it goes.
    pub seq: u64,
    /// The tally as JSON.
    pub tally: String,
}

/// What the thread remembers of them.
#[derive(Debug)]
pub(super) struct Tallies {
    /// Jobs whose last run failed, and perhaps some whose did not.
    failing: HashSet<Name>,
    /// Raised when there is something to tell.
    changed: Arc<Notify>,
}

impl Tallies {
    /// Reads what is there, without what is too old.
    pub(super) fn open(conn: &Connection, changed: Arc<Notify>) -> Result<Self> {
        let old = millis(Timestamp::now() - KEPT);
        conn.execute("DELETE FROM tallies WHERE at < ?1", [old])?;
        conn.execute(
            "DELETE FROM tallies WHERE job NOT IN
             (SELECT job FROM tallies ORDER BY at DESC LIMIT ?1)",
            [MOST],
        )?;
        let mut statement = conn.prepare("SELECT job, tally FROM tallies")?;
        let mut rows = statement.query([])?;
        let mut failing = HashSet::new();
        while let Some(row) = rows.next()? {
            let (job, tally): (String, String) = (row.get(0)?, row.get(1)?);
            let failed = read(&tally).is_some_and(|t| t.failing);
            if let (true, Ok(job)) = (failed, Name::new(&job)) {
                failing.insert(job);
            }
        }
        Ok(Self { failing, changed })
    }
}

fn read(tally: &str) -> Option<Tally> {
    serde_json::from_str(tally).ok()
}

/// Takes in what happened to a run of `job`.
pub(super) fn note(cx: &mut Context, job: &Name, outcome: &Outcome) -> Result<()> {
    let success = outcome.kind() == Kind::Recovery;
    let known = cx.tallies.failing.contains(job);
    if success && !known && !outcome.heeded() {
        return Ok(());
    }
    let there: Option<String> = cx
        .conn
        .prepare_cached("SELECT tally FROM tallies WHERE job = ?1")?
        .query_row([job.as_str()], |r| r.get(0))
        .optional()?;
    let mut tally = there.as_deref().and_then(read).unwrap_or_else(|| Tally::new(Uuid::now_v7()));
    if success && known && !tally.failing {
        // Only now: what was written before it is surely durable.
        cx.tallies.failing.remove(job);
    }
    if !tally.note(outcome) {
        return Ok(());
    }
    if tally.failing {
        cx.tallies.failing.insert(job.clone());
    }
    // A tally has only string keys and no failing `Serialize`.
    let text = serde_json::to_string(&tally).unwrap_or_default();
    cx.conn
        .prepare_cached(
            "INSERT INTO tallies (job, seq, at, tally) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (job) DO UPDATE SET seq = excluded.seq, at = excluded.at,
             tally = excluded.tally",
        )?
        .execute(params![job.as_str(), tally.seq.cast_signed(), millis(Timestamp::now()), text])?;
    // Whoever wakes up asks this thread, and so after the transaction.
    cx.tallies.changed.notify_one();
    Ok(())
}

impl State {
    /// Takes in that something happened to a run of `job`, and waits until it is durable.
    pub async fn note_outcome(&self, job: Name, outcome: Outcome) -> Result<(), StateError> {
        self.call(move |cx| note(cx, &job, &outcome)).await
    }

    /// Tallies that etcd does not know yet, up to `limit`.
    pub async fn due_tallies(&self, limit: usize) -> Result<Vec<DueTally>, StateError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.call(move |cx| {
            let mut statement = cx.conn.prepare_cached(
                "SELECT job, seq, tally FROM tallies WHERE seq > told ORDER BY job LIMIT ?1",
            )?;
            let rows = statement.query_map([limit], |r| {
                Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?, r.get(2)?))
            })?;
            let mut due = Vec::new();
            for row in rows {
                let (job, seq, tally) = row?;
                if let Ok(job) = Name::new(&job) {
                    due.push(DueTally { job, seq: seq.cast_unsigned(), tally });
                }
            }
            Ok(due)
        })
        .await
    }

    /// etcd knows these.
    pub async fn told(&self, tallies: Vec<(Name, u64)>) -> Result<(), StateError> {
        self.call(move |cx| {
            for (job, seq) in &tallies {
                cx.conn
                    .prepare_cached("UPDATE tallies SET told = ?2 WHERE job = ?1")?
                    .execute(params![job.as_str(), seq.cast_signed()])?;
            }
            Ok(())
        })
        .await
    }

    /// Waits until there may be something that etcd does not know. One waits.
    pub async fn tallies_changed(&self) {
        self.tallies.notified().await;
    }
}
