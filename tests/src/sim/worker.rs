//! One simulated worker.

use super::{Count, Counts};
use jiff::Timestamp;
use meepo_coord::{
    CoordError, Etcd,
    election::{self, Leadership},
    keys,
    lease::{self, LeaseState},
    records::{decode, encode},
    watch::{self, Batch, Change},
};
use meepo_core::{
    code::Code,
    id::{NodeId, RunId},
    job::Assignment,
    node::{Facts, Health, NodeRecord, ONLINE},
    run::{Cause, RunRecord, RunState, to_millis},
};
use meepo_proto::internal::{
    self as pb, master_frame::Frame as Order, worker_frame::Frame as Answer,
    workers_client::WorkersClient,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, mpsc, watch as cell};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

/// Between two heartbeats, as a real worker sends them.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Wait after something did not work.
const AGAIN: Duration = Duration::from_millis(500);

pub(super) struct Worker {
    pub(super) node: NodeId,
    pub(super) etcd: Etcd,
    pub(super) counts: Arc<Counts>,
    pub(super) lease_ttl: Duration,
    /// Who may register now.
    pub(super) places: Arc<Semaphore>,
    pub(super) stop: CancellationToken,
}

/// Takes a count back when it goes.
struct Open<'a>(&'a Counts);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.one_less(Count::Sessions);
    }
}

