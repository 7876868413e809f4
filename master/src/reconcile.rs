//! Placement, performed by the leader: whenever nodes, definitions or assignments
//! change, plan anew and write the difference. Takes no input but the view, is
//! idempotent, and every write names the revisions it was decided on.

use crate::{metrics::Metrics, view::View};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use meepo_coord::etcd::MAX_TXN_BYTES;
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
    // What the last plan was made from, if it was carried out.
    let mut done = None;
    loop {
        let term = leadership.borrow_and_update().mine;
        let version = *changes.borrow_and_update();
        let due = term.filter(|_| version.complete).map(|term| (term, version.placement));
        let mut retry = None;
        if let Some((term, _)) = due.filter(|due| done != Some(*due)) {
            done = due;
            let snapshot = view.read().snapshot();
            // Many jobs on many nodes take a while.
            let effects = tokio::task::spawn_blocking(move || plan(&snapshot)).await?;
            if !effects.is_empty() {
                info!(writes = effects.len(), "placing jobs");
                let outcome = perform(&etcd, term, &effects, &metrics).await;
                // Without this the next plan would repeat what is on its way.
                let seen = changes.wait_for(|v| v.revision >= outcome.revision);
                let _ = tokio::time::timeout(SETTLE, seen).await;
                match outcome.error {
                    Some(e) => {
                        let wait = backoff.next_wait();
                        warn!(error = %e, ?wait, "cannot place all jobs, will try again");
                        retry = Some(wait);
                    }
                    // A key had moved. The view will show it, perhaps only by the next
                    // full comparison.
                    None if outcome.conflicts > 0 => {
                        metrics.placements_refused.inc_by(outcome.conflicts as u64);
                        retry = Some(backoff.next_wait());
                    }
                    None => {
                        backoff.reset();
                        retry = Some(Duration::ZERO);
                    }
                }
            }
        }
        if retry.is_some() {
            done = None;
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

/// What came of a plan.
#[derive(Default)]
struct Outcome {
    /// The highest revision written.
    revision: i64,
    /// Effects whose keys had moved meanwhile.
    conflicts: usize,
    /// The last of the errors, if there were any.
    error: Option<CoordError>,
}

/// Writes the effects in groups. What cannot be written does not hold up the rest.
async fn perform(etcd: &Etcd, term: i64, effects: &[Effect], metrics: &Metrics) -> Outcome {
    let mut outcome = Outcome::default();
    for group in groups(effects) {
        match etcd.txn("assignments", transaction(term, group)).await {
            Ok(Some(revision)) => {
                outcome.revision = outcome.revision.max(revision);
                metrics.placements.inc_by(group.len() as u64);
            }
            Ok(None) if group.len() == 1 => outcome.conflicts += 1,
            // One stale or oversized key must not take the others with it.
            Ok(None) => one_by_one(etcd, term, group, metrics, &mut outcome).await,
            Err(e) if !e.retryable() && group.len() > 1 => {
                one_by_one(etcd, term, group, metrics, &mut outcome).await;
            }
            Err(e) => {
                let away = e.retryable();
                outcome.error = Some(e);
                if away {
                    break;
                }
            }
        }
    }
    outcome
}

async fn one_by_one(
    etcd: &Etcd,
    term: i64,
    group: &[Effect],
    metrics: &Metrics,
    outcome: &mut Outcome,
) {
    for effect in group {
        match etcd.txn("assignment", transaction(term, std::slice::from_ref(effect))).await {
            Ok(Some(revision)) => {
                outcome.revision = outcome.revision.max(revision);
                metrics.placements.inc();
            }
            Ok(None) => {
                debug!("an assignment has changed meanwhile");
                outcome.conflicts += 1;
            }
            Err(e) => {
                let away = e.retryable();
                outcome.error = Some(e);
                if away {
                    return;
                }
            }
        }
    }
}

/// Cuts the effects into transactions that etcd takes.
fn groups(effects: &[Effect]) -> Vec<&[Effect]> {
    let size = |effect: &Effect| match effect {
        Effect::Put { assignment, .. } => encode(assignment).len() + 256,
        Effect::Delete { .. } => 256,
    };
    let (mut groups, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, effect) in effects.iter().enumerate() {
        let more = size(effect);
        if i > start && (i - start >= GROUP || bytes + more > MAX_TXN_BYTES) {
            groups.push(&effects[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += more;
    }
    if start < effects.len() {
        groups.push(&effects[start..]);
    }
    groups
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

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::{id::Name, job::JobSpec};

    fn puts(n: usize, cmd: &str) -> Vec<Effect> {
        let job = Name::new("a").unwrap();
        let spec = serde_json::json!({"name": "a", "cmd": cmd});
        let assignment = JobSpec::from_user(spec).unwrap().assignment(Some(1), Vec::new());
        (0..n)
            .map(|i| Effect::Put {
                node: Name::new(&format!("n{i}")).unwrap(),
                job: job.clone(),
                assignment: Box::new(assignment.clone()),
                expect: 0,
            })
            .collect()
    }

    #[test]
    fn groups_keep_to_both_limits_and_lose_nothing() {
        for (effects, want) in [
            (puts(0, "x"), 0),
            (puts(1, "x"), 1),
            (puts(GROUP * 2 + 1, "x"), 3),
            (puts(10, &"x".repeat(400_000)), 5),
            (puts(2, &"x".repeat(MAX_TXN_BYTES)), 2),
        ] {
            let groups = groups(&effects);
            assert_eq!(groups.len(), want);
            assert_eq!(groups.concat(), effects);
        }
    }
}
