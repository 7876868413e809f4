//! From a slot that is due to a run that starts, waits, or is recorded as not run.

use super::{Agent, Job, Report};
use crate::{engine::Plan, process::KillReason};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::claim::{Claim, Claims};
use meepo_core::{
    code::Code,
    id::{Name, RunId},
    job::Concurrency,
    misfire::{Due, Policy, due},
    run::{Cause, RunRecord, RunState},
};
use meepo_runtime::backoff::Backoff;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};
use tracing::{debug, warn};
use uuid::Uuid;

/// Standby number n of a job that runs once waits n times this before it claims.
const STAGGER: Duration = Duration::from_secs(1);
/// How long a slot that cannot be claimed because etcd is away is tried for.
const CLAIM_PATIENCE: Duration = Duration::from_secs(60);
/// The host's start time is known to about a second and may move when clocks are set.
const BOOT_SLACK: SignedDuration = SignedDuration::from_secs(5);

/// Plans that wait for a free place on this node, at most; more are skipped.
const MAX_READY: usize = 10_000;

/// A plan with the key in etcd that asked for it, if one did.
type Asked = (Plan, Option<String>);

/// Active runs by job, what waits for them to end, and what waits for a place.
#[derive(Default)]
pub(super) struct Overlap {
    /// Begun, or ready to begin.
    active: HashMap<Name, HashSet<RunId>>,
    waiting: HashMap<Name, VecDeque<Asked>>,
    ready: VecDeque<Asked>,
    /// Per job: resolves when the claims under way are done.
    claims: HashMap<Name, oneshot::Receiver<()>>,
}

impl Overlap {
    /// Takes out a run that has not begun yet.
    fn take(&mut self, run_id: RunId) -> Option<Asked> {
        let mut queues = self.waiting.values_mut().chain([&mut self.ready]);
        queues.find_map(|queue| {
            let at = queue.iter().position(|(plan, _)| plan.run_id == run_id)?;
            queue.remove(at)
        })
    }

    /// Forgets what waits for a job that is gone. What runs goes on to its end.
    pub(super) fn drop_waiting(&mut self, job: &Name) {
        self.waiting.remove(job);
        self.claims.remove(job);
    }
}

/// A slot to be claimed.
enum Slot {
    /// To be run by whoever wins it.
    Run(Plan),
    /// Past; whoever wins it records that it was missed.
    Missed(Box<RunRecord>),
}

/// What becomes of a plan that meets active runs of its job.
#[derive(Debug, PartialEq, Eq)]
enum Meeting {
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

impl Agent {
    /// Starts everything that is due.
    pub(super) async fn fire_due(&mut self) {
        loop {
            let now = Timestamp::now();
            let ids = self.agenda.pop_due(now);
            if ids.is_empty() {
                return;
            }
            for id in ids {
                self.fire(&id, now).await;
            }
        }
    }

    async fn fire(&mut self, id: &Name, now: Timestamp) {
        let Some(job) = self.table.jobs.get_mut(id) else { return };
        let Some(when) = job.scheduled() else { return };
        let found = due(when, job.after, now, Policy::from(&*job.assignment));
        let last = found.run.iter().map(|(s, _)| *s).chain(found.missed.iter().copied()).max();
        if let Some(last) = last {
            job.after = last;
            let late = now.duration_since(last).as_millis();
            self.engine.metrics.lag_ms.set(i64::try_from(late).unwrap_or(i64::MAX));
        }
        if let Some(next) = found.next {
            self.agenda.set(id, next);
        }
        let job = self.table.jobs[id].clone();
        if job.assignment.is_once() {
            self.fire_once(id, &job, found);
            return;
        }
        if !found.missed.is_empty() {
            let records = self.missed(id, &job, &found);
            // The cursor moves with the slots that run; here only when none does.
            let cursor = match found.run.is_empty() {
                true => last.map(|slot| (id.clone(), slot)),
                false => None,
            };
            self.engine.settle(&records, cursor).await;
        }
        for (slot, cause) in found.run {
            self.start(plan(id, &job, slot, cause), None).await;
        }
    }

    fn missed(&self, id: &Name, job: &Job, found: &Due) -> Vec<RunRecord> {
        let note = |i: usize| {
            (i == 0 && found.missed_before > 0)
                .then(|| format!("and {} slots before it", found.missed_before))
        };
        let record = |(i, slot): (usize, &Timestamp)| {
            let plan = plan(id, job, *slot, Cause::Schedule);
            plan.not_run(&self.engine.node, RunState::Missed, Code::MISSED, note(i))
        };
        found.missed.iter().enumerate().map(record).collect()
    }