impl Worker {
    pub(super) async fn run(self) {
        // The semaphore is never closed.
        let Ok(place) = self.places.clone().acquire_owned().await else { return };
        let (lease_tx, lease) = cell::channel(LeaseState::None);
        let (leader_tx, leader) = cell::channel(Leadership::default());
        let (tx, rx) = mpsc::channel(4);
        let prefixes = vec![
            keys::assignments_of(&self.node),
            keys::triggers_of(&self.node),
            keys::kills_of(&self.node),
            keys::drain(&self.node),
        ];
        let (etcd, stop) = (&self.etcd, &self.stop);
        tokio::join!(
            lease::keep(etcd.clone(), self.lease_ttl, lease_tx, stop.clone()),
            election::observe(etcd.clone(), leader_tx, stop.clone()),
            watch::watch(etcd.clone(), prefixes, watch::Options::default(), tx, stop.clone()),
            self.note(rx),
            async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.live(lease, leader, place) => {}
                }
            },
        );
    }

    /// Takes note of what etcd has for it.
    async fn note(&self, mut batches: mpsc::Receiver<Batch>) {
        while let Some(batch) = batches.recv().await {
            let ours = |key: &str| key.starts_with(keys::ASSIGNMENTS);
            let put = match batch {
                Batch::Reset { entries, .. } => entries.iter().filter(|e| ours(&e.key)).count(),
                Batch::Changes(changes) => changes
                    .iter()
                    .filter(|c| matches!(c, Change::Put(entry) if ours(&entry.key)))
                    .count(),
            };
            self.counts.add(Count::Assigned, put as u64);
        }
    }

    /// Registers, then keeps a session with whoever leads.
    async fn live<P>(
        &self,
        mut lease: cell::Receiver<LeaseState>,
        mut leader: cell::Receiver<Leadership>,
        place: P,
    ) {
        loop {
            let Ok(held) = lease.wait_for(|l| l.id().is_some()).await.map(|l| *l) else { return };
            match self.register(held.id()).await {
                Ok(()) => break,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
        self.counts.add(Count::Registered, 1);
        drop(place);
        loop {
            let found = leader.borrow_and_update().leader.clone();
            tokio::select! {
                changed = leader.changed() => if changed.is_err() { return },
                () = async {
                    match found {
                        Some((record, _)) => drop(self.session(&record.grpc).await),
                        None => std::future::pending().await,
                    }
                    tokio::time::sleep(AGAIN).await;
                } => {}
            }
        }
    }

    async fn register(&self, lease: Option<i64>) -> Result<(), CoordError> {
        let facts = Facts {
            hostname: format!("sim-{}", self.node),
            os: "debian".into(),
            os_version: "12".into(),
            arch: "x86_64".into(),
            cpu_cores: 8,
            mem_total: 32 << 30,
            mem_free: 16 << 30,
            disk_total: 500 << 30,
            disk_free: 250 << 30,
            ..Facts::default()
        };
        let now = to_millis(Timestamp::now());
        let record = NodeRecord {
            labels: BTreeMap::new(),
            facts: facts.clone(),
            version: "simulated".into(),
            registered_at: now,
            extra: BTreeMap::new(),
        };
        let health = Health {
            started_at: Some(now),
            facts,
            instance: format!("sim-{}", self.node),
            ..decode(format!(r#"{{"status":"{ONLINE}","version":"simulated"}}"#).as_bytes())
                .expect("a health record")
        };
        self.etcd.put(&keys::node(&self.node), encode(&record), None).await?;
        self.etcd.put(&keys::health(&self.node), encode(&health), lease).await.map(drop)
    }

    /// One session, to its end.
    async fn session(&self, master: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let endpoint = Endpoint::from_shared(master.to_owned())?
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let mut client = WorkersClient::new(endpoint.connect_lazy());
        let (out, rx) = mpsc::channel(16);
        let hello = pb::Hello {
            node: self.node.to_string(),
            instance: format!("sim-{}", self.node),
            version: "simulated".into(),
        };
        out.send(frame(Answer::Hello(hello))).await?;
        let mut orders = client.session(ReceiverStream::new(rx)).await?.into_inner();
        self.counts.add(Count::Sessions, 1);
        let _open = Open(&self.counts);
        // Not all at the same instant.
        let first = HEARTBEAT.mul_f64(f64::from(rand(&self.node)) / f64::from(u32::MAX));
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + first, HEARTBEAT);
        loop {
            let answer = tokio::select! {
                _ = beat.tick() => Answer::Heartbeat(pb::Heartbeat {
                    load1: 0.5,
                    cpu_use: Some(3.0),
                    mem_total: 32 << 30,
                    mem_free: 16 << 30,
                    disk_total: 500 << 30,
                    disk_free: 250 << 30,
                    ..Default::default()
                }),
                order = orders.message() => {
                    let Some(order) = order? else { return Ok(()) };
                    let Some(Order::Exec(exec)) = order.frame else { continue };
                    let end = self.execute(&exec)?;
                    self.counts.add(Count::Commands, 1);
                    Answer::Ended(end)
                }
            };
            out.send(frame(answer)).await?;
        }
    }

    /// As if the command had succeeded.
    fn execute(
        &self,
        exec: &pb::Exec,
    ) -> Result<pb::Ended, Box<dyn std::error::Error + Send + Sync>> {
        let what: Assignment = decode(&exec.assignment)?;
        let run_id: RunId = exec.run_id.parse()?;
        let now = to_millis(Timestamp::now());
        let record = RunRecord {
            run_id,
            job: None,
            node: self.node.clone(),
            slot: now,
            attempt: 1,
            cause: Cause::Exec,
            executor: what.executor,
            cmd: what.cmd,
            user: None,
            state: RunState::Success,
            code: Code::OK,
            message: None,
            exit_code: Some(0),
            signal: None,
            fence: None,
            pid: Some(1),
            started_at: Some(now),
            ended_at: Some(now),
            output_bytes: 0,
            dropped_bytes: 0,
        };
        Ok(pb::Ended { run_id: exec.run_id.clone(), record: encode(&record).into(), chunks: 0 })
    }
}

fn frame(answer: Answer) -> pb::WorkerFrame {
    pb::WorkerFrame { frame: Some(answer) }
}

/// The same for the same node in every measurement, spread over all nodes.
fn rand(node: &NodeId) -> u32 {
    node.as_str().bytes().fold(2_166_136_261, |h, b| (h ^ u32::from(b)).wrapping_mul(16_777_619))
}
