//! Runs of a job that meet: what has begun, what is ready for a place on this node and
//! what waits for its turn. Without effects; the agent performs them.

use super::{Held, fire::is_counted};
use crate::engine::Plan;
use jiff::Timestamp;
use meepo_core::{
    id::{Name, RunId},
    job::Concurrency,
    lock::LockSpec,
    run::Cause,
};
use std::collections::{HashMap, HashSet, VecDeque};
use tokio_util::sync::DropGuard;
use uuid::Uuid;

/// The key in etcd that asked for a run.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The key.
    pub(super) key: String,
    /// Not begun by then, the run is recorded as expired.
    pub(super) expires_at: Timestamp,
}

/// A plan with the request for it, if it was asked for, and the lock it holds.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(super) plan: Plan,
    pub(super) request: Option<Request>,
    pub(super) lock: Option<Held>,
}

impl Asked {
    /// The lock that it needs and does not hold.
    pub(super) fn needs_lock(&self) -> Option<&LockSpec> {
        self.plan.assignment.lock.as_ref().filter(|_| self.lock.is_none())
    }
}

impl From<Plan> for Asked {
    fn from(plan: Plan) -> Self {
        Self { plan, request: None, lock: None }
    }
}

/// Runs by job. Synchronous commands are not among them: they overlap with nothing.
#[derive(Default)]
pub(super) struct Overlap {
    active: HashMap<Name, HashMap<RunId, Active>>,
    waiting: HashMap<Name, VecDeque<Asked>>,
    ready: VecDeque<Asked>,
    /// Those that stand in line for a lock, and leave it when they are taken out. They are
    /// active, and not begun.
    locking: HashMap<RunId, Line>,
    /// Those that ask for their lock when the run of their job before them has begun: two
    /// that ask at once might begin in the other order, and the cursor pass the earlier.
    behind: HashMap<Name, VecDeque<Asked>>,
    /// Jobs whose cursor could not follow the slots dealt with, as earlier ones had not
    /// begun.
    held: HashSet<Name>,
}

/// A run that is ready, asks for a lock, or has begun.
#[derive(Debug, Clone, Copy)]
struct Active {
    begun: bool,
    /// Whether `max_runs` bounds it.
    counted: bool,
}

/// A run that stands in line for a lock.
struct Line {
    asked: Asked,
    ticket: Uuid,
    _leave: DropGuard,
}

/// What becomes of a plan that meets other runs of its job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    Start,
    Wait,
    Replace,
    Skip,
}

/// How many runs may be active when one that waited starts.
fn most(policy: Concurrency) -> usize {
    match policy {
        Concurrency::Max(n) => n as usize,
        _ => 1,
    }
}

/// The decision table of overlaps: how many runs of the job are active, and how many
/// wait for them.
fn meet(policy: Concurrency, cause: Cause, active: usize, waits: usize) -> Meeting {
    if policy == Concurrency::Allow {
        return Meeting::Start;
    }
    let most = most(policy);
    match (policy, cause) {
        _ if active < most && waits == 0 => Meeting::Start,
        (Concurrency::Replace, _) => Meeting::Replace,
        // Slots that are made up for come in a bunch: one after the other.
        (_, Cause::Misfire) => Meeting::Wait,
        (Concurrency::Queue(n), _) if waits < n as usize => Meeting::Wait,
        _ => Meeting::Skip,
    }
}

impl Overlap {
    /// What becomes of `plan` now.
    pub(super) fn meet(&self, job: &Name, plan: &Plan) -> Meeting {
        let active = self.active.get(job).map_or(0, HashMap::len);
        let waits = self.waiting.get(job).map_or(0, VecDeque::len);
        meet(plan.assignment.concurrency, plan.cause, active, waits)
    }

    /// Whether a run is begun, ready or waiting.
    pub(super) fn knows(&self, job: &Name, run_id: RunId) -> bool {
        self.active.get(job).is_some_and(|runs| runs.contains_key(&run_id))
            || self.waiting.get(job).is_some_and(|w| w.iter().any(|a| a.plan.run_id == run_id))
    }

