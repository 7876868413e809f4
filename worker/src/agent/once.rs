//! Jobs that run once in the cluster: their slots are claimed in etcd, in a task of
//! their own, one of a job at a time and in order. What cannot be claimed stays due.

use super::{Agent, CORRECTION, Report, fire::Slots, overlap::Meeting};
use crate::engine::{Engine, Plan};
use jiff::Timestamp;
use meepo_coord::{
    claim::{Claim, Claims, Wanted},
    keys,
    records::{ClaimRecord, decode, encode},
};
use meepo_core::{
    code::Code,
    id::{Name, RunId},
    job::OnNodeLoss,
    misfire::{Due, HORIZON},
    run::{Cause, RunRecord, RunState},
    tree::TreePath,
};
use meepo_runtime::backoff::Backoff;
use std::{collections::HashMap, collections::HashSet, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Standby number n of a job that runs once waits n times this before it claims.
const STAGGER: Duration = Duration::from_secs(1);
/// How long one round tries to claim while etcd is away. Then the slots are looked at
/// anew, as they may be late by then.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the agent knows of claims.
pub(super) struct Once {
    claims: Claims,
    /// Jobs that have a task which claims.
    claiming: HashSet<Name>,
    /// A slot whose claim was not answered, with the run it was tried for: the same run
    /// tries again, as it may have won.
    open: HashMap<Name, (Timestamp, RunId)>,
    /// Jobs whose slots cannot be claimed at the moment, for the log.
    stuck: HashSet<Name>,
    /// Jobs whose claim of the last life was looked at.
    looked_at: HashSet<Name>,
}

impl Once {
    pub(super) fn new(claims: Claims) -> Self {
        Self {
            claims,
            claiming: HashSet::new(),
            open: HashMap::new(),
            stuck: HashSet::new(),
            looked_at: HashSet::new(),
        }
    }

    /// Whether a task claims slots of a job.
    pub(super) fn is_claiming(&self, job: &Name) -> bool {
        self.claiming.contains(job)
    }

    /// How many tasks claim.
    pub(super) fn claiming(&self) -> usize {
        self.claiming.len()
    }

    /// Forgets a job that is gone.
    pub(super) fn forget(&mut self, job: &Name) {
        self.open.remove(job);
        self.stuck.remove(job);
        self.claims.forget(job);
    }
}

/// What came of a round of claims.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Every slot up to here is settled.
    dealt_with: Option<Timestamp>,
    /// See [`Once::open`].
    open: Option<(Timestamp, RunId)>,
    /// A claim that lies in the future.
    ahead: Option<Timestamp>,
    /// How many slots have run in the cluster, if a claim told.
    runs: Option<u32>,
}

/// A slot to be claimed.
enum Slot {
    /// To be run by whoever wins it, and whether it will begin here or meet a run that
    /// keeps it from beginning.
    Run(Plan, bool),
    /// Past; whoever wins it records that it was missed.
    Missed(Box<RunRecord>),
}

impl Agent {
    /// Claims what is due; whoever wins runs or records it.
    pub(super) fn fire_once(&mut self, slots: &Slots, found: Due) {
        if found.run.is_empty() && found.missed.is_empty() {
            return self.next_at(slots, found.next);
        }
        let (id, once) = (&slots.id, &slots.assignment.once);
        let place = once.iter().position(|n| *n == self.engine.node);
        // Not in the order (put by hand, say): behind everybody who is.
        let place = u32::try_from(place.unwrap_or(once.len())).unwrap_or(u32::MAX);
        let missed = self.missed(slots, &found).into_iter().map(|r| Slot::Missed(Box::new(r)));
        let run = found.run.iter().map(|(slot, cause)| {
            let plan = slots.plan(*slot, *cause);
            let begins = self.overlap.meet(id, &plan) != Meeting::Skip;
            Slot::Run(plan, begins)
        });
        let mut todo: Vec<Slot> = missed.chain(run).collect();
        if let Some((slot, run_id)) = self.once.open.get(id).copied() {
            for item in &mut todo {
                match item {
                    Slot::Run(plan, _) if plan.slot == slot => plan.run_id = run_id,
                    Slot::Missed(record) if record.slot == slot => record.run_id = run_id,
                    _ => {}
                }
            }
        }
        self.once.claiming.insert(id.clone());
        let claiming = Claiming {
            engine: self.engine.clone(),
            claims: self.once.claims.clone(),
            reports: self.reports.clone(),
            stop: self.stop.clone(),
            job: id.clone(),
            tree: slots.assignment.tree.clone(),
            on_node_loss: slots.assignment.on_node_loss,
            max_runs: slots.assignment.max_runs,
            open: self.once.open.get(id).map(|(_, run_id)| *run_id),
        };
        self.tasks.spawn(claiming.all(todo, STAGGER.saturating_mul(place)));
    }

