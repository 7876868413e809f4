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
use std::collections::HashMap;

/// How a claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// This node runs the slot.
    Won {
        /// The fencing token: greater than that of every earlier claim of the job.
        fence: i64,
    },
    /// Somebody had it already, or a later one.
    Lost,
}

/// Claims slots, remembering the cursors last seen so that a claim costs one round
/// trip in the normal case.
pub struct Claims {
    etcd: Etcd,
    seen: HashMap<Name, Cursor>,
}

#[derive(Clone, Copy)]
struct Cursor {
    revision: i64,
    slot: Option<Timestamp>,
}

impl Claims {
    /// Nothing is known yet.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd, seen: HashMap::new() }
    }

    /// Tries to claim `slot` of `job` for `run_id` on `node`.
    ///
    /// # Errors
    /// When etcd does not answer. The claim may have taken effect all the same: the
    /// slot must then not be run, as nobody knows whose it is. Trying again finds out
    /// ([`Claim::Won`] if it was this run's).
    pub async fn claim(
        &mut self,
        job: &Name,
        slot: Timestamp,
        node: &NodeId,
        run_id: RunId,
    ) -> Result<Claim, CoordError> {
        let key = keys::claim(job);
        let record = ClaimRecord { slot, node: node.clone(), run_id, extra: Default::default() };
        let mut cursor = match self.seen.get(job) {
            Some(cursor) => *cursor,
            None => Cursor { revision: 0, slot: None },
        };
        loop {
            if cursor.slot.is_some_and(|at| at >= slot) {
                self.seen.insert(job.clone(), cursor);
                return Ok(Claim::Lost);
            }
            match self.etcd.put_if(&key, Some(encode(&record)), cursor.revision, None).await? {
                Cas::Done(revision) => {
                    self.seen.insert(job.clone(), Cursor { revision, slot: Some(slot) });
                    return Ok(Claim::Won { fence: revision });
                }
                Cas::Conflict(Some(there)) => {
                    let mine =
                        decode::<ClaimRecord>(&there.value).is_ok_and(|c| c.run_id == run_id);
                    cursor = read(&there);
                    if mine {
                        self.seen.insert(job.clone(), cursor);
                        return Ok(Claim::Won { fence: there.mod_revision });
                    }
                }
                Cas::Conflict(None) => cursor = Cursor { revision: 0, slot: None },
            }
        }
    }

    /// Takes note of a cursor that a watch has shown.
    pub fn note(&mut self, job: Name, entry: &Entry) {
        self.seen.insert(job, read(entry));
    }

    /// Drops what is known of a job that is gone.
    pub fn forget(&mut self, job: &Name) {
        self.seen.remove(job);
    }
}

/// An unreadable cursor blocks no slot: it is replaced by the next claim.
fn read(entry: &Entry) -> Cursor {
    let slot = decode::<ClaimRecord>(&entry.value).ok().map(|c| c.slot);
    Cursor { revision: entry.mod_revision, slot }
}
