//! The worker's durable state: one SQLite file, owned by one thread.
//!
//! | table | what it holds |
//! |---|---|
//! | `cursor` | the last slot of each job that was started or given up, and how many scheduled runs began |
//! | `journal` | runs begun and not known to have ended |
//! | `seen` | ids of runs begun or ended lately (7 days, 100,000 at most), so that a trigger that comes again after a restart starts nothing |
//! | `waits` | further attempts that were promised and have not begun |
//! | `spooled` | records and output on their way to the log store |
//! | `dropped` | bytes of output that were given up, of runs whose last record is in `spooled` or yet to come |
//! | `tallies` | what has happened to the runs of each job, for notifications |
//! | `snapshot` | the last known assignments, for a start without etcd |
//! | `accepted` | the newest signature of each key that was accepted |
//!
//! The handle [`State`] sends operations to the thread over a bounded queue. The thread
//! applies everything that waits in one transaction and answers when it is flushed to
//! disk, so many callers share one flush. An operation that failed has left nothing
//! behind; operations take effect in the order in which they were sent.

mod accepted;
mod cursor;
mod disk;
mod engine;
mod error;
mod journal;
mod lanes;
mod later;
mod open;
mod room;
mod snapshot;
mod spool;
mod tallies;
mod waits;

pub use cursor::Cursor;
pub use disk::Refusal;
pub use error::{StateError, StateProblem};
pub use journal::{Begin, OpenRun};
pub use lanes::{Batch, Lane, Most};
pub use later::Queued;
pub use open::private_dir;
pub use snapshot::SnapshotEntry;
pub(crate) use spool::born;
pub use spool::{SpoolItem, SpoolStats};
pub use tallies::DueTally;
pub use waits::WaitEntry;

use engine::{Call, Context, Counters, Message};
use jiff::Timestamp;
use journal::{End, Entry, Note};
use lanes::Acked;
use meepo_core::{
    id::{Name, RunId},
    notify::Outcome,
    run::{OutputChunk, RunRecord},
};
use prometheus_client::metrics::counter::Counter;
use spool::Row;
use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// Settings of a [`State`].
#[derive(Debug, Clone)]
pub struct StateOptions {
    /// The directory the file lives in; created if missing, for this user only.
    pub dir: PathBuf,
    /// Bytes the spool may hold. When it is full, the oldest output is dropped and counted;
    /// records of runs may take a quarter more, and 16 MiB at least.
    pub spool_limit: u64,
    /// Run ids remembered after their end, at most.
    pub seen_limit: u32,
    /// Counts writes that nobody waited for and that failed.
    pub lost: Counter,
}

impl StateOptions {
    /// The defaults (a spool of 1 GiB, 100,000 run ids) in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            spool_limit: 1 << 30,
            seen_limit: 100_000,
            lost: Counter::default(),
        }
    }
}

/// Figures since the state was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateStats {
    /// Transactions tried.
    pub transactions: u64,
    /// Operations taken on.
    pub operations: u64,
    /// Operations that failed.
    pub failed: u64,
}

/// The worker's state. Cloning is cheap. The file is closed by [`close`](Self::close) or
/// after the last clone is gone.
///
/// Once a future of an operation was polled, the operation may take effect even if the
/// future is dropped.
#[derive(Debug, Clone)]
pub struct State {
    queue: mpsc::Sender<Message>,
    counters: Arc<Counters>,
    stats: watch::Receiver<SpoolStats>,
    tallies: Arc<Notify>,
}

impl State {
    /// Opens or creates the state. Blocks for some disk access. Errors: another worker
    /// uses the directory, the file is damaged or of a newer version, or the disk refuses.
    pub fn open(options: &StateOptions) -> Result<Self, StateError> {
        let opened = open::open(&options.dir)?;
        let changed = Arc::new(Notify::new());
        let found = lanes::open(&opened.conn).and_then(|m| {
            let tallies = tallies::Tallies::open(&opened.conn, changed.clone())?;
            Ok((m, waits::any(&opened.conn)?, tallies))
        });
        let found = found.map_err(|e| StateError::sqlite(&opened.path, &e))?;
        let (queue, receiver) = mpsc::channel(1024);
        let counters = Arc::new(Counters { lost: options.lost.clone(), ..Counters::default() });
        let mut stats = SpoolStats::default();
        stats.update(&found.0);
        let (sender, stats) = watch::channel(stats);
        let limits = (options.spool_limit, i64::from(options.seen_limit));
        let shared = counters.clone();
        std::thread::Builder::new()
            .name("state".into())
            .spawn(move || engine::run(opened, limits, found, receiver, &shared, sender))
            .map_err(|e| {
                StateError::new(StateProblem::Io, format!("cannot start the state's thread: {e}"))
            })?;
        Ok(Self { queue, counters, stats, tallies: changed })
    }

