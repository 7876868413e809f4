//! Times in which this node starts nothing: it is drained, its disk refuses writes, or
//! another worker is registered under its id. Slots stay due meanwhile; what was decided
//! on and did not begin is set aside.

use super::{Agent, Job, fire::is_counted, overlap::Asked};
use crate::progress::Queue;
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    code::Code,
    id::{Name, RunId},
    misfire::GRACE,
    run::{Cause, RunState},
};
use std::collections::HashMap;

/// Why nothing starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Why {
    /// Another worker has this node's id.
    pub(super) taken: bool,
    /// The node takes nothing new, asked for then: perhaps in an earlier life.
    pub(super) drained: Option<Timestamp>,
    /// No beginning can be written down.
    pub(super) disk: bool,
}

impl Why {
    /// Whether anything holds.
    pub(super) fn any(self) -> bool {
        self.taken || self.drained.is_some() || self.disk
    }

    fn text(self) -> &'static str {
        match self {
            Self { drained: Some(_), .. } => "the node was drained",
            Self { disk: true, .. } => "the node's disk took no writes",
            _ => "another worker was registered under this node's id",
        }
    }
}

/// What is held back.
#[derive(Default)]
pub(super) struct Hold {
    now: Why,
    since: Timestamp,
    /// From when until when nothing started the last time, and why.
    last: Option<(Timestamp, Timestamp, Why)>,
    /// Runs that are to begin when they may; none of them is guarded by a cursor.
    aside: HashMap<RunId, Asked>,
}

impl Hold {
    /// Whether a run is set aside.
    pub(super) fn knows(&self, run_id: RunId) -> bool {
        self.aside.contains_key(&run_id)
    }

    /// Takes out a run that was set aside.
    pub(super) fn take(&mut self, run_id: RunId) -> Option<Asked> {
        self.aside.remove(&run_id)
    }

    /// Takes out what was asked for by `key`.
    pub(super) fn take_asked(&mut self, key: &str) -> Option<Asked> {
        self.take_where(|a| a.request.as_ref().is_some_and(|r| r.key == key)).pop()
    }

    fn put(&mut self, asked: Asked) {
        // A lock is not kept from others meanwhile.
        let asked = Asked { lock: None, ..asked };
        self.aside.insert(asked.plan.run_id, asked);
    }

    /// Whether no beginning can be written down.
    pub(super) fn disk(&self) -> bool {
        self.now.disk
    }

    /// Why a slot was missed, if nothing started at its time.
    pub(super) fn why_missed(&self, slot: Timestamp) -> Option<&'static str> {
        let (from, until, why) = self.last?;
        (from <= slot && slot <= until).then(|| why.text())
    }

    /// Takes out what `wanted` names, the oldest first.
    pub(super) fn take_where(&mut self, wanted: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        let mut taken: Vec<Asked> =
            self.aside.extract_if(|_, a| wanted(a)).map(|(_, a)| a).collect();
        taken.sort_by_key(|a| (a.plan.slot, a.plan.run_id));
        taken
    }

    /// Everything this node has claimed and set aside.
    pub(super) fn take_claimed(&mut self) -> Vec<Asked> {
        self.take_where(|a| a.plan.fence.is_some())
    }
}

impl Agent {
    /// Things are so now.
    pub(super) async fn turn(&mut self, why: Why) {
        let old = std::mem::replace(&mut self.hold.now, why);
        let now = Timestamp::now();
        if why.any() && !old.any() {
            self.hold.since = why.drained.unwrap_or(now).min(now);
        }
        if old.any() && !why.any() {
            self.hold.last = Some((self.hold.since, now, old));
        }
        if why.drained.is_some() && old.drained.is_none() {
            self.put_back().await;
        }
        if old.disk && !why.disk {
            for asked in self.hold.take_claimed() {
                self.claimed_again(asked, now).await;
            }
        }
        if old.any() && !why.any() {
            for asked in self.hold.take_where(|_| true) {
                match asked.plan.attempt {
                    1 => self.start(asked).await,
                    // Its job may have gone meanwhile.
                    _ => self.waits.enter(now, asked),
                }
            }
        }
        if old != why {
            self.begin_ready().await;
        }
    }

