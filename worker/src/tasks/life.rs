//! One part from the order to its end.

use super::{
    Held,
    report::{Change, SavedEnd, change, end, settle},
};
use crate::{
    engine::{Engine, Plan},
    process::KillReason,
};
use etcd_client::{Compare, CompareOp};
use jiff::Timestamp;
use meepo_coord::{keys, records::decode};
use meepo_core::{
    code::Code,
    run::{Cause, to_millis},
    task::{Order, Part, PartId, Task, record::Outcome},
};
use meepo_runtime::backoff::Backoff;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How long a part that a full disk refused waits before somebody is given it again.
const REFUSED: Duration = Duration::from_secs(5);
/// A time to run that never ends, as far as timers go.
const FOR_EVER: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// A part that this node was given.
pub(super) struct Life {
    pub(super) engine: Arc<Engine>,
    pub(super) id: PartId,
    pub(super) held: watch::Receiver<Option<Held>>,
    pub(super) intake: CancellationToken,
    pub(super) stop: CancellationToken,
}

/// What came of marking a part as begun.
enum Marked {
    /// It may start.
    Begun(Held),
    /// It may not: the order is gone, the task withdrawn, or the worker ends.
    Not,
}

impl Life {
    /// Deals with the order. `saved` is the end of its run in the last life.
    pub(super) async fn live(mut self, saved: Option<SavedEnd>, slots: Arc<Semaphore>) {
        let Some(first) = self.held.borrow_and_update().clone() else { return };
        let run_id = first.order.run_id;
        if let Some(saved) = saved {
            info!(part = %self.id, %run_id, "telling the end of a run of the last life");
            return end(&self.engine, self.id, first, saved.outcome, &self.stop).await;
        }
        match self.engine.state.seen(vec![run_id]).await {
            Ok(seen) if seen.contains(&run_id) => {
                let why = "its worker died while it ran, or was about to start it";
                let outcome = Outcome::new(Code::LOST, Some(why.to_owned()), Timestamp::now());
                return end(&self.engine, self.id, first, outcome, &self.stop).await;
            }
            Ok(_) => {}
            Err(e) => {
                // It may have run: the leader takes it back when its time is over.
                warn!(part = %self.id, error = %e, "cannot tell whether a part has run already");
                return;
            }
        }
        let _slot = tokio::select! {
            slot = slots.acquire_owned() => slot,
            () = self.intake.cancelled() => return self.give_back().await,
            () = gone(&mut self.held) => return,
        };
        if self.engine.holds() {
            return self.give_back().await;
        }
        match self.mark(first).await {
            Marked::Begun(held) => self.run(held).await,
            // Others may run it sooner than this node can.
            Marked::Not if self.intake.is_cancelled() => self.give_back().await,
            Marked::Not => {}
        }
    }

    /// Nothing starts here at the moment: somebody else may run it.
    async fn give_back(&self) {
        let Some(held) = self.held.borrow().clone() else { return };
        info!(part = %self.id, "a part is given back: nothing starts here at the moment");
        // One that was marked by a try whose answer did not come has not run either.
        let next = |order: &Order| order.part.clone().taken_back(Duration::ZERO, Timestamp::now());
        settle(&self.engine, self.id, held, next, &self.stop).await;
    }

    /// Marks the part as begun, on condition that neither it nor its task has changed.
    async fn mark(&mut self, mut held: Held) -> Marked {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        let mut task = held.order.task_revision;
        loop {
            if self.intake.is_cancelled() {
                return Marked::Not;
            }
            let now = to_millis(Timestamp::now());
            let part = Part { begun_at: Some(now), ..held.order.part.clone() };
            let order = Order { part, ..Order::clone(&held.order) };
            let same = Compare::mod_revision(keys::task(self.id.task), CompareOp::Equal, task);
            let marking =
                change(&self.engine, self.id, &held, Some(same), &order.part, Some(&order));
            match marking.await {
                Ok(Change::Done(revision)) => {
                    let order = Arc::new(order);
                    return Marked::Begun(Held { order, revision, ..held });
                }
                Ok(Change::Gone) => return Marked::Not,
                Ok(Change::Moved(newer)) => {
                    held = newer;
                    match self.engine.etcd.get(&keys::task(self.id.task)).await {
                        Ok(Some(entry)) => match decode::<Task>(&entry.value) {
                            // The leader takes the order back.
                            Ok(t) if t.control.revokes() => return Marked::Not,
                            Ok(_) => task = entry.mod_revision,
                            Err(_) => return Marked::Not,
                        },
                        Ok(None) => return Marked::Not,
                        Err(e) => debug!(part = %self.id, error = %e, "cannot look at a task"),
                    }
                }
                // Whether it was marked is not known: the next try finds out.
                Err(e) => {
                    let wait = backoff.next_wait();
                    debug!(part = %self.id, error = %e, ?wait, "cannot begin a part, will try again");
                    tokio::select! {
                        () = self.intake.cancelled() => return Marked::Not,
                        () = tokio::time::sleep(wait) => {}
                        () = gone(&mut self.held) => return Marked::Not,
                    }
                }
            }
        }
    }

    /// Runs the part, which is marked as begun, to its end.
    async fn run(mut self, held: Held) {
        let order = &held.order;
        let part = self.id;
        let plan = Plan {
            run_id: order.run_id,
            job: Some(part.name()),
            assignment: Arc::new(order.command.assignment()),
            slot: order.submitted_at,
            attempt: order.part.attempt,
            cause: Cause::Task,
            // What others may be given is ended when this node has lost its lease.
            fence: order.queued.then_some(held.create),
            permit: None,
        };
        let begun = self.engine.begin(&plan).await;
        let engine = self.engine.clone();
        let executing = engine.execute(plan, begun, None, |record| SavedEnd::entry(part, record));
        let over = {
            let watching = self.watch_over(&held);
            tokio::pin!(executing);
            tokio::select! {
                over = &mut executing => over,
                never = watching => match never {},
            }
        };
        let held = self.latest(held);
        match over {
            // Its beginning could not be written down: it has not run.
            Some(over) if over.next.is_none() => {
                let next = |order: &Order| order.part.clone().taken_back(REFUSED, Timestamp::now());
                settle(&self.engine, part, held, next, &self.stop).await;
            }
            Some(over) => {
                let outcome = Outcome::from(&*over.record);
                end(&self.engine, part, held, outcome, &self.stop).await;
            }
            // It was begun in an earlier life.
            None => {
                let outcome = Outcome::new(Code::LOST, None, Timestamp::now());
                end(&self.engine, part, held, outcome, &self.stop).await;
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

/// Waits until the order is gone.
async fn gone(held: &mut watch::Receiver<Option<Held>>) {
    // The sender lives as long as the life that it is for.
    if held.wait_for(|h| h.is_none()).await.is_err() {
        std::future::pending().await
    }
}
