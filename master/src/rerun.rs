//! Runs that are started again elsewhere when their node is lost (`on_node_loss: rerun`).
//!
//! While such a run is under way, `/meepo/rerun/<ip>/<run_id>` stands for it: written in one
//! transaction with the claim, deleted when the run has ended. To start it again is one
//! transaction, too: the key goes, the request to another node comes, and with it that
//! run's own key, on condition that the key was unchanged and this master still leads. So
//! it happens once, whichever master does it and whoever dies meanwhile.
//!
//! A node that cannot be reached may only be cut off: it is waited for until it must have
//! ended what it claimed (see the worker's lease guard).

use crate::view::View;
use anyhow::Context;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{
    CoordError, Etcd,
    election::Leadership,
    keys,
    records::{Rerun, RerunRecord, TriggerRecord, encode},
};
use meepo_core::{
    code::Code,
    id::{NodeId, RunId},
    job::{Assignment, OnNodeLoss, Placement},
    placement::Standing,
    run::{Cause, RunRecord, RunState, to_millis},
};
use meepo_logstore::{LogItem, LogStore};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

/// How often a slot is started again at most, so that a job that brings its nodes down does
/// not bring down all.
pub const MAX_RERUNS: u32 = 3;
/// Longest time an end takes that a worker without a lease has begun, and some more.
const ENDED: Duration = Duration::from_secs(6);
/// Wait before the log store is asked again what became of a run of a worker's last life.
const AGAIN: Duration = Duration::from_secs(2);
/// Longest wait for the log store. Without its word the end of a run is not known.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a request to run again waits for its node.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// A slot that is older is not run again.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

type Key = (NodeId, RunId);

/// What is to be done about a run.
enum Step {
    /// Its worker lives: nothing, until that changes.
    Leave,
    /// Look again then.
    Later(Instant),
    /// No other node could take it now. Look again with the next news, or then at the latest.
    Nobody(Instant),
    /// It has ended.
    Ended,
    /// It is lost and is not run again, for this reason.
    GiveUp(&'static str),
    /// It is started again there.
    Move(NodeId, Box<Assignment>),
}

/// What was known of a run when it was looked at last.
struct Seen {
    revision: i64,
    /// When the key was seen as its worker wrote it, its word of the run's end left aside.
    since: Instant,
    /// The process of its node's worker that was there, if one was.
    instance: Option<String>,
    /// When to look again.
    due: Option<Instant>,
    /// Whether any news are a reason to.
    by_news: bool,
}

/// The runs that have keys, each with the time of its next look. Only those are looked at
/// that have something new, or whose time has come.
#[derive(Default)]
struct Open {
    runs: HashMap<Key, Seen>,
    due: BTreeSet<(Instant, Key)>,
    /// Since when nodes are away, as far as this master has seen.
    away: HashMap<NodeId, Instant>,
    /// How many news of the view there had been.
    news: Option<u64>,
}

impl Open {
    /// Takes in what is new.
    fn look(&mut self, view: &View, news: u64, now: Instant) {
        if self.news.replace(news) == Some(news) {
            return;
        }
        let data = view.read();
        let gone: Vec<Key> =
            self.runs.keys().filter(|key| !data.reruns.contains_key(*key)).cloned().collect();
        for key in gone {
            self.set(&key, None, false);
            self.runs.remove(&key);
        }
        self.away.retain(|node, _| !data.health.contains_key(node));
        let mut fresh = Vec::new();
        for (key, at) in &data.reruns {
            let instance = data.health.get(&key.0).map(|h| h.instance.as_str());
            if instance.is_none() {
                self.away.entry(key.0.clone()).or_insert(now);
            }
            let same =
                |s: &&mut Seen| s.revision == at.revision && s.instance.as_deref() == instance;
            if let Some(seen) = self.runs.get_mut(key).filter(same)
                && !seen.by_news
            {
                continue;
            }
            let (revision, instance) = (at.revision, instance.map(str::to_owned));
            let known = self.runs.get(key);
            let due = known.and_then(|s| s.due);
            let same = known.filter(|s| s.revision == at.revision || at.value.ended);
            let since = same.map_or(now, |s| s.since);
            let seen = Seen { revision, since, instance, due, by_news: false };
            self.runs.insert(key.clone(), seen);
            fresh.push(key.clone());
        }
        for key in fresh {
            self.set(&key, Some(now), false);
        }
    }