    /// `@reboot`: fires if the host has started since the job was last dealt with.
    pub(super) async fn fire_reboot(&mut self, id: &Name, job: &Job) {
        let Some(boot) = self.boot else { return };
        if boot > job.after + BOOT_SLACK {
            self.start(plan(id, job, boot, Cause::Reboot), None).await;
        }
    }

    /// Claims slots in a task of their own; whoever wins runs or records them. One
    /// slot of a job is claimed after the other, also when this node has just become
    /// the first in the order: a later slot claimed first would lose the earlier one.
    fn fire_once(&mut self, id: &Name, job: &Job, found: Due) {
        let place = job.assignment.once.iter().position(|n| *n == self.engine.node);
        // Not in the order (put by hand, say): behind everybody who is.
        let place = u32::try_from(place.unwrap_or(job.assignment.once.len())).unwrap_or(u32::MAX);
        let missed = self.missed(id, job, &found).into_iter().map(|r| Slot::Missed(Box::new(r)));
        let run = found.run.iter().map(|(slot, cause)| Slot::Run(plan(id, job, *slot, *cause)));
        let todo: Vec<Slot> = missed.chain(run).collect();
        let (engine, etcd) = (self.engine.clone(), self.etcd.clone());
        let (reports, stop, id) = (self.reports.clone(), self.stop.clone(), id.clone());
        let (done, next) = oneshot::channel();
        let before = self.overlap.claims.insert(id.clone(), next);
        let turn = Instant::now() + STAGGER.saturating_mul(place);
        tokio::spawn(async move {
            // Dropped at the end, which lets the next task go on.
            let _done: oneshot::Sender<()> = done;
            if let Some(before) = before {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = before => {}
                }
            }
            let give_up = turn + CLAIM_PATIENCE;
            let mut claims = Claims::new(etcd);
            for item in todo {
                let (slot, run_id) = match &item {
                    Slot::Run(plan) => (plan.slot, plan.run_id),
                    Slot::Missed(record) => (record.slot, record.run_id),
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep_until(turn) => {}
                }
                let won = tokio::select! {
                    () = stop.cancelled() => return,
                    won = claim(&mut claims, &engine, &id, slot, run_id, give_up) => won,
                };
                match (won, item) {
                    (Some(Claim::Won { fence }), Slot::Run(mut plan)) => {
                        engine.metrics.claims_won.inc();
                        plan.fence = Some(fence);
                        let _ = reports.send(Report::Won(Box::new(plan))).await;
                    }
                    (Some(Claim::Won { fence }), Slot::Missed(mut record)) => {
                        engine.metrics.claims_won.inc();
                        record.fence = Some(fence);
                        engine.settle(&[*record], Some((id.clone(), slot))).await;
                    }
                    (Some(Claim::Lost), _) => {
                        engine.metrics.claims_lost.inc();
                        engine.settle(&[], Some((id.clone(), slot))).await;
                    }
                    // Nobody could claim it; it is missed if nobody does later.
                    (None, _) => warn!(job = %id, %slot, "slot not run: etcd cannot be reached"),
                }
            }
        });
    }

    /// Starts a plan, or lets it wait, or records that it was skipped. `request` is the
    /// key in etcd that asked for it.
    pub(super) async fn start(&mut self, plan: Plan, request: Option<String>) {
        // Only jobs come here; synchronous commands do not overlap with anything.
        let Some(job) = plan.job.clone() else { return };
        let active = self.overlap.active.get(&job);
        if active.is_some_and(|runs| runs.contains(&plan.run_id)) {
            // The same request seen again while it runs.
            return;
        }
        let active = active.is_some_and(|runs| !runs.is_empty());
        let waits = self.overlap.waiting.get(&job).is_some_and(|w| !w.is_empty());
        match meet(plan.assignment.concurrency, plan.cause, active, waits) {
            Meeting::Start => self.enqueue((plan, request)).await,
            Meeting::Wait => {
                debug!(%job, slot = %plan.slot, "waits for the run before it");
                self.overlap.waiting.entry(job).or_default().push_back((plan, request));
            }
            Meeting::Replace => {
                let waiting = self.overlap.waiting.entry(job.clone()).or_default();
                let dropped: Vec<_> = waiting.drain(..).collect();
                waiting.push_back((plan, request));
                for asked in dropped {
                    self.skip(asked, Code::OVERLAP, "replaced before it started", false).await;
                }
                for run_id in self.overlap.active.get(&job).into_iter().flatten() {
                    self.engine.registry.kill(*run_id, KillReason::Replaced);
                }
            }
            Meeting::Skip => {
                let why = "an earlier run is still active";
                self.skip((plan, request), Code::OVERLAP, why, !waits).await;
            }
        }
    }

