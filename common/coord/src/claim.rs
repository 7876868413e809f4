//! Claiming a slot of a job that runs once in the cluster.
//!
//! The cursor of the last claimed slot stands at [`keys::claim`] and is replaced by
//! compare-and-put on its revision: of all who try, one wins, and a slot at or
//! before the cursor can never be claimed again, whatever clocks and partitions do.
//! The revision of the winning write is the fencing token.

use crate::{
    etcd::{Cas, CoordError, Entry, Etcd},
    keys,
    records::{ClaimRecord, decode, encode},
};
use jiff::Timestamp;
use meepo_core::id::{Name, NodeId, RunId};
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
    },
}

/// Claims slots, remembering the cursors last seen so that a claim costs one round
/// trip in the normal case. Clones share what they remember.
#[derive(Clone)]
pub struct Claims {
    etcd: Etcd,
    seen: Arc<Mutex<HashMap<Name, Cursor>>>,
}

#[derive(Clone, Copy)]
struct Cursor {
    revision: i64,
    slot: Option<Timestamp>,
}

impl Claims {
    /// Nothing is known yet.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd, seen: Arc::default() }
    }

    /// Tries to claim `slot` of `job` for `run_id` on `node`.
    ///
    /// # Errors
    /// When etcd does not answer. The claim may have taken effect all the same: the
    /// slot must then not be run, as nobody knows whose it is. Trying again finds out
    /// ([`Claim::Won`] if it was this run's).
    pub async fn claim(
        &self,
        job: &Name,
        slot: Timestamp,
        node: &NodeId,
        run_id: RunId,
    ) -> Result<Claim, CoordError> {
        let key = keys::claim(job);
        let record = ClaimRecord { slot, node: node.clone(), run_id, extra: Default::default() };
        let mut cursor = self.known().get(job).copied().unwrap_or(Cursor::NONE);
        // A remembered cursor may speed a claim up but never refuse it: a person may
        // have deleted it meanwhile.
        let mut fresh = false;
        loop {
            let there = match cursor.slot.filter(|at| *at >= slot) {
                Some(claimed) if fresh => return Ok(Claim::Lost { claimed }),
                Some(_) => self.etcd.get(&key).await?,
                None => {
                    let value = Some(encode(&record));
                    match self.etcd.put_if(&key, value, cursor.revision, None).await? {
                        Cas::Done(revision) => {
                            let cursor = Cursor { revision, slot: Some(slot) };
                            self.known().insert(job.clone(), cursor);
                            return Ok(Claim::Won { fence: revision });
                        }
                        Cas::Conflict(there) => there,
                    }
                }
            };
            fresh = true;
            cursor = there.as_ref().map_or(Cursor::NONE, read);
            self.known().insert(job.clone(), cursor);
            if let Some(there) = there
                && decode::<ClaimRecord>(&there.value).is_ok_and(|c| c.run_id == run_id)
            {
                return Ok(Claim::Won { fence: there.mod_revision });
            }
        }
    }

    /// Drops what is known of a job that is gone.
    pub fn forget(&self, job: &Name) {
        self.known().remove(job);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Name, Cursor>> {
        // Nothing is left half done while the lock is held.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cursor {
    /// No slot was ever claimed.
    const NONE: Cursor = Cursor { revision: 0, slot: None };
}

/// An unreadable cursor blocks no slot: it is replaced by the next claim.
fn read(entry: &Entry) -> Cursor {
    let slot = decode::<ClaimRecord>(&entry.value).ok().map(|c| c.slot);
    Cursor { revision: entry.mod_revision, slot }
}
