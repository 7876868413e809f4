//! The heart of the worker: it owns the jobs, knows what is due and decides what starts.
//! Nothing in it waits for the network or for a process; runs are tasks of their own and
//! report back.
//!
//! It has a thread to itself, of a real-time priority where the host allows that: however
//! busy its jobs keep the processors, slots are seen on time.

mod adopt;
mod asked;
mod fire;
mod hold;
mod lapse;
mod load;
mod locks;
mod once;
mod overlap;
mod table;
#[cfg(test)]
mod tests;
mod waits;

pub(crate) use waits::{promise, succession};

use crate::{
    agenda::Agenda,
    agent::asked::EarlyKills,
    engine::{Engine, Plan},
    health::Registration,
    progress::Progress,
    state::{Cursor, WaitEntry},
    timer::{WallTimer, Woken},
};
use anyhow::Context;
use hold::{Hold, Why};
use jiff::{SignedDuration, Timestamp};
use locks::{Held, Locks};
use meepo_coord::{Etcd, claim::Claims, lease::LeaseState, records::ClaimRecord, watch::Batch};
use meepo_core::{
    id::{Name, RunId},
    node::{MAX_PROBLEMS, Problem},
};
use once::{Once, Round};
use overlap::{Asked, Overlap};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use table::{Job, Table};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;
use waits::Waits;

/// How long a starting worker waits for etcd before it goes on with what it knew.
const SNAPSHOT_AFTER: Duration = Duration::from_secs(3);

/// Jobs, or reports, that are looked at before the agent looks at other things again.
const AT_ONCE: usize = 256;

/// A clock that goes back by more than this was wrong before.
const CORRECTION: SignedDuration = SignedDuration::from_hours(3);

/// What the agent tells the health record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Usable assignments.
    pub jobs: u64,
    /// What cannot be used, at most [`MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// All of them.
    pub problems_total: u64,
}

/// What tasks report back.
#[derive(Debug)]
pub(crate) enum Report {
    /// A run of a job is over; what was promised with its end.
    Ended { job: Name, run_id: RunId, next: Option<WaitEntry> },
    /// The disk has refused the beginning of a run.
    Refused { job: Name, asked: Box<Asked> },
    /// A run holds the lock that it needs, or why it does not.
    Locked { run_id: RunId, ticket: Uuid, held: Result<Held, String> },
    /// The last claim of a job that runs once, with its revision.
    Claimed { job: Name, claim: Option<Box<(ClaimRecord, i64)>> },
    /// A round of claims is over.
    Round { job: Name, round: Round },
    /// This node has claimed the slot of a plan.
    Won(Box<Plan>),
    /// A slot is lost to a claim of this node's own, perhaps of its last life.
    Own { job: Name, slot: Timestamp, run_id: RunId, fence: i64 },
}

/// Where the agent shows how it is, and what it hears of the node's registration.
#[derive(Clone)]
pub struct Outlets {
    /// For the health record.
    pub status: watch::Sender<Status>,
    /// For the health check.
    pub progress: Arc<Progress>,
    /// Whether this node is this worker's.
    pub registration: watch::Receiver<Registration>,
    /// The node's lease.
    pub lease: watch::Receiver<LeaseState>,
    /// Its time.
    pub lease_ttl: Duration,
    /// Told of each slot how late it is looked at.
    pub late: Option<fn(SignedDuration)>,
}

/// The agent's parts.
pub struct Agent {
    engine: Arc<Engine>,
    etcd: Etcd,
    table: Table,
    agenda: Agenda,
    overlap: Overlap,
    waits: Waits,
    locks: Locks,
    once: Once,
    hold: Hold,
    early_kills: EarlyKills,
    /// Processes that may run at the same time.
    places: Arc<Semaphore>,
    reports: mpsc::Sender<Report>,
    inbox: mpsc::Receiver<Report>,
    outlets: Outlets,
    /// Where runs and whatever waits for the network live.
    tasks: Handle,
    /// Cursors of the last life of this worker, until etcd has been heard once.
    cursors: HashMap<Name, Cursor>,
    /// Whether the jobs of this node are known, from etcd or of the last life.
    loaded: bool,
    /// Jobs whose schedule has just started anew, with the instant from which on.
    fresh: Vec<(Name, Timestamp)>,
    /// A job without a cursor has had no slot here since then.
    since: Timestamp,
    /// Jobs whose cursors went with what is being taken in.
    gone: HashSet<Name>,
    /// Assignments of the last life.
    snapshot: BTreeMap<String, Vec<u8>>,
    /// When the host started.
    boot: Option<Timestamp>,
    stop: CancellationToken,
}