    /// A run that was decided on while nothing new is taken waits aside. What this node
    /// has claimed nobody else may run: it begins. Answers what may begin.
    pub(super) fn admit(&mut self, asked: Asked) -> Option<Asked> {
        if self.hold.now.drained.is_some() && asked.plan.fence.is_none() {
            self.hold.put(asked);
            return None;
        }
        Some(asked)
    }

    /// The drain begins: slots that have not begun are missed, requests wait.
    async fn put_back(&mut self) {
        for asked in self.overlap.take_unclaimed() {
            let job = asked.plan.job.clone();
            if is_slot(&asked) {
                let why = Some("the node is drained".to_owned());
                self.turn_down(asked, RunState::Missed, Code::MISSED, why).await;
            } else {
                self.hold.put(asked);
            }
            if let Some(job) = job {
                self.follow_cursor(&job).await;
            }
        }
    }

    /// The disk has refused the beginning of a run: its slot is due again, with those
    /// after it that have not begun.
    pub(super) async fn refused(&mut self, job: Name, asked: Asked) {
        self.overlap.release(&job, asked.plan.run_id);
        // Until the disk has been tried again nothing may begin.
        if !self.hold.now.any() {
            self.hold.since = Timestamp::now();
        }
        self.hold.now.disk = true;
        if is_counted(&asked.plan)
            && let Some(held) = self.table.get_mut(&job)
        {
            held.runs = held.runs.saturating_sub(1);
        }
        if !is_slot(&asked) {
            self.hold.put(asked);
            return;
        }
        let (slots, others): (Vec<_>, Vec<_>) =
            self.overlap.drop_slots(&job).into_iter().partition(is_slot);
        others.into_iter().for_each(|asked| self.hold.put(asked));
        let first = slots.iter().map(|a| a.plan.slot).min();
        let first = first.map_or(asked.plan.slot, |first| first.min(asked.plan.slot));
        self.hold.since = self.hold.since.min(first);
        if let Some(held) = self.table.get_mut(&job) {
            held.after = held.after.min(first - SignedDuration::from_millis(1));
            self.schedule(&job);
        }
    }

    /// A slot that this node has claimed and could not begin: it alone may run it.
    async fn claimed_again(&mut self, asked: Asked, now: Timestamp) {
        let made_up = asked.plan.attempt > 1 || asked.plan.cause == Cause::Misfire;
        let job = asked.plan.job.as_ref().and_then(|id| self.table.get(id));
        let delay = job.map_or(SignedDuration::ZERO, Job::delay);
        if made_up || now.duration_since(asked.plan.slot) <= GRACE + delay {
            return self.start(asked).await;
        }
        let why = Some(Why { disk: true, ..Why::default() }.text().to_owned());
        let record = asked.plan.not_run(&self.engine.node, RunState::Missed, Code::MISSED, why);
        self.engine.settle(&[record], None).await;
    }

    /// What waits here, for the health record.
    pub(super) fn queue(&self) -> Queue {
        let claimed = self.hold.aside.values().filter(|a| a.plan.fence.is_some()).count();
        Queue {
            ready: (self.overlap.ready() + self.overlap.count_locking()) as u64,
            waiting: (self.overlap.count_waiting() + claimed) as u64,
            claiming: self.once.claiming() as u64,
            held: self.hold.now.drained.is_some(),
        }
    }
}

/// Whether a run is guarded by its job's cursor, so that its slot can be due again.
fn is_slot(asked: &Asked) -> bool {
    let scheduled = matches!(asked.plan.cause, Cause::Schedule | Cause::Misfire);
    scheduled && asked.plan.attempt == 1 && asked.plan.fence.is_none() && asked.request.is_none()
}

#[cfg(test)]
mod tests {
    use super::super::{
        fire::Slots,
        tests::{Rig, j, request, rig, second},
    };
    use super::*;
    use crate::engine::Plan;

    const JOB: &str = r#"{"cmd":"true","express":"* * * * * *"}"#;

    fn drained() -> Why {
        Why { drained: Some(Timestamp::UNIX_EPOCH), ..Why::default() }
    }

    fn disk() -> Why {
        Why { disk: true, ..Why::default() }
    }

    fn at(n: i64) -> Timestamp {
        second() + SignedDuration::from_secs(n)
    }

