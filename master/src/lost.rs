//! Runs of nodes that have vanished, marked as lost by the leader.
//!
//! A node whose health record is gone for longer than `GRACE` cannot be asked; its
//! runs that are still recorded as running get the state `lost`. Should the worker
//! come back with its own account of their end, that outranks the guess.

use crate::view::View;
use jiff::Timestamp;
use meepo_coord::election::Leadership;
use meepo_core::{
    code::Code,
    id::NodeId,
    run::{RunState, to_millis},
};
use meepo_logstore::{LogItem, LogStore, RunQuery};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Time a worker gets to come back from a restart before its runs count as lost and
/// others get the jobs it was chosen for.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
/// Wait after a failed try.
const RETRY: Duration = Duration::from_secs(5);
/// How often the runs of a node that stays away are looked at again: a record of its
/// last runs may reach the log store late.
const AGAIN: Duration = Duration::from_secs(300);

/// Watches for vanished nodes while this master leads, until `stop` is cancelled.
pub async fn run(
    store: Arc<dyn LogStore>,
    view: View,
    mut leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut changes = view.changes();
    // Nodes that are away, with the time to look at their runs.
    let mut due: HashMap<NodeId, Instant> = HashMap::new();
    loop {
        let leads = leadership.borrow_and_update().mine.is_some();
        let seen = *changes.borrow_and_update();
        if leads && seen.complete {
            let away = view.read().away.clone();
            due.retain(|id, _| away.contains(id));
            for id in away {
                due.entry(id).or_insert_with(|| Instant::now() + GRACE);
            }
        } else {
            due.clear();
        }
        let next = due.values().min().copied();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            gone = async { changes.wait_for(|v| v.nodes != seen.nodes).await.is_err() } => {
                if gone { return Ok(()) }
            }
            changed = leadership.changed() => if changed.is_err() { return Ok(()) },
            () = sleep_until(next) => {
                let now = Instant::now();
                let ready: Vec<NodeId> =
                    due.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
                for id in ready {
                    match mark(&*store, &id).await {
                        Ok(n) => {
                            if n > 0 {
                                info!(node = %id, runs = n, "node is gone, its runs are lost");
                            }
                            due.insert(id, now + AGAIN);
                        }
                        Err(e) => {
                            warn!(node = %id, error = %e, "cannot mark lost runs, will try again");
                            due.insert(id, now + RETRY);
                        }
                    }
                }
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn mark(store: &dyn LogStore, node: &NodeId) -> Result<usize, meepo_logstore::StoreError> {
    let mut query = RunQuery {
        node: Some(node.clone()),
        states: vec![RunState::Running],
        limit: Some(500),
        ..RunQuery::default()
    };
    let mut marked = 0;
    loop {
        let page = store.list_runs(&query).await?;
        let now = to_millis(Timestamp::now());
        let lost: Vec<LogItem> = page
            .runs
            .into_iter()
            .map(|mut record| {
                record.state = RunState::Lost;
                record.code = Code::LOST;
                record.message = Some("the node vanished while it ran".into());
                record.ended_at = Some(now);
                LogItem::Run(record)
            })
            .collect();
        marked += lost.len();
        store.append(&lost).await?;
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return Ok(marked),
        }
    }
}
