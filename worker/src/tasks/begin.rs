//! Marking a part as begun, and giving it back where it cannot begin here.

use super::{
    Held,
    life::{Life, gone},
    report::{Change, change, settle},
};
use crate::health::Registration;
use etcd_client::{Compare, CompareOp};
use jiff::Timestamp;
use meepo_coord::{keys, records::decode};
use meepo_core::{
    code::Code,
    run::to_millis,
    task::{Control, Event, Order, Part, PartId, Task, record::Outcome},
};
use meepo_runtime::backoff::Backoff;
use std::{sync::Arc, time::Duration};
use tracing::{debug, info};

/// How long a part waits before somebody is given it again, if etcd knows by then that this
/// node takes nothing: the leader may hear of both in any order.
const TOLD: Duration = Duration::from_secs(1);
/// … if etcd does not know.
const UNTOLD: Duration = Duration::from_secs(5);
/// How long a part is kept until etcd knows.
const TELLING: Duration = Duration::from_secs(1);

/// What came of marking a part as begun.
pub(super) enum Marked {
    /// It may start.
    Begun(Held),
    /// It may not.
    Not(Back),
    /// It is not this worker's any more.
    Gone,
    /// Another worker under this node's id has begun it.
    Foreign,
}

/// Why a part is given back that has not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Back {
    /// Nothing starts here at the moment: somebody else may run it.
    Closed,
    /// Its task is paused.
    Paused,
    /// Its task is withdrawn.
    Withdrawn,
    /// Somebody wants something else of it.
    Asked,
}

impl Life {
    /// Waits until this node is this worker's: two workers under one id would run everything
    /// twice. Answers `false` if that is not to be waited for any more.
    pub(super) async fn owns_node(&mut self) -> bool {
        let own = async |standing: &mut super::Standing| {
            standing.registration.wait_for(|r| *r == Registration::Done).await.is_ok()
        };
        tokio::select! {
            biased;
            own = own(&mut self.standing) => own,
            () = self.intake.cancelled() => false,
            () = gone(&mut self.held) => false,
        }
    }

    /// Gives back what has not begun.
    pub(super) async fn give_back(&mut self, why: Back) {
        let wait = match why {
            Back::Closed => self.closed().await,
            Back::Paused | Back::Withdrawn | Back::Asked => Duration::ZERO,
        };
        let Some(held) = self.held.borrow().clone() else { return };
        info!(part = %self.id, ?why, "a part is given back that has not begun");
        let (id, tried) = (self.id, self.tried);
        let next = |order: &Order| given_back(id, order, tried, why, wait, Timestamp::now());
        settle(&self.engine, self.id, held, next, &self.stop).await;
    }

    /// Waits a moment until etcd knows that this node takes nothing: before that the leader
    /// would give it the part again. Answers how long the part is to wait.
    async fn closed(&mut self) -> Duration {
        let told = self.standing.offers.wait_for(|offers| !offers);
        match tokio::time::timeout(TELLING, told).await {
            Ok(Ok(_)) => TOLD,
            _ => UNTOLD,
        }
    }

    /// Marks the part as begun, on condition that neither it nor its task has changed.
    pub(super) async fn mark(&mut self, mut held: Held) -> Marked {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        let mut task = held.order.task_revision;
        loop {
            // It may have become another worker's meanwhile.
            if !self.owns_node().await {
                return Marked::Gone;
            }
            if self.intake.is_cancelled() || self.engine.holds() {
                return Marked::Not(Back::Closed);
            }
            let order = marked(&held.order, &mut self.tried, Timestamp::now());
            let same = Compare::mod_revision(keys::task(self.id.task), CompareOp::Equal, task);
            let marking =
                change(&self.engine, self.id, &held, Some(same), &order.part, Some(&order));
            match marking.await {
                Ok(Change::Done(revision)) => {
                    let order = Arc::new(order);
                    return Marked::Begun(Held { order, revision, ..held });
                }
                Ok(Change::Gone) => return Marked::Gone,
                Ok(Change::Moved(newer)) => {
                    if is_foreign(&newer.order.part, self.tried) {
                        return Marked::Foreign;
                    }
                    if newer.order.part.ask.is_some() {
                        return Marked::Not(Back::Asked);
                    }
                    held = newer;
                    match self.engine.etcd.get(&keys::task(self.id.task)).await {
                        Ok(Some(entry)) => match decode::<Task>(&entry.value) {
                            Ok(t) if t.control.revokes() => return Marked::Not(Back::Withdrawn),
                            Ok(t) if t.control == Control::Paused => {
                                return Marked::Not(Back::Paused);
                            }
                            Ok(_) => task = entry.mod_revision,
                            Err(_) => return Marked::Gone,
                        },
                        Ok(None) => return Marked::Gone,
                        Err(e) => debug!(part = %self.id, error = %e, "cannot look at a task"),
                    }
                }
                // Whether it was marked is not known: the next try finds out.
                Err(e) => {
                    let wait = backoff.next_wait();
                    debug!(part = %self.id, error = %e, ?wait, "cannot begin a part, will try again");
                    tokio::select! {
                        () = self.intake.cancelled() => return Marked::Not(Back::Closed),
                        () = tokio::time::sleep(wait) => {}
                        () = gone(&mut self.held) => return Marked::Gone,
                    }
                }
            }
        }
    }
}

