//! Named locks with one or more permits, held under the process's lease.
//!
//! Whoever wants the lock puts a key below [`keys::lock`]; those with the lowest
//! creation revisions hold it. When a holder's lease ends, its key goes with it and
//! the next in line is told by its watch.

use crate::{
    etcd::{Cas, CoordError, Etcd},
    keys,
    records::{LockRecord, encode},
    watch::{Batch, Options, watch},
};
use meepo_core::id::Name;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A held lock. Release it with [`Held::release`]; it also ends with the lease.
#[derive(Debug)]
pub struct Held {
    key: String,
    /// The fencing token: the revision at which the holder got in line.
    pub fence: i64,
}

/// Waits in line for one of `permits` places of the lock `name`. `ticket` tells the
/// askers of one lease apart. Dropping the future leaves the line only when the
/// lease ends, so callers with a deadline call [`leave`] after it.
pub async fn acquire(
    etcd: &Etcd,
    name: &Name,
    permits: usize,
    lease: i64,
    ticket: &str,
    owner: &str,
) -> Result<Held, CoordError> {
    let key = ticket_key(name, lease, ticket);
    let record = LockRecord { owner: owner.to_owned(), extra: Default::default() };
    let fence = match etcd.put_if(&key, Some(encode(&record)), 0, Some(lease)).await? {
        Cas::Done(revision) => revision,
        // A retry after an answer that was lost: already in line.
        Cas::Conflict(there) => there.map_or(0, |e| e.create_revision),
    };
    let stop = CancellationToken::new();
    let _stop_watch = stop.clone().drop_guard();
    let (tx, mut rx) = mpsc::channel(16);
    tokio::spawn(watch(etcd.clone(), vec![keys::lock(name)], Options::default(), tx, stop));
    let (mut line, _) = etcd.list(&keys::lock(name), None).await?;
    loop {
        if !line.iter().any(|e| e.key == key) {
            return Err(CoordError::LeaseLost { key });
        }
        let ahead = line.iter().filter(|e| e.create_revision < fence).count();
        if ahead < permits {
            return Ok(Held { key, fence });
        }
        match rx.recv().await {
            Some(Batch::Reset { entries, .. }) => line = entries,
            _ => line = etcd.list(&keys::lock(name), None).await?.0,
        }
    }
}

/// Leaves the line, or releases the lock, of an [`acquire`] that was given up.
pub async fn leave(etcd: &Etcd, name: &Name, lease: i64, ticket: &str) -> Result<(), CoordError> {
    etcd.delete(&ticket_key(name, lease, ticket)).await.map(drop)
}

impl Held {
    /// Its key in etcd.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Gives the place to the next in line.
    ///
    /// # Errors
    /// When etcd does not answer; the place is then free at the latest when the
    /// lease ends.
    pub async fn release(self, etcd: &Etcd) -> Result<(), CoordError> {
        etcd.delete(&self.key).await.map(drop)
    }
}

/// The key of a place in line; see [`acquire`].
pub fn ticket_key(name: &Name, lease: i64, ticket: &str) -> String {
    format!("{}{lease:x}-{ticket}", keys::lock(name))
}