    /// Records a plan that will not run. The cursor must not pass slots that still wait.
    async fn skip(&self, (plan, request): Asked, code: Code, why: &str, move_cursor: bool) {
        let record = plan.not_run(&self.engine.node, RunState::Skipped, code, Some(why.to_owned()));
        let cursor = match (&plan.job, plan.cause) {
            (Some(job), Cause::Schedule) if move_cursor => Some((job.clone(), plan.slot)),
            _ => None,
        };
        self.engine.settle(&[record], cursor).await;
        if let Some(key) = request {
            self.engine.delete_key(key);
        }
    }

    /// Ends a run that waits for its turn. Answers whether there was one.
    pub(super) async fn kill_waiting(&mut self, run_id: RunId) -> bool {
        let Some((plan, request)) = self.overlap.take(run_id) else { return false };
        let why = Some("ended on request before it started".to_owned());
        let record = plan.not_run(&self.engine.node, RunState::Killed, Code::KILLED, why);
        self.engine.settle(&[record], None).await;
        if let Some(key) = request {
            self.engine.delete_key(key);
        }
        if let Some(job) = plan.job {
            // If it was ready, it held the job's turn.
            self.ended(job, run_id).await;
        }
        true
    }

    /// Lines a plan up for a place on this node.
    async fn enqueue(&mut self, asked: Asked) {
        if self.overlap.ready.len() >= MAX_READY {
            let why = "too many runs wait for a place on this node";
            return self.skip(asked, Code::BUSY, why, false).await;
        }
        if let Some(job) = &asked.0.job {
            self.overlap.active.entry(job.clone()).or_default().insert(asked.0.run_id);
        }
        self.overlap.ready.push_back(asked);
        self.begin_ready().await;
    }

    /// Begins what is ready while there are places.
    async fn begin_ready(&mut self) {
        while !self.overlap.ready.is_empty() {
            let Ok(place) = self.places.clone().try_acquire_owned() else { return };
            let Some((plan, request)) = self.overlap.ready.pop_front() else { return };
            let (Some(job), run_id) = (plan.job.clone(), plan.run_id) else { continue };
            let begun = self.engine.begin(&plan).await;
            let (engine, reports) = (self.engine.clone(), self.reports.clone());
            tokio::spawn(async move {
                engine.execute(plan, begun, request).await;
                drop(place);
                let _ = reports.send(Report::Ended { job, run_id }).await;
            });
        }
    }

    /// A run is over: what waited for it, or for its place, may start.
    pub(super) async fn ended(&mut self, job: Name, run_id: RunId) {
        let runs = self.overlap.active.entry(job.clone()).or_default();
        runs.remove(&run_id);
        if runs.is_empty() {
            self.overlap.active.remove(&job);
            match self.overlap.waiting.get_mut(&job).and_then(VecDeque::pop_front) {
                Some(asked) => self.enqueue(asked).await,
                None => drop(self.overlap.waiting.remove(&job)),
            }
        }
        self.begin_ready().await;
    }
}

fn plan(id: &Name, job: &Job, slot: Timestamp, cause: Cause) -> Plan {
    Plan {
        run_id: RunId(Uuid::now_v7()),
        job: Some(id.clone()),
        assignment: Arc::clone(&job.assignment),
        slot,
        cause,
        fence: None,
    }
}

/// Claims with patience; `None` when etcd could not be asked.
async fn claim(
    claims: &mut Claims,
    engine: &crate::engine::Engine,
    job: &Name,
    slot: Timestamp,
    run_id: RunId,
    give_up: Instant,
) -> Option<Claim> {
    let trying = async {
        let mut backoff = Backoff::new(Duration::from_secs(2));
        loop {
            match claims.claim(job, slot, &engine.node, run_id).await {
                Ok(claim) => return claim,
                Err(e) => {
                    debug!(%job, %slot, error = %e, "cannot claim the slot, will try again");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    };
    tokio::time::timeout_at(give_up, trying).await.ok()
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
}
