//! From the spool to the log store: in batches, at least once, in order.
//!
//! A worker with a `logs` URL writes to the log store itself; one without hands its
//! batches to the leading master, so that hosts hold no credentials.
//!
//! Two deliver, each from one lane of the spool: what is new goes as fast as the store takes
//! it, the backlog of an outage at `catchup_rate` beside it. While the store takes nothing,
//! one of them tries now and then.

mod gate;
mod sink;

pub use sink::Sink;

use crate::{
    failpoint::{self, Place},
    metrics::Metrics,
    state::{Batch, Lane, Most, SpoolStats, State, StateError},
    vitals::Delivery,
};
use gate::Gate;
use jiff::{SignedDuration, Timestamp};
use meepo_core::id::NodeId;
use meepo_logstore::LogItem;
use sink::Failure;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Items and bytes in one batch.
const BATCH: (usize, usize) = (2048, 2 << 20);
/// The same while it is tried whether the log store is back.
const PROBE: (usize, usize) = (64, 256 << 10);
/// Batches that follow each other faster than this are gathered …
const BUSY: Duration = Duration::from_millis(100);
/// … for this long, as somebody may wait for just this one …
const LINGER: Duration = Duration::from_millis(10);
/// … or for this long, when the last one held as many as [`MANY`]: each batch costs a
/// flush to disk here and one at the log store.
const LONG_LINGER: Duration = Duration::from_millis(50);
/// See [`LONG_LINGER`].
const MANY: usize = 16;
/// What waits longer than this, with more than a batch, is a backlog.
const BEHIND: SignedDuration = SignedDuration::from_secs(5);
/// How often it is looked for what is too old, at least.
const EXPIRE: Duration = Duration::from_secs(60);

/// Who delivers, and how.
pub struct Deliverer {
    /// Holds the spool.
    pub state: State,
    /// Where to.
    pub sink: Arc<Sink>,
    /// From where.
    pub node: NodeId,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Is told how it goes.
    pub delivery: Arc<Delivery>,
    /// Bytes the spool may hold.
    pub spool_limit: u64,
    /// How long output may wait; records may wait twice as long.
    pub max_age: Duration,
    /// Items of a backlog in a second.
    pub catchup_rate: u32,
}

impl Deliverer {
    /// Delivers until `stop` is cancelled; what is left stays in the spool.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let gate = Gate::new();
        let pump = |lane| Pump {
            of: &self,
            gate: &gate,
            lane,
            delivered: None,
            ahead: None,
            allowed: Instant::now(),
        };
        let (fresh, backlog) = (pump(Lane::Fresh), pump(Lane::Backlog));
        let (fresh, backlog, ()) =
            tokio::join!(fresh.run(&stop), backlog.run(&stop), self.expire(&stop));
        fresh.and(backlog)
    }

    /// Drops what is too old, now and then.
    async fn expire(&self, stop: &CancellationToken) {
        let mut tick = tokio::time::interval(EXPIRE.min(self.max_age / 4));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let now = Timestamp::now();
            let ago = |age| now.checked_sub(age).unwrap_or(Timestamp::MIN);
            let (output, records) = (ago(self.max_age), ago(self.max_age.saturating_mul(2)));
            // Without this nothing is read for most of a worker's life.
            if self.state.spool_stats().oldest.is_some_and(|at| at < output)
                && let Err(e) = self.state.expire(output, records).await
            {
                warn!(error = %e, "cannot drop what is too old");
            }
        }
    }
}

/// Waits until everything is delivered, `deadline` has passed or nothing can be delivered, for
/// shutdown. The deliverer must run meanwhile.
pub async fn flush(state: &State, delivery: &Delivery, deadline: Duration) {
    let mut stats = state.spool_changes();
    let empty = async { stats.wait_for(|s| s.items == 0).await.is_ok() };
    let done = tokio::select! {
        done = tokio::time::timeout(deadline, empty) => done.unwrap_or(false),
        () = delivery.failed() => false,
    };
    if !done {
        let items = state.spool_stats().items;
        info!(items, "records stay in the spool until the next start");
    }
}

/// Takes batches out of one lane of the spool and hands them on.
struct Pump<'a> {
    of: &'a Deliverer,
    gate: &'a Gate,
    lane: Lane,
    /// Delivered and not acknowledged yet: that is done together with the next look at
    /// the spool.
    delivered: Option<Batch>,
    /// Taken while the one before was under way.
    ahead: Option<Batch>,
    /// When the backlog may go on.
    allowed: Instant,
}