/// The order of a part that begins now. It has all of its time from now on, however long it
/// has waited; `tried` is when this was tried first, by which a mark is known again whose
/// answer did not come.
fn marked(order: &Order, tried: &mut Option<Timestamp>, now: Timestamp) -> Order {
    let now = to_millis(now);
    let begun_at = *tried.get_or_insert(now);
    let deadline = now.checked_add(order.policy.ttr.0).ok().map(to_millis);
    let part = Part { begun_at: Some(begun_at), deadline, ..order.part.clone() };
    Order { part, ..order.clone() }
}

/// Whether another life has begun the part.
fn is_foreign(part: &Part, tried: Option<Timestamp>) -> bool {
    part.begun_at.is_some() && part.begun_at != tried
}

/// The part after it was given back; `None` if another life has begun it.
fn given_back(
    id: PartId,
    order: &Order,
    tried: Option<Timestamp>,
    why: Back,
    wait: Duration,
    now: Timestamp,
) -> Option<Part> {
    let part = order.part.clone();
    if is_foreign(&part, tried) {
        return None;
    }
    // A try to mark it whose answer did not come may have shown it as begun, so that
    // somebody could ask.
    if part.ask.is_some() {
        let why = "it was ended before it had begun".to_owned();
        let outcome = Outcome::new(Code::KILLED, Some(why), now);
        return Some(part.ended(id, &order.policy, outcome, now));
    }
    let mut part = part.taken_back(wait, now);
    if why == Back::Withdrawn {
        part.outcome = Some(Outcome::new(Code::CANCELLED, None, now));
        part.step(Event::Revoke, now);
    }
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::task::{Ask, PartState, TaskId};

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).unwrap()
    }

    fn order(part: serde_json::Value) -> Order {
        let mut whole = serde_json::json!({
            "state": "reserved", "since": at(1), "attempt": 1, "node": "n", "deadline": at(61),
            "runs": [{"run_id": uuid::Uuid::nil(), "node": "n", "attempt": 1}],
        });
        whole.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        serde_json::from_value(serde_json::json!({
            "run_id": uuid::Uuid::nil(), "part": whole, "command": {"cmd": "true"},
            "policy": {"priority": 1, "ttr": "1m", "on_failure": "fail"},
            "submitted_at": at(0), "task_revision": 1,
        }))
        .unwrap()
    }

    fn back(part: serde_json::Value, tried: Option<Timestamp>, why: Back) -> Option<Part> {
        let id = PartId { task: TaskId(uuid::Uuid::nil()), n: 1 };
        let wait = if why == Back::Closed { UNTOLD } else { Duration::ZERO };
        given_back(id, &order(part), tried, why, wait, at(100))
    }

    #[test]
    fn a_part_that_begins_late_has_all_of_its_time_and_a_mark_is_known_again() {
        let mut tried = None;
        let first = marked(&order(serde_json::json!({})), &mut tried, at(40));
        assert_eq!((first.part.begun_at, first.part.deadline), (Some(at(40)), Some(at(100))));
        assert!(!is_foreign(&first.part, tried), "its own");
        let second = marked(&first, &mut tried, at(90));
        assert_eq!((second.part.begun_at, second.part.deadline), (Some(at(40)), Some(at(150))));
        assert!(is_foreign(&first.part, None) && is_foreign(&first.part, Some(at(41))));
    }

    #[test]
    fn what_has_not_begun_is_given_back_by_what_is_wanted_of_it() {
        let none = || serde_json::json!({});
        let closed = back(none(), None, Back::Closed).unwrap();
        assert_eq!((closed.state, closed.ready_at), (PartState::Delayed, Some(at(105))));
        assert_eq!((closed.attempt, closed.runs.len()), (0, 0));
        let paused = back(none(), None, Back::Paused).unwrap();
        assert_eq!((paused.state, paused.attempt), (PartState::Ready, 0));
        // Its mark got through, though the answer did not.
        let mine = || serde_json::json!({"begun_at": at(40)});
        let withdrawn = back(mine(), Some(at(40)), Back::Withdrawn).unwrap();
        assert_eq!(withdrawn.state, PartState::Revoked);
        assert_eq!(withdrawn.outcome.unwrap().code, Code::CANCELLED);
        assert_eq!(back(mine(), None, Back::Closed), None, "another has begun it");
        for (ask, want) in [
            (Ask::Stop, PartState::Failed),
            (Ask::Bury, PartState::Buried),
            (Ask::Delete, PartState::Failed),
            (Ask::Release { not_before: Some(at(500)) }, PartState::Delayed),
        ] {
            let asked = serde_json::json!({"begun_at": at(40), "ask": ask});
            let part = back(asked, Some(at(40)), Back::Closed).unwrap();
            assert_eq!((part.state, part.ask), (want, None), "{ask:?}");
        }
    }
}
