//! What is wrong with the fleet, as this master sees it, with what to do about it.

mod parts;

pub use parts::of_etcd;

use crate::ops::{JobFilter, Ops};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    api::{JobSummary, NodeView},
    breaker::State,
    doctor::{Diagnosis, Finding, ago, node},
    job::JobStatus,
    run::RunState,
    task::{PartState, TaskId},
};
use meepo_logstore::{RunQuery, StoreError};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// How long the log store may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A log store that takes longer is slow.
const SLOW_STORE: Duration = Duration::from_millis(500);
/// Jobs whose runs are looked through for a success.
const MOST_JOBS: usize = 200;
/// A part of a task that has been ready for longer waits for somebody.
const READY_FOR: SignedDuration = SignedDuration::from_mins(10);
/// How much later than its deadline a part may be taken back.
const OVERDUE: SignedDuration = SignedDuration::from_secs(60);
/// A certificate that is valid for less should have been renewed.
const EXPIRES: SignedDuration = SignedDuration::from_hours(14 * 24);
/// The version of this master.
const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Ops {
    /// Looks at everything. Takes as long as what does not answer lets one wait, some seconds.
    pub async fn doctor(&self) -> Diagnosis {
        let now = Timestamp::now();
        let (etcd, store, leader, nodes, jobs) = tokio::join!(
            async { of_etcd(&self.etcd.survey().await) },
            self.doctor_store(),
            self.doctor_leader(),
            self.doctor_nodes(now),
            self.doctor_jobs(now),
        );
        let mut all = etcd;
        all.extend(leader);
        all.extend(store);
        all.extend(self.doctor_master());
        all.extend(nodes);
        all.extend(jobs);
        all.extend(self.doctor_tasks(now));
        Diagnosis::new(self.audit.master(), now, all)
    }

    async fn doctor_store(&self) -> Vec<Finding> {
        let subject = "log store";
        let remedy = "start it, or correct the setting `logs`; meanwhile nothing is lost: workers keep \
                      results in their spools, masters the audit in a file";
        let begun = Instant::now();
        match timeout(PATIENCE, self.store.ping()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return vec![Finding::error(subject, e.chain(), remedy)],
            Err(_) => {
                let message = format!("it does not answer within {PATIENCE:?}");
                return vec![Finding::error(subject, message, remedy)];
            }
        }
        let took = begun.elapsed();
        let mut found = Vec::new();
        match timeout(PATIENCE, self.store.pending_migrations()).await {
            Ok(Ok(pending)) if pending.is_empty() => {}
            Ok(Ok(pending)) => found.push(Finding::error(
                subject,
                format!("its schema is not up to date: {} to be applied", pending.join(", ")),
                "meepo-master migrate (masters try it themselves when they start; their log says why not)",
            )),
            Ok(Err(StoreError::Unavailable { .. })) | Err(_) => {}
            Ok(Err(e)) => found.push(Finding::error(
                subject,
                e.chain(),
                "see the rights of meepo's user in the log store",
            )),
        }
        if took > SLOW_STORE {
            found.push(Finding::warn(
                subject,
                format!("it takes {} ms to answer", took.as_millis()),
                "see what its host is busy with, and the metric \
                 meepo_master_log_store_request_duration_seconds",
            ));
        }
        if found.is_empty() {
            found.push(Finding::ok(subject, format!("it answers in {} ms", took.as_millis())));
        }
        found
    }

    async fn doctor_leader(&self) -> Vec<Finding> {
        let subject = "leader";
        let leader = self.leadership.borrow().leader.clone();
        let Some((record, term)) = leader else {
            return vec![Finding::error(
                subject,
                "no master leads: nothing is placed, no task is given out, no command reaches a node; \
                 what nodes hold goes on",
                "a master takes over within one lease (setting `lease_ttl`) once etcd has a quorum; if \
                 none does, see what the masters log",
            )];
        };
        if self.term().is_some() {
            return vec![Finding::ok(subject, format!("this master leads (term {term})"))];
        }
        match self.live(&[]).await {
            Ok(_) => vec![Finding::ok(subject, format!("{} leads (term {term})", record.http))],
            Err(e) => vec![Finding::error(
                subject,
                format!("{} leads and cannot be asked: {}", record.grpc, e.0.message),
                "see whether this master reaches that address (setting `advertise` of the other one), and \
                 whether the other one is stuck",
            )],
        }
    }

    /// What this master itself has to tell.
    fn doctor_master(&self) -> Vec<Finding> {
        let subject = "master";
        let mut found = Vec::new();
        let breakers = [
            ("etcd", Some(self.etcd.breaker())),
            ("the log store", self.store.breaker()),
            ("the leading master", Some(self.leader.breaker())),
        ];
        for (of, _) in breakers.into_iter().filter(|(_, s)| *s == Some(State::Open)) {
            found.push(Finding::warn(
                subject,
                format!(
                    "its circuit breaker before {of} is open: requests that need it are refused"
                ),
                "it closes by itself within seconds once that answers",
            ));
        }
        let (waits, dropped) = (self.metrics.audit_spill.get(), self.metrics.audit_dropped.get());
        if waits > 0 {
            found.push(Finding::warn(
                subject,
                format!("{waits} bytes of the audit wait for the log store"),
                "they are written when it is back",
            ));
        }
        if dropped > 0 {
            found.push(Finding::error(
                subject,
                format!("{dropped} records of the audit are in this master's log alone"),
                "see in its log, target `audit`, what could not be kept and why",
            ));
        }
        found.extend(self.certificate(Timestamp::now()));
        if !self.view.changes().borrow().complete {
            found.push(Finding::warn(
                subject,
                "it has not read the fleet from etcd yet",
                "it has just started, or etcd is away",
            ));
        }
        if found.is_empty() {
            found.push(Finding::ok(subject, format!("version {VERSION}")));
        }
        found
    }

    /// Whether its certificate is about to expire.
    fn certificate(&self, now: Timestamp) -> Option<Finding> {
        let until = self.joining.credentials.as_ref()?.now().facts()?.not_after;
        let remedy = "`meepo tls renew`, and the files to this host; nothing is restarted";
        if until <= now {
            let message = format!("its certificate has expired on {until}: nobody speaks to it");
            return Some(Finding::error("master", message, remedy));
        }
        let left = until.duration_since(now);
        (left < EXPIRES)
            .then(|| Finding::warn("master", format!("its certificate expires on {until}"), remedy))
    }

    async fn doctor_nodes(&self, now: Timestamp) -> Vec<Finding> {
        match self.list_nodes(None).await {
            Ok(list) if list.nodes.is_empty() => {
                vec![Finding::warn("nodes", "there are none", "start a worker: meepo-worker start")]
            }
            Ok(list) => list.nodes.iter().flat_map(|n| node(n, VERSION, now)).collect(),
            Err(e) => {
                let remedy = "see what is said of etcd";
                vec![Finding::error("nodes", format!("cannot be read: {}", e.0.message), remedy)]
            }
        }
    }

    async fn doctor_jobs(&self, now: Timestamp) -> Vec<Finding> {
        let mut jobs: Vec<JobSummary> = Vec::new();
        let mut filter = JobFilter { limit: Some(u32::MAX), ..JobFilter::default() };
        loop {
            match self.list_jobs(&filter).await {
                Ok(page) => {
                    jobs.extend(page.jobs);
                    filter.cursor = page.next;
                }
                Err(e) => {
                    let remedy = "see what is said of etcd";
                    let message = format!("cannot be read: {}", e.0.message);
                    return vec![Finding::error("jobs", message, remedy)];
                }
            }
            if filter.cursor.is_none() {
                break;
            }
        }
        let mut found: Vec<Finding> = jobs.iter().filter_map(placed).collect();
        let doubtful = jobs.iter().filter(|j| {
            j.last_run.as_ref().is_some_and(|r| r.state.is_final() && r.state != RunState::Success)
        });
        let (mut asked, mut left) = (0, 0);
        for job in doubtful {
            if asked == MOST_JOBS {
                left += 1;
                continue;
            }
            asked += 1;
            let query = RunQuery {
                job: Some(job.name.clone()),
                states: vec![RunState::Success],
                limit: Some(1),
                ..RunQuery::default()
            };
            match timeout(PATIENCE, self.store.list_runs(&query)).await {
                Ok(Ok(page)) if page.runs.is_empty() => found.extend(never(job, now)),
                Ok(Ok(_)) => {}
                // That is said of the log store.
                Ok(Err(_)) | Err(_) => break,
            }
        }
        if left > 0 {
            found.push(Finding::warn(
                "jobs",
                format!(
                    "the last runs of {left} more jobs did not succeed; they were not looked at"
                ),
                "meepo runs --state failed,timeout,lost",
            ));
        }
        if found.is_empty() {
            found.push(Finding::ok("jobs", format!("{} of them, all placed", jobs.len())));
        }
        found
    }

    fn doctor_tasks(&self, now: Timestamp) -> Vec<Finding> {
        #[derive(Default)]
        struct Counts {
            buried: usize,
            overdue: usize,
            waiting: usize,
            since: Option<Timestamp>,
        }
        let tasks = self.board.read();
        let mut counts: BTreeMap<TaskId, Counts> = BTreeMap::new();
        for (id, part) in &tasks.parts {
            let (part, late) = (&part.value, |at: Timestamp| now.duration_since(at));
            let c = match part.state {
                PartState::Buried => &mut counts.entry(id.task).or_default().buried,
                PartState::Ready if late(part.since) > READY_FOR => {
                    let c = counts.entry(id.task).or_default();
                    c.since = c.since.map_or(Some(part.since), |s| Some(s.min(part.since)));
                    &mut c.waiting
                }
                PartState::Reserved if part.deadline.is_some_and(|d| late(d) > OVERDUE) => {
                    &mut counts.entry(id.task).or_default().overdue
                }
                _ => continue,
            };
            *c += 1;
        }
        let total = tasks.tasks.len();
        drop(tasks);
        let mut found = Vec::new();
        for (id, c) in counts {
            let subject = format!("task/{id}");
            if c.buried > 0 {
                found.push(Finding::warn(
                    &subject,
                    format!("{} of its parts are buried: they failed for the last time", c.buried),
                    format!("see why (meepo task get {id}); then meepo task kick {id}, or delete"),
                ));
            }
            if c.overdue > 0 {
                found.push(Finding::error(
                    &subject,
                    format!("{} of its parts should have ended and were not taken back", c.overdue),
                    "the leader does that; see what is said of it",
                ));
            }
            if let Some(since) = c.since {
                found.push(Finding::warn(
                    &subject,
                    format!(
                        "{} of its parts wait for a suitable worker with a free slot, the longest since {}",
                        c.waiting,
                        ago(since, now)
                    ),
                    "see whether the nodes of its target are online and have slots (setting `task_slots`)",
                ));
            }
        }
        if found.is_empty() {
            found.push(Finding::ok("tasks", format!("{total} unfinished, none stuck")));
        }
        found
    }

    /// What is to be said of one node.
    pub(crate) fn doctor_node(&self, view: &NodeView) -> Vec<Finding> {
        node(view, VERSION, Timestamp::now())
    }
}

