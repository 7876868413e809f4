//! From a slot that is due to a run that starts, waits, or is recorded as not run.

use super::{
    AT_ONCE, Agent, Job, Report,
    overlap::{Asked, Meeting},
    waits::promise,
};
use crate::{
    engine::Plan,
    process::KillReason,
    state::{Queued, WaitEntry},
};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    code::Code,
    id::{Name, RunId},
    job::Assignment,
    misfire::{Due, Policy, due},
    run::{Cause, RunRecord, RunState},
};
use std::sync::Arc;
use tracing::debug;
use uuid::Uuid;

/// The host's start time is known to about a second and may move when clocks are set.
const BOOT_SLACK: SignedDuration = SignedDuration::from_secs(5);

/// Plans that wait for a free place on this node, at most; more are skipped.
const MAX_READY: usize = 20_000;

impl Agent {
    /// Starts what is due, up to [`AT_ONCE`] jobs; the timer wakes at once for the rest.
    pub(super) async fn fire_due(&mut self) {
        let now = Timestamp::now();
        self.start_waiting(now).await;
        for _ in 0..AT_ONCE {
            let Some(number) = self.agenda.pop_due(now) else { return };
            self.fire(number).await;
        }
    }

    async fn fire(&mut self, number: u32) {
        let Some(job) = self.table.at(number) else { return };
        if self.once.is_claiming(&job.id) {
            // It is looked at again when that is over.
            return;
        }
        let now = Timestamp::now();
        let (Some(when), Ok(assignment)) = (job.scheduled(), job.assignment()) else { return };
        let (delay, left) = (job.delay(), job.runs_left());
        // As if the clock were behind by the job's delay.
        let found = due(when, job.after, now - delay, Policy::from(&assignment));
        let last = found.run.iter().map(|(s, _)| *s).chain(found.missed.iter().copied()).max();
        if let Some(last) = last {
            let late = now.duration_since(last) - delay;
            self.outlets.progress.looked(late);
            self.engine.metrics.lag.observe(late.unsigned_abs());
            self.engine.metrics.fires.inc_by(found.run.len() as u64);
            if let Some(tell) = self.outlets.late {
                tell(late);
            }
        }
        let slots = Slots::new(job, assignment);
        if slots.assignment.is_once() {
            return self.fire_once(&slots, found);
        }
        self.next_at(&slots, found.next);
        let id = &slots.id;
        if let Some(last_missed) = found.missed.last() {
            let records = self.missed(&slots, &found);
            self.dealt_with(id, *last_missed);
            // Those that run come after them: they may wait for long before they begin.
            let cursor = self.cursor_to(id, *last_missed);
            self.engine.settle(&records, cursor).await;
        }
        for (slot, cause) in found.run {
            self.dealt_with(id, slot);
            let asked = slots.plan(slot, cause).into();
            if self.overlap.slots_to_begin(id) < left {
                self.start(asked).await;
            } else {
                // Should one of those not begin after all, a later slot has its turn.
                let why = "as many slots as may run are about to";
                self.skip(asked, Code::OVERLAP, why).await;
            }
        }
    }

    /// Enters the next slot of a job.
    pub(super) fn next_at(&mut self, slots: &Slots, next: Option<Timestamp>) {
        let at = next.and_then(|slot| slot.checked_add(slots.delay).ok());
        if let (Some(at), Some(number)) = (at, self.table.number(&slots.id)) {
            self.agenda.set(number, at);
        }
    }

    /// Every slot of a job up to `slot` begins, waits or is recorded.
    fn dealt_with(&mut self, id: &Name, slot: Timestamp) {
        if let Some(job) = self.table.get_mut(id) {
            job.after = job.after.max(slot);
        }
    }

    /// The cursor of a job at `slot`, unless an earlier one has yet to begin: then it
    /// follows later.
    fn cursor_to(&mut self, id: &Name, slot: Timestamp) -> Option<(Name, Timestamp)> {
        if self.overlap.pending(id) {
            self.overlap.hold(id);
            return None;
        }
        Some((id.clone(), slot))
    }

    /// Lets the cursor of a job follow, now that something of it has begun or is gone.
    pub(super) async fn follow_cursor(&mut self, id: &Name) {
        if self.overlap.unhold(id)
            && let Some(job) = self.table.get(id)
        {
            self.engine.settle(&[], Some((id.clone(), job.after))).await;
        }
    }

    pub(super) fn missed(&self, slots: &Slots, found: &Due) -> Vec<RunRecord> {
        let note = |i: usize| {
            let (n, more) = (found.missed_before, found.uncounted);
            let n = if more { format!("more than {n}") } else { n.to_string() };
            (i == 0 && (more || found.missed_before > 0))
                .then(|| format!("and {n} slots before it"))
        };
        let record = |(i, slot): (usize, &Timestamp)| {
            let plan = slots.plan(*slot, Cause::Schedule);
            let why = self.hold.why_missed(*slot).map(str::to_owned);
            let said: Vec<String> = why.into_iter().chain(note(i)).collect();
            let why = (!said.is_empty()).then(|| said.join(", "));
            plan.passed(&self.engine.node, RunState::Missed, Code::MISSED, why)
        };
        found.missed.iter().enumerate().map(record).collect()
    }