    /// Since when a run's node has not been there. A node that comes back may claim, or find
    /// out that it has claimed, before it shows itself: so not before the key was written.
    fn since(&self, key: &Key) -> Option<Instant> {
        let away = *self.away.get(&key.0)?;
        Some(self.runs.get(key).map_or(away, |seen| away.max(seen.since)))
    }

    /// Sets when a run is looked at again.
    fn set(&mut self, key: &Key, due: Option<Instant>, by_news: bool) {
        let Some(seen) = self.runs.get_mut(key) else { return };
        if let Some(before) = std::mem::replace(&mut seen.due, due) {
            self.due.remove(&(before, key.clone()));
        }
        seen.by_news = by_news;
        self.due.extend(due.map(|at| (at, key.clone())));
    }

    /// A run whose time has come; it is not told again unless its time is set anew.
    fn pop(&mut self, now: Instant) -> Option<Key> {
        let (at, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        if let Some(seen) = self.runs.get_mut(&key) {
            seen.due = None;
        }
        Some(key)
    }

    /// When the next look is due.
    fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
}

/// Starts lost runs again while this master leads, until `stop` is cancelled.
pub async fn run(
    etcd: Etcd,
    store: Arc<dyn LogStore>,
    view: View,
    mut leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut changes = view.changes();
    let mut open = Open::default();
    loop {
        let term = leadership.borrow_and_update().mine;
        let version = *changes.borrow_and_update();
        if let Some(term) = term.filter(|_| version.complete) {
            let now = Instant::now();
            open.look(&view, version.news, now);
            while let Some(key) = open.pop(now) {
                let Some(at) = view.read().reruns.get(&key).cloned() else { continue };
                // Before it is decided: should the node come back meanwhile, nothing is done.
                let away = !view.read().health.contains_key(&key.0);
                let since = open.since(&key);
                let (step, known) = look(&*store, &view, since, &key, &at.value).await;
                let outcome = match step {
                    Step::Leave => continue,
                    Step::Later(then) => {
                        open.set(&key, Some(then), false);
                        continue;
                    }
                    Step::Nobody(then) => {
                        open.set(&key, Some(then), true);
                        continue;
                    }
                    Step::Ended => forget(&etcd, term, &key, at.revision).await.map_err(Into::into),
                    Step::GiveUp(why) => {
                        match tell(&*store, &view, &key, &at.value, known, why).await {
                            Ok(()) => {
                                forget(&etcd, term, &key, at.revision).await.map_err(Into::into)
                            }
                            Err(e) => Err(e),
                        }
                    }
                    Step::Move(to, assignment) => {
                        let when = unchanged(term, &key, at.revision, away);
                        let moved =
                            again(&etcd, &view, (term, when), &key, &at.value, &to, *assignment);
                        moved.await.map_err(Into::into)
                    }
                };
                if let Err(e) = outcome {
                    let error = format!("{e:#}");
                    warn!(run_id = %key.1, error, "cannot settle a lost run, will try again");
                }
                // Until the view shows what was written.
                open.set(&key, Some(Instant::now() + AGAIN), false);
            }
        } else {
            open = Open::default();
        }
        let next = open.next();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            changed = leadership.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

/// What is to be done about a run whose node is away since then, if it is; and what the log
/// store has of it.
async fn look(
    store: &dyn LogStore,
    view: &View,
    since: Option<Instant>,
    (node, run_id): &Key,
    record: &RerunRecord,
) -> (Step, Option<RunRecord>) {
    let instance = view.read().health.get(node).map(|h| h.instance.clone());
    let there = instance.is_some();
    let now = Instant::now();
    match instance {
        // The worker that has the run lives; it says itself when it had to end it.
        Some(instance) if instance == record.instance && !record.ended => {
            return (Step::Leave, None);
        }
        Some(_) => {}
        None => {
            let until = since.unwrap_or(now) + record.lease_ttl.0 + ENDED;
            if now < until {
                return (Step::Later(until), None);
            }
        }
    }
    let known = tokio::time::timeout(PATIENCE, store.get_run(*run_id)).await;
    let known = known.ok().and_then(Result::ok).flatten();
    let lost = match known.as_ref().map(|r| (r.state, r.code)) {
        Some((RunState::Lost, _)) => true,
        // The node had lost its lease, and so its right to the slot.
        Some((RunState::Killed, Code::ETCD)) => true,
        Some((state, code)) if state.is_final() => match left(record) {
            // The further attempt is the worker's, which takes the key for it; or that of
            // another node, if this one is lost.
            Some(left) if !record.ended && tried_again(view, record, code) => {
                if there {
                    return (Step::Later(now + left), known);
                }
                true
            }
            _ => return (Step::Ended, known),
        },
        // A worker that lives tells what became of its last life's runs.
        _ if there && !record.ended => false,
        _ => true,
    };
    let step = if lost { decide(view, node, record, now) } else { Step::Later(now + AGAIN) };
    (step, known)
}

/// What is to be done about a run that is lost.
fn decide(view: &View, node: &NodeId, record: &RerunRecord, now: Instant) -> Step {
    if record.reruns >= MAX_RERUNS {
        return Step::GiveUp("it was run again often enough");
    }
    let Some(left) = left(record) else {
        return Step::GiveUp("its slot is more than a day ago");
    };
    let data = view.read();
    match data.fleet.standing(&record.job, &record.tree) {
        Standing::Gone => return Step::GiveUp("its job is gone"),
        Standing::Moved => return Step::GiveUp("the definition it ran by is gone"),
        Standing::Off => return Step::GiveUp("its job is switched off"),
        Standing::On(spec) if spec.placement != Placement::Once => {
            return Step::GiveUp("its job runs on several nodes now");
        }
        Standing::On(spec) if spec.on_node_loss != OnNodeLoss::Rerun => {
            return Step::GiveUp("its job does not ask for it any more");
        }
        Standing::On(_) | Standing::Unreadable => {}
    }
    match data.fleet.successor(&record.job, &record.tree, node) {
        Some((to, assignment)) => Step::Move(to, Box::new(assignment)),
        None => Step::Nobody(now + left),
    }
}

/// How long its slot may still be run again.
fn left(record: &RerunRecord) -> Option<Duration> {
    let left = MAX_AGE - Timestamp::now().duration_since(record.slot);
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

/// Whether the worker that had a run tries it again by itself after it has ended with `code`.
fn tried_again(view: &View, record: &RerunRecord, code: Code) -> bool {
    match view.read().fleet.standing(&record.job, &record.tree) {
        Standing::On(spec) => {
            spec.retry.as_ref().is_some_and(|r| r.wait(record.attempt, code, 0).is_some())
        }
        Standing::Unreadable => true,
        Standing::Gone | Standing::Moved | Standing::Off => false,
    }
}

/// Writes down that a lost run is not run again. Its key goes after that.
async fn tell(
    store: &dyn LogStore,
    view: &View,
    key: &Key,
    record: &RerunRecord,
    known: Option<RunRecord>,
    why: &str,
) -> anyhow::Result<()> {
    let (node, run_id) = key;
    info!(%run_id, %node, why, "a lost run is not run again");
    let record = not_again(view, key, record, known, why);
    let told = tokio::time::timeout(PATIENCE, store.append(&[LogItem::Run(record)])).await;
    Ok(told.context("the log store does not answer")??)
}

/// The record of the attempt that is not made. Its id follows from that of the lost run, so
/// that it is stored once, however often it is told.
fn not_again(
    view: &View,
    (node, run_id): &Key,
    of: &RerunRecord,
    known: Option<RunRecord>,
    why: &str,
) -> RunRecord {
    let now = to_millis(Timestamp::now());
    let data = view.read();
    let (executor, cmd, user) = match (known, data.fleet.standing(&of.job, &of.tree)) {
        (Some(lost), _) => (lost.executor, lost.cmd, lost.user),
        (None, Standing::On(spec)) => (spec.executor, spec.cmd.clone(), spec.user.clone()),
        (None, _) => Default::default(),
    };
    RunRecord {
        run_id: RunId(Uuid::from_u128(run_id.0.as_u128() ^ 1)),
        job: Some(of.job.clone()),
        node: node.clone(),
        slot: of.slot,
        attempt: of.attempt.saturating_add(1),
        cause: Cause::Schedule,
        executor,
        cmd,
        user,
        state: RunState::Missed,
        code: Code::LOST,
        message: Some(format!("run {run_id} was lost with its node and is not run again: {why}")),
        exit_code: None,
        signal: None,
        fence: None,
        pid: None,
        started_at: None,
        ended_at: Some(now),
        output_bytes: 0,
        dropped_bytes: 0,
    }
}

/// The comparisons without which nothing is done: this master leads, nobody was faster, and a
/// node that it took for `away` has not come back. What a master sees may be old.
fn unchanged(term: i64, key: &Key, revision: i64, away: bool) -> Vec<Compare> {
    let (node, run_id) = key;
    let mut when = vec![
        Compare::create_revision(keys::LEADER, CompareOp::Equal, term),
        Compare::mod_revision(keys::rerun(node, *run_id), CompareOp::Equal, revision),
    ];
    when.extend(away.then(|| Compare::create_revision(keys::health(node), CompareOp::Equal, 0)));
    when
}

async fn forget(etcd: &Etcd, term: i64, key: &Key, revision: i64) -> Result<(), CoordError> {
    let txn = Txn::new().when(unchanged(term, key, revision, false));
    let key = keys::rerun(&key.0, key.1);
    etcd.txn(&key, txn.and_then([TxnOp::delete(key.as_str(), None)])).await.map(drop)
}

async fn again(
    etcd: &Etcd,
    view: &View,
    (term, when): (i64, Vec<Compare>),
    (node, run_id): &Key,
    old: &RerunRecord,
    to: &NodeId,
    assignment: Assignment,
) -> Result<(), CoordError> {
    let (key, new) = (keys::rerun(node, *run_id), RunId(Uuid::now_v7()));
    let now = to_millis(Timestamp::now());
    let attempt = old.attempt.saturating_add(1);
    let trigger = TriggerRecord {
        job: old.job.clone(),
        assignment,
        requested_at: now,
        not_before: None,
        expires_at: now.checked_add(KEPT).unwrap_or(Timestamp::MAX),
        rerun: Some(Rerun { slot: old.slot, attempt, of: *run_id }),
        extra: BTreeMap::new(),
    };
    let instance = view.read().health.get(to).map(|h| h.instance.clone()).unwrap_or_default();
    let (reruns, ended) = (old.reruns + 1, false);
    let record = RerunRecord { instance, attempt, reruns, ended, ..old.clone() };
    let ops = [
        TxnOp::delete(key.as_str(), None),
        // Where it waited still to be taken.
        TxnOp::delete(keys::trigger(node, *run_id), None),
        TxnOp::put(keys::trigger(to, new), view.seal().trigger(term, to, new, &trigger), None),
        TxnOp::put(keys::rerun(to, new), encode(&record), None),
    ];
    let txn = Txn::new().when(when).and_then(ops);
    if let Some(fence) = etcd.txn(&key, txn).await? {
        let job = &old.job;
        info!(%job, lost = %run_id, %node, run_id = %new, %to, attempt, fence, "run again");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
