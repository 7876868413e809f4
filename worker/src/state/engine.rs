//! The thread that owns the file. It applies all operations that wait in one
//! transaction, so that many of them share the cost of one flush to disk.

use super::{
    cursor,
    disk::Disk,
    error::StateError,
    journal::{self, Latest},
    lanes::{self, Meter},
    open::{Lock, Opened},
    spool::SpoolStats,
    tallies::Tallies,
};
use prometheus_client::metrics::counter::Counter;
use rusqlite::{Connection, Statement};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

/// Operations in one transaction, at most.
const GROUP: usize = 512;

/// After a transaction that several shared, the next one waits this long for company: a
/// flush costs as much for many as for one, and who comes alone waits for nobody.
const GATHER: Duration = Duration::from_millis(1);

/// After one that this many shared it waits twice as long …
const MANY: usize = 8;

/// … and after one that this many shared, four times as long.
const CROWD: usize = 48;

/// Free pages (4 KiB each) the file may keep before it is made smaller.
const SPARE_PAGES: i64 = 2048;

/// A statement that most runs need: kept, as to look for it would cost more than to bind it.
pub(super) struct Kept<'c>(&'static str, Option<Statement<'c>>);

impl<'c> Kept<'c> {
    /// The statement, prepared when it is first used.
    pub(super) fn on(&mut self, conn: &'c Connection) -> rusqlite::Result<&mut Statement<'c>> {
        match &mut self.1 {
            Some(statement) => Ok(statement),
            none => Ok(none.insert(conn.prepare(self.0)?)),
        }
    }
}

/// The statements of each run.
pub(super) struct Hot<'c> {
    begin: Kept<'c>,
    commit: Kept<'c>,
    pub(super) enter: Kept<'c>,
    pub(super) close: Kept<'c>,
    pub(super) remember: Kept<'c>,
    pub(super) advance: Kept<'c>,
    pub(super) push: Kept<'c>,
}

impl Hot<'_> {
    fn new() -> Self {
        let kept = |sql| Kept(sql, None);
        Self {
            begin: kept("BEGIN IMMEDIATE"),
            commit: kept("COMMIT"),
            enter: kept(journal::ENTER),
            close: kept(journal::CLOSE),
            remember: kept(journal::REMEMBER),
            advance: kept(cursor::ADVANCE),
            push: kept(lanes::PUSH),
        }
    }
}

/// What operations work on.
pub(super) struct Context<'c> {
    pub(super) conn: &'c Connection,
    pub(super) hot: Hot<'c>,
    pub(super) path: PathBuf,
    /// Follows the spool's content; set back when a transaction fails.
    pub(super) meter: Meter,
    /// Bytes the spool may hold before output is dropped.
    pub(super) spool_limit: u64,
    /// Run ids remembered, at most.
    pub(super) seen_limit: i64,
    /// Attempts may wait; false if surely none does.
    pub(super) has_waits: bool,
    /// Forgotten when a transaction fails.
    pub(super) latest: Latest,
    /// What is remembered of tallies.
    pub(super) tallies: Tallies,
    /// Rows were deleted; the file may be worth making smaller.
    pub(super) freed: bool,
    /// Where the meter is published.
    stats: watch::Sender<SpoolStats>,
}

/// Figures of the thread since it started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) transactions: AtomicU64,
    pub(super) operations: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Failed, and nobody waited for them.
    pub(super) lost: Counter,
    /// How the disk is.
    pub(super) disk: Disk,
}

impl Counters {
    fn failure(&self, awaited: bool) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if !awaited {
            self.lost.inc();
        }
    }
}

/// An operation with the one who waits for it.
pub(super) trait Operation: Send {
    /// Applies it; may be called again after the transaction was rolled back.
    fn apply(&mut self, cx: &mut Context) -> Result<(), StateError>;
    /// Whether somebody waits for it.
    fn awaited(&self) -> bool;
    /// Tells how it went, once it is durable or has failed.
    fn finish(self: Box<Self>, outcome: Result<(), StateError>);
}

/// What the thread is sent.
pub(super) enum Message {
    Do(Box<dyn Operation>),
    Close(oneshot::Sender<()>),
}

/// An operation from a closure.
pub(super) struct Call<F, R> {
    pub(super) f: F,
    pub(super) result: Option<R>,
    /// Absent: nobody waits, errors are logged.
    pub(super) reply: Option<oneshot::Sender<Result<R, StateError>>>,
}

impl<F, R> Operation for Call<F, R>
where
    F: FnMut(&mut Context) -> rusqlite::Result<R> + Send,
    R: Send,
{
    fn apply(&mut self, cx: &mut Context) -> Result<(), StateError> {
        let result = (self.f)(cx).map_err(|e| StateError::sqlite(&cx.path, &e))?;
        self.result = Some(result);
        Ok(())
    }

    fn awaited(&self) -> bool {
        self.reply.is_some()
    }

    fn finish(self: Box<Self>, outcome: Result<(), StateError>) {
        let Self { result, reply, .. } = *self;
        match reply {
            Some(reply) => {
                // After a success there is a result; whoever stopped waiting does not
                // want to know.
                let _ = reply.send(outcome.and_then(|()| result.ok_or_else(StateError::closed)));
            }
            None => {
                // That the disk refuses is told once and not by each write.
                match outcome {
                    Err(error) if error.retryable() => {
                        tracing::debug!(%error, "a write to the worker's state was lost");
                    }
                    Err(error) => {
                        tracing::error!(%error, "a write to the worker's state was lost");
                    }
                    Ok(()) => {}
                }
            }
        }
    }
}

