//! What workers say compared with what etcd and the log store say, by the leader; the
//! remedies of [`meepo_core::mismatch`].

use crate::{metrics::Metrics, ops::Ops, sessions::beats::Beat};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{Entry, keys};
use meepo_core::{
    code::Code,
    id::{Name, NodeId, RunId},
    mismatch::{self, Found, Kind, Looks, Word},
    run::{RunRecord, RunState, to_millis},
};
use meepo_logstore::{LogItem, RunQuery};
use std::{collections::HashMap, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Most runs looked at in one round: the oldest that are recorded as running matter, and
/// a fleet has no more than that for long.
const MAX_RUNS: usize = 10_000;

/// Most runs looked for in the log store in one round, as workers name them; the others
/// follow. Each is looked for once.
const MAX_LOOKUPS: usize = 1_000;

/// Keys deleted in one transaction.
const AT_ONCE: usize = 40;

/// Looks at every worker's last word once in a `lease_ttl`, and at records and requests
/// once in three, while this master leads.
pub async fn run(ops: Ops, lease_ttl: Duration, stop: CancellationToken) -> anyhow::Result<()> {
    let mut looks = Looks::new();
    let mut recorded = HashMap::new();
    let mut round = 0u32;
    // How far what is told of spent jobs has been looked through.
    let mut spent = 0;
    let mut tick = tokio::time::interval(lease_ttl);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let Some(term) = ops.term().filter(|_| ops.view.changes().borrow().complete) else {
            looks.clear();
            recorded.clear();
            spent = 0;
            continue;
        };
        round = round.wrapping_add(1);
        if round.is_multiple_of(3) {
            // Looked at with the words that come after it was read.
            match running(&ops, lease_ttl * 3).await {
                Ok(found) => recorded = found,
                Err(e) => {
                    debug!(error = %e, "runs are not compared");
                    recorded.clear();
                }
            }
            if let Err(e) = forget_orphans(&ops, term).await {
                debug!(error = %e, "requests of forgotten nodes are not looked for");
            }
            let unassigned = ops.view.changes().borrow().unassigned;
            if unassigned != spent {
                match forget_spent(&ops, term).await {
                    // Of what is left there is more to see.
                    Ok(left) => spent = if left { spent } else { unassigned },
                    Err(e) => {
                        debug!(error = %e, "what is told of spent jobs is not looked through")
                    }
                }
            }
        }
        look(&ops, &mut looks, &recorded).await;
    }
}

/// Runs recorded as running for `age` or longer, by node.
async fn running(
    ops: &Ops,
    age: Duration,
) -> Result<HashMap<NodeId, HashMap<RunId, RunRecord>>, meepo_logstore::StoreError> {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    let latest = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN);
    let mut query =
        RunQuery { states: vec![RunState::Running], limit: Some(500), ..RunQuery::default() };
    let mut found: HashMap<NodeId, HashMap<RunId, RunRecord>> = HashMap::new();
    let mut n = 0;
    loop {
        let page = ops.store.list_runs(&query).await?;
        n += page.runs.len();
        for run in page.runs {
            // One that was asked for again does not say when its process was started.
            if run.started_at.unwrap_or(run.slot) <= latest {
                found.entry(run.node.clone()).or_default().insert(run.run_id, run);
            }
        }
        match page.next {
            Some(next) if n < MAX_RUNS => query.cursor = Some(next),
            _ => return Ok(found),
        }
    }
}

fn word(beat: &Beat) -> Word {
    Word {
        at: beat.live.at,
        digest: beat.digest,
        running: beat.running.iter().copied().collect(),
        all: beat.running.len() as u64 == beat.live.running,
    }
}

