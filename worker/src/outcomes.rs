//! Writes `/meepo/outcomes/<ip>/<job>`: how the runs of each job have ended so far, for the
//! leader, which tells those who want to know.
//!
//! What is to be told is kept in the state until etcd has it. The value of a job is replaced,
//! and changes are gathered, so that a burst of failures costs a few writes.

use crate::state::{DueTally, State};
use etcd_client::{Txn, TxnOp};
use meepo_coord::{CoordError, Etcd, etcd::MAX_TXN_BYTES, keys};
use meepo_core::id::{Name, NodeId};
use meepo_runtime::backoff::Backoff;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Jobs in one write, at most.
const BATCH: usize = 100;
/// Between two rounds of writes, at least.
const GATHER: Duration = Duration::from_millis(250);

/// Tells etcd what it does not know, until `stop` is cancelled.
pub async fn publish(
    state: State,
    etcd: Etcd,
    node: NodeId,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tell(&state, &etcd, &node) => {}
    }
    Ok(())
}

async fn tell(state: &State, etcd: &Etcd, node: &NodeId) {
    let mut backoff = Backoff::new(Duration::from_secs(5));
    loop {
        let wait = match round(state, etcd, node).await {
            Ok(true) => GATHER,
            Ok(false) => {
                backoff.reset();
                state.tallies_changed().await;
                continue;
            }
            Err(e) => {
                let wait = backoff.next_wait();
                debug!(
                    error = format!("{e:#}"),
                    ?wait,
                    "cannot tell how runs ended, will try again"
                );
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Tells what is due; answers whether there was anything.
async fn round(state: &State, etcd: &Etcd, node: &NodeId) -> anyhow::Result<bool> {
    let mut told = false;
    loop {
        let due = state.due_tallies(BATCH).await?;
        if due.is_empty() {
            return Ok(told);
        }
        told = true;
        let mut from = 0;
        while from < due.len() {
            let mut bytes = 0;
            let fits = due[from..].iter().take_while(|t| {
                bytes += t.tally.len() + 512;
                bytes <= MAX_TXN_BYTES
            });
            // One that is too large by itself does not exist, see `Tally`.
            let to = from + fits.count().max(1);
            write(etcd, node, &due[from..to]).await?;
            let known: Vec<(Name, u64)> =
                due[from..to].iter().map(|t| (t.job.clone(), t.seq)).collect();
            state.told(known).await?;
            from = to;
        }
    }
}

async fn write(etcd: &Etcd, node: &NodeId, due: &[DueTally]) -> Result<(), CoordError> {
    let put = |t: &DueTally| TxnOp::put(keys::outcome(node, &t.job), t.tally.as_bytes(), None);
    let puts: Vec<TxnOp> = due.iter().map(put).collect();
    etcd.txn("outcomes of runs", Txn::new().and_then(puts)).await.map(drop)
}
