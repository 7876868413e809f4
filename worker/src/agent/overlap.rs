//! Runs of a job that meet: what has begun, what is ready for a place on this node and
//! what waits for its turn. Without effects; the agent performs them.

use crate::engine::Plan;
use jiff::Timestamp;
use meepo_core::{
    id::{Name, RunId},
    job::Concurrency,
    run::Cause,
};
use std::collections::{HashMap, HashSet, VecDeque};

/// The key in etcd that asked for a run.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// The key.
    pub(super) key: String,
    /// Not begun by then, the run is recorded as expired.
    pub(super) expires_at: Timestamp,
}

/// A plan with the request for it, if it was asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) plan: Plan,
    pub(super) request: Option<Request>,
}

impl From<Plan> for Asked {
    fn from(plan: Plan) -> Self {
        Self { plan, request: None }
    }
}

/// Runs by job. Synchronous commands are not among them: they overlap with nothing.
#[derive(Default)]
pub(super) struct Overlap {
    /// Ready (false) or begun (true).
    active: HashMap<Name, HashMap<RunId, bool>>,
    waiting: HashMap<Name, VecDeque<Asked>>,
    ready: VecDeque<Asked>,
    /// Jobs whose cursor could not follow the slots dealt with, as earlier ones had not
    /// begun.
    held: HashSet<Name>,
}

/// What becomes of a plan that meets other runs of its job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    Start,
    Wait,
    Replace,
    Skip,
}

/// The decision table of overlaps. `waits`: something waits already.
fn meet(policy: Concurrency, cause: Cause, active: bool, waits: bool) -> Meeting {
    match (policy, cause) {
        (Concurrency::Allow, _) => Meeting::Start,
        _ if !active && !waits => Meeting::Start,
        (Concurrency::Replace, _) => Meeting::Replace,
        // Slots that are made up for come in a bunch: one after the other.
        (_, Cause::Misfire) => Meeting::Wait,
        (Concurrency::Queue, _) if !waits => Meeting::Wait,
        _ => Meeting::Skip,
    }
}

impl Overlap {
    /// What becomes of `plan` now.
    pub(super) fn meet(&self, job: &Name, plan: &Plan) -> Meeting {
        let waits = self.waiting.contains_key(job);
        meet(plan.assignment.concurrency, plan.cause, self.is_active(job), waits)
    }

    fn is_active(&self, job: &Name) -> bool {
        self.active.contains_key(job)
    }

    /// Whether a run is begun, ready or waiting.
    pub(super) fn knows(&self, job: &Name, run_id: RunId) -> bool {
        self.active.get(job).is_some_and(|runs| runs.contains_key(&run_id))
            || self.waiting.get(job).is_some_and(|w| w.iter().any(|a| a.plan.run_id == run_id))
    }

    /// Whether anything of a job has yet to begin. The cursor must not pass it.
    pub(super) fn pending(&self, job: &Name) -> bool {
        self.waiting.contains_key(job)
            || self.active.get(job).is_some_and(|runs| runs.values().any(|begun| !begun))
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Lines a plan up for a place, or behind its job's active runs.
    pub(super) fn enter(&mut self, job: &Name, asked: Asked, wait: bool) {
        if wait {
            self.waiting.entry(job.clone()).or_default().push_back(asked);
        } else {
            self.active.entry(job.clone()).or_default().insert(asked.plan.run_id, false);
            self.ready.push_back(asked);
        }
    }

    /// The next plan for a free place; it is still active, and not begun.
    pub(super) fn next(&mut self) -> Option<Asked> {
        self.ready.pop_front()
    }

    /// It has begun.
    pub(super) fn begun(&mut self, job: &Name, run_id: RunId) {
        if let Some(begun) = self.active.get_mut(job).and_then(|runs| runs.get_mut(&run_id)) {
            *begun = true;
        }
    }

    /// It is over, or will not be: what waited for it becomes ready.
    pub(super) fn release(&mut self, job: &Name, run_id: RunId) {
        if let Some(runs) = self.active.get_mut(job) {
            runs.remove(&run_id);
            if !runs.is_empty() {
                return;
            }
            self.active.remove(job);
        }
        let Some(queue) = self.waiting.get_mut(job) else { return };
        let first = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(job);
        }
        if let Some(asked) = first {
            self.enter(job, asked, false);
        }
    }

    /// Takes out a run that has not begun.
    pub(super) fn take(&mut self, run_id: RunId) -> Option<Asked> {
        let wanted = |a: &Asked| a.plan.run_id == run_id;
        self.take_where(wanted).pop()
    }

    /// Makes room for a run that replaces the others: takes out those that have not
    /// begun, and names those that have.
    pub(super) fn displace(&mut self, job: &Name) -> (Vec<Asked>, Vec<RunId>) {
        let dropped = self.take_where(|a| a.plan.job.as_ref() == Some(job));
        let begun = self.active.get(job).map(|runs| runs.keys().copied().collect());
        (dropped, begun.unwrap_or_default())
    }

    /// Takes out the slots of a job that have not begun. What was asked for on demand
    /// stays: it does not depend on the job.
    pub(super) fn drop_slots(&mut self, job: &Name) -> Vec<Asked> {
        self.take_where(|a| a.plan.job.as_ref() == Some(job) && a.plan.cause != Cause::Trigger)
    }