    /// Whether anything of a job has yet to begin. The cursor must not pass it.
    pub(super) fn pending(&self, job: &Name) -> bool {
        self.waiting.contains_key(job)
            || self.active.get(job).is_some_and(|runs| runs.values().any(|run| !run.begun))
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
            let run = Active { begun: false, counted: is_counted(&asked.plan) };
            self.active.entry(job.clone()).or_default().insert(asked.plan.run_id, run);
            self.ready.push_back(asked);
        }
    }

    /// The next plan for a free place; it is still active, and not begun.
    #[cfg(test)]
    pub(super) fn next(&mut self) -> Option<Asked> {
        self.ready.pop_front()
    }

    /// The next of those that `may` begin.
    pub(super) fn next_of(&mut self, may: impl Fn(&Asked) -> bool) -> Option<Asked> {
        let at = self.ready.iter().position(may)?;
        self.ready.remove(at)
    }

    /// Puts back what [`next`](Self::next) answered: there was no place for it.
    pub(super) fn put_back(&mut self, asked: Asked) {
        self.ready.push_front(asked);
    }

    /// Whether a run of the job asks for a lock, or has one and has not begun.
    pub(super) fn is_locking(&self, job: &Name) -> bool {
        let of = |asked: &Asked| asked.plan.job.as_ref() == Some(job);
        self.locking.values().any(|line| of(&line.asked))
            || self.ready.iter().any(|asked| asked.lock.is_some() && of(asked))
    }

    /// Sets a run aside until the one of its job before it has begun with its lock.
    pub(super) fn wait_behind(&mut self, job: &Name, asked: Asked) {
        self.behind.entry(job.clone()).or_default().push_back(asked);
    }

    /// Whether a run of the job is set aside.
    pub(super) fn has_behind(&self, job: &Name) -> bool {
        self.behind.contains_key(job)
    }

    /// The next that may ask for its lock.
    pub(super) fn next_behind(&mut self, job: &Name) -> Option<Asked> {
        let queue = self.behind.get_mut(job)?;
        let asked = queue.pop_front();
        if queue.is_empty() {
            self.behind.remove(job);
        }
        asked
    }

    /// Sets aside what [`next`](Self::next) answered until it has its lock.
    pub(super) fn wants_lock(&mut self, asked: Asked, ticket: Uuid, leave: DropGuard) {
        let run_id = asked.plan.run_id;
        self.locking.insert(run_id, Line { asked, ticket, _leave: leave });
    }

    /// The ticket with which a run stands in line for a lock.
    #[cfg(test)]
    pub(super) fn ticket(&self, run_id: RunId) -> Option<Uuid> {
        self.locking.get(&run_id).map(|line| line.ticket)
    }

    /// Takes out a run that stood in line for a lock with this ticket; it is active still.
    pub(super) fn take_locking(&mut self, run_id: RunId, ticket: Uuid) -> Option<Asked> {
        self.locking.get(&run_id).filter(|line| line.ticket == ticket)?;
        self.locking.remove(&run_id).map(|line| line.asked)
    }

    /// How many scheduled runs of a job have not begun.
    pub(super) fn slots_to_begin(&self, job: &Name) -> usize {
        let waiting = self.waiting.get(job).into_iter().flatten();
        let waiting = waiting.filter(|asked| is_counted(&asked.plan)).count();
        let active = self.active.get(job).into_iter().flat_map(HashMap::values);
        waiting + active.filter(|run| run.counted && !run.begun).count()
    }

    /// A run that has begun in an earlier life.
    pub(super) fn adopt(&mut self, job: &Name, run_id: RunId) {
        let run = Active { begun: true, counted: false };
        self.active.entry(job.clone()).or_default().insert(run_id, run);
    }

    /// It has begun.
    pub(super) fn begun(&mut self, job: &Name, run_id: RunId) {
        if let Some(run) = self.active.get_mut(job).and_then(|runs| runs.get_mut(&run_id)) {
            run.begun = true;
        }
    }

    /// It is over, or will not be: what waited for it becomes ready.
    pub(super) fn release(&mut self, job: &Name, run_id: RunId) {
        let mut active = 0;
        if let Some(runs) = self.active.get_mut(job) {
            runs.remove(&run_id);
            active = runs.len();
            if active == 0 {
                self.active.remove(job);
            }
        }
        let Some(queue) = self.waiting.get_mut(job) else { return };
        let may_start = |first: &mut Asked| active < most(first.plan.assignment.concurrency);
        let first = queue.pop_front_if(may_start);
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
    /// stays, as it does not depend on the job, and what was claimed, as nobody else may
    /// run it.
    pub(super) fn drop_slots(&mut self, job: &Name) -> Vec<Asked> {
        if !self.pending(job) {
            return Vec::new();
        }
        self.take_where(|a| {
            a.plan.job.as_ref() == Some(job)
                && a.plan.cause != Cause::Trigger
                && a.plan.fence.is_none()
        })
    }

    /// How many wait for an earlier run of their job.
    pub(super) fn count_waiting(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// How many stand in line for a lock.
    pub(super) fn count_locking(&self) -> usize {
        self.locking.len() + self.behind.values().map(VecDeque::len).sum::<usize>()
    }

    /// Everything that has not begun and may be run by others or later.
    pub(super) fn take_unclaimed(&mut self) -> Vec<Asked> {
        self.take_where(|a| a.plan.fence.is_none())
    }

    /// Everything that has not begun.
    pub(super) fn drain(&mut self) -> Vec<Asked> {
        self.take_where(|_| true)
    }

    /// What `wanted` names among the claimed runs that have not begun.
    pub(super) fn take_claimed(&mut self, wanted: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        self.take_where(|a| a.plan.fence.is_some() && wanted(a))
    }

    /// The keys of requests to run a lost run again that have not begun.
    pub(super) fn asked_again(&self) -> Vec<String> {
        let lines = [&self.ready].into_iter().chain(self.waiting.values());
        let all = lines.chain(self.behind.values()).flatten();
        let all = all.chain(self.locking.values().map(|line| &line.asked));
        let again = all.filter(|a| a.plan.fence.is_some());
        again.filter_map(|a| a.request.as_ref()).map(|r| r.key.clone()).collect()
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
        self.waiting.values_mut().for_each(&mut sift);
        self.behind.values_mut().for_each(sift);
        self.waiting.retain(|_, queue| !queue.is_empty());
        self.behind.retain(|_, queue| !queue.is_empty());
        let locking = self.locking.extract_if(|_, line| wanted(&line.asked));
        taken.extend(locking.map(|(_, line)| line.asked));
        // Those that waited behind a run that is gone go on asking.
        for job in taken.iter().filter_map(|asked| asked.plan.job.clone()) {
            if !self.is_locking(&job)
                && let Some(asked) = self.next_behind(&job)
            {
                self.ready.push_front(asked);
            }
        }
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
    use Concurrency::{Allow, Forbid, Max, Queue, Replace};

    #[test]
    fn every_policy_meets_every_situation() {
        let slot = |p, active, waits| meet(p, Cause::Schedule, active, waits);
        for p in [Allow, Forbid, Queue(1), Max(2), Replace] {
            assert_eq!(slot(p, 0, 0), Meeting::Start);
        }
        assert_eq!(slot(Allow, 9, 0), Meeting::Start);
        assert_eq!(slot(Forbid, 1, 0), Meeting::Skip);
        assert_eq!(slot(Queue(1), 1, 0), Meeting::Wait);
        assert_eq!(slot(Queue(1), 1, 1), Meeting::Skip);
        assert_eq!(slot(Queue(3), 1, 2), Meeting::Wait);
        assert_eq!(slot(Queue(3), 1, 3), Meeting::Skip);
        assert_eq!(slot(Max(3), 2, 0), Meeting::Start);
        assert_eq!(slot(Max(3), 3, 0), Meeting::Skip);
        assert_eq!(slot(Replace, 1, 0), Meeting::Replace);
        assert_eq!(slot(Replace, 1, 1), Meeting::Replace);
        assert_eq!(slot(Forbid, 0, 1), Meeting::Skip, "what waits goes first");
        assert_eq!(meet(Forbid, Cause::Misfire, 1, 1), Meeting::Wait);
        assert_eq!(meet(Max(2), Cause::Misfire, 1, 0), Meeting::Start);
        assert_eq!(meet(Max(2), Cause::Misfire, 2, 0), Meeting::Wait);
        assert_eq!(meet(Forbid, Cause::Trigger, 1, 0), Meeting::Skip);
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
            attempt: 1,
            cause,
            fence: None,
            permit: None,
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
        assert!(!o.knows(&j, ids[1]) && o.active.is_empty());
    }

    #[test]
    fn a_replacement_takes_out_what_is_only_ready() {
        let (j, mut o) = (name(), Overlap::default());
        o.enter(&j, asked(Cause::Schedule), false);
        o.enter(&j, asked(Cause::Schedule), true);
        let (dropped, begun) = o.displace(&j);
        assert_eq!((dropped.len(), begun.len()), (2, 0));
        assert!(o.active.is_empty() && o.next().is_none());
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
