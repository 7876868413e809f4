//! What is to start at a later time: further attempts, which the state keeps over a
//! restart, and runs asked for with a delay, whose keys stay in etcd.

use super::{
    Agent,
    overlap::{Asked, Request},
};
use crate::{custody::Promised, engine::Plan, state::WaitEntry};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    code::Code,
    id::{Name, RunId},
    job::{Assignment, JobStatus, OnNodeLoss},
    retry,
    run::{Cause, RunRecord, RunState},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};
use tracing::{error, info};
use uuid::Uuid;

/// Attempts and delayed runs that may wait on one node; more are turned down.
const MOST: usize = 20_000;
/// How long a further attempt of a claimed run waits when the node has no lease.
const NO_LEASE: SignedDuration = SignedDuration::from_secs(5);

/// A further attempt as the state keeps it.
#[derive(Serialize, Deserialize)]
struct Promise {
    job: Name,
    slot: Timestamp,
    attempt: u32,
    cause: Cause,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fence: Option<i64>,
    /// The run whose key in etcd becomes this one's before it begins; see
    /// [`crate::custody`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<RunId>,
    assignment: Assignment,
}

/// What is promised when a run has ended, if its job wants it tried again.
pub(crate) fn promise(plan: &Plan, ended: &RunRecord, now: Timestamp) -> Option<WaitEntry> {
    let job = plan.job.clone()?;
    let policy = plan.assignment.retry.as_ref()?;
    let seed = retry::seed([plan.run_id.to_string().as_str()]);
    let wait = policy.wait(plan.attempt, ended.code, seed)?;
    let in_custody = plan.fence.is_some() && plan.assignment.on_node_loss == OnNodeLoss::Rerun;
    let promise = Promise {
        job,
        slot: plan.slot,
        attempt: plan.attempt + 1,
        cause: plan.cause,
        fence: plan.fence,
        after: in_custody.then_some(plan.run_id),
        assignment: Assignment::clone(&plan.assignment),
    };
    Some(WaitEntry {
        run_id: RunId(Uuid::now_v7()),
        due: now.checked_add(wait).ok()?,
        // A promise has only string keys and no failing `Serialize`.
        plan: serde_json::to_string(&promise).ok()?,
    })
}

/// The run whose key in etcd is to become that of the attempt which is promised, if it has
/// one, and the attempt.
pub(crate) fn succession(wait: &WaitEntry) -> Option<(RunId, Plan)> {
    let promise: Promise = serde_json::from_str(&wait.plan).ok()?;
    Some((promise.after?, plan(wait.run_id, promise)))
}

fn plan(run_id: RunId, p: Promise) -> Plan {
    Plan {
        run_id,
        job: Some(p.job),
        assignment: Arc::new(p.assignment),
        slot: p.slot,
        attempt: p.attempt,
        cause: p.cause,
        fence: p.fence,
        permit: None,
    }
}

/// Plans by the time at which they are to start.
#[derive(Default)]
pub(super) struct Waits {
    queue: BTreeSet<(Timestamp, RunId)>,
    plans: HashMap<RunId, (Timestamp, Asked)>,
}

impl Waits {
    /// Enters a promised attempt.
    pub(super) fn promised(&mut self, wait: WaitEntry) {
        match serde_json::from_str(&wait.plan) {
            Ok(promise) => self.enter(wait.due, plan(wait.run_id, promise).into()),
            Err(e) => error!(run_id = %wait.run_id, error = %e, "a promised run cannot be read"),
        }
    }

    pub(super) fn enter(&mut self, due: Timestamp, asked: Asked) {
        let run_id = asked.plan.run_id;
        self.take(run_id);
        self.queue.insert((due, run_id));
        self.plans.insert(run_id, (due, asked));
    }

    pub(super) fn take(&mut self, run_id: RunId) -> Option<Asked> {
        let (due, asked) = self.plans.remove(&run_id)?;
        self.queue.remove(&(due, run_id));
        Some(asked)
    }

    /// Takes out what was asked for by `key`.
    pub(super) fn take_asked(&mut self, key: &str) -> Option<Asked> {
        let by_key = |r: &Option<Request>| r.as_ref().is_some_and(|r| r.key == key);
        let run_id = *self.plans.iter().find(|(_, (_, a))| by_key(&a.request))?.0;
        self.take(run_id)
    }

    /// The keys of requests that `wanted` names.
    pub(super) fn asked_by(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let requests = self.plans.values().filter_map(|(_, asked)| asked.request.as_ref());
        requests.map(|r| r.key.clone()).filter(|key| wanted(key)).collect()
    }

