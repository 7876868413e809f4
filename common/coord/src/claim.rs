//! Claiming a slot of a job that runs once in the cluster.
//!
//! The cursor of the last claimed slot stands at [`keys::claim`] and is replaced by
//! compare-and-put on its revision: of all who try, one wins, and a slot at or
//! before the cursor can never be claimed again, whatever clocks and partitions do.
//! The revision of the winning write is the fencing token.

use crate::{
    etcd::{Cas, CoordError, Entry, Etcd},
    keys,
    records::{ClaimRecord, RerunRecord, decode, encode},
};
use jiff::Timestamp;
use meepo_core::{
    id::{Name, NodeId, RunId},
    tree::TreePath,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How a claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// This node runs the slot.
    Won {
        /// The fencing token: greater than that of every earlier claim of the job.
        fence: i64,
    },
    /// Somebody had it already, or a later one.
    Lost {
        /// The last slot that is claimed. Far in the future it tells of a clock that was
        /// wrong.
        claimed: Timestamp,
        /// The run it was claimed for and that claim's fence, if this node has claimed it: in
        /// this life or an earlier one, whose claim may have arrived after its end.
        own: Option<(RunId, i64)>,
    },
    /// As many slots of the job have run in the cluster as may.
    Exhausted {
        /// So many.
        runs: u32,
    },
}

/// What is to be claimed.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The slot.
    pub slot: Timestamp,
    /// For which run.
    pub run_id: RunId,
    /// Whether whoever wins it runs it, or only records that it was missed.
    pub runs: bool,
    /// How many slots of the job may run in the cluster. Absent: no limit.
    pub max_runs: Option<u32>,
}

/// Claims slots, remembering the cursors last seen so that a claim costs one round
/// trip in the normal case. Clones share what they remember.
#[derive(Clone)]
pub struct Claims {
    etcd: Etcd,
    seen: Arc<Mutex<HashMap<String, Cursor>>>,
}

#[derive(Clone, Copy)]
struct Cursor {
    revision: i64,
    slot: Option<Timestamp>,
    runs: u32,
}

impl Claims {
    /// Nothing is known yet.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd, seen: Arc::default() }
    }

    /// Tries to claim a slot of `job` on `node`, for a job defined at the root.
    ///
    /// # Errors
    /// As [`Claims::claim_at`].
    pub async fn claim(
        &self,
        job: &Name,
        node: &NodeId,
        wanted: Wanted,
    ) -> Result<Claim, CoordError> {
        self.claim_at(job, &TreePath::ROOT, node, wanted, None).await
    }

    /// Tries to claim a slot of `job` on `node`, among the nodes for which the definition at
    /// `tree` decides. With the claim `rerun` is written for the run, if there is one.
    ///
    /// # Errors
    /// When etcd does not answer. The claim may have taken effect all the same: the
    /// slot must then not be run, as nobody knows whose it is. Trying again finds out
    /// ([`Claim::Won`] if it was this run's).
    pub async fn claim_at(
        &self,
        job: &Name,
        tree: &TreePath,
        node: &NodeId,
        wanted: Wanted,
        rerun: Option<&RerunRecord>,
    ) -> Result<Claim, CoordError> {
        let Wanted { slot, run_id, .. } = wanted;
        let key = keys::claim_at(job, tree);
        let mut cursor = self.known().get(&key).copied().unwrap_or(Cursor::NONE);
        // A remembered cursor may speed a claim up but never refuse it: a person may
        // have deleted it meanwhile.
        let (mut fresh, mut own) = (false, None);
        loop {
            let there = match cursor.slot.filter(|at| *at >= slot) {
                Some(claimed) if fresh => return Ok(Claim::Lost { claimed, own }),
                Some(_) => self.etcd.get(&key).await?,
                None if wanted.runs && wanted.max_runs.is_some_and(|max| cursor.runs >= max) => {
                    if fresh {
                        return Ok(Claim::Exhausted { runs: cursor.runs });
                    }
                    self.etcd.get(&key).await?
                }
                None => {
                    let runs = cursor.runs.saturating_add(wanted.runs.into());
                    let beside = rerun.map(|r| (keys::rerun(node, run_id), encode(r)));
                    let (node, extra) = (node.clone(), Default::default());
                    let record = ClaimRecord { slot, node, run_id, runs, extra };
                    let value = Some(encode(&record));
                    match self.etcd.put_if_with(&key, value, cursor.revision, None, beside).await? {
                        Cas::Done(revision) => {
                            let cursor = Cursor { revision, slot: Some(slot), runs };
                            self.known().insert(key.clone(), cursor);
                            return Ok(Claim::Won { fence: revision });
                        }
                        Cas::Conflict(there) => there,
                    }
                }
            };
            fresh = true;
            cursor = there.as_ref().map_or(Cursor::NONE, read);
            self.known().insert(key.clone(), cursor);
            let claim = there.and_then(|there| {
                let claim = decode::<ClaimRecord>(&there.value).ok();
                claim.map(|claim| (claim, there.mod_revision))
            });
            own = match claim {
                Some((claim, fence)) if claim.run_id == run_id => return Ok(Claim::Won { fence }),
                Some((claim, fence)) if claim.node == *node => Some((claim.run_id, fence)),
                _ => None,
            };
        }
    }

    /// Drops what is known of a job that is gone.
    pub fn forget(&self, job: &Name) {
        let (root, below) = (keys::claim(job), format!("{}/", keys::claim(job)));
        self.known().retain(|key, _| *key != root && !key.starts_with(&below));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Cursor>> {
        // Nothing is left half done while the lock is held.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cursor {
    /// No slot was ever claimed.
    const NONE: Cursor = Cursor { revision: 0, slot: None, runs: 0 };
}

/// An unreadable cursor blocks no slot: it is replaced by the next claim.
fn read(entry: &Entry) -> Cursor {
    let claim = decode::<ClaimRecord>(&entry.value).ok();
    let (slot, runs) = (claim.as_ref().map(|c| c.slot), claim.map_or(0, |c| c.runs));
    Cursor { revision: entry.mod_revision, slot, runs }
}
