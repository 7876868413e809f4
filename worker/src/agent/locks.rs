//! Locks in the cluster that runs need: each is asked for in a task of its own.
//!
//! They hang on a lease of their own, which lasts so much longer than the node's that a
//! run is ended for the loss of the node's lease before etcd gives its lock to others.

use super::{Agent, Report, overlap::Asked};
use crate::{engine::Engine, process::KillReason};
use meepo_coord::{
    Etcd,
    lease::{self, LeaseState},
    lock::{self, Held as InEtcd},
};
use meepo_core::{
    code::Code,
    duration::HumanDuration,
    id::{Name, RunId},
    lock::LockSpec,
};
use meepo_runtime::backoff::Backoff;
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};
use tracing::{debug, warn};
use uuid::Uuid;

/// An end for the loss of a lease takes so long at most, and a little.
const END: Duration = Duration::from_secs(15);
/// A write that nobody waits for any more may still reach etcd within this time.
const STRAY: Duration = Duration::from_secs(6);

/// The time of the lease that locks hang on. The node's guard ends runs at the latest two
/// of the node's lease times after the last renewal; this lease, renewed at a third of
/// its time, must outlast that.
fn lock_ttl(node_ttl: Duration) -> Duration {
    node_ttl * 3 + END
}

/// A held lock; released when dropped.
pub(crate) struct Held {
    /// The revision at which the run asked for it.
    pub(crate) fence: i64,
    lease_id: i64,
    in_etcd: Option<InEtcd>,
    lease: watch::Receiver<LeaseState>,
    engine: Arc<Engine>,
    _line: OwnedSemaphorePermit,
    _watch: AbortOnDropHandle<()>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("fence", &self.fence).finish_non_exhaustive()
    }
}

impl Held {
    /// Whether the lease that it hangs on lives for certain.
    fn is_current(&self) -> bool {
        self.lease.borrow().id() == Some(self.lease_id)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(held) = self.in_etcd.take() else { return };
        let (etcd, lease, id) = (self.engine.etcd.clone(), self.lease.clone(), self.lease_id);
        self.engine.tasks.spawn(async move {
            let key = held.key().to_owned();
            give_up(&etcd, &key, &lease, id).await;
        });
    }
}

/// Deletes a place in line, trying until etcd answers or the lease is gone, and the place
/// with it.
async fn give_up(etcd: &Etcd, key: &str, lease: &watch::Receiver<LeaseState>, id: i64) {
    let mut backoff = Backoff::new(Duration::from_secs(5));
    while let Err(e) = etcd.delete(key).await {
        warn!(key, error = %e, "cannot give a lock back, will try again");
        tokio::time::sleep(backoff.next_wait()).await;
        if lease.borrow().id().is_some_and(|now| now != id) || lease.has_changed().is_err() {
            return;
        }
    }
}

/// Asks for locks.
pub(super) struct Locks {
    engine: Arc<Engine>,
    ttl: Duration,
    /// The lease of the locks, once the first was asked for.
    lease: Option<watch::Receiver<LeaseState>>,
    /// The runs of this node stand in line here first, so that no more of them than may
    /// hold a lock stand in line in etcd.
    lines: HashMap<(Name, u32), Arc<Semaphore>>,
}

impl Locks {
    pub(super) fn new(engine: Arc<Engine>, node_ttl: Duration) -> Self {
        Self { engine, ttl: lock_ttl(node_ttl), lease: None, lines: HashMap::new() }
    }

    fn line(&mut self, spec: &LockSpec) -> Arc<Semaphore> {
        self.lines.retain(|_, line| Arc::strong_count(line) > 1);
        let line = self.lines.entry((spec.name.clone(), spec.permits));
        line.or_insert_with(|| Arc::new(Semaphore::new(spec.permits as usize))).clone()
    }

    fn lease(&mut self) -> watch::Receiver<LeaseState> {
        let (engine, ttl) = (&self.engine, self.ttl);
        let start = || {
            let (tx, rx) = watch::channel(LeaseState::None);
            // Until the last run has ended: then it is revoked.
            let keeping = lease::keep(engine.etcd.clone(), ttl, tx, engine.stop.clone());
            engine.tasks.spawn(keeping);
            rx
        };
        self.lease.get_or_insert_with(start).clone()
    }
}