    /// `@reboot`: fires if the host has started since the job was last dealt with.
    pub(super) async fn fire_reboot(&mut self, id: &Name) {
        let Some((boot, job)) = self.boot.zip(self.table.get(id)) else { return };
        let (Some(when), Ok(assignment)) = (job.scheduled(), job.assignment()) else { return };
        let wanted = when.holds_at(boot) && !job.is_exhausted();
        if boot > job.after + BOOT_SLACK && wanted {
            let slots = Slots::new(job, assignment);
            self.dealt_with(id, boot);
            self.start(slots.plan(boot, Cause::Reboot).into()).await;
        }
    }

    /// Starts a plan, or lets it wait, or records that it was skipped.
    pub(super) async fn start(&mut self, asked: Asked) {
        // Only jobs come here; synchronous commands do not overlap with anything.
        let Some(job) = asked.plan.job.clone() else { return };
        let Some(asked) = self.admit(asked) else { return };
        match self.overlap.meet(&job, &asked.plan) {
            Meeting::Start => {
                if self.overlap.ready() + self.overlap.count_locking() >= MAX_READY {
                    let why = "too many runs wait for a place on this node";
                    return self.skip(asked, Code::BUSY, why).await;
                }
                self.overlap.enter(&job, asked, false);
            }
            Meeting::Wait => {
                debug!(%job, slot = %asked.plan.slot, "waits for the run before it");
                self.overlap.enter(&job, asked, true);
            }
            Meeting::Replace => {
                let (dropped, begun) = self.overlap.displace(&job);
                // Entered first: the cursor must not pass it.
                self.overlap.enter(&job, asked, !begun.is_empty());
                for asked in dropped {
                    self.skip(asked, Code::OVERLAP, "replaced before it started").await;
                }
                for run_id in begun {
                    self.engine.registry.kill(run_id, KillReason::Replaced);
                }
            }
            Meeting::Skip => {
                return self.skip(asked, Code::OVERLAP, "an earlier run is still active").await;
            }
        }
        self.begin_ready().await;
    }

    /// Records a plan that will not run.
    pub(super) async fn skip(&mut self, asked: Asked, code: Code, why: &str) {
        self.turn_down(asked, RunState::Skipped, code, Some(why.to_owned())).await;
    }

    /// Records a plan that will not run, moves the cursor past its slot when nothing
    /// before it has yet to begin, and deletes the key that asked for it.
    pub(super) async fn turn_down(
        &mut self,
        Asked { plan, request, lock: _released }: Asked,
        state: RunState,
        code: Code,
        why: Option<String>,
    ) {
        let record = match state {
            RunState::Missed | RunState::Skipped => {
                plan.passed(&self.engine.node, state, code, why)
            }
            _ => plan.not_run(&self.engine.node, state, code, why),
        };
        if let Some(request) = request {
            return self.engine.turn_down(record, request.key);
        }
        let moves_cursor = plan.fence.is_none() && plan.attempt == 1;
        let Some(job) = plan.job.filter(|_| moves_cursor) else {
            return self.engine.settle(&[record], None).await;
        };
        match self.table.get(&job).map(|j| j.after) {
            // The newest slot there is: record and cursor in one.
            Some(after) if after == plan.slot => {
                let cursor = self.cursor_to(&job, plan.slot);
                self.engine.settle(&[record], cursor).await;
            }
            after => {
                self.engine.settle(&[record], None).await;
                if let Some(after) = after {
                    let cursor = self.cursor_to(&job, after);
                    self.engine.settle(&[], cursor).await;
                }
            }
        }
    }

    /// Ends a run that waits for its turn. Answers whether there was one.
    pub(super) async fn kill_waiting(&mut self, run_id: RunId) -> bool {
        let waits = self.overlap.take(run_id).or_else(|| self.hold.take(run_id));
        let Some(asked) = waits else {
            return self.kill_later(run_id).await;
        };
        let job = asked.plan.job.clone();
        let why = Some("ended on request before it started".to_owned());
        self.turn_down(asked, RunState::Killed, Code::KILLED, why).await;
        if let Some(job) = job {
            self.follow_cursor(&job).await;
        }
        self.begin_ready().await;
        true
    }

    /// Records the slots of a job that have not begun as skipped, as the job is gone or
    /// has changed. The cursor is the caller's.
    pub(super) async fn drop_slots(&mut self, id: &Name, why: &str) {
        let dropped = self.overlap.drop_slots(id);
        if dropped.is_empty() {
            return;
        }
        let (node, why) = (&self.engine.node, || Some(why.to_owned()));
        let record = |a: &Asked| a.plan.not_run(node, RunState::Skipped, Code::CONFLICT, why());
        let records: Vec<_> = dropped.iter().map(record).collect();
        self.engine.settle(&records, None).await;
        self.begin_ready().await;
    }