impl Agent {
    /// An agent that knows what the worker's state file knows. Runs live on the runtime
    /// that this is called on.
    pub async fn new(
        engine: Arc<Engine>,
        etcd: Etcd,
        max_running: usize,
        outlets: Outlets,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let (reports, inbox) = mpsc::channel(1024);
        let cursors = engine.state.cursors().await?.into_iter().collect();
        let since = engine.state.forgotten_at().await?;
        let mut waits = Waits::default();
        for wait in engine.state.waits().await? {
            // Ends of tasks' parts are kept there too, for who tells etcd of them.
            if crate::tasks::is_end(&wait) {
                continue;
            }
            // Whether etcd has answered the last life is not known.
            if let Some((of, next)) = succession(&wait) {
                engine.hand_on(of, &next);
            }
            waits.promised(wait);
        }
        let snapshot = engine.state.load_snapshot().await?;
        let snapshot = snapshot.into_iter().map(|e| (e.key, e.value)).collect();
        let locks = Locks::new(engine.clone(), outlets.lease_ttl);
        Ok(Self {
            engine,
            locks,
            once: Once::new(Claims::new(etcd.clone())),
            waits,
            early_kills: EarlyKills::default(),
            etcd,
            table: Table::default(),
            agenda: Agenda::default(),
            overlap: Overlap::default(),
            hold: Hold::default(),
            places: Arc::new(Semaphore::new(max_running)),
            reports,
            inbox,
            outlets,
            tasks: Handle::current(),
            cursors,
            loaded: false,
            fresh: Vec::new(),
            since,
            gone: HashSet::new(),
            snapshot,
            boot: boot_time(),
            stop,
        })
    }

    /// Works until shutdown begins, on a thread of its own.
    ///
    /// # Errors
    /// When the kernel gives no timer or no thread.
    pub async fn run(self, etcd: mpsc::Receiver<Batch>) -> anyhow::Result<()> {
        let (tx, over) = oneshot::channel();
        let work = move || {
            // What waits for a while does so on the runtime of everything else.
            let tasks = self.tasks.clone();
            let _context = tasks.enter();
            let worked = WallTimer::new()
                .and_then(|timer| timer.block_on(self.work(&timer, etcd)))
                .context("cannot start the scheduler")
                .flatten();
            // Nobody waits if the worker was dropped.
            let _ = tx.send(worked);
        };
        std::thread::Builder::new().name("scheduler".into()).spawn(work)?;
        over.await.context("the scheduler has panicked")?
    }

