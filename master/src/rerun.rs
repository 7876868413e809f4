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
    job::{Assignment, OnNodeLoss},
    placement::At,
    run::{RunState, to_millis},
};
use meepo_logstore::LogStore;
use std::{
    collections::{BTreeMap, HashMap},
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

type Key = (NodeId, RunId);

/// What is to be done about a run.
enum Step {
    /// Its worker lives, or no other node could take it now.
    Leave,
    /// Look again then.
    Later(Instant),
    /// It has ended, or is not to be run again.
    Forget(&'static str),
    /// It is started again there.
    Move(NodeId, Box<Assignment>),
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
    // Since when nodes are away, as far as this master has seen.
    let mut away: HashMap<NodeId, Instant> = HashMap::new();
    loop {
        let term = leadership.borrow_and_update().mine;
        let complete = changes.borrow_and_update().complete;
        let mut next = None;
        if let Some(term) = term.filter(|_| complete) {
            let open: BTreeMap<Key, At<RerunRecord>> = view.read().reruns.clone();
            away.retain(|node, _| open.keys().any(|(n, _)| n == node));
            for (key, at) in open {
                let step = look(&*store, &view, &mut away, &key, &at.value).await;
                let outcome = match step {
                    Step::Leave => continue,
                    Step::Later(at) => {
                        next = next.map_or(Some(at), |n: Instant| Some(n.min(at)));
                        continue;
                    }
                    Step::Forget(why) => {
                        info!(run_id = %key.1, node = %key.0, why, "not run again");
                        forget(&etcd, term, &key, at.revision).await
                    }
                    Step::Move(to, assignment) => {
                        again(&etcd, &view, term, &key, &at, &to, *assignment).await
                    }
                };
                if let Err(e) = outcome {
                    warn!(run_id = %key.1, error = %e, "cannot run a lost run again, will try");
                }
                // Until the view shows what was written.
                let soon = Instant::now() + AGAIN;
                next = next.map_or(Some(soon), |n: Instant| Some(n.min(soon)));
            }
        } else {
            away.clear();
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            changed = leadership.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

async fn look(
    store: &dyn LogStore,
    view: &View,
    away: &mut HashMap<NodeId, Instant>,
    (node, run_id): &Key,
    record: &RerunRecord,
) -> Step {
    let instance = view.read().health.get(node).map(|h| h.instance.clone());
    let there = instance.is_some();
    if there {
        away.remove(node);
    }
    let now = Instant::now();
    match instance {
        // The worker that has the run lives; it says itself when it had to end it.
        Some(instance) if instance == record.instance && !record.ended => return Step::Leave,
        Some(_) => {}
        None => {
            let since = *away.entry(node.clone()).or_insert(now);
            let until = since + record.lease_ttl.0 + ENDED;
            if now < until {
                return Step::Later(until);
            }
        }
    }
    let known = tokio::time::timeout(PATIENCE, store.get_run(*run_id)).await;
    let known = known.ok().and_then(Result::ok).flatten();
    let lost = match known.map(|r| (r.state, r.code)) {
        Some((RunState::Lost, _)) => true,
        // The node had lost its lease, and so its right to the slot.
        Some((RunState::Killed, Code::ETCD)) => true,
        Some((state, _)) if state.is_final() => return Step::Forget("it has ended"),
        // A worker that lives tells what became of its last life's runs.
        _ if there && !record.ended => false,
        _ => true,
    };
    if !lost {
        return Step::Later(now + AGAIN);
    }
    if record.reruns >= MAX_RERUNS {
        return Step::Forget("it was run again often enough");
    }
    let data = view.read();
    let Some(place) = data.fleet.successor(&record.job, &record.tree, node) else {
        return match data.fleet.definitions(&record.job) {
            Some(_) => Step::Leave,
            None => Step::Forget("its job is gone"),
        };
    };
    let (to, assignment) = place;
    match assignment.on_node_loss {
        OnNodeLoss::Rerun => Step::Move(to, Box::new(assignment)),
        OnNodeLoss::Fail => Step::Forget("its job does not ask for it any more"),
    }
}

/// The comparisons without which nothing is done: this master leads, and nobody was faster.
fn unchanged(term: i64, key: &str, revision: i64) -> [Compare; 2] {
    [
        Compare::create_revision(keys::LEADER, CompareOp::Equal, term),
        Compare::mod_revision(key, CompareOp::Equal, revision),
    ]
}

async fn forget(
    etcd: &Etcd,
    term: i64,
    (node, run_id): &Key,
    revision: i64,
) -> Result<(), CoordError> {
    let key = keys::rerun(node, *run_id);
    let txn = Txn::new().when(unchanged(term, &key, revision));
    etcd.txn(&key, txn.and_then([TxnOp::delete(key.as_str(), None)])).await.map(drop)
}

async fn again(
    etcd: &Etcd,
    view: &View,
    term: i64,
    (node, run_id): &Key,
    at: &At<RerunRecord>,
    to: &NodeId,
    assignment: Assignment,
) -> Result<(), CoordError> {
    let (key, new) = (keys::rerun(node, *run_id), RunId(Uuid::now_v7()));
    let old = &at.value;
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
        TxnOp::put(keys::trigger(to, new), encode(&trigger), None),
        TxnOp::put(keys::rerun(to, new), encode(&record), None),
    ];
    let txn = Txn::new().when(unchanged(term, &key, at.revision)).and_then(ops);
    if let Some(fence) = etcd.txn(&key, txn).await? {
        let job = &old.job;
        info!(%job, lost = %run_id, %node, run_id = %new, %to, attempt, fence, "run again");
    }
    Ok(())
}
