//! Writes `/cron/cronid/jobs/<ip>/<task_id>`: what each job runs now, under the
//! worker's lease, and how its last run ended, for some minutes.
//!
//! The key is for people and for the leader's eyes; it decides nothing. With etcd
//! away the latest state of each job waits here, so memory is bounded by the number
//! of jobs.

use futures::{StreamExt, stream};
use meepo_coord::{CoordError, Etcd, keys, lease::LeaseState, records::encode};
use meepo_core::{
    api::CronId,
    id::{Name, NodeId},
};
use std::{collections::HashMap, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How long the end of a run can be read at least.
const KEPT: Duration = Duration::from_secs(300);
/// Writes on their way at the same time.
const IN_FLIGHT: usize = 32;

/// Where to hand in states.
pub type Sender = mpsc::Sender<(Name, CronId)>;

/// Writes what comes from `rx` until `stop` is cancelled.
pub async fn write(
    etcd: Etcd,
    node: NodeId,
    mut lease: watch::Receiver<LeaseState>,
    mut rx: mpsc::Receiver<(Name, CronId)>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut running: HashMap<Name, CronId> = HashMap::new();
    let mut pending: HashMap<Name, CronId> = HashMap::new();
    let mut writer = Writer { etcd, node, ended_lease: None };
    let mut bound_to = None;
    let mut retry = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = wait(retry), if !pending.is_empty() => {}
            changed = lease.changed() => if changed.is_err() { return Ok(()) },
            first = rx.recv() => {
                let Some(first) = first else { return Ok(()) };
                let mut next = Some(first);
                while let Some((job, id)) = next {
                    if id.state.is_final() {
                        running.remove(&job);
                    } else {
                        running.insert(job.clone(), id.clone());
                    }
                    pending.insert(job, id);
                    next = rx.try_recv().ok();
                }
            }
        }
        let Some(id) = lease.borrow_and_update().id() else { continue };
        if bound_to != Some(id) {
            // What was bound to the old lease is gone.
            bound_to = Some(id);
            for (job, cronid) in &running {
                pending.entry(job.clone()).or_insert_with(|| cronid.clone());
            }
        }
        if retry.is_none_or(|at| at <= Instant::now()) {
            retry = writer.flush(id, &mut pending).await.err().map(|e| {
                debug!(error = %e, "cannot write what runs, will try again");
                Instant::now() + Duration::from_secs(1)
            });
        }
    }
}

async fn wait(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

struct Writer {
    etcd: Etcd,
    node: NodeId,
    /// The lease of ended runs and when to take a new one.
    ended_lease: Option<(i64, Instant)>,
}

impl Writer {
    /// Writes everything pending; what fails stays.
    async fn flush(
        &mut self,
        lease: i64,
        pending: &mut HashMap<Name, CronId>,
    ) -> Result<(), CoordError> {
        let ended = match pending.values().any(|id| id.state.is_final()) {
            true => self.ended_lease().await?,
            false => 0,
        };
        let todo: Vec<_> = pending.drain().collect();
        let mut results = stream::iter(todo.into_iter().map(|(job, id)| {
            let key = keys::cronid(&self.node, &job);
            let lease = if id.state.is_final() { ended } else { lease };
            let etcd = &self.etcd;
            async move {
                let result = etcd.put(&key, encode(&id), Some(lease)).await;
                (job, id, result)
            }
        }))
        .buffer_unordered(IN_FLIGHT);
        let mut failed = None;
        while let Some((job, id, result)) = results.next().await {
            if let Err(e) = result {
                pending.insert(job, id);
                failed = Some(e);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// One lease for all that ended within a while: leases are dear when written often.
    async fn ended_lease(&mut self) -> Result<i64, CoordError> {
        if let Some((id, until)) = self.ended_lease
            && Instant::now() < until
        {
            return Ok(id);
        }
        let id = self.etcd.grant(KEPT * 2).await?;
        self.ended_lease = Some((id, Instant::now() + KEPT));
        Ok(id)
    }
}
