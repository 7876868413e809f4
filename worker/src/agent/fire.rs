//! From a slot that is due to a run that starts, waits, or is recorded as not run.

use super::{
    Agent, Job, Report,
    overlap::{Asked, Meeting},
};
use crate::{engine::Plan, process::KillReason};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    code::Code,
    id::{Name, RunId},
    misfire::{Due, Policy, due},
    run::{Cause, RunRecord, RunState},
};
use std::sync::Arc;
use tracing::debug;
use uuid::Uuid;

/// The host's start time is known to about a second and may move when clocks are set.
const BOOT_SLACK: SignedDuration = SignedDuration::from_secs(5);

/// Plans that wait for a free place on this node, at most; more are skipped.
const MAX_READY: usize = 10_000;

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
        if self.once.is_claiming(id) {
            // It is looked at again when that is over.
            return;
        }
        let Some(job) = self.table.jobs.get(id).cloned() else { return };
        let Some(when) = job.scheduled() else { return };
        let found = due(when, job.after, now, Policy::from(&*job.assignment));
        let last = found.run.iter().map(|(s, _)| *s).chain(found.missed.iter().copied()).max();
        if let Some(last) = last {
            let late = now.duration_since(last).as_millis();
            self.engine.metrics.lag_ms.set(i64::try_from(late).unwrap_or(i64::MAX));
        }
        if job.assignment.is_once() {
            return self.fire_once(id, &job, found);
        }
        if let Some(next) = found.next {
            self.agenda.set(id, next);
        }
        if let Some(last_missed) = found.missed.last() {
            let records = self.missed(id, &job, &found);
            self.dealt_with(id, *last_missed);
            // The cursor moves with the slots that run; here only when none does.
            let cursor = match found.run.is_empty() {
                true => self.cursor_to(id, *last_missed),
                false => None,
            };
            self.engine.settle(&records, cursor).await;
        }
        for (slot, cause) in found.run {
            self.dealt_with(id, slot);
            self.start(plan(id, &job, slot, cause).into()).await;
        }
    }

    /// Every slot of a job up to `slot` begins, waits or is recorded.
    fn dealt_with(&mut self, id: &Name, slot: Timestamp) {
        if let Some(job) = self.table.jobs.get_mut(id) {
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
            && let Some(job) = self.table.jobs.get(id)
        {
            self.engine.settle(&[], Some((id.clone(), job.after))).await;
        }
    }

    pub(super) fn missed(&self, id: &Name, job: &Job, found: &Due) -> Vec<RunRecord> {
        let note = |i: usize| {
            let (n, more) = (found.missed_before, found.uncounted);
            let n = if more { format!("more than {n}") } else { n.to_string() };
            (i == 0 && (more || found.missed_before > 0))
                .then(|| format!("and {n} slots before it"))
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
            self.dealt_with(id, boot);
            self.start(plan(id, job, boot, Cause::Reboot).into()).await;
        }
    }

    /// Starts a plan, or lets it wait, or records that it was skipped.
    pub(super) async fn start(&mut self, asked: Asked) {
        // Only jobs come here; synchronous commands do not overlap with anything.
        let Some(job) = asked.plan.job.clone() else { return };
        match self.overlap.meet(&job, &asked.plan) {
            Meeting::Start => {
                if self.overlap.ready() >= MAX_READY {
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
    async fn skip(&mut self, asked: Asked, code: Code, why: &str) {
        self.turn_down(asked, RunState::Skipped, code, Some(why.to_owned())).await;
    }

    /// Records a plan that will not run, moves the cursor past its slot when nothing
    /// before it has yet to begin, and deletes the key that asked for it.
    async fn turn_down(
        &mut self,
        Asked { plan, request }: Asked,
        state: RunState,
        code: Code,
        why: Option<String>,
    ) {
        let record = plan.not_run(&self.engine.node, state, code, why);
        if let Some(request) = request {
            return self.engine.turn_down(record, request.key);
        }
        let Some(job) = plan.job.filter(|_| plan.fence.is_none()) else {
            return self.engine.settle(&[record], None).await;
        };
        match self.table.jobs.get(&job).map(|j| j.after) {
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
        let Some(asked) = self.overlap.take(run_id) else { return false };
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

    /// Begins what is ready while there are places.
    pub(super) async fn begin_ready(&mut self) {
        while self.overlap.ready() > 0 {
            let Ok(place) = self.places.clone().try_acquire_owned() else { return };
            let Some(asked) = self.overlap.next() else { return };
            let (Some(job), run_id) = (asked.plan.job.clone(), asked.plan.run_id) else { continue };
            if asked.request.as_ref().is_some_and(|r| Timestamp::now() > r.expires_at) {
                self.overlap.release(&job, run_id);
                self.turn_down(asked, RunState::Missed, Code::EXPIRED, None).await;
                self.follow_cursor(&job).await;
                continue;
            }
            self.overlap.begun(&job, run_id);
            let begun = self.engine.begin(&asked.plan).await;
            self.follow_cursor(&job).await;
            let (engine, reports) = (self.engine.clone(), self.reports.clone());
            tokio::spawn(async move {
                engine.execute(asked.plan, begun, asked.request.map(|r| r.key)).await;
                drop(place);
                let _ = reports.send(Report::Ended { job, run_id }).await;
            });
        }
    }

    /// A run is over: what waited for it, or for its place, may start.
    pub(super) async fn ended(&mut self, job: Name, run_id: RunId) {
        self.overlap.release(&job, run_id);
        self.begin_ready().await;
    }

    /// The worker shuts down: slots that were claimed and will not begin are recorded,
    /// as nobody else may run them. Other slots are missed ones of the next life, and
    /// requests stay in etcd.
    pub(super) async fn wind_up(&mut self) {
        self.inbox.close();
        let mut plans: Vec<Plan> = self.overlap.drain().into_iter().map(|a| a.plan).collect();
        while let Some(report) = self.inbox.recv().await {
            if let Report::Won(plan) = report {
                plans.push(*plan);
            }
        }
        let claimed = plans.iter().filter(|p| p.fence.is_some());
        let records: Vec<_> = claimed.map(|p| super::once::not_begun(&self.engine, p)).collect();
        if !records.is_empty() {
            self.engine.settle(&records, None).await;
        }
    }
}

pub(super) fn plan(id: &Name, job: &Job, slot: Timestamp, cause: Cause) -> Plan {
    Plan {
        run_id: RunId(Uuid::now_v7()),
        job: Some(id.clone()),
        assignment: Arc::clone(&job.assignment),
        slot,
        cause,
        fence: None,
    }
}
