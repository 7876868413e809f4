//! One part from the order to its end.

use super::{
    Held, Standing,
    begin::{Back, Marked},
    report::{SavedEnd, end, forget, tell},
};
use crate::{
    engine::{Engine, Plan},
    process::KillReason,
    registry::Stage,
};
use jiff::Timestamp;
use meepo_coord::keys;
use meepo_core::{
    code::Code,
    run::{Cause, RunRecord, RunState},
    signing::{Covered, Kind, Refusal},
    task::{PartId, record::Outcome},
};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A time to run that never ends, as far as timers go.
const FOR_EVER: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// A part that this node was given.
pub(super) struct Life {
    pub(super) engine: Arc<Engine>,
    pub(super) id: PartId,
    pub(super) held: watch::Receiver<Option<Held>>,
    pub(super) standing: Standing,
    pub(super) intake: CancellationToken,
    pub(super) stop: CancellationToken,
    /// When this life first tried to mark the part as begun: a mark with another time is
    /// not its own.
    pub(super) tried: Option<Timestamp>,
}

impl Life {
    /// Deals with the order. `saved` is the end of its run in the last life.
    pub(super) async fn live(mut self, saved: Option<SavedEnd>, slots: Arc<Semaphore>) {
        if !self.owns_node().await {
            return;
        }
        let Some(first) = self.held.borrow_and_update().clone() else { return };
        let run_id = first.order.run_id;
        if let Some(saved) = saved {
            info!(part = %self.id, %run_id, "telling the end of a run of the last life");
            return end(&self.engine, self.id, first, saved.outcome, &self.stop).await;
        }
        let lost = match self.engine.state.seen(vec![run_id]).await {
            Ok(seen) if seen.contains(&run_id) => {
                Some("its worker died while it ran, or was about to start it")
            }
            // The journal that knew of it may be gone, so it may have run.
            Ok(_) if first.order.part.begun_at.is_some() => {
                Some("it was marked as begun, and its worker knows nothing of it")
            }
            Ok(_) => None,
            Err(e) => {
                // It may have run: the leader takes it back when its time is over.
                warn!(part = %self.id, error = %e, "cannot tell whether a part has run already");
                return;
            }
        };
        if let Some(why) = lost {
            let outcome = Outcome::new(Code::LOST, Some(why.to_owned()), Timestamp::now());
            return end(&self.engine, self.id, first, outcome, &self.stop).await;
        }
        if let Err(e) = self.admitted(&first).await {
            return self.turn_away(first, &e).await;
        }
        let slot = tokio::select! {
            slot = slots.acquire_owned() => slot,
            () = self.intake.cancelled() => return self.give_back(Back::Closed).await,
            () = gone(&mut self.held) => return,
        };
        match self.mark(first).await {
            Marked::Begun(held) => self.run(held).await,
            Marked::Not(back) => self.give_back(back).await,
            Marked::Gone => {}
            Marked::Foreign => {
                drop(slot);
                warn!(part = %self.id, "another worker with this node's id has begun a part");
                tokio::select! {
                    () = self.intake.cancelled() => {}
                    () = gone(&mut self.held) => {}
                }
            }
        }
    }

    /// Whether a master has given this node the part.
    async fn admitted(&self, held: &Held) -> Result<(), Refusal> {
        let key = keys::order(&self.engine.node, self.id);
        let order = &held.order;
        self.engine.trust.admit(Kind::Order, &key, &order.extra, || order.covered()).await
    }

    /// Records an order that is not believed, and ends the part.
    async fn turn_away(self, held: Held, why: &Refusal) {
        let why = why.to_string();
        let plan = self.plan(&held);
        self.engine.trust.note(Code::UNTRUSTED, plan.job.as_ref(), &why);
        let message = Some(why.clone());
        let record = plan.not_run(&self.engine.node, RunState::Failed, Code::UNTRUSTED, message);
        self.engine.settle(&[record], None).await;
        let outcome = Outcome::new(Code::UNTRUSTED, Some(why), Timestamp::now());
        end(&self.engine, self.id, held, outcome, &self.stop).await;
    }