    /// A round of claims is over: what it left is due still, or again.
    pub(super) fn claimed(&mut self, id: &Name, round: Round) {
        self.once.claiming.remove(id);
        let Some(job) = self.table.get_mut(id) else { return };
        if let Some(runs) = round.runs {
            job.runs = runs;
        }
        if let Some(dealt_with) = round.dealt_with {
            job.after = job.after.max(dealt_with);
            if self.once.open.get(id).is_some_and(|(slot, _)| *slot <= dealt_with) {
                self.once.open.remove(id);
            }
            self.claim_ahead(id, round.ahead);
            self.once.stuck.remove(id);
        }
        if let Some(open) = round.open {
            if self.once.stuck.insert(id.clone()) {
                warn!(job = %id, slot = %open.0, "etcd cannot be reached: its slots stay due");
            }
            self.once.open.insert(id.clone(), open);
        }
        self.schedule(id);
    }

    /// Enters, or takes back, the problem that a job's claim lies in the future.
    fn claim_ahead(&mut self, id: &Name, ahead: Option<Timestamp>) {
        let Some(key) = self.table.get_mut(id).map(|job| job.claim_key()) else { return };
        match ahead {
            Some(at) => {
                let reason = format!(
                    "slots up to {at} are claimed already, hours ahead of this node's clock: none \
                     before runs. If the clock that claimed them was wrong, mend this with \
                     `etcdctl del {key}`; if this node's is, set it"
                );
                if self.table.ahead.insert(key, reason.clone()).is_none() {
                    warn!(job = %id, reason, "slots cannot be claimed");
                }
            }
            None => drop(self.table.ahead.remove(&key)),
        }
        self.tell();
    }

