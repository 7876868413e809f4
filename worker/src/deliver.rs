//! From the spool to the log store: in batches, at least once, in order.
//!
//! A worker with a `logs` URL writes to the log store itself; one without hands its
//! batches to the leading master, so that hosts hold no credentials.

use crate::{
    failpoint::{self, Place},
    link::MasterLink,
    metrics::Metrics,
    state::{Batch, SpoolItem, State, StateError},
    vitals::Delivery,
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
/// Batches that follow each other faster than this are gathered …
const BUSY: Duration = Duration::from_millis(100);
/// … for this long, as somebody may wait for just this one …
const LINGER: Duration = Duration::from_millis(10);
/// … or for this long, when the last one held as many as [`MANY`]: each batch costs a
/// flush to disk here and one at the log store.
const LONG_LINGER: Duration = Duration::from_millis(50);
/// See [`LONG_LINGER`].
const MANY: u64 = 16;
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
    delivery: Arc<Delivery>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut stats = state.spool_changes();
    let mut backoff = Backoff::new(Duration::from_secs(30));
    let mut failing = false;
    let (mut last, mut linger) = (Instant::now(), LINGER);
    let mut pump = Pump { state, sink, node, delivered: None };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            filled = stats.wait_for(|s| s.items > 0) => if filled.is_err() { break },
        }
        // After a pause somebody may wait for just this; in a stream of them it pays to
        // gather.
        if !failing && last.elapsed() < BUSY {
            tokio::time::sleep(linger).await;
        }
        let delivered = tokio::select! {
            () = stop.cancelled() => break,
            d = pump.next() => d,
        };
        last = Instant::now();
        match delivered {
            Ok(n) => {
                if delivery.tried(Ok(())) {
                    info!("the log store takes records again");
                }
                failing = false;
                backoff.reset();
                linger = if n < MANY { LINGER } else { LONG_LINGER };
                metrics.delivered.inc_by(n);
            }
            Err(e) => {
                failing = true;
                metrics.delivery_errors.inc();
                // What the state refuses is told by the disk's own watch.
                if e.downcast_ref::<StateError>().is_none() {
                    delivery.tried(Err(format!("{e:#}")));
                }
                let wait = backoff.next_wait();
                warn!(error = format!("{e:#}"), ?wait, "cannot deliver records, will try again");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
    // Otherwise it is delivered once more in the next life, which does no harm.
    Ok(pump.acknowledge().await?)
}

/// Delivers what is there within `deadline`, for shutdown.
pub async fn flush(state: &State, sink: &Arc<Sink>, node: &NodeId, deadline: Duration) {
    let all = async {
        let mut pump =
            Pump { state: state.clone(), sink: sink.clone(), node: node.clone(), delivered: None };
        while state.spool_stats().items > 0 {
            pump.next().await?;
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

/// Takes batches out of the spool and hands them on.
struct Pump {
    state: State,
    sink: Arc<Sink>,
    node: NodeId,
    /// Delivered and not acknowledged yet: that is done together with the next look at
    /// the spool.
    delivered: Option<Batch>,
}

impl Pump {
    /// Delivers the next batch; answers how many items it held.
    async fn next(&mut self) -> anyhow::Result<u64> {
        let batch = self.state.ack_and_peek(self.delivered.as_ref(), BATCH.0, BATCH.1).await?;
        self.delivered = None;
        let n = batch.items.len() as u64;
        if batch.unreadable > 0 {
            warn!(items = batch.unreadable, "spooled items cannot be read and are dropped");
        }
        reach(Place::Delivering, &batch.items);
        match self.send(&batch.items).await {
            Err(Failure::Refused(reason)) if n > 1 => {
                warn!(reason, "a batch was refused, delivering its items one by one");
                for item in &batch.items {
                    match self.send(std::slice::from_ref(item)).await {
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
        reach(Place::Delivered, &batch.items);
        self.delivered = (batch.last_id > 0).then_some(batch);
        Ok(n)
    }

    async fn send(&self, items: &[SpoolItem]) -> Result<(), Failure> {
        if items.is_empty() {
            return Ok(());
        }
        within(send(&self.sink, &self.node, items)).await
    }

    async fn acknowledge(&mut self) -> Result<(), StateError> {
        match self.delivered.take() {
            Some(batch) => self.state.ack(&batch).await,
            None => Ok(()),
        }
    }
}

/// See [`failpoint`]: for each run whose end is among `items`.
fn reach(place: Place, items: &[SpoolItem]) {
    for item in items {
        if let SpoolItem::Record(r) = item
            && r.state.is_final()
        {
            failpoint::reach(place, r.job.as_ref());
        }
    }
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
