//! Runs of nodes that have vanished, marked as lost by the leader.
//!
//! A node whose health record is gone for longer than `GRACE` cannot be asked; its
//! runs that are still recorded as running get the state `lost`. Should the worker
//! come back with its own account of their end, that outranks the guess.

use crate::{notify::note_in_inbox, view::View};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use jiff::Timestamp;
use meepo_coord::{Etcd, election::Leadership, keys};
use meepo_core::{
    code::Code,
    id::NodeId,
    notify::{Happening, Kind},
    run::{Cause, RunRecord, RunState, to_millis},
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

/// Lost runs noted at once.
const NOTES: usize = 100;

/// Watches for vanished nodes while this master leads, until `stop` is cancelled.
pub async fn run(
    etcd: Etcd,
    store: Arc<dyn LogStore>,
    view: View,
    mut leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut changes = view.changes();
    // Nodes that are away, with the time to look at their runs.
    let mut due: HashMap<NodeId, Instant> = HashMap::new();
    loop {
        let term = leadership.borrow_and_update().mine;
        let leads = term.is_some();
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
                    match mark(&etcd, term, &*store, &id).await {
                        Ok(n) => {
                            if n > 0 {
                                info!(node = %id, runs = n, "node is gone, its runs are lost");
                            }
                            due.insert(id, now + AGAIN);
                        }
                        Err(e) => {
                            warn!(node = %id, error = format!("{e:#}"), "cannot mark lost runs, will try again");
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

async fn mark(
    etcd: &Etcd,
    term: Option<i64>,
    store: &dyn LogStore,
    node: &NodeId,
) -> anyhow::Result<usize> {
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
        let lost: Vec<RunRecord> = page
            .runs
            .into_iter()
            .map(|mut record| {
                record.state = RunState::Lost;
                record.code = Code::LOST;
                record.message = Some("the node vanished while it ran".into());
                record.ended_at = Some(now);
                record
            })
            .collect();
        marked += lost.len();
        // First those who want to know: once marked, they are not found here again.
        tell(etcd, term, &lost).await?;
        let lost: Vec<LogItem> = lost.into_iter().map(LogItem::Run).collect();
        store.append(&lost).await?;
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return Ok(marked),
        }
    }
}

/// Notes lost runs of jobs for those who are told of failures.
async fn tell(etcd: &Etcd, term: Option<i64>, lost: &[RunRecord]) -> anyhow::Result<()> {
    let of_jobs = |r: &&RunRecord| r.job.is_some() && r.cause != Cause::Task;
    let notes: Vec<TxnOp> = lost.iter().filter(of_jobs).map(note).collect();
    for some in notes.chunks(NOTES) {
        let leads = Compare::create_revision(keys::LEADER, CompareOp::Equal, term.unwrap_or(-1));
        let txn = Txn::new().when([leads]).and_then(some);
        let written = etcd.txn("lost runs", txn).await?;
        anyhow::ensure!(written.is_some(), "another master leads by now");
    }
    Ok(())
}

fn note(record: &RunRecord) -> TxnOp {
    let what = Happening {
        job: record.job.clone(),
        node: Some(record.node.clone()),
        run_id: Some(record.run_id),
        state: Some(RunState::Lost),
        code: Some(Code::LOST),
        attempt: Some(record.attempt),
        slot: Some(record.slot),
        since: record.started_at,
        message: record.message.clone(),
        ..Happening::new(Kind::Failure, record.ended_at.unwrap_or(record.slot))
    };
    note_in_inbox(format_args!("lost-{}", record.run_id), &what)
}