/// Whether a job that is to run has somewhere to.
fn placed(job: &JobSummary) -> Option<Finding> {
    let subject = format!("job/{}", job.name);
    let spec = job.spec.as_ref()?;
    if spec.status == JobStatus::Pause || spec.disabled {
        return None;
    }
    let remedy = format!("meepo job explain {}", job.name);
    if job.counts.nodes == 0 {
        let message = format!("no node holds it: its target {} matches none", spec.target);
        return Some(match spec.schedule {
            Some(_) => Finding::error(subject, message, remedy),
            None => Finding::warn(subject, message, remedy),
        });
    }
    if job.counts.online == 0 {
        let message = format!("none of the nodes that hold it ({}) is online", job.counts.nodes);
        return Some(Finding::error(subject, message, "see what is said of its nodes"));
    }
    None
}

/// A job of which no run has ever succeeded.
fn never(job: &JobSummary, now: Timestamp) -> Option<Finding> {
    let run = job.last_run.as_ref()?;
    let when = ago(run.ended_at.unwrap_or(run.slot), now);
    let how = crate::ops::describe(run);
    Some(Finding::warn(
        format!("job/{}", job.name),
        format!("it has never succeeded; its last run ended {when}: {} ({how})", run.state),
        format!("meepo logs {}", run.run_id),
    ))
}