    fn claimed(rig: &Rig, slot: Timestamp) -> Plan {
        let job = rig.agent.table.get(&j()).unwrap();
        let slots = Slots::new(job, job.assignment().unwrap());
        Plan { fence: Some(7), ..slots.plan(slot, Cause::Schedule) }
    }

    /// What waits for a place, as the agent would take it to begin it.
    fn ready(rig: &mut Rig) -> Asked {
        let asked = rig.agent.overlap.next().unwrap();
        rig.agent.overlap.begun(&j(), asked.plan.run_id);
        asked
    }

    #[tokio::test]
    async fn a_drain_lets_slots_pass_and_keeps_what_was_asked_for() {
        let mut rig = rig().await;
        rig.load(JOB, false).await;
        rig.slot(0).await;
        rig.agent.turn(drained()).await;
        let missed = rig.recorded().await;
        assert_eq!((missed.len(), missed[0].state), (1, RunState::Missed));
        assert!(missed[0].message.as_ref().unwrap().contains("drained"), "{missed:?}");
        assert_eq!(rig.cursor().await, Some(at(0)), "its slot is dealt with");
        // Two requests: one is taken back meanwhile.
        let ((kept, first), (back, second)) = (request(60), request(60));
        rig.agent.start(first).await;
        rig.agent.start(second).await;
        assert!(rig.agent.hold.knows(kept) && rig.agent.hold.knows(back) && !rig.knows(kept));
        assert!(rig.agent.kill_waiting(back).await && !rig.agent.hold.knows(back));
        // What is claimed may begin: nobody else can run it.
        let claimed = claimed(&rig, at(1));
        rig.agent.start(claimed.clone().into()).await;
        assert!(rig.knows(claimed.run_id));
        let queue = rig.agent.queue();
        assert_eq!((queue.ready, queue.held), (1, true));
        let taken = ready(&mut rig);
        rig.agent.overlap.release(&j(), taken.plan.run_id);
        rig.agent.turn(Why::default()).await;
        assert!(rig.knows(kept) && !rig.agent.queue().held);
        let why = rig.agent.hold.why_missed(Timestamp::now() - SignedDuration::from_secs(60));
        assert_eq!(why, Some("the node was drained"));
        assert_eq!(rig.agent.hold.why_missed(at(0)), None, "that is to come");
    }

    #[tokio::test]
    async fn slots_that_the_disk_refused_are_due_again() {
        let mut rig = rig().await;
        rig.load(r#"{"cmd":"true","express":"* * * * * *","concurrency":"queue"}"#, false).await;
        let first = rig.slot(0).await;
        let second = rig.slot(1).await;
        let asked = ready(&mut rig);
        assert_eq!(asked.plan.run_id, first);
        rig.agent.refused(j(), asked).await;
        assert!(!rig.knows(first) && !rig.knows(second));
        assert!(rig.after() < at(0));
        assert_eq!(rig.agent.agenda.head(), Some(at(0)), "neither is forgotten");
        assert!(rig.agent.hold.disk());
    }

    #[tokio::test]
    async fn what_no_cursor_guards_waits_for_the_disk() {
        let mut rig = rig().await;
        rig.load(JOB, false).await;
        let (run_id, asked) = request(60);
        rig.agent.start(asked).await;
        let asked = ready(&mut rig);
        rig.agent.turn(disk()).await;
        rig.agent.refused(j(), asked).await;
        assert!(rig.agent.hold.knows(run_id));
        // A claimed slot: late by then, it is recorded by the node that owns it.
        let (late, fresh) = (claimed(&rig, Timestamp::UNIX_EPOCH), claimed(&rig, Timestamp::now()));
        for plan in [late.clone(), fresh.clone()] {
            rig.agent.overlap.enter(&j(), plan.into(), false);
            let asked = ready(&mut rig);
            rig.agent.refused(j(), asked).await;
        }
        assert_eq!(rig.agent.queue().waiting, 2);
        rig.agent.turn(Why::default()).await;
        let missed = rig.recorded().await;
        assert_eq!((missed[0].run_id, missed[0].state), (late.run_id, RunState::Missed));
        assert!(rig.knows(fresh.run_id) && !rig.agent.hold.knows(run_id));
    }
}