    /// Everything that has not begun.
    pub(super) fn drain(&mut self) -> Vec<Asked> {
        self.take_where(|_| true)
    }

    fn take_where(&mut self, wanted: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        let mut taken = Vec::new();
        let mut sift = |queue: &mut VecDeque<Asked>| {
            for asked in std::mem::take(queue) {
                if wanted(&asked) {
                    taken.push(asked);
                } else {
                    queue.push_back(asked);
                }
            }
        };
        sift(&mut self.ready);
        self.waiting.values_mut().for_each(sift);
        self.waiting.retain(|_, queue| !queue.is_empty());
        for asked in &taken {
            if let Some(job) = asked.plan.job.as_ref().filter(|job| self.is_ready(job, asked)) {
                self.release(&job.clone(), asked.plan.run_id);
            }
        }
        taken
    }

    fn is_ready(&self, job: &Name, asked: &Asked) -> bool {
        self.active.get(job).is_some_and(|runs| runs.contains_key(&asked.plan.run_id))
    }

    /// Notes that the cursor of a job could not follow.
    pub(super) fn hold(&mut self, job: &Name) {
        self.held.insert(job.clone());
    }

    /// Whether the cursor of a job could not follow and can now.
    pub(super) fn unhold(&mut self, job: &Name) -> bool {
        !self.pending(job) && self.held.remove(job)
    }

    /// Forgets the cursor of a job that is gone.
    pub(super) fn forget_cursor(&mut self, job: &Name) {
        self.held.remove(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Concurrency::{Allow, Forbid, Queue, Replace};

    #[test]
    fn every_policy_meets_every_situation() {
        let slot = |p, active, waits| meet(p, Cause::Schedule, active, waits);
        for p in [Allow, Forbid, Queue, Replace] {
            assert_eq!(slot(p, false, false), Meeting::Start);
        }
        assert_eq!(slot(Allow, true, false), Meeting::Start);
        assert_eq!(slot(Forbid, true, false), Meeting::Skip);
        assert_eq!(slot(Queue, true, false), Meeting::Wait);
        assert_eq!(slot(Queue, true, true), Meeting::Skip);
        assert_eq!(slot(Replace, true, false), Meeting::Replace);
        assert_eq!(slot(Replace, true, true), Meeting::Replace);
        assert_eq!(slot(Forbid, false, true), Meeting::Skip, "what waits goes first");
        assert_eq!(meet(Forbid, Cause::Misfire, true, true), Meeting::Wait);
        assert_eq!(meet(Forbid, Cause::Trigger, true, false), Meeting::Skip);
    }

    fn name() -> Name {
        Name::new("j").unwrap()
    }

    fn asked(cause: Cause) -> Asked {
        let assignment = serde_json::from_str(r#"{"cmd":"true"}"#).unwrap();
        Asked::from(Plan {
            run_id: RunId(uuid::Uuid::now_v7()),
            job: Some(name()),
            assignment: std::sync::Arc::new(assignment),
            slot: Timestamp::UNIX_EPOCH,
            cause,
            fence: None,
        })
    }

    #[test]
    fn what_waits_follows_what_ended_and_the_cursor_waits_for_both() {
        let (j, mut o) = (name(), Overlap::default());
        let (first, second) = (asked(Cause::Schedule), asked(Cause::Schedule));
        let ids = [first.plan.run_id, second.plan.run_id];
        o.enter(&j, first, false);
        o.hold(&j);
        assert!(o.pending(&j) && !o.unhold(&j), "ready is not begun");
        assert_eq!(o.next().unwrap().plan.run_id, ids[0]);
        o.begun(&j, ids[0]);
        assert!(!o.pending(&j));
        o.enter(&j, second, true);
        assert!(o.pending(&j) && !o.unhold(&j) && o.knows(&j, ids[1]));
        o.release(&j, ids[0]);
        assert_eq!(o.next().unwrap().plan.run_id, ids[1]);
        o.begun(&j, ids[1]);
        assert!(o.unhold(&j) && !o.unhold(&j));
        o.release(&j, ids[1]);
        assert!(!o.knows(&j, ids[1]) && !o.is_active(&j));
    }

    #[test]
    fn a_replacement_takes_out_what_is_only_ready() {
        let (j, mut o) = (name(), Overlap::default());
        o.enter(&j, asked(Cause::Schedule), false);
        o.enter(&j, asked(Cause::Schedule), true);
        let (dropped, begun) = o.displace(&j);
        assert_eq!((dropped.len(), begun.len()), (2, 0));
        assert!(!o.is_active(&j) && o.next().is_none());
        let runs = asked(Cause::Schedule);
        let id = runs.plan.run_id;
        o.enter(&j, runs, false);
        o.next().unwrap();
        o.begun(&j, id);
        assert_eq!(o.displace(&j).1, [id]);
    }

    #[test]
    fn a_job_that_goes_takes_its_slots_along_and_leaves_requests() {
        let (j, mut o) = (name(), Overlap::default());
        let trigger = asked(Cause::Trigger);
        let id = trigger.plan.run_id;
        o.enter(&j, asked(Cause::Schedule), false);
        o.enter(&j, asked(Cause::Misfire), true);
        o.enter(&j, trigger, true);
        assert_eq!(o.drop_slots(&j).len(), 2);
        assert_eq!(o.next().unwrap().plan.run_id, id, "it is its turn");
        assert!(o.drain().is_empty());
    }
}