    fn plan(&self, held: &Held) -> Plan {
        let order = &held.order;
        let mut assignment = order.command.assignment();
        assignment.set_traceparent(order.traceparent().map(str::to_owned));
        Plan {
            run_id: order.run_id,
            job: Some(self.id.name()),
            assignment: Arc::new(assignment),
            slot: order.submitted_at,
            attempt: order.part.attempt,
            cause: Cause::Task,
            // What others may be given is ended when this node has lost its lease.
            fence: order.queued.then_some(held.create),
            permit: None,
        }
    }

    /// Runs the part, which is marked as begun, to its end.
    async fn run(mut self, held: Held) {
        let part = self.id;
        let plan = self.plan(&held);
        let begun = self.engine.begin(&plan).await;
        let stage = self.engine.registry.watch(plan.run_id);
        let engine = self.engine.clone();
        let executing = engine.execute(plan, begun, None, |record| SavedEnd::entry(part, record));
        tokio::pin!(executing);
        let over = {
            let watching = self.watch_over(&held);
            tokio::pin!(watching);
            tokio::select! {
                biased;
                over = &mut executing => Ok(over),
                record = ended(stage) => Err(record),
                never = watching => match never {},
            }
        };
        let held = self.latest(held);
        let run_id = held.order.run_id;
        match over {
            // Its beginning could not be written down: it has not run.
            Ok(Some(over)) if over.next.is_none() => self.give_back(Back::Closed).await,
            Ok(Some(over)) => {
                let outcome = Outcome::from(&*over.record);
                end(&self.engine, part, held, outcome, &self.stop).await;
            }
            // It was begun in an earlier life.
            Ok(None) => {
                let outcome = Outcome::new(Code::LOST, None, Timestamp::now());
                end(&self.engine, part, held, outcome, &self.stop).await;
            }
            // The disk does not take its end yet. Nobody need wait for that, and nobody is
            // to run it again meanwhile.
            Err(record) => {
                let outcome = Outcome::from(&*record);
                let telling = tell(&self.engine, part, held, &outcome, &self.stop);
                if let (_, true) = tokio::join!(executing, telling) {
                    forget(&self.engine, part, run_id).await;
                }
            }
        }
    }

    /// The newest that is known of the order, or what it was.
    fn latest(&self, held: Held) -> Held {
        let newest = self.held.borrow().clone();
        newest.filter(|n| n.revision > held.revision).unwrap_or(held)
    }

    /// Ends the run when its time is over, when somebody asks for it, or when the order is
    /// taken back. Never returns: what it ends, ends.
    async fn watch_over(&mut self, held: &Held) -> Infallible {
        let run_id = held.order.run_id;
        let ttr = held.order.policy.ttr.0.min(FOR_EVER);
        let mut until = Instant::now() + ttr;
        let mut touched = held.order.part.touched;
        loop {
            match self.held.borrow_and_update().as_ref() {
                None => {
                    info!(part = %self.id, %run_id, "a part was taken back: its run is ended");
                    self.engine.registry.kill(run_id, KillReason::Requested);
                }
                Some(held) => {
                    if held.order.part.ask.is_some() {
                        self.engine.registry.kill(run_id, KillReason::Requested);
                    }
                    if held.order.part.touched != touched {
                        touched = held.order.part.touched;
                        until = Instant::now() + ttr;
                    }
                }
            }
            tokio::select! {
                changed = self.held.changed() => if changed.is_err() {
                    // Nobody tells any more; time goes on.
                    tokio::time::sleep_until(until).await;
                    self.engine.registry.kill(run_id, KillReason::Timeout);
                    return std::future::pending().await;
                },
                () = tokio::time::sleep_until(until) => {
                    info!(part = %self.id, %run_id, "a part has had its time to run: its run is ended");
                    self.engine.registry.kill(run_id, KillReason::Timeout);
                    until = Instant::now() + FOR_EVER;
                }
            }
        }
    }
}

/// Waits until a run has ended, whether or not that is written down.
async fn ended(stage: Option<watch::Receiver<Stage>>) -> Arc<RunRecord> {
    if let Some(mut stage) = stage
        && let Ok(stage) = stage.wait_for(|s| matches!(s, Stage::Ended(..))).await
        && let Stage::Ended(_, record) = &*stage
    {
        return record.clone();
    }
    std::future::pending().await
}

/// Waits until the order is gone.
pub(super) async fn gone(held: &mut watch::Receiver<Option<Held>>) {
    // The sender lives as long as the life that it is for.
    if held.wait_for(|h| h.is_none()).await.is_err() {
        std::future::pending().await
    }
}
