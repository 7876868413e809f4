//! The store in one SQLite file, for one server or a laptop.
//!
//! One thread owns the connection that writes: it gathers the batches that wait and
//! commits them together, so that many callers share one sync to disk. Reads run on
//! tokio's blocking threads over at most [`READERS`] connections of their own, which
//! the write-ahead log lets work beside the writer. Several processes may share the
//! file; they wait for each other up to [`BUSY_WAIT`].

mod audit;
mod error;
mod migrate;
mod read;
mod sweep;
mod tally;
mod tasks;
mod write;

#[cfg(test)]
mod tests;

use crate::{
    AuditPage, AuditQuery, LogItem, LogStore, Observer, Retention, RunPage, RunQuery, StoreError,
    Swept, TallyRow, TaskQuery, items, query, tasks::Row as TaskRow,
};
use async_trait::async_trait;
use error::Context;
use jiff::Timestamp;
use meepo_core::{
    audit::AuditRecord,
    id::{Name, RunId},
    run::{OutputChunk, RunRecord},
    task::{TaskId, TaskView},
};
use read::Readers;
use rusqlite::{Connection, OpenFlags};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};
use write::Job;

pub use migrate::STEPS;

/// Connections that read at once.
pub const READERS: usize = 4;
/// How long one process waits for another that writes.
pub const BUSY_WAIT: Duration = Duration::from_secs(10);
/// Callers that may wait for the writer before more are held back.
const QUEUE: usize = 256;

/// A [`LogStore`] in a SQLite file.
pub struct SqliteStore {
    context: Context,
    writer: mpsc::Sender<Job>,
    readers: Arc<Readers>,
    observer: Observer,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SqliteStore").field(&self.context.name()).finish()
    }
}

impl SqliteStore {
    /// Opens the file, creating it (readable by its owner alone) if it is not there.
    ///
    /// # Errors
    /// Whatever keeps the file from being opened, e.g. a directory that is not there.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::observed(path, Arc::new(|_, _, _| {})).await
    }

    /// [`Self::open`], with somebody who is told of every call.
    pub(crate) async fn observed(path: &Path, observer: Observer) -> Result<Self, StoreError> {
        let context = Context::new(path);
        let (path, ctx) = (path.to_owned(), context.clone());
        let conn = blocking(&context, "open", move || {
            create_private(&path).map_err(|e| ctx.io("open", e))?;
            connect(&path, Access::Write).map_err(|e| ctx.error("open", e))
        })
        .await?;
        let (writer, jobs) = mpsc::channel(QUEUE);
        let ctx = context.clone();
        // The thread ends when the last sender is gone.
        std::thread::Builder::new()
            .name("logstore-writer".into())
            .spawn(move || write::run(conn, jobs, &ctx))
            .map_err(|e| context.io("open", e))?;
        let readers = Arc::new(Readers::new(context.clone(), observer.clone()));
        Ok(Self { context, writer, readers, observer })
    }

    /// Hands a job to the writer and waits for its answer.
    async fn ask<T>(
        &self,
        op: &'static str,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || self.context.writer_gone(op);
        let begun = Instant::now();
        self.writer.send(job(reply)).await.map_err(|_| gone())?;
        let done = answer.await.map_err(|_| gone())?;
        (self.observer)(op, begun.elapsed(), done.is_ok());
        done
    }
}

#[async_trait]
impl LogStore for SqliteStore {
    async fn append(&self, batch: &[LogItem]) -> Result<(), StoreError> {
        items::check(batch)?;
        if batch.is_empty() {
            return Ok(());
        }
        let batch = batch.to_vec();
        self.ask("append", |reply| Job::Append { batch, reply }).await
    }

    async fn get_run(&self, run_id: RunId) -> Result<Option<RunRecord>, StoreError> {
        self.readers.with("get run", move |c, ctx| read::get_run(c, ctx, run_id)).await
    }

    async fn list_runs(&self, query: &RunQuery) -> Result<RunPage, StoreError> {
        let from = query.position()?;
        let query = query.clone();
        self.readers.with("list runs", move |c, ctx| read::list_runs(c, ctx, &query, from)).await
    }