    /// Asks etcd how far the slots of a job that runs once are claimed; the job is
    /// scheduled when the answer is there.
    pub(super) fn ask_claimed(&self, job: &Name) {
        let key = self.table.get(job).map_or_else(|| keys::claim(job), |job| job.claim_key());
        let (etcd, job, reports) = (self.etcd.clone(), job.clone(), self.reports.clone());
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let mut backoff = Backoff::new(Duration::from_secs(5));
            loop {
                match etcd.get(&key).await {
                    Ok(entry) => {
                        let claim = entry.and_then(|e| {
                            let claim = decode::<ClaimRecord>(&e.value).ok()?;
                            Some(Box::new((claim, e.mod_revision)))
                        });
                        let _ = reports.send(Report::Claimed { job, claim }).await;
                        return;
                    }
                    Err(e) => {
                        debug!(%job, error = %e, "cannot read the claims of a job");
                        tokio::select! {
                            () = stop.cancelled() => return,
                            () = tokio::time::sleep(backoff.next_wait()) => {}
                        }
                    }
                }
            }
        });
    }

    /// How far the slots of a job were claimed when it was loaded.
    pub(super) async fn found_claimed(&mut self, id: &Name, claim: Option<(ClaimRecord, i64)>) {
        let first = self.once.looked_at.insert(id.clone());
        let Some(job) = self.table.get_mut(id) else { return };
        let now = Timestamp::now();
        let ahead = claim.as_ref().map(|(c, _)| c.slot).filter(|at| *at > now + CORRECTION);
        if let Some((claim, fence)) = claim.filter(|_| ahead.is_none()) {
            job.after = job.after.max(claim.slot);
            job.runs = claim.runs;
            // What this life claims, it begins or records itself.
            if first && claim.node == self.engine.node {
                self.claimed_by_last_life(id, claim.slot, claim.run_id, fence).await;
            }
        }
        self.claim_ahead(id, ahead);
        self.schedule(id);
    }

    /// This node has claimed a slot: if nothing is known of its run here, an earlier life did
    /// and died before it began. Its claim may have reached etcd later than this life's look
    /// at it.
    pub(super) async fn claimed_by_last_life(
        &mut self,
        id: &Name,
        slot: Timestamp,
        run_id: RunId,
        fence: i64,
    ) {
        let known = self.overlap.knows(id, run_id) || self.waits.knows(run_id);
        let old = slot <= Timestamp::now() - HORIZON;
        if known || old || self.hold.knows(run_id) {
            return;
        }
        let seen = self.engine.state.seen(vec![run_id]).await;
        if !seen.is_ok_and(|seen| !seen.contains(&run_id)) {
            // It has run, or perhaps it has.
            return;
        }
        let Some(job) = self.table.get(id) else { return };
        let Ok(assignment) = job.assignment() else { return };
        let claimed = Slots::new(job, assignment).plan(slot, Cause::Schedule);
        let claimed = Plan { run_id, fence: Some(fence), ..claimed };
        let why = "this node claimed the slot and its worker died before it began".to_owned();
        let (state, code) = (RunState::Lost, Code::LOST);
        let record = claimed.not_run(&self.engine.node, state, code, Some(why));
        self.engine.settle(&[record], None).await;
    }
}

/// A task that claims slots of one job.
struct Claiming {
    engine: Arc<Engine>,
    claims: Claims,
    reports: mpsc::Sender<Report>,
    stop: CancellationToken,
    job: Name,
    tree: TreePath,
    on_node_loss: OnNodeLoss,
    max_runs: Option<u32>,
    /// See [`Once::open`].
    open: Option<RunId>,
}

impl Claiming {
    async fn all(mut self, todo: Vec<Slot>, stagger: Duration) {
        let turn = Instant::now() + stagger;
        let stop = self.stop.clone();
        let round = tokio::select! {
            () = stop.cancelled() => return,
            round = async {
                tokio::time::sleep_until(turn).await;
                self.round(todo, turn + PATIENCE).await
            } => round,
        };
        let _ = self.reports.send(Report::Round { job: self.job, round }).await;
    }

    async fn round(&mut self, todo: Vec<Slot>, give_up: Instant) -> Round {
        let mut round = Round::default();
        for item in todo {
            let (slot, run_id) = match &item {
                Slot::Run(plan, _) => (plan.slot, plan.run_id),
                Slot::Missed(record) => (record.slot, record.run_id),
            };
            // Others may run it, and what is claimed here must begin here.
            if self.engine.holds() {
                return round;
            }
            let runs = matches!(item, Slot::Run(_, true));
            let wanted = Wanted { slot, run_id, runs, max_runs: self.max_runs };
            let Some((claim, unanswered)) = self.claim(wanted, give_up).await else {
                round.open = Some((slot, run_id));
                return round;
            };
            if let Claim::Exhausted { runs } = claim {
                round.runs = Some(runs);
            }
            // In this round or an earlier one.
            if unanswered {
                self.close(run_id, slot, &claim, runs);
            }
            self.settle(claim, item, slot, &mut round).await;
            round.dealt_with = Some(slot);
        }
        round
    }