    /// Takes out what `wanted` names.
    pub(super) fn take_where(&mut self, wanted: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        let all = self.plans.iter().filter(|(_, (_, asked))| wanted(asked));
        let ids: Vec<RunId> = all.map(|(run_id, _)| *run_id).collect();
        ids.into_iter().filter_map(|run_id| self.take(run_id)).collect()
    }

    pub(super) fn knows(&self, run_id: RunId) -> bool {
        self.plans.contains_key(&run_id)
    }

    pub(super) fn is_full(&self) -> bool {
        self.plans.len() >= MOST
    }

    pub(super) fn head(&self) -> Option<Timestamp> {
        self.queue.first().map(|(due, _)| *due)
    }

    fn pop_due(&mut self, now: Timestamp) -> Option<Asked> {
        let (due, run_id) = *self.queue.first()?;
        (due <= now).then(|| self.take(run_id)).flatten()
    }
}

impl Agent {
    /// Keeps the further attempt that was promised with the end of a run.
    pub(super) async fn promised(&mut self, wait: WaitEntry) {
        let full = self.waits.is_full();
        let run_id = wait.run_id;
        self.waits.promised(wait);
        if full && let Some(asked) = self.waits.take(run_id) {
            let why = "too many runs wait for their time on this node";
            self.skip(asked, Code::BUSY, why).await;
        }
    }

    /// When the first of those that wait for their time may start: not before the jobs
    /// are known that they belong to.
    pub(super) fn next_wait(&self) -> Option<Timestamp> {
        self.waits.head().filter(|_| self.loaded)
    }

    /// Starts the runs whose time has come.
    pub(super) async fn start_waiting(&mut self, now: Timestamp) {
        while self.next_wait().is_some_and(|due| due <= now)
            && let Some(asked) = self.waits.pop_due(now)
        {
            if asked.plan.attempt == 1 {
                self.start(asked).await;
            } else if let Some(why) = self.given_up(&asked.plan) {
                self.skip(asked, Code::CONFLICT, why).await;
            } else if asked.plan.fence.is_some() && self.outlets.lease.borrow().id().is_none() {
                // Others may take this node for dead.
                self.waits.enter(now + NO_LEASE, asked);
            } else {
                match self.engine.custody.promised(asked.plan.run_id) {
                    None => self.start(asked).await,
                    Some(Promised::Open) => self.waits.enter(now + NO_LEASE, asked),
                    Some(Promised::Gone) => {
                        let why = "the node was lost meanwhile and its slot left to others";
                        self.skip(asked, Code::CONFLICT, why).await;
                    }
                }
            }
        }
    }

    /// Why a further attempt is not wanted any more.
    fn given_up(&self, plan: &Plan) -> Option<&'static str> {
        if plan.cause == Cause::Trigger {
            return None;
        }
        let job = plan.job.as_ref().and_then(|id| self.table.get(id));
        let Some(assignment) = job.and_then(|job| job.assignment().ok()) else {
            return Some("the job was removed before it was tried again");
        };
        match (assignment.status, assignment.retry) {
            (JobStatus::Pause, _) => Some("the job was paused before it was tried again"),
            (_, None) => Some("the job is not tried again any more"),
            _ => None,
        }
    }

    /// A request for a run was taken back, or has ended with its lease.
    pub(super) async fn asked_no_more(&mut self, key: &str) {
        let by_key = |a: &Asked| a.request.as_ref().is_some_and(|r| r.key == key);
        let asked = self.waits.take_asked(key).or_else(|| self.hold.take_asked(key));
        // Others that are ready begin; one that stands for a lost run was given to
        // another node.
        let Some(asked) = asked.or_else(|| self.overlap.take_claimed(by_key).pop()) else {
            return;
        };
        let expired = asked.request.as_ref().is_some_and(|r| Timestamp::now() > r.expires_at);
        if expired {
            return self.turn_down(asked, RunState::Missed, Code::EXPIRED, None).await;
        }
        info!(run_id = %asked.plan.run_id, "the request for a run was taken back");
        self.engine.custody.forget(asked.plan.run_id);
        drop(asked);
        self.begin_ready().await;
    }

    /// Ends a run that waits for its time. Answers whether there was one.
    pub(super) async fn kill_later(&mut self, run_id: RunId) -> bool {
        let Some(asked) = self.waits.take(run_id) else { return false };
        let why = Some("ended on request before it started".to_owned());
        self.turn_down(asked, RunState::Killed, Code::KILLED, why).await;
        true
    }
}