    async fn output(
        &self,
        run_id: RunId,
        after_seq: Option<u64>,
        limit_chunks: usize,
    ) -> Result<Vec<OutputChunk>, StoreError> {
        let limit = query::chunk_limit(limit_chunks);
        self.readers
            .with("read output", move |c, ctx| read::output(c, ctx, run_id, after_seq, limit))
            .await
    }

    async fn last_runs(&self, jobs: &[Name]) -> Result<BTreeMap<Name, RunRecord>, StoreError> {
        let jobs = jobs.to_vec();
        self.readers.with("last runs", move |c, ctx| read::last_runs(c, ctx, &jobs)).await
    }

    async fn tally(
        &self,
        job: &Name,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Vec<TallyRow>, StoreError> {
        let job = job.clone();
        self.readers.with("tally", move |c, ctx| tally::tally(c, ctx, &job, since, until)).await
    }

    async fn sweep(&self, retention: &Retention, now: Timestamp) -> Result<Swept, StoreError> {
        let retention = *retention;
        self.ask("sweep", |reply| Job::Sweep { retention, now, reply }).await
    }

    async fn put_tasks(&self, tasks: &[TaskView]) -> Result<(), StoreError> {
        let rows = tasks.iter().map(TaskRow::new).collect::<Result<Vec<_>, _>>()?;
        self.ask("keep tasks", |reply| Job::Tasks { rows, reply }).await
    }

    async fn get_task(&self, id: TaskId) -> Result<Option<TaskView>, StoreError> {
        self.readers.with("get task", move |c, ctx| tasks::get(c, ctx, id)).await
    }

    async fn list_tasks(&self, query: &TaskQuery) -> Result<Vec<TaskView>, StoreError> {
        let query = query.clone();
        self.readers.with("list tasks", move |c, ctx| tasks::list(c, ctx, &query)).await
    }

    async fn append_audit(&self, records: &[AuditRecord]) -> Result<(), StoreError> {
        let records = records.to_vec();
        self.ask("append audit", |reply| Job::Audit { records, reply }).await
    }

    async fn list_audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let (asked, before) = (query.clone(), query.before()?);
        let read = move |c: &Connection, ctx: &Context| audit::list(c, ctx, &asked, before);
        Ok(query.page(self.readers.with("list audit", read).await?))
    }

    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        self.ask("migrate", |reply| Job::Migrate { reply }).await
    }

    async fn pending_migrations(&self) -> Result<Vec<String>, StoreError> {
        self.readers.with("pending migrations", migrate::pending).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        // Both sides must work for the store to be of use.
        self.ask("ping", |reply| Job::Ping { reply }).await?;
        self.readers.with("ping", read::ping).await
    }
}

/// Runs `work` on a blocking thread.
async fn blocking<T: Send + 'static>(
    context: &Context,
    op: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(context.aborted(op, e)),
    }
}

/// What a connection may do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// Output may hold secrets: the file belongs to its owner alone. The journal files
/// that SQLite puts beside it inherit this.
fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match opened {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

fn connect(path: &Path, access: Access) -> rusqlite::Result<Connection> {
    let deadline = Instant::now() + BUSY_WAIT;
    loop {
        // Switching a new file to WAL does not go through the busy handler, so two
        // processes that open it at once are kept apart here.
        match try_connect(path, access) {
            Err(e) if error::is_busy(&e) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

fn try_connect(path: &Path, access: Access) -> rusqlite::Result<Connection> {
    // No URI names: a path may contain what would be options there. No create: the
    // file is there, and one that vanished must not come back empty.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_WAIT)?;
    // FULL: a commit is synced before it is acknowledged. In WAL mode that is one
    // sync of the log for each commit.
    conn.pragma_update(None, "journal_mode", "wal")?;
    conn.pragma_update(None, "synchronous", "full")?;
    conn.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    if access == Access::Read {
        conn.pragma_update(None, "query_only", true)?;
    }
    Ok(conn)
}