    async fn work(
        mut self,
        timer: &WallTimer,
        mut etcd: mpsc::Receiver<Batch>,
    ) -> anyhow::Result<()> {
        let mut heard = false;
        let mut preferred = false;
        let patience = tokio::time::sleep(SNAPSHOT_AFTER);
        tokio::pin!(patience);
        let stop = self.stop.clone();
        let mut registration = self.outlets.registration.clone();
        let mut drain = self.engine.drain.clone();
        let mut refusal = self.engine.state.refusal();
        let mut lease = self.outlets.lease.clone();
        let engine = self.engine.clone();
        loop {
            let registered = registration.borrow_and_update().clone();
            // Two workers under one id would run everything twice.
            let taken = matches!(registered, Registration::Taken { .. });
            let drained = drain.borrow_and_update().drain().map(|d| d.requested_at);
            let disk = refusal.borrow_and_update().is_some();
            let why = Why { taken, drained, disk };
            self.turn(why).await;
            let heads = [self.agenda.head(), self.next_wait()].into_iter().flatten();
            let head = heads.min().filter(|_| !why.any());
            self.outlets.progress.passed(Timestamp::now(), head, self.queue());
            timer.set(head)?;
            tokio::select! {
                () = stop.cancelled() => break,
                changed = registration.changed() => if changed.is_err() { break },
                Ok(()) = drain.changed() => {}
                Ok(()) = refusal.changed() => {}
                // What was claimed may have waited for it.
                Ok(()) = lease.changed() => self.begin_ready().await,
                () = engine.custody.lapsed() => self.lapse().await,
                batch = etcd.recv(), if registered == Registration::Done => {
                    let Some(batch) = batch else { break };
                    heard = true;
                    self.heard(batch).await;
                }
                Some(report) = self.inbox.recv() => {
                    self.reported(report).await;
                    // Many runs may end together.
                    for _ in 0..AT_ONCE {
                        let Ok(report) = self.inbox.try_recv() else { break };
                        self.reported(report).await;
                    }
                }
                () = &mut patience, if !heard && !taken => {
                    heard = true;
                    self.load_snapshot().await;
                }
                woken = timer.wait() => {
                    if woken? == Woken::ClockSet {
                        warn!("the wall clock was set; looking at all schedules anew");
                        self.reschedule().await;
                    }
                }
            }
            // Not before: taking in many jobs is no business of an instant.
            if self.loaded && !std::mem::replace(&mut preferred, true) {
                prefer();
            }
            if !why.any() && !self.engine.holds() {
                self.fire_due().await;
            }
        }
        self.wind_up().await;
        Ok(())
    }

    async fn reported(&mut self, report: Report) {
        match report {
            Report::Ended { job, run_id, next } => self.ended(job, run_id, next).await,
            Report::Refused { job, asked } => self.refused(job, *asked).await,
            Report::Locked { run_id, ticket, held } => self.locked(run_id, ticket, held).await,
            Report::Won(plan) => self.start((*plan).into()).await,
            Report::Claimed { job, claim } => {
                self.found_claimed(&job, claim.map(|c| *c)).await;
            }
            Report::Own { job, slot, run_id, fence } => {
                self.claimed_by_last_life(&job, slot, run_id, fence).await;
            }
            Report::Round { job, round } => self.claimed(&job, round),
        }
    }

    /// Tells the health record what is held.
    fn tell(&self) {
        let problems =
            self.table.problems.iter().chain(&self.table.ahead).chain(&self.table.barred);
        let (ahead, barred) = (self.table.ahead.len(), self.table.barred.len());
        let total = self.table.problems.len() + ahead + barred;
        let status = Status {
            jobs: self.table.len() as u64,
            problems: problems
                .take(MAX_PROBLEMS)
                .map(|(k, r)| Problem { subject: k.clone(), reason: r.clone() })
                .collect(),
            problems_total: total as u64,
        };
        self.engine.metrics.jobs.set(status.jobs as i64);
        self.engine.metrics.problems.set(total as i64);
        self.outlets.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}

/// Gives the calling thread a priority over the processes it starts: these are started by
/// other threads, and on Linux each thread has its own. A better nice value alone would not
/// do: a process that is at it may finish its slice of some milliseconds first
/// (sched(7)). Real-time round robin may not: this thread sleeps nearly always.
fn prefer() {
    use thread_priority::{
        RealtimeThreadSchedulePolicy::RoundRobin, ThreadPriority, ThreadSchedulePolicy,
        set_thread_priority_and_policy, thread_native_id,
    };
    let policy = ThreadSchedulePolicy::Realtime(RoundRobin);
    let set = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy);
    if let Err(e) = set {
        debug!(error = ?e, "slots may be seen late while jobs keep all processors busy");
    }
}

/// When the host started, from `btime` in proc_stat(5).
fn boot_time() -> Option<Timestamp> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|l| l.strip_prefix("btime "))?;
    Timestamp::from_second(line.trim().parse().ok()?).ok()
}
