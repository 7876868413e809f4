//! From the spool to the log store: in batches, at least once, in order.
//!
//! A worker with a `logs` URL writes to the log store itself; one without hands its
//! batches to the leading master, so that hosts hold no credentials.

use crate::{
    link::MasterLink,
    metrics::Metrics,
    state::{SpoolItem, State},
};
use anyhow::{Context, bail};
use meepo_core::{id::NodeId, run::Stream};
use meepo_logstore::{LogItem, LogStore};
use meepo_proto::internal::{self as pb, item::Item as PbItem};
use meepo_runtime::backoff::Backoff;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Items and bytes in one batch.
const BATCH: (usize, usize) = (512, 1 << 20);
/// How long the first item of a batch waits for others.
const LINGER: Duration = Duration::from_millis(10);
/// Longest time one batch may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where batches go.
pub enum Sink {
    /// Straight to the log store.
    Store(Arc<dyn LogStore>),
    /// Through the leading master.
    Master(MasterLink),
}

/// Delivers until `stop` is cancelled; what is left stays in the spool.
pub async fn deliver(
    state: State,
    sink: Arc<Sink>,
    node: NodeId,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut stats = state.spool_changes();
    let mut backoff = Backoff::new(Duration::from_secs(30));
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            filled = stats.wait_for(|s| s.items > 0) => if filled.is_err() { return Ok(()) },
        }
        if !failing {
            tokio::time::sleep(LINGER).await;
        }
        let delivered = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            d = batch(&state, &sink, &node) => d,
        };
        observe(&state, &metrics);
        match delivered {
            Ok(n) => {
                if failing {
                    info!("the log store takes records again");
                }
                failing = false;
                backoff.reset();
                metrics.delivered.inc_by(n);
            }
            Err(e) => {
                failing = true;
                metrics.delivery_errors.inc();
                let wait = backoff.next_wait();
                warn!(error = format!("{e:#}"), ?wait, "cannot deliver records, will try again");
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

/// Delivers what is there within `deadline`, for shutdown.
pub async fn flush(state: &State, sink: &Sink, node: &NodeId, deadline: Duration) {
    let all = async {
        while state.spool_stats().items > 0 {
            batch(state, sink, node).await?;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(deadline, all).await {
        Ok(Ok(())) => {}
        _ => info!(
            items = state.spool_stats().items,
            "records stay in the spool until the next start"
        ),
    }
}

async fn batch(state: &State, sink: &Sink, node: &NodeId) -> anyhow::Result<u64> {
    let batch = state.peek(BATCH.0, BATCH.1).await?;
    let n = batch.items.len() as u64;
    let last_id = batch.last_id;
    if batch.unreadable > 0 {
        warn!(items = batch.unreadable, "spooled items cannot be read and are dropped");
    }
    if n == 0 {
        if last_id > 0 {
            state.ack(last_id).await?;
        }
        return Ok(0);
    }
    tokio::time::timeout(TIMEOUT, send(sink, node, batch.items))
        .await
        .context("the log store did not answer in time")??;
    state.ack(last_id).await?;
    Ok(n)
}

async fn send(sink: &Sink, node: &NodeId, items: Vec<SpoolItem>) -> anyhow::Result<()> {
    match sink {
        Sink::Store(store) => {
            let items: Vec<LogItem> = items
                .into_iter()
                .map(|i| match i {
                    SpoolItem::Record(r) => LogItem::Run(r),
                    SpoolItem::Chunk(c) => LogItem::Output(c),
                })
                .collect();
            store.append(&items).await?;
        }
        Sink::Master(link) => {
            let Some(mut client) = link.client() else { bail!("no master leads at the moment") };
            let items = items.into_iter().map(encode).collect::<anyhow::Result<_>>()?;
            let request = pb::DeliverRequest { node: node.to_string(), items };
            client.deliver(request).await.map_err(|s| {
                anyhow::anyhow!("the master refused: {:?}: {}", s.code(), s.message())
            })?;
        }
    }
    Ok(())
}

fn encode(item: SpoolItem) -> anyhow::Result<pb::Item> {
    let item = match item {
        SpoolItem::Record(record) => PbItem::Run(serde_json::to_vec(&record)?.into()),
        SpoolItem::Chunk(c) => PbItem::Output(pb::Output {
            run_id: c.run_id.to_string(),
            chunks: vec![pb::Chunk {
                seq: c.seq,
                stderr: c.stream == Stream::Stderr,
                at_ms: c.at.as_millisecond(),
                data: c.data.into(),
            }],
        }),
    };
    Ok(pb::Item { item: Some(item) })
}

fn observe(state: &State, metrics: &Metrics) {
    let stats = state.spool_stats();
    metrics.spool_items.set(i64::try_from(stats.items).unwrap_or(i64::MAX));
    metrics.spool_bytes.set(i64::try_from(stats.bytes).unwrap_or(i64::MAX));
    metrics.spool_dropped.set(i64::try_from(stats.dropped_chunks).unwrap_or(i64::MAX));
}
