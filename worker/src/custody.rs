//! Keys in etcd that stand for runs which are to be started again elsewhere should this
//! node be lost (`on_node_loss: rerun`): written with the claim, deleted when the end of
//! the run is durable. When a further attempt was promised with that end, the key is not
//! deleted but becomes that attempt's, in one transaction: so one look at etcd tells, also
//! a later life of this worker, whether the slot is this node's still or the leader has
//! given it to another.

use crate::engine::Plan;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use jiff::Timestamp;
use meepo_coord::{
    CoordError, Etcd, keys,
    records::{RerunRecord, decode, encode},
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
    open: Arc<Mutex<HashMap<RunId, RerunRecord>>>,
    lapsed: Notify,
    promised: Arc<Mutex<HashMap<RunId, Promised>>>,
    /// Told when etcd has answered for one of them.
    answered: Arc<Notify>,
}

/// A further attempt that must have its key before it begins: until then the leader may
/// have given the slot to another node.
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
            open: Arc::default(),
            lapsed: Notify::new(),
            promised: Arc::default(),
            answered: Arc::default(),
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
    /// end, as it had lost its lease, is handed to the leader instead.
    pub fn release(
        &self,
        record: &RunRecord,
        etcd: &Etcd,
        tasks: &Handle,
        stop: &CancellationToken,
    ) {
        let Some(kept) = self.lock().remove(&record.run_id) else { return };
        let ended = (record.code == Code::ETCD).then_some(kept);
        self.give_up(record.run_id, ended, etcd, tasks, stop);
    }

    /// Deletes the key of a run, or with `to_others` hands it to the leader, if it is there
    /// still.
    pub fn give_up(
        &self,
        run_id: RunId,
        to_others: Option<RerunRecord>,
        etcd: &Etcd,
        tasks: &Handle,
        stop: &CancellationToken,
    ) {
        let key = keys::rerun(&self.node, run_id);
        let value = to_others.map(|record| encode(&RerunRecord { ended: true, ..record }));
        let (etcd, stop) = (etcd.clone(), stop.clone());
        let (promised, answered) = (self.promised.clone(), self.answered.clone());
        tasks.spawn(async move {
            let taken_back = async {
                // Not before the key can be there.
                loop {
                    let answer = answered.notified();
                    tokio::pin!(answer);
                    answer.as_mut().enable();
                    if locked(&promised).get(&run_id) != Some(&Promised::Open) {
                        break;
                    }
                    answer.await;
                }
                let mut backoff = Backoff::new(Duration::from_secs(5));
                while let Err(e) = etcd.put_there(&key, value.clone()).await {
                    debug!(key, error = %e, "cannot take a key back, will try again");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = taken_back => {}
            }
        });
    }

    /// The run `of` has durably ended, in this life or an earlier one, and `next` was
    /// promised with that: the key becomes that of `next`, which does not begin before;
    /// see [`promised`](Self::promised).
    pub fn hand_on(
        &self,
        of: RunId,
        next: &Plan,
        etcd: &Etcd,
        tasks: &Handle,
        stop: &CancellationToken,
    ) {
        let (Some(job), assignment) = (&next.job, &next.assignment) else { return };
        let before = self.lock().remove(&of);
        let record = self.record(job, &assignment.tree, assignment.on_node_loss, next.slot);
        let Some(record) = record else { return };
        let reruns = before.map_or(0, |record| record.reruns);
        let record = RerunRecord { attempt: next.attempt, reruns, ..record };
        let next = next.run_id;
        self.took(next, record.clone());
        locked(&self.promised).insert(next, Promised::Open);
        let (promised, answered) = (self.promised.clone(), self.answered.clone());
        let (open, etcd, stop, node) =
            (self.open.clone(), etcd.clone(), stop.clone(), self.node.clone());
        tasks.spawn(async move {
            let mut backoff = Backoff::new(Duration::from_secs(5));
            let ours = loop {
                match move_key(&etcd, &node, of, next, &record).await {
                    Ok(ours) => break ours,
                    Err(e) => {
                        debug!(run_id = %next, error = %e, "cannot ask for the key of a further attempt, will try again");
                    }
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                }
            };
            if ours {
                locked(&promised).remove(&next);
            } else {
                locked(&promised).insert(next, Promised::Gone);
                locked(&open).remove(&next);
            }
            answered.notify_waiters();
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

/// Makes the key of `of` that of `next`, or takes over one that `next` has already. Answers
/// whether it has one; if not, the leader was faster.
async fn move_key(
    etcd: &Etcd,
    node: &NodeId,
    of: RunId,
    next: RunId,
    record: &RerunRecord,
) -> Result<bool, CoordError> {
    let to = keys::rerun(node, next);
    // In this order: what was not answered may have happened meanwhile.
    for run_id in [of, next] {
        let from = keys::rerun(node, run_id);
        let Some(entry) = etcd.get(&from).await? else { continue };
        let known = decode::<RerunRecord>(&entry.value).ok();
        // How often the slot was run again, the key itself knows best.
        let reruns = known.map_or(record.reruns, |k| k.reruns);
        let value = encode(&RerunRecord { reruns, ..record.clone() });
        let mut ops = vec![TxnOp::put(to.as_str(), value, None)];
        if run_id == of {
            ops.push(TxnOp::delete(from.as_str(), None));
        }
        let same = Compare::mod_revision(from.as_str(), CompareOp::Equal, entry.mod_revision);
        if etcd.txn(&to, Txn::new().when([same]).and_then(ops)).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done while the lock is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