/// Runs until it is closed or nobody can send any more.
pub(super) fn run(
    opened: Opened,
    limits: (u64, i64),
    (meter, has_waits, tallies): (Meter, bool, Tallies),
    mut queue: mpsc::Receiver<Message>,
    counters: &Arc<Counters>,
    stats: watch::Sender<SpoolStats>,
) {
    // Dropped after the connection.
    let lock: Lock = opened.lock;
    let conn = opened.conn;
    conn.set_prepared_statement_cache_capacity(64);
    let mut cx = Context {
        conn: &conn,
        hot: Hot::new(),
        path: opened.path,
        meter,
        spool_limit: limits.0,
        seen_limit: limits.1,
        has_waits,
        latest: Latest::default(),
        tallies,
        freed: true,
        stats,
    };
    let mut group = Vec::new();
    let mut closing = None;
    while closing.is_none() {
        if queue.blocking_recv_many(&mut group, GROUP) == 0 {
            break;
        }
        let mut operations = Vec::with_capacity(group.len());
        for message in group.drain(..) {
            match message {
                Message::Do(operation) => operations.push(operation),
                Message::Close(reply) => closing = Some(reply),
            }
        }
        let gather = match operations.len() {
            0 | 1 => Duration::ZERO,
            n if n < MANY => GATHER,
            n if n < CROWD => GATHER * 2,
            _ => GATHER * 4,
        };
        cx.group(operations, counters);
        while cx.freed && queue.is_empty() {
            cx.shrink();
        }
        if closing.is_none() {
            std::thread::sleep(gather);
        }
    }
    drop(queue);
    drop(cx);
    drop(conn);
    drop(lock);
    if let Some(reply) = closing {
        let _ = reply.send(());
    }
}

impl Context<'_> {
    /// Applies `operations` in one transaction or, should that fail, each in its own,
    /// so that one that cannot be done does not take others with it.
    fn group(&mut self, mut operations: Vec<Box<dyn Operation>>, counters: &Counters) {
        if operations.is_empty() {
            return;
        }
        counters.operations.fetch_add(operations.len() as u64, Ordering::Relaxed);
        match self.transaction(&mut operations, counters) {
            Ok(()) => operations.into_iter().for_each(|o| o.finish(Ok(()))),
            Err(error) if operations.len() == 1 => {
                counters.failure(operations[0].awaited());
                operations.into_iter().for_each(|o| o.finish(Err(error.clone())));
            }
            Err(_) => {
                for operation in operations {
                    let mut one = [operation];
                    let outcome = self.transaction(&mut one, counters);
                    if outcome.is_err() {
                        counters.failure(one[0].awaited());
                    }
                    let [operation] = one;
                    operation.finish(outcome);
                }
            }
        }
    }

    fn transaction(
        &mut self,
        operations: &mut [Box<dyn Operation>],
        counters: &Counters,
    ) -> Result<(), StateError> {
        let before = self.meter;
        counters.transactions.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let outcome = self
            .sql(|hot| &mut hot.begin)
            .and_then(|()| operations.iter_mut().try_for_each(|o| o.apply(self)))
            .and_then(|()| self.sql(|hot| &mut hot.commit));
        counters.disk.note(&outcome, began.elapsed());
        if outcome.is_ok() {
            // Before anybody learns of the success, so that figures and answers agree.
            self.stats.send_if_modified(|s| s.update(&self.meter));
        } else {
            self.meter = before;
            self.latest = Latest::default();
            // Some errors have rolled back already.
            if !self.conn.is_autocommit()
                && let Err(error) = self.conn.execute_batch("ROLLBACK")
            {
                tracing::error!(%error, "cannot roll back");
            }
        }
        outcome
    }

    fn sql(
        &mut self,
        of: impl for<'h, 'c> FnOnce(&'h mut Hot<'c>) -> &'h mut Kept<'c>,
    ) -> Result<(), StateError> {
        of(&mut self.hot)
            .on(self.conn)
            .and_then(|s| s.execute([]).map(drop))
            .map_err(|e| StateError::sqlite(&self.path, &e))
    }

    /// Gives some free pages back to the file system if there are many.
    fn shrink(&mut self) {
        let free: i64 =
            self.conn.pragma_query_value(None, "freelist_count", |r| r.get(0)).unwrap_or(0);
        self.freed = free > SPARE_PAGES && self.vacuum().is_ok();
    }

    /// Each row that comes back is one page given back.
    fn vacuum(&self) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached("PRAGMA incremental_vacuum(512)")?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    }
}