async fn look(ops: &Ops, looks: &mut Looks, recorded: &HashMap<NodeId, HashMap<RunId, RunRecord>>) {
    let beats = ops.sessions.beats();
    looks.retain(|node, _| beats.contains_key(node));
    let (mut lost, mut lookups) = (Vec::new(), MAX_LOOKUPS);
    for (node, beat) in &beats {
        let word = word(beat);
        let before = looks.entry(node.clone()).or_default();
        if before.seen(&word) {
            continue;
        }
        let held = ops.view.read().digests.of(node);
        let runs = recorded.get(node);
        let ids: Vec<RunId> = runs.iter().flat_map(|r| r.keys().copied()).collect();
        let Found { stale, unknown, named } = mismatch::compare(&word, held, &ids, before);
        for run in named {
            if lookups == 0 {
                break;
            }
            lookups -= 1;
            match ops.store.get_run(run).await {
                Ok(Some(_)) => before.settle(run),
                Ok(None) => {
                    info!(%node, %run, "the log store has no record of the run; it is asked for");
                    if ops.sessions.tell(node, run) {
                        before.settle(run);
                        count(&ops.metrics, Kind::UnlistedRun, 1);
                    }
                }
                // The next words say the same.
                Err(_) => lookups = 0,
            }
        }
        if stale {
            info!(%node, "the worker holds other assignments than etcd has; it is to read them");
            count(&ops.metrics, Kind::StaleAssignments, 1);
            ops.sessions.compare(node);
        }
        for record in unknown.iter().filter_map(|id| runs?.get(id)) {
            // It may have ended since the records were read.
            let now = ops.store.get_run(record.run_id).await;
            if !matches!(now, Ok(Some(now)) if now.state == RunState::Running) {
                continue;
            }
            info!(%node, run = %record.run_id, "the worker does not know the run: it is lost");
            let mut record = record.clone();
            record.state = RunState::Lost;
            record.code = Code::LOST;
            record.message = Some("its worker does not know it any more".into());
            record.ended_at = Some(to_millis(Timestamp::now()));
            lost.push(LogItem::Run(record));
        }
    }
    if !lost.is_empty() {
        match ops.store.append(&lost).await {
            Ok(()) => count(&ops.metrics, Kind::UnknownRun, lost.len()),
            // The next words say the same.
            Err(e) => warn!(error = %e, "cannot mark runs as lost, will try again"),
        }
    }
}

/// Deletes requests to run that wait for nodes that have been forgotten.
async fn forget_orphans(ops: &Ops, term: i64) -> Result<(), meepo_coord::CoordError> {
    let (entries, _) = ops.etcd.list(keys::TRIGGERS, None).await?;
    let of = |key: &str| Some(keys::node_and_run(key, keys::TRIGGERS)?.0);
    let nodes: Vec<NodeId> = entries.iter().filter_map(|e| of(&e.key)).collect();
    let orphans = {
        let data = ops.view.read();
        let known = |id: &NodeId| data.nodes.contains_key(id) || data.health.contains_key(id);
        let found = mismatch::orphans(&nodes, known);
        found.into_iter().cloned().collect::<Vec<_>>()
    };
    if orphans.is_empty() {
        return Ok(());
    }
    for entry in entries {
        let Some(node) = of(&entry.key).filter(|n| orphans.contains(n)) else { continue };
        let compares = [
            Compare::create_revision(keys::LEADER, CompareOp::Equal, term),
            Compare::mod_revision(entry.key.as_str(), CompareOp::Equal, entry.mod_revision),
            Compare::create_revision(keys::node(&node), CompareOp::Equal, 0),
        ];
        let txn = Txn::new().when(compares).and_then([TxnOp::delete(entry.key.as_str(), None)]);
        if ops.etcd.txn(&entry.key, txn).await?.is_some() {
            info!(key = entry.key, "a request for a node that has been forgotten is gone");
            count(&ops.metrics, Kind::OrphanOrder, 1);
        }
    }
    Ok(())
}

/// Deletes what is told of spent jobs that their nodes have no more. A worker that is there
/// does so itself. Answers whether there is more to be looked at later.
async fn forget_spent(ops: &Ops, term: i64) -> Result<bool, meepo_coord::CoordError> {
    let (entries, _) = ops.etcd.list(keys::SPENT, None).await?;
    let (mut orphans, mut left) = (Vec::new(), false);
    {
        let data = ops.view.read();
        for entry in entries {
            let Some((node, job)) = keys::node_and_job(&entry.key, keys::SPENT) else { continue };
            match (data.is_assigned(&node, &job), data.health.contains_key(&node)) {
                (true, _) => {}
                (false, true) => left = true,
                (false, false) => orphans.push((entry, node, job)),
            }
        }
    }
    for some in orphans.chunks(AT_ONCE) {
        let mut compares = vec![Compare::create_revision(keys::LEADER, CompareOp::Equal, term)];
        compares.extend(some.iter().flat_map(|(entry, node, job): &(Entry, NodeId, Name)| {
            let key = keys::assignment(node, job);
            [
                Compare::mod_revision(entry.key.as_str(), CompareOp::Equal, entry.mod_revision),
                Compare::create_revision(key, CompareOp::Equal, 0),
            ]
        }));
        let deletes: Vec<TxnOp> =
            some.iter().map(|(entry, ..)| TxnOp::delete(entry.key.as_str(), None)).collect();
        let txn = Txn::new().when(compares).and_then(deletes);
        if ops.etcd.txn("spent jobs", txn).await?.is_some() {
            info!(keys = some.len(), "what was told of spent jobs of nodes that are away is gone");
            count(&ops.metrics, Kind::OrphanSpent, some.len());
        } else {
            left = true;
        }
    }
    Ok(left)
}

/// Counts remedies.
pub fn count(metrics: &Metrics, kind: Kind, n: usize) {
    let kind = crate::metrics::Mismatch { kind: kind.name().to_owned() };
    metrics.reconciled.get_or_create(&kind).inc_by(n as u64);
}