    /// A claim that was not answered is settled: the key that may have been written with it
    /// goes unless its run begins here. If the claim was this node's after all and
    /// others have claimed later slots since, the leader has it run.
    fn close(&self, run_id: RunId, slot: Timestamp, claim: &Claim, runs: bool) {
        let custody = &self.engine.custody;
        let Some(rerun) = custody.record(&self.job, &self.tree, self.on_node_loss, slot) else {
            return;
        };
        match claim {
            Claim::Won { .. } if runs => {}
            Claim::Won { .. } => self.engine.give_up(run_id, None),
            Claim::Lost { .. } | Claim::Exhausted { .. } => {
                self.engine.give_up(run_id, Some(rerun));
            }
        }
    }

    async fn settle(&self, claim: Claim, item: Slot, slot: Timestamp, round: &mut Round) {
        let engine = &self.engine;
        match (claim, item) {
            (Claim::Won { fence }, Slot::Run(mut plan, _)) => {
                engine.metrics.claims_won.inc();
                plan.fence = Some(fence);
                let won = Report::Won(Box::new(plan));
                if let Err(mpsc::error::SendError(Report::Won(plan))) = self.reports.send(won).await
                {
                    engine.settle(&[not_begun(engine, &plan)], None).await;
                }
            }
            (Claim::Won { fence }, Slot::Missed(mut record)) => {
                engine.metrics.claims_won.inc();
                record.fence = Some(fence);
                engine.settle(&[*record], Some((self.job.clone(), slot))).await;
            }
            // The schedule has ended.
            (Claim::Exhausted { .. }, _) => {}
            (Claim::Lost { claimed, own }, _) => {
                engine.metrics.claims_lost.inc();
                if let Some((run_id, fence)) = own {
                    let own = Report::Own { job: self.job.clone(), slot: claimed, run_id, fence };
                    let _ = self.reports.send(own).await;
                }
                round.ahead = Some(claimed).filter(|at| *at > Timestamp::now() + CORRECTION);
                engine.settle(&[], Some((self.job.clone(), slot))).await;
            }
        }
    }

    /// Claims with patience; `None` when etcd could not be asked. Also answers whether a try
    /// was left unanswered, which may have taken effect.
    async fn claim(&self, wanted: Wanted, give_up: Instant) -> Option<(Claim, bool)> {
        let trying = async {
            let mut backoff = Backoff::new(Duration::from_secs(2));
            let custody = &self.engine.custody;
            let rerun = custody.record(&self.job, &self.tree, self.on_node_loss, wanted.slot);
            let rerun = rerun.filter(|_| wanted.runs);
            let mut unanswered = self.open == Some(wanted.run_id);
            loop {
                let (job, node) = (&self.job, &self.engine.node);
                let claim = self.claims.claim_at(job, &self.tree, node, wanted, rerun.as_ref());
                let mut claim = claim.await;
                // It may have been won long ago, and the leader have moved the slot since.
                if let (Ok(Claim::Won { .. }), Some(rerun), true) = (&claim, &rerun, unanswered) {
                    let key = keys::rerun(node, wanted.run_id);
                    claim = match self.engine.etcd.put_there(&key, Some(encode(rerun))).await {
                        Ok(true) => claim,
                        Ok(false) => Ok(Claim::Lost { claimed: wanted.slot, own: None }),
                        Err(e) => Err(e),
                    };
                }
                match claim {
                    Ok(claim) => {
                        if let (Claim::Won { .. }, Some(rerun)) = (&claim, rerun) {
                            self.engine.custody.took(wanted.run_id, rerun);
                        }
                        return (claim, unanswered);
                    }
                    Err(e) => {
                        unanswered = true;
                        debug!(job = %self.job, slot = %wanted.slot, error = %e, "cannot claim, will try again");
                        tokio::time::sleep(backoff.next_wait()).await;
                    }
                }
            }
        };
        tokio::time::timeout_at(give_up, trying).await.ok()
    }
}

/// The record of a claimed slot that the worker's shutdown kept from beginning.
pub(super) fn not_begun(engine: &Engine, plan: &Plan) -> RunRecord {
    let why = "the worker shut down after it had claimed the slot and before it began".to_owned();
    plan.not_run(&engine.node, RunState::Missed, Code::MISSED, Some(why))
}