    /// Begins what is ready while there are places. What this node has claimed waits for
    /// the lease: without it others may take the node for dead.
    pub(super) async fn begin_ready(&mut self) {
        if self.hold.disk() {
            return;
        }
        let alive = self.outlets.lease.borrow().id().is_some();
        while let Some(mut asked) = self.overlap.next_of(|a| alive || a.plan.fence.is_none()) {
            Self::check_lock(&mut asked);
            if let Some(spec) = asked.needs_lock().cloned() {
                self.ask_lock(spec, asked);
                continue;
            }
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                return self.overlap.put_back(asked);
            };
            let (Some(job), run_id) = (asked.plan.job.clone(), asked.plan.run_id) else { continue };
            if asked.request.as_ref().is_some_and(|r| Timestamp::now() > r.expires_at) {
                self.overlap.release(&job, run_id);
                self.turn_down(asked, RunState::Missed, Code::EXPIRED, None).await;
                self.follow_cursor(&job).await;
                continue;
            }
            self.overlap.begun(&job, run_id);
            self.count(&asked.plan);
            let begun = self.engine.begin(&asked.plan).await;
            self.follow_cursor(&job).await;
            self.next_locking(&job);
            let (engine, reports) = (self.engine.clone(), self.reports.clone());
            self.tasks.spawn(async move {
                let begun = match begun {
                    Ok(queued) => queued.await,
                    Err(e) => Err(e),
                };
                if matches!(&begun, Err(e) if e.refused()) {
                    engine.refused(run_id);
                    drop(place);
                    let _ = reports.send(Report::Refused { job, asked: Box::new(asked) }).await;
                    return;
                }
                let begun = Ok(Queued::ready(begun));
                let Asked { plan, request, lock } = asked;
                let again = plan.clone();
                let next = move |ended: &RunRecord| promise(&again, ended, Timestamp::now());
                let over = engine.execute(plan, begun, request.map(|r| r.key), next).await;
                drop((place, lock));
                let next = over.and_then(|over| over.next);
                let _ = reports.send(Report::Ended { job, run_id, next }).await;
            });
        }
    }

    /// A run is over: what waited for it, or for its place, may start.
    pub(super) async fn ended(&mut self, job: Name, run_id: RunId, next: Option<WaitEntry>) {
        self.overlap.release(&job, run_id);
        if let Some(wait) = next {
            self.promised(wait).await;
        }
        self.begin_ready().await;
    }

    /// Counts a scheduled run that begins.
    fn count(&mut self, plan: &Plan) {
        if !is_counted(plan) {
            return;
        }
        let Some(number) = plan.job.as_ref().and_then(|id| self.table.number(id)) else { return };
        let Some(job) = plan.job.as_ref().and_then(|id| self.table.get_mut(id)) else { return };
        job.runs = job.runs.saturating_add(1);
        if job.is_exhausted() {
            self.engine.spent.post(job.id.clone(), job.spent());
            self.agenda.remove(number);
        }
    }

    /// The worker shuts down: slots that were claimed and will not begin are recorded,
    /// as nobody else may run them. Other slots are missed ones of the next life, and
    /// requests stay in etcd.
    pub(super) async fn wind_up(&mut self) {
        self.inbox.close();
        let waiting = self.overlap.drain().into_iter().chain(self.hold.take_claimed());
        let mut plans: Vec<Plan> = waiting.map(|a| a.plan).collect();
        while let Some(report) = self.inbox.recv().await {
            if let Report::Won(plan) = report {
                plans.push(*plan);
            }
        }
        // A further attempt is promised, and stays so.
        let claimed = plans.iter().filter(|p| p.fence.is_some() && p.attempt == 1);
        let records: Vec<_> = claimed.map(|p| super::once::not_begun(&self.engine, p)).collect();
        if !records.is_empty() {
            self.engine.settle(&records, None).await;
        }
    }
}

/// Whether a run is one of those that `max_runs` bounds. The claims of a job that runs
/// once count by themselves.
pub(super) fn is_counted(plan: &Plan) -> bool {
    let slot = matches!(plan.cause, Cause::Schedule | Cause::Misfire | Cause::Reboot);
    slot && plan.attempt == 1 && plan.fence.is_none()
}

/// What the slots of one job that are due have in common.
pub(super) struct Slots {
    pub(super) id: Name,
    pub(super) assignment: Arc<Assignment>,
    /// How much later they start.
    delay: SignedDuration,
}

impl Slots {
    pub(super) fn new(job: &Job, assignment: Assignment) -> Self {
        Self { id: job.id.clone(), assignment: Arc::new(assignment), delay: job.delay() }
    }

    pub(super) fn plan(&self, slot: Timestamp, cause: Cause) -> Plan {
        Plan {
            run_id: RunId(Uuid::now_v7()),
            job: Some(self.id.clone()),
            assignment: self.assignment.clone(),
            slot,
            attempt: 1,
            cause,
            fence: None,
            permit: None,
        }
    }
}
