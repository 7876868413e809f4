//! Keys in etcd that stand for runs which are to be started again elsewhere should this
//! node be lost (`on_node_loss: rerun`): written with the claim, deleted when the end of
//! the run is durable.

use jiff::Timestamp;
use meepo_coord::{
    Etcd, keys,
    records::{RerunRecord, encode},
};
use meepo_core::{
    code::Code,
    duration::HumanDuration,
    id::{Name, NodeId, RunId},
    job::{Assignment, OnNodeLoss},
    run::RunRecord,
    tree::TreePath,
};
use meepo_runtime::backoff::Backoff;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{runtime::Handle, sync::Notify};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// The keys that this life of the worker has to take back.
#[derive(Debug)]
pub struct Custody {
    node: NodeId,
    instance: String,
    lease_ttl: Duration,
    open: Mutex<HashMap<RunId, RerunRecord>>,
    lapsed: Notify,
    promised: Arc<Mutex<HashMap<RunId, Promised>>>,
}

/// A further attempt of a run whose key is to be deleted first: while it is there, the
/// leader may give the slot to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promised {
    /// etcd has not answered yet.
    Open,
    /// The leader was faster.
    Gone,
}

impl Custody {
    /// None yet. `instance` is this process of the worker.
    pub fn new(node: NodeId, instance: String, lease_ttl: Duration) -> Self {
        Self {
            node,
            instance,
            lease_ttl,
            open: Mutex::default(),
            lapsed: Notify::new(),
            promised: Arc::default(),
        }
    }

    /// The record for the first run of a slot, if its job asks for one.
    pub fn record(
        &self,
        job: &Name,
        tree: &TreePath,
        on_node_loss: OnNodeLoss,
        slot: Timestamp,
    ) -> Option<RerunRecord> {
        (on_node_loss == OnNodeLoss::Rerun).then(|| RerunRecord {
            job: job.clone(),
            tree: tree.clone(),
            slot,
            attempt: 1,
            reruns: 0,
            instance: self.instance.clone(),
            lease_ttl: HumanDuration(self.lease_ttl),
            ended: false,
            extra: Default::default(),
        })
    }

    /// The key of a run is there: claimed here, or put by the leader.
    pub fn took(&self, run_id: RunId, record: RerunRecord) {
        self.lock().insert(run_id, record);
    }

    /// Whether a run of this life has a key, so that another node may get it.
    pub fn has(&self, run_id: RunId) -> bool {
        self.lock().contains_key(&run_id)
    }

    /// The leader has given the run to another node.
    pub fn forget(&self, run_id: RunId) {
        self.lock().remove(&run_id);
    }

    /// The lease has been lost for so long that others soon take what this node has.
    pub fn lapse(&self) {
        self.lapsed.notify_one();
    }

    /// Waits for [`lapse`](Self::lapse).
    pub async fn lapsed(&self) {
        self.lapsed.notified().await;
    }

    /// A request to run a lost run again has come.
    pub fn asked(
        &self,
        run_id: RunId,
        job: &Name,
        assignment: &Assignment,
        slot: Timestamp,
        attempt: u32,
    ) {
        let record = self.record(job, &assignment.tree, assignment.on_node_loss, slot);
        if let Some(record) = record {
            // How often it was run again, the attempts tell.
            let reruns = attempt.saturating_sub(1);
            self.took(run_id, RerunRecord { attempt, reruns, ..record });
        }
    }

    /// The end of a run is durable here: its key goes. That of a run which this node had to
    /// end, as it had lost its lease, is handed to the leader instead. `next` is the further
    /// attempt that was promised with the end; see [`promised`](Self::promised).
    pub fn release(
        &self,
        record: &RunRecord,
        next: Option<RunId>,
        etcd: &Etcd,
        tasks: &Handle,
        stop: &CancellationToken,
    ) {
        let Some(kept) = self.lock().remove(&record.run_id) else { return };
        let ended = (record.code == Code::ETCD).then_some(kept);
        self.give_up(record.run_id, ended, next, etcd, tasks, stop);
    }

    /// Deletes the key of a run, or with `to_others` hands it to the leader, if it is there
    /// still.
    pub fn give_up(
        &self,
        run_id: RunId,
        to_others: Option<RerunRecord>,
        next: Option<RunId>,
        etcd: &Etcd,
        tasks: &Handle,
        stop: &CancellationToken,
    ) {
        let key = keys::rerun(&self.node, run_id);
        let value = to_others.map(|record| encode(&RerunRecord { ended: true, ..record }));
        let (etcd, stop, promised) = (etcd.clone(), stop.clone(), self.promised.clone());
        if let Some(next) = next {
            locked(&promised).insert(next, Promised::Open);
        }
        tasks.spawn(async move {
            let mut backoff = Backoff::new(Duration::from_secs(5));
            let was_there = loop {
                match etcd.put_there(&key, value.clone()).await {
                    Ok(was_there) => break was_there,
                    Err(e) => debug!(key, error = %e, "cannot take a key back, will try again"),
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                }
            };
            match next {
                Some(next) if was_there => drop(locked(&promised).remove(&next)),
                Some(next) => drop(locked(&promised).insert(next, Promised::Gone)),
                None => {}
            }
        });
    }

    /// Why a further attempt must not start, if it must not: its slot may be another node's.
    pub fn promised(&self, next: RunId) -> Option<Promised> {
        let mut promised = locked(&self.promised);
        let found = promised.get(&next).copied();
        if found == Some(Promised::Gone) {
            promised.remove(&next);
        }
        found
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RunId, RerunRecord>> {
        locked(&self.open)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done while the lock is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