    /// Finishes what was sent before, closes the file and frees its directory. Later
    /// operations of other clones fail.
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.queue.send(Message::Close(reply)).await.is_ok() {
            let _ = done.await;
        }
    }

    /// Enters a run into the journal before its process starts and, if `cursor` names a
    /// job and a slot, moves that job's cursor there and counts the run; a wait for the
    /// run is over. All or nothing. Only on [`Begin::New`] may the process start; in
    /// particular not on an error.
    pub async fn begin_run(
        &self,
        record: &RunRecord,
        cursor: Option<(Name, Timestamp)>,
    ) -> Result<Begin, StateError> {
        let entry = Entry::new(record);
        self.call(move |cx| journal::begin(cx, &entry, cursor.as_ref())).await
    }

    /// Notes the process of a run (see [`start_time`](crate::process::start_time)).
    /// Nothing need wait for this; without it a restarted worker cannot find the process.
    pub async fn started(&self, run_id: RunId, pid: u32, start: u64) -> Result<(), StateError> {
        self.call(move |cx| journal::started(cx, run_id, pid, start)).await
    }

    /// Takes a run out of the journal and puts its final record into the spool, both or
    /// neither. The id stays known for a while. Answers how many bytes of its output a
    /// full spool has dropped so far; the record counts them, and what is dropped later.
    pub async fn end_run(&self, record: &RunRecord) -> Result<u64, StateError> {
        self.end_run_with(record, &[], None, None).await
    }

    /// [`end_run`](Self::end_run) that also puts what is left of the run's output into the
    /// spool, promises the next attempt and notes what others are told of it, all or nothing.
    pub async fn end_run_with(
        &self,
        record: &RunRecord,
        output: &[Arc<OutputChunk>],
        next: Option<&WaitEntry>,
        outcome: Option<&Outcome>,
    ) -> Result<u64, StateError> {
        let end = End::new(record, output, next, outcome);
        self.call(move |cx| journal::end(cx, &end)).await
    }

    /// Puts records of slots for which nothing was started (missed, skipped) into the
    /// spool and moves the cursor as [`begin_run`](Self::begin_run) does, without counting;
    /// waits for them are over. All or nothing.
    /// Nothing is written on [`Begin::SlotTaken`]. A run that was claimed or asked for by
    /// a key is recorded once: if its id is known already, its record is left out.
    pub async fn note_runs(
        &self,
        records: &[RunRecord],
        cursor: Option<(Name, Timestamp)>,
    ) -> Result<Begin, StateError> {
        let notes: Vec<_> = records.iter().map(Note::new).collect();
        self.call(move |cx| journal::note(cx, &notes, cursor.as_ref())).await
    }

    /// Those of the requested runs `ids` that have begun or were turned down, as far as that
    /// is remembered.
    pub async fn seen(&self, ids: Vec<RunId>) -> Result<HashSet<RunId>, StateError> {
        self.call(move |cx| journal::seen(cx.conn, &ids)).await
    }

    /// The runs that were begun and not ended, for the start of the worker.
    pub async fn recover(&self) -> Result<Vec<OpenRun>, StateError> {
        self.call(|cx| journal::open_runs(cx.conn)).await
    }

    /// Puts items into the spool and waits until they are durable.
    pub async fn spool(&self, items: &[SpoolItem]) -> Result<(), StateError> {
        let rows: Vec<_> = items.iter().map(Row::item).collect();
        self.call(move |cx| push_all(cx, &rows)).await
    }

    /// Puts items into the spool without waiting until they are durable, only for room in
    /// the queue. What cannot be written is logged. Errors: the state is closed.
    pub async fn spool_later(&self, items: &[SpoolItem]) -> Result<(), StateError> {
        self.send_rows(items.iter().map(Row::item).collect()).await
    }

    /// Like [`spool_later`](Self::spool_later), for output as
    /// [`OutputHub`](crate::process::OutputHub) hands it out.
    pub async fn spool_output(&self, chunks: &[Arc<OutputChunk>]) -> Result<(), StateError> {
        self.send_rows(chunks.iter().map(|c| Row::chunk(c)).collect()).await
    }

    /// The oldest items, up to `max_items` and about `max_bytes`, but one at least if
    /// there is any. They stay until [`ack`](Self::ack).
    pub async fn peek(&self, max_items: usize, max_bytes: usize) -> Result<Batch, StateError> {
        self.peek_after(0, max_items, max_bytes).await
    }

    /// Like [`peek`](Self::peek), but only items after the one with id `after`.
    pub async fn peek_after(
        &self,
        after: i64,
        max_items: usize,
        max_bytes: usize,
    ) -> Result<Batch, StateError> {
        let most = Most(max_items, max_bytes);
        Ok(self.call(move |cx| lanes::peek(cx, after, most)).await?.open())
    }

    /// The oldest items of `lane` after the one with id `after` (0: from the first), up to
    /// `most`; `delivered` is acknowledged before, with the same flush to disk. They stay
    /// until [`ack`](Self::ack), and are not dropped either, as nobody knows for sure
    /// whether they are delivered. Each lane is for one who delivers.
    pub async fn take(
        &self,
        lane: Lane,
        delivered: Option<&Batch>,
        after: i64,
        most: Most,
    ) -> Result<Batch, StateError> {
        let acked = delivered.map(Acked::from);
        let taken = self.call(move |cx| {
            acked.iter().try_for_each(|acked| lanes::ack(cx, acked))?;
            lanes::take(cx, lane, after, most)
        });
        Ok(taken.await?.open())
    }

    /// Deletes the items of a batch: they are delivered.
    pub async fn ack(&self, batch: &Batch) -> Result<(), StateError> {
        let acked = Acked::from(batch);
        self.call(move |cx| lanes::ack(cx, &acked)).await
    }

    /// Makes all that waits a backlog, so that what comes from now on need not wait for it;
    /// see [`Lane`]. Does nothing while a batch of the fresh lane is not acknowledged.
    pub async fn part(&self) -> Result<(), StateError> {
        self.call(lanes::part).await
    }

    /// Drops and counts output that was put in before the first instant, and records
    /// before the second.
    pub async fn expire(&self, output: Timestamp, records: Timestamp) -> Result<(), StateError> {
        let before = (output.as_millisecond(), records.as_millisecond());
        self.call(move |cx| room::expire(cx, before)).await
    }

    /// What the spool holds.
    pub fn spool_stats(&self) -> SpoolStats {
        self.stats.borrow().clone()
    }

    /// Follows what the spool holds, for who delivers it: wait until `items > 0`.
    pub fn spool_changes(&self) -> watch::Receiver<SpoolStats> {
        self.stats.clone()
    }

    /// The whole snapshot, by key.
    pub async fn load_snapshot(&self) -> Result<Vec<SnapshotEntry>, StateError> {
        self.call(|cx| snapshot::load(cx.conn)).await
    }

    /// What the snapshot holds at `key`.
    pub async fn snapshot(&self, key: String) -> Result<Option<Vec<u8>>, StateError> {
        self.call(move |cx| snapshot::get(cx.conn, &key)).await
    }

    /// Figures since the state was opened.
    pub fn stats(&self) -> StateStats {
        StateStats {
            transactions: self.counters.transactions.load(Ordering::Relaxed),
            operations: self.counters.operations.load(Ordering::Relaxed),
            failed: self.counters.failed.load(Ordering::Relaxed),
        }
    }

    async fn call<R, F>(&self, f: F) -> Result<R, StateError>
    where
        R: Send + 'static,
        F: FnMut(&mut Context) -> rusqlite::Result<R> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let call = Call { f, result: None, reply: Some(reply) };
        self.send(Message::Do(Box::new(call))).await?;
        answer.await.map_err(|_| StateError::closed())?
    }

    async fn send_rows(&self, rows: Vec<Row>) -> Result<(), StateError> {
        self.later(move |cx| push_all(cx, &rows)).await
    }

    async fn send(&self, message: Message) -> Result<(), StateError> {
        self.queue.send(message).await.map_err(|_| StateError::closed())
    }
}

fn push_all(cx: &mut Context, rows: &[Row]) -> rusqlite::Result<()> {
    rows.iter().try_for_each(|row| lanes::push(cx, row))
}

#[cfg(test)]
mod tests;
