//! The node's records in etcd: `/agent/health/<ip>` under the worker's lease and
//! `/meepo/nodes/<ip>` for good.

use crate::{agent::Status, facts};
use jiff::Timestamp;
use meepo_coord::{Etcd, keys, lease::LeaseState, records::encode};
use meepo_core::{
    id::NodeId,
    node::{Health, NodeRecord},
};
use meepo_runtime::backoff::Backoff;
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The version in records and answers.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(200);
/// How often facts are written anew.
const REFRESH: Duration = Duration::from_secs(300);

/// What does not change while the worker lives.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Random per process.
    pub instance: String,
    /// When the process started.
    pub started_at: Timestamp,
    /// From the configuration.
    pub labels: BTreeMap<String, String>,
}

/// Keeps the records up to date until `stop` is cancelled.
pub async fn publish(
    etcd: Etcd,
    me: Identity,
    mut lease: watch::Receiver<LeaseState>,
    mut status: watch::Receiver<Status>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(Duration::from_secs(5));
    let mut bound_to = None;
    let mut again: Option<Instant> = None;
    let mut registered_at = Timestamp::now();
    loop {
        let id = lease.borrow_and_update().id();
        let changed = status.borrow().clone();
        if let Some(id) = id
            && (bound_to != Some(id) || again.is_none_or(|at| at <= Instant::now()))
        {
            if bound_to != Some(id) {
                registered_at = Timestamp::now();
            }
            match write(&etcd, &me, id, registered_at, &changed).await {
                Ok(()) => {
                    if bound_to != Some(id) {
                        info!(node = %me.node, "registered");
                    }
                    backoff.reset();
                    bound_to = Some(id);
                    again = Some(Instant::now() + REFRESH);
                }
                Err(e) => {
                    let wait = backoff.next_wait();
                    warn!(error = %e, ?wait, "cannot register with etcd, will try again");
                    again = Some(Instant::now() + wait);
                }
            }
        }
        let wake = again.unwrap_or_else(|| Instant::now() + REFRESH);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = lease.changed() => if changed.is_err() { return Ok(()) },
            changed = status.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let soon = Instant::now() + GATHER;
                again = Some(again.map_or(soon, |at| at.min(soon)));
            }
            () = tokio::time::sleep_until(wake) => {}
        }
    }
}

async fn write(
    etcd: &Etcd,
    me: &Identity,
    lease: i64,
    registered_at: Timestamp,
    status: &Status,
) -> anyhow::Result<()> {
    let facts = tokio::task::spawn_blocking(facts::gather).await?;
    let node = NodeRecord {
        labels: me.labels.clone(),
        facts: facts.clone(),
        version: VERSION.into(),
        registered_at,
        extra: BTreeMap::new(),
    };
    let health = Health {
        status: "Online".into(),
        version: VERSION.into(),
        instance: me.instance.clone(),
        started_at: Some(me.started_at),
        labels: me.labels.clone(),
        facts,
        jobs: status.jobs,
        problems: status.problems.clone(),
        problems_total: status.problems_total,
        extra: BTreeMap::new(),
    };
    etcd.put(&keys::node(&me.node), encode(&node), None).await?;
    etcd.put(&keys::health(&me.node), encode(&health), Some(lease)).await?;
    Ok(())
}