impl Pump<'_> {
    async fn run(mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut stats = self.of.state.spool_changes();
        let (mut last, mut linger) = (Instant::now(), LINGER);
        loop {
            let gate = self.gate;
            let ready = async {
                let there = wait(&mut stats, self.lane).await;
                tokio::time::sleep_until(self.allowed).await;
                // After a pause somebody may wait for just this; in a stream of them it
                // pays to gather, unless there is enough for a batch.
                if self.ahead.is_none() && last.elapsed() < BUSY {
                    tokio::time::sleep(linger).await;
                }
                (there, gate.enter().await)
            };
            let probe = tokio::select! {
                () = stop.cancelled() => break,
                (there, probe) = ready => if there { probe } else { break },
            };
            let delivered = tokio::select! {
                () = stop.cancelled() => break,
                delivered = self.next(probe.is_some()) => delivered,
            };
            last = Instant::now();
            match delivered {
                Ok(n) => {
                    gate.succeeded(probe);
                    if self.of.delivery.tried(Ok(())) {
                        info!("the log store takes records again");
                    }
                    linger = if n < MANY { LINGER } else { LONG_LINGER };
                    self.of.metrics.delivered.inc_by(n as u64);
                    self.pace(n);
                    self.part().await?;
                }
                Err(e) => {
                    self.ahead = None;
                    self.of.metrics.delivery_errors.inc();
                    // What the state refuses is told by the disk's own watch.
                    if e.downcast_ref::<StateError>().is_none() {
                        self.of.delivery.tried(Err(format!("{e:#}")));
                    }
                    warn!(error = format!("{e:#}"), "cannot deliver records, will try again");
                    gate.failed(probe, self.of.sink.changed(), stop).await;
                }
            }
        }
        // Otherwise it is delivered once more in the next life, which does no harm.
        Ok(self.acknowledge().await?)
    }

    /// Delivers the next batch; answers how many items it held.
    async fn next(&mut self, probing: bool) -> anyhow::Result<usize> {
        let (state, most) = (&self.of.state, self.most(probing));
        let mut batch = match self.ahead.take() {
            Some(batch) => batch,
            None => state.take(self.lane, self.delivered.take().as_ref(), 0, most).await?,
        };
        let items: Vec<LogItem> =
            std::mem::take(&mut batch.items).into_iter().map(LogItem::from).collect();
        if batch.unreadable > 0 {
            warn!(items = batch.unreadable, "spooled items cannot be read and are dropped");
        }
        reach(Place::Delivering, &items);
        let delivered = self.delivered.take();
        let ahead = async {
            match batch.more && !probing && !self.behind() {
                true => state.take(self.lane, delivered.as_ref(), batch.last_id, most).await.ok(),
                false => None,
            }
        };
        let (sent, ahead) = tokio::join!(self.send(&items), ahead);
        self.delivered = delivered.filter(|_| ahead.is_none());
        sent?;
        reach(Place::Delivered, &items);
        if let Some(before) = self.delivered.take() {
            self.of.state.ack(&before).await?;
        }
        self.ahead = ahead;
        self.delivered = (batch.last_id > 0).then_some(batch);
        Ok(items.len())
    }

    /// Items and bytes in the next batch.
    fn most(&self, probing: bool) -> Most {
        let (items, bytes) = if probing { PROBE } else { BATCH };
        // What is under way cannot be dropped when there is no room.
        let bytes = bytes.min(usize::try_from(self.of.spool_limit / 8).unwrap_or(usize::MAX));
        let pace = match self.lane {
            Lane::Fresh => usize::MAX,
            // Some in a second, so that the pace is even.
            Lane::Backlog => (self.of.catchup_rate as usize / 4).max(1),
        };
        Most(items.min(pace), bytes)
    }

    async fn send(&self, items: &[LogItem]) -> anyhow::Result<()> {
        let (sink, node) = (&self.of.sink, &self.of.node);
        match sink.send(node, items).await {
            Ok(()) => Ok(()),
            Err(Failure::Later(e)) => Err(e),
            Err(Failure::Refused(reason)) => {
                warn!(reason, "a batch was refused, delivering its items one by one");
                for item in items {
                    match sink.send(node, std::slice::from_ref(item)).await {
                        Ok(()) => {}
                        // It would be refused for ever and hold up everything behind it.
                        Err(Failure::Refused(reason)) => {
                            self.of.metrics.delivery_refused.inc();
                            let run_id = item.run_id();
                            error!(%run_id, reason, "the log store refuses an item for good; it is dropped");
                        }
                        Err(Failure::Later(e)) => return Err(e),
                    }
                }
                Ok(())
            }
        }
    }

    /// Lets a backlog wait as long as `n` items of it may take.
    fn pace(&mut self, n: usize) {
        if self.lane == Lane::Backlog {
            let share = n as f64 / f64::from(self.of.catchup_rate);
            self.allowed = self.allowed.max(Instant::now() - BUSY) + Duration::from_secs_f64(share);
        }
    }

    /// Whether what is new waits for what is old.
    fn behind(&self) -> bool {
        let stats: SpoolStats = self.of.state.spool_stats();
        let old = |at| Timestamp::now().duration_since(at) > BEHIND;
        self.lane == Lane::Fresh
            && stats.fresh() > BATCH.0 as u64
            && stats.fresh_oldest.is_some_and(old)
    }

    /// Makes a backlog of what waits, if it has waited for long.
    async fn part(&mut self) -> Result<(), StateError> {
        if self.ahead.is_none() && self.behind() {
            self.acknowledge().await?;
            self.of.state.part().await?;
        }
        Ok(())
    }

    async fn acknowledge(&mut self) -> Result<(), StateError> {
        match self.delivered.take() {
            Some(batch) => self.of.state.ack(&batch).await,
            None => Ok(()),
        }
    }
}

/// Waits until there is something in a lane; answers false if there never will be.
async fn wait(stats: &mut watch::Receiver<SpoolStats>, lane: Lane) -> bool {
    let some = |s: &SpoolStats| match lane {
        Lane::Fresh => s.fresh() > 0,
        Lane::Backlog => s.backlog > 0,
    };
    stats.wait_for(some).await.is_ok()
}

/// See [`failpoint`]: for each run whose end is among `items`.
fn reach(place: Place, items: &[LogItem]) {
    for item in items {
        if let LogItem::Run(r) = item
            && r.state.is_final()
        {
            failpoint::reach(place, r.job.as_ref());
        }
    }
}
