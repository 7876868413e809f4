//! Slots that the last life of this worker had claimed and had not begun when it died:
//! nothing of them is in the journal, only their keys (see [`crate::custody`]) tell of
//! them. They are handed to the leader, so that they run elsewhere.

use crate::{engine::Engine, health::Registration};
use anyhow::Context;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use meepo_coord::{
    keys,
    records::{RerunRecord, decode, encode},
};
use meepo_core::id::RunId;
use meepo_runtime::backoff::Backoff;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// Hands over what the last life did not begin, once, when this worker is the only one of
/// its node. `instance` is this life.
pub async fn hand_over(
    engine: Arc<Engine>,
    instance: String,
    mut registration: watch::Receiver<Registration>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let work = async {
        // Another worker that lives has its own keys here.
        if registration.wait_for(|r| *r == Registration::Done).await.is_err() {
            return;
        }
        let mut backoff = Backoff::new(Duration::from_secs(5));
        while let Err(e) = try_to(&engine, &instance).await {
            debug!(error = %format!("{e:#}"), "cannot hand over what the last life claimed");
            tokio::time::sleep(backoff.next_wait()).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
    Ok(())
}

async fn try_to(engine: &Engine, instance: &str) -> anyhow::Result<()> {
    let (node, etcd) = (&engine.node, &engine.etcd);
    let (prefix, requests) = (keys::reruns_of(node), keys::triggers_of(node));
    let (entries, revision) = etcd.list(&prefix, None).await?;
    let mut left = Vec::new();
    for entry in entries {
        let run_id = entry.key.strip_prefix(&prefix).and_then(|id| id.parse::<RunId>().ok());
        let record = decode::<RerunRecord>(&entry.value).ok();
        let of_last = |r: &RerunRecord| r.instance != instance && !r.ended;
        if let (Some(run_id), Some(record)) = (run_id, record.filter(of_last)) {
            left.push((entry, run_id, record));
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    // What is still asked for, this life runs.
    let (asked, _) = etcd.list(&requests, Some(revision)).await?;
    let asked: HashSet<String> = asked.into_iter().map(|e| e.key).collect();
    left.retain(|(_, run_id, _)| !asked.contains(&keys::trigger(node, *run_id)));
    // Those that have survived; their beginning may be long ago.
    let active: HashSet<RunId> = engine.registry.active().into_iter().collect();
    left.retain(|(_, run_id, _)| !active.contains(run_id));
    // And further attempts that wait for their time.
    left.retain(|(_, run_id, _)| !engine.custody.has(*run_id));
    // Only then: a request goes when its run has durably begun. What the journal knows,
    // the log store learns, and from there the leader.
    let ids = left.iter().map(|(_, run_id, _)| *run_id).collect();
    let seen = engine.state.seen(ids).await.context("the journal")?;
    for (entry, run_id, record) in left {
        if seen.contains(&run_id) {
            continue;
        }
        let (job, slot) = (&record.job, record.slot);
        info!(%run_id, %job, %slot, "the last life had claimed the slot and died before it began");
        let value = encode(&RerunRecord { ended: true, ..record.clone() });
        let same = Compare::mod_revision(entry.key.as_str(), CompareOp::Equal, entry.mod_revision);
        let put = TxnOp::put(entry.key.as_str(), value, None);
        etcd.txn(&entry.key, Txn::new().when([same]).and_then([put])).await?;
    }
    Ok(())
}
