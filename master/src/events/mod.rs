//! What happens in the fleet, for those who listen.
//!
//! ```text
//! etcd ─one watch─► Teller (families) ─► Ring ─► subscriptions ─► HTTP, gRPC
//!        └─ another from an old revision, for one who comes back late ─┘
//! ```
//!
//! Ids are revisions of etcd, and what an event says depends on etcd alone, so every master
//! tells the same and whoever loses one goes on at another. Nobody waits for a slow listener:
//! each reads the ring at its own pace, and who falls out of it is cut off.

mod families;
mod ring;
mod runs;
mod subscription;
mod teller;
mod whereabouts;

pub use subscription::{Begin, Item};

use crate::metrics::Metrics;
use meepo_coord::{CoordError, Etcd, history::Ended, keys};
use meepo_core::id::{NodeId, RunId};
use meepo_runtime::backoff::Backoff;
use ring::Ring;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use teller::Teller;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use whereabouts::Whereabouts;

/// Events kept in memory.
const RING: usize = 10_000;
/// Most listeners at once.
pub const MAX_LISTENERS: usize = 256;
/// Most of them that are told of old revisions at once; the others wait.
const MAX_REPLAYS: usize = 8;
/// So many revisions back a master begins that was just started, if etcd still has them.
const BEHIND: i64 = 2_000;

/// Longest wait until all is known that has happened.
const CAUGHT_UP: Duration = Duration::from_millis(500);

/// The events that a master knows. Cloning is cheap.
#[derive(Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

struct Inner {
    etcd: Etcd,
    metrics: Arc<Metrics>,
    ring: Mutex<Ring>,
    /// Where runs are, as of the head of the ring or newer.
    whereabouts: Mutex<Whereabouts>,
    state: watch::Sender<State>,
    listeners: Arc<Semaphore>,
    replays: Arc<Semaphore>,
}

/// Where the ring is, for those who wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    /// The ring has begun.
    begun: bool,
    /// Since when etcd has not told anything.
    away: Option<Instant>,
    head: i64,
    generation: u64,
}

impl Events {
    /// Those of a master that has just started; [`Events::keep`] fills them.
    pub fn new(etcd: Etcd, metrics: Arc<Metrics>) -> Self {
        Self::with_ring(etcd, metrics, RING)
    }

    fn with_ring(etcd: Etcd, metrics: Arc<Metrics>, capacity: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                etcd,
                metrics,
                ring: Mutex::new(Ring::new(capacity)),
                whereabouts: Mutex::default(),
                state: watch::Sender::default(),
                listeners: Arc::new(Semaphore::new(MAX_LISTENERS)),
                replays: Arc::new(Semaphore::new(MAX_REPLAYS)),
            }),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing is left half done while it is held.
        self.inner.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn whereabouts(&self) -> MutexGuard<'_, Whereabouts> {
        // As above: a change is taken in as a whole.
        self.inner.whereabouts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node of a run that is asked for and not taken, or that some job runs now. What
    /// etcd has at this moment counts.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn node_of(&self, run: RunId) -> Result<Option<NodeId>, CoordError> {
        let known = || self.whereabouts().node_of(run);
        if let Some(node) = known() {
            return Ok(Some(node));
        }
        let newest = self.inner.etcd.revision().await?;
        let mut state = self.inner.state.subscribe();
        // Others may write to etcd what is not told here, so not for ever.
        let told = state.wait_for(|s| s.head >= newest);
        let _ = tokio::time::timeout(CAUGHT_UP, told).await;
        Ok(known())
    }

    /// Follows etcd until `stop` is cancelled.
    pub async fn keep(self, stop: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
        Ok(())
    }

    async fn follow(&self) {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        let mut teller: Option<(Teller, i64)> = None;
        loop {
            let reason = match self.stream(&mut teller, &mut backoff).await {
                Ended::Compacted(revision) => {
                    info!(revision, "the watch of events was compacted, beginning anew");
                    teller = None;
                    continue;
                }
                Ended::Broken(reason) => reason,
            };
            let wait = backoff.next_wait();
            warn!(reason, ?wait, "cannot follow what happens, will try again");
            // Listeners count from the first failure on, and are woken by that one alone.
            self.inner.state.send_if_modified(|s| {
                let first = s.away.is_none();
                s.away = s.away.or_else(|| Some(Instant::now()));
                first
            });
            tokio::time::sleep(wait).await;
        }
    }

    /// Fills the ring until the watch ends. `teller` is what tells, and the newest revision
    /// there was when it began: what is up to there has not happened just now.
    async fn stream(&self, teller: &mut Option<(Teller, i64)>, backoff: &mut Backoff) -> Ended {
        let broken = |e: CoordError| Ended::Broken(e.to_string());
        let newest = match self.inner.etcd.revision().await {
            Ok(newest) => newest,
            Err(e) => return broken(e),
        };
        // An etcd that was set back tells nothing for a long time, and then something else.
        if teller.as_ref().is_some_and(|(t, _)| t.at() > newest) {
            warn!(newest, "etcd has gone back in time, beginning anew");
            *teller = None;
        }
        let (teller, before) = match teller {
            Some(teller) => teller,
            None => {
                let fresh = match self.begin(newest).await {
                    Ok(fresh) => fresh,
                    Err(e) => return broken(e),
                };
                let whereabouts = match Whereabouts::begin(&self.inner.etcd, fresh.at()).await {
                    Ok(whereabouts) => whereabouts,
                    Err(e) => return broken(e),
                };
                *self.whereabouts() = whereabouts;
                self.update(|ring| ring.reset(fresh.at()));
                teller.insert((fresh, newest))
            }
        };
        let etcd = &self.inner.etcd;
        let mut history = match etcd.history(keys::EVERYTHING, teller.at() + 1).await {
            Ok(history) => history,
            Err(e) => return broken(e),
        };
        self.inner.state.send_if_modified(|s| s.away.take().is_some());
        loop {
            let step = match history.next().await {
                Ok(step) => step,
                Err(ended) => return ended,
            };
            backoff.reset();
            {
                let mut whereabouts = self.whereabouts();
                step.changes.iter().for_each(|change| whereabouts.change(change));
            }
            let events = teller.tell(step);
            self.inner.metrics.events.inc_by(events.len() as u64);
            self.update(|ring| ring.push(events, teller.at(), *before));
        }
    }

    /// A teller some revisions back, or where etcd is now.
    async fn begin(&self, newest: i64) -> Result<Teller, CoordError> {
        let back = (newest - BEHIND).max(1);
        match Teller::begin(&self.inner.etcd, back).await {
            Err(e) if e.compacted() => {}
            other => return other,
        }
        Teller::begin(&self.inner.etcd, newest).await
    }

    fn update(&self, change: impl FnOnce(&mut Ring)) {
        let mut ring = self.ring();
        change(&mut ring);
        let (head, generation) = (ring.head(), ring.generation());
        drop(ring);
        self.inner.state.send_if_modified(|s| {
            let old = *s;
            *s = State { begun: true, head, generation, ..old };
            *s != old
        });
    }
}
