//! The writer: a thread of its own that commits waiting batches together.

use super::{audit, error::Context, migrate, sweep, tasks};
use crate::{
    LogItem, Retention, StoreError, Swept, items, names, query::bytes_of, tasks::Row as TaskRow,
};
use jiff::Timestamp;
use meepo_core::audit::AuditRecord;
use meepo_core::run::{OutputChunk, RunRecord, to_millis};
use rusqlite::{Connection, Statement, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

/// Bytes after which a commit takes no further batches.
const COMMIT_BYTES: usize = 16 * 1024 * 1024;
/// Batches after which a commit takes no further ones.
const COMMIT_BATCHES: usize = 64;

/// What the writer is asked to do. It answers each job once.
pub(super) enum Job {
    Append { batch: Vec<LogItem>, reply: Reply<()> },
    Tasks { rows: Vec<TaskRow>, reply: Reply<()> },
    Sweep { retention: Retention, now: Timestamp, reply: Reply<Swept> },
    Audit { records: Vec<AuditRecord>, reply: Reply<()> },
    Migrate { reply: Reply<Vec<String>> },
    Ping { reply: Reply<()> },
}

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;
type Batch = (Vec<LogItem>, Reply<()>);

/// Serves jobs until nobody can send any more. That an asker is gone (its future was
/// dropped) is no concern of the writer, so replies that cannot be sent are ignored.
pub(super) fn run(mut conn: Connection, mut jobs: mpsc::Receiver<Job>, ctx: &Context) {
    let mut held = None;
    while let Some(job) = held.take().or_else(|| jobs.blocking_recv()) {
        match job {
            Job::Append { batch, reply } => {
                let mut batches = vec![(batch, reply)];
                held = gather(&mut jobs, &mut batches);
                commit(&mut conn, batches, ctx);
            }
            Job::Tasks { rows, reply } => {
                let done = tasks::put(&mut conn, &rows).map_err(|e| ctx.error("keep tasks", e));
                let _ = reply.send(done);
            }
            Job::Sweep { retention, now, reply } => {
                let done = sweep::step(&mut conn, &retention, now);
                let _ = reply.send(done.map_err(|e| ctx.error("sweep", e)));
            }
            Job::Audit { records, reply } => {
                let done = audit::append(&mut conn, &records);
                let _ = reply.send(done.map_err(|e| ctx.error("append audit", e)));
            }
            Job::Migrate { reply } => {
                let done = migrate::migrate(&mut conn).map_err(|e| ctx.error("migrate", e));
                let _ = reply.send(done);
            }
            Job::Ping { reply } => {
                let done = conn.execute_batch("SELECT 1").map_err(|e| ctx.error("ping", e));
                let _ = reply.send(done);
            }
        }
    }
}

/// Takes the batches that wait already, and the first job that is none.
fn gather(jobs: &mut mpsc::Receiver<Job>, batches: &mut Vec<Batch>) -> Option<Job> {
    let weigh = |b: &[LogItem]| b.iter().map(LogItem::weight).sum::<usize>();
    let mut bytes: usize = batches.iter().map(|(b, _)| weigh(b)).sum();
    while batches.len() < COMMIT_BATCHES && bytes < COMMIT_BYTES {
        match jobs.try_recv() {
            Ok(Job::Append { batch, reply }) => {
                bytes += weigh(&batch);
                batches.push((batch, reply));
            }
            Ok(other) => return Some(other),
            Err(_) => return None,
        }
    }
    None
}

/// Commits all batches in one transaction. If that fails for what one of them holds,
/// each gets a transaction of its own, so that a bad batch does not fail the others.
fn commit(conn: &mut Connection, mut batches: Vec<Batch>, ctx: &Context) {
    let mut write = |batches: &[Batch]| {
        store(conn, batches.iter().flat_map(|(b, _)| b)).map_err(|e| ctx.error("append", e))
    };
    let done = write(&batches);
    if batches.len() == 1
        && let Some((_, reply)) = batches.pop()
    {
        let _ = reply.send(done);
        return;
    }
    match done {
        Ok(()) => {
            for (_, reply) in batches {
                let _ = reply.send(Ok(()));
            }
        }
        // Busy or full: it would be so for each of them, after as long a wait.
        Err(e) if e.retryable() => {
            let why = e.chain();
            for (_, reply) in batches {
                let _ = reply.send(Err(ctx.unavailable("append", why.clone())));
            }
        }
        Err(_) => {
            for one in batches {
                let done = write(std::slice::from_ref(&one));
                let _ = one.1.send(done);
            }
        }
    }
}

fn store<'a>(
    conn: &mut Connection,
    items: impl Iterator<Item = &'a LogItem>,
) -> rusqlite::Result<()> {
    // Immediate: waits for another process here, where waiting works, and not halfway.
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    insert(&tx, items)?;
    tx.commit()
}

fn insert<'a>(
    tx: &Transaction<'_>,
    items: impl Iterator<Item = &'a LogItem>,
) -> rusqlite::Result<()> {
    let mut run = tx.prepare_cached(
        "INSERT INTO runs (run_id, job, node, slot, state, cause, rank, doc, code, took, ended, user)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         ON CONFLICT (run_id) DO UPDATE SET
             job = excluded.job, node = excluded.node, slot = excluded.slot,
             state = excluded.state, cause = excluded.cause, rank = excluded.rank,
             doc = excluded.doc, code = excluded.code, took = excluded.took,
             ended = excluded.ended, user = excluded.user
         WHERE excluded.rank > runs.rank",
    )?;
    let mut chunk = tx.prepare_cached(
        "INSERT INTO output (run_id, seq, stream, at, data) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (run_id, seq) DO NOTHING",
    )?;
    for item in items {
        match item {
            LogItem::Run(r) => insert_run(&mut run, &items::normalised(r))?,
            LogItem::Output(c) => insert_chunk(&mut chunk, c)?,
        }
    }
    Ok(())
}

fn insert_run(stmt: &mut Statement<'_>, r: &RunRecord) -> rusqlite::Result<()> {
    let doc = serde_json::to_string(r)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    stmt.execute(params![
        bytes_of(r.run_id),
        r.job.as_ref().map(|j| j.as_str()),
        r.node.as_str(),
        items::millis(r.slot),
        r.state.as_str(),
        names::cause(r.cause),
        r.state.rank(),
        doc,
        r.code.0,
        r.took_ms(),
        r.ended_at.map(items::millis),
        r.user,
    ])?;
    Ok(())
}

fn insert_chunk(stmt: &mut Statement<'_>, c: &OutputChunk) -> rusqlite::Result<()> {
    // `items::check` has refused what does not fit.
    let seq = i64::try_from(c.seq).unwrap_or(i64::MAX);
    stmt.execute(params![
        bytes_of(c.run_id),
        seq,
        names::stream(c.stream),
        items::millis(to_millis(c.at)),
        c.data,
    ])?;
    Ok(())
}
