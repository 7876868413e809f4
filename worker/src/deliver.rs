//! From the spool to the log store: in batches, at least once, in order.
//!
//! A worker with a `logs` URL writes to the log store itself; one without hands its
//! batches to the leading master, so that hosts hold no credentials.

use crate::{
    link::MasterLink,
    metrics::Metrics,
    state::{SpoolItem, State},
};
use anyhow::anyhow;
use meepo_coord::records;
use meepo_core::{id::NodeId, run::Stream};
use meepo_logstore::{LogItem, LogStore, StoreError};
use meepo_proto::internal::{self as pb, item::Item as PbItem};
use meepo_runtime::backoff::Backoff;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Items and bytes in one batch.
const BATCH: (usize, usize) = (512, 1 << 20);
/// How long the first item of a batch waits for others.
const LINGER: Duration = Duration::from_millis(10);
/// Batches that follow each other faster than this are gathered.
const BUSY: Duration = Duration::from_millis(100);
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
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            filled = stats.wait_for(|s| s.items > 0) => if filled.is_err() { return Ok(()) },
        }
        // After a pause somebody may wait for just this; in a stream of them it pays to
        // gather.
        if !failing && last.elapsed() < BUSY {
            tokio::time::sleep(LINGER).await;
        }
        let delivered = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            d = batch(&state, &sink, &node) => d,
        };
        last = Instant::now();
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
    let (n, last_id) = (batch.items.len() as u64, batch.last_id);
    if batch.unreadable > 0 {
        warn!(items = batch.unreadable, "spooled items cannot be read and are dropped");
    }
    if n > 0 {
        match within(send(sink, node, &batch.items)).await {
            Err(Failure::Refused(reason)) if n > 1 => {
                warn!(reason, "a batch was refused, delivering its items one by one");
                for item in &batch.items {
                    match within(send(sink, node, std::slice::from_ref(item))).await {
                        Ok(()) => {}
                        Err(Failure::Refused(reason)) => lose(item, &reason),
                        Err(Failure::Later(e)) => return Err(e),
                    }
                }
            }
            // It would be refused for ever and hold up everything behind it.
            Err(Failure::Refused(reason)) => batch.items.iter().for_each(|i| lose(i, &reason)),
            Err(Failure::Later(e)) => return Err(e),
            Ok(()) => {}
        }
    }
    if last_id > 0 {
        state.ack(last_id).await?;
    }
    Ok(n)
}

fn lose(item: &SpoolItem, reason: &str) {
    let run_id = match item {
        SpoolItem::Record(r) => r.run_id,
        SpoolItem::Chunk(c) => c.run_id,
    };
    error!(%run_id, reason, "the log store refuses an item for good; it is dropped");
}

/// Why a batch was not taken.
enum Failure {
    /// It never will be.
    Refused(String),
    /// It may be later.
    Later(anyhow::Error),
}

async fn within(sending: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::time::timeout(TIMEOUT, sending)
        .await
        .unwrap_or_else(|_| Err(Failure::Later(anyhow!("the log store did not answer in time"))))
}

async fn send(sink: &Sink, node: &NodeId, items: &[SpoolItem]) -> Result<(), Failure> {
    match sink {
        Sink::Store(store) => {
            let items: Vec<LogItem> = items
                .iter()
                .map(|i| match i {
                    SpoolItem::Record(r) => LogItem::Run(r.clone()),
                    SpoolItem::Chunk(c) => LogItem::Output(c.clone()),
                })
                .collect();
            store.append(&items).await.map_err(|e| match e {
                StoreError::Refused { .. } => Failure::Refused(e.to_string()),
                e => Failure::Later(e.into()),
            })
        }
        Sink::Master(link) => {
            let Some(mut client) = link.client() else {
                return Err(Failure::Later(anyhow!("no master leads at the moment")));
            };
            let items = items.iter().map(encode).collect();
            let request = pb::DeliverRequest { node: node.to_string(), items };
            match client.deliver(request).await {
                Ok(_) => Ok(()),
                Err(s) if s.code() == tonic::Code::InvalidArgument => {
                    Err(Failure::Refused(s.message().to_owned()))
                }
                Err(s) => {
                    Err(Failure::Later(anyhow!("the master: {:?}: {}", s.code(), s.message())))
                }
            }
        }
    }
}

fn encode(item: &SpoolItem) -> pb::Item {
    let item = match item {
        SpoolItem::Record(record) => PbItem::Run(records::encode(record).into()),
        SpoolItem::Chunk(c) => PbItem::Output(pb::Output {
            run_id: c.run_id.to_string(),
            chunks: vec![pb::Chunk {
                seq: c.seq,
                stderr: c.stream == Stream::Stderr,
                at_ms: c.at.as_millisecond(),
                data: c.data.clone().into(),
            }],
        }),
    };
    pb::Item { item: Some(item) }
}

fn observe(state: &State, metrics: &Metrics) {
    let stats = state.spool_stats();
    metrics.spool_items.set(i64::try_from(stats.items).unwrap_or(i64::MAX));
    metrics.spool_bytes.set(i64::try_from(stats.bytes).unwrap_or(i64::MAX));
    metrics.spool_dropped.set(i64::try_from(stats.dropped_chunks).unwrap_or(i64::MAX));
}