impl Agent {
    /// Asks for the lock that a run needs; [`Agent::locked`] goes on with it. Runs of one
    /// job ask one after the other.
    pub(super) fn ask_lock(&mut self, spec: LockSpec, asked: Asked) {
        let Some(job) = asked.plan.job.clone() else { return };
        if self.overlap.is_locking(&job) {
            return self.overlap.wait_behind(&job, asked);
        }
        let (run_id, ticket) = (asked.plan.run_id, Uuid::now_v7());
        let cancel = CancellationToken::new();
        let asking = Asking {
            engine: self.engine.clone(),
            run_id,
            owner: format!("{} {run_id}", self.engine.node),
            lease: self.locks.lease(),
            asked_with: AtomicI64::new(0),
            ticket: ticket.to_string(),
            line: self.locks.line(&spec),
            spec,
        };
        let leave: DropGuard = cancel.clone().drop_guard();
        self.overlap.wants_lock(asked, ticket, leave);
        let (reports, stop) = (self.reports.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let held = tokio::select! {
                () = cancel.cancelled() => None,
                () = stop.cancelled() => None,
                held = asking.ask() => Some(held),
            };
            let Some(held) = held else { return asking.leave().await };
            let refused = held.is_err();
            let _ = reports.send(Report::Locked { run_id, ticket, held }).await;
            if refused {
                asking.leave().await;
            }
        });
    }

    /// A run has its lock, or has waited for it too long.
    pub(super) async fn locked(&mut self, run_id: RunId, ticket: Uuid, held: Result<Held, String>) {
        // Gone meanwhile: dropping it releases the lock.
        let Some(mut asked) = self.overlap.take_locking(run_id, ticket) else { return };
        match held {
            Ok(held) => {
                asked.plan.permit = Some(held.fence);
                asked.lock = Some(held);
                // Before those that have just come.
                self.overlap.put_back(asked);
            }
            Err(why) => {
                if let Some(job) = asked.plan.job.clone() {
                    self.overlap.release(&job, run_id);
                    self.skip(asked, Code::LOCK_TAKEN, &why).await;
                    self.follow_cursor(&job).await;
                    self.next_locking(&job);
                }
            }
        }
        self.begin_ready().await;
    }

    /// A run of the job has begun, or will not: the next may ask for its lock.
    pub(super) fn next_locking(&mut self, job: &Name) {
        if self.overlap.has_behind(job)
            && !self.overlap.is_locking(job)
            && let Some(asked) = self.overlap.next_behind(job)
        {
            self.overlap.put_back(asked);
        }
    }

    /// Takes the lock from a run whose lock is gone with its lease; it has to ask again.
    pub(super) fn check_lock(asked: &mut Asked) {
        if asked.lock.as_ref().is_some_and(|held| !held.is_current()) {
            asked.lock = None;
            asked.plan.permit = None;
        }
    }
}

/// One run that asks for a lock.
struct Asking {
    engine: Arc<Engine>,
    run_id: RunId,
    owner: String,
    lease: watch::Receiver<LeaseState>,
    /// The lease with which it stands in line, or 0.
    asked_with: AtomicI64,
    ticket: String,
    line: Arc<Semaphore>,
    spec: LockSpec,
}

impl Asking {
    async fn ask(&self) -> Result<Held, String> {
        let wait = self.spec.wait();
        tokio::time::timeout(wait, self.patiently()).await.unwrap_or_else(|_| {
            let (name, wait) = (&self.spec.name, HumanDuration(wait));
            Err(format!("the lock {name} did not become free within {wait}"))
        })
    }

    async fn patiently(&self) -> Result<Held, String> {
        let closed = || "the worker shuts down".to_owned();
        let line = self.line.clone().acquire_owned().await.map_err(|_| closed())?;
        let mut lease = self.lease.clone();
        let mut backoff = Backoff::new(Duration::from_secs(5));
        loop {
            let held = lease.wait_for(|state| state.id().is_some()).await.map(|state| state.id());
            let Ok(Some(lease_id)) = held else { return Err(closed()) };
            self.asked_with.store(lease_id, Ordering::Relaxed);
            let (etcd, name) = (&self.engine.etcd, &self.spec.name);
            let permits = self.spec.permits as usize;
            match lock::acquire(etcd, name, permits, lease_id, &self.ticket, &self.owner).await {
                Ok(held) => {
                    return Ok(Held {
                        fence: held.fence,
                        lease_id,
                        in_etcd: Some(held),
                        lease: self.lease.clone(),
                        engine: self.engine.clone(),
                        _line: line,
                        _watch: self.watch(lease_id),
                    });
                }
                Err(e) => {
                    debug!(lock = %name, error = %e, "cannot ask for a lock, will try again");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    /// Ends the run when the lease of its lock is gone.
    fn watch(&self, lease_id: i64) -> AbortOnDropHandle<()> {
        let (engine, run_id, mut lease) = (self.engine.clone(), self.run_id, self.lease.clone());
        AbortOnDropHandle::new(self.engine.tasks.spawn(async move {
            let _ = lease.wait_for(|state| state.id() != Some(lease_id)).await;
            if engine.registry.kill(run_id, KillReason::LeaseLost) {
                warn!(%run_id, "the lease of its lock is lost: the run is ended");
            }
        }))
    }

    /// Takes back what may stand in etcd, also what is still on its way there.
    async fn leave(&self) {
        let id = self.asked_with.load(Ordering::Relaxed);
        if id == 0 {
            return;
        }
        let key = lock::ticket_key(&self.spec.name, id, &self.ticket);
        give_up(&self.engine.etcd, &key, &self.lease, id).await;
        tokio::time::sleep(STRAY).await;
        give_up(&self.engine.etcd, &key, &self.lease, id).await;
    }
}
