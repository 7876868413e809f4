//! Placement, performed by the leader: whenever nodes, definitions or assignments
//! change, plan anew and write the difference. Takes no input but the view, is
//! idempotent, and every write names the revisions it was decided on.

use crate::{metrics::Metrics, view::View};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use meepo_coord::{CoordError, Etcd, election::Leadership, keys, records::encode};
use meepo_core::placement::{Effect, plan};
use meepo_runtime::backoff::Backoff;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Effects in one transaction. Each brings a comparison of its own and at most one of
/// its definition; with the leader's that stays below etcd's limit of 128.
const GROUP: usize = 60;
/// How long changes are gathered before a plan is made.
const GATHER: Duration = Duration::from_millis(10);
/// Longest wait for the view to show what was written.
const SETTLE: Duration = Duration::from_secs(2);

/// Places jobs while this master leads, until `stop` is cancelled.
pub async fn run(
    etcd: Etcd,
    view: View,
    mut leadership: watch::Receiver<Leadership>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut changes = view.changes();
    let mut backoff = Backoff::new(Duration::from_secs(5));
    loop {
        let term = leadership.borrow_and_update().mine;
        let version = *changes.borrow_and_update();
        let mut retry = None;
        if let (Some(term), true) = (term, version.complete) {
            let effects = plan(&view.read().snapshot());
            if !effects.is_empty() {
                info!(writes = effects.len(), "placing jobs");
                match perform(&etcd, term, effects, &metrics).await {
                    Ok(written) => {
                        backoff.reset();
                        // Without this the next plan would repeat what is on its way.
                        let seen = changes.wait_for(|v| v.revision >= written);
                        let _ = tokio::time::timeout(SETTLE, seen).await;
                        retry = Some(Duration::ZERO);
                    }
                    Err(e) => {
                        let wait = backoff.next_wait();
                        warn!(error = %e, ?wait, "cannot place jobs, will try again");
                        retry = Some(wait);
                    }
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            changed = leadership.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Writes the effects in groups; answers the highest revision written. A group whose
/// keys have moved meanwhile is left to the next plan.
async fn perform(
    etcd: &Etcd,
    term: i64,
    effects: Vec<Effect>,
    metrics: &Metrics,
) -> Result<i64, CoordError> {
    let mut highest = 0;
    for group in effects.chunks(GROUP) {
        match etcd.txn("assignments", transaction(term, group)).await? {
            Some(revision) => {
                highest = highest.max(revision);
                metrics.placements.inc_by(group.len() as u64);
            }
            None if group.len() > 1 => {
                // One stale key must not hold up the others.
                for effect in group {
                    let txn = transaction(term, std::slice::from_ref(effect));
                    if let Some(revision) = etcd.txn("assignment", txn).await? {
                        highest = highest.max(revision);
                        metrics.placements.inc();
                    }
                }
            }
            None => debug!("an assignment has changed meanwhile"),
        }
    }
    Ok(highest)
}

fn transaction(term: i64, effects: &[Effect]) -> Txn {
    let mut compares = vec![Compare::create_revision(keys::LEADER, CompareOp::Equal, term)];
    let mut definitions = BTreeMap::new();
    let mut operations = Vec::new();
    for effect in effects {
        match effect {
            Effect::Put { node, job, assignment, expect } => {
                let key = keys::assignment(node, job);
                compares.push(Compare::mod_revision(key.clone(), CompareOp::Equal, *expect));
                if let Some(revision) = assignment.spec_revision {
                    definitions.insert(keys::job(job), revision);
                }
                operations.push(TxnOp::put(key, encode(assignment), None));
            }
            Effect::Delete { node, job, expect } => {
                let key = keys::assignment(node, job);
                compares.push(Compare::mod_revision(key.clone(), CompareOp::Equal, *expect));
                operations.push(TxnOp::delete(key, None));
            }
        }
    }
    compares.extend(
        definitions
            .into_iter()
            .map(|(key, revision)| Compare::mod_revision(key, CompareOp::Equal, revision)),
    );
    Txn::new().when(compares).and_then(operations)
}
