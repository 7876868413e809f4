//! The book of the leader as it stands in etcd, and what changes it.

use super::look::Around;
use crate::view::View;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use jiff::Timestamp;
use meepo_coord::{
    CoordError, Entry, Etcd, keys,
    records::decode,
    watch::{Batch, Change},
};
use meepo_core::{
    id::{Name, NodeId},
    notify::{Book, Channel, Happening, Item, Kind, Rule, Subject, Tally},
    run::RunState,
};
use meepo_runtime::backoff::Backoff;
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;
use tracing::warn;

/// Keys written at once, at most: below etcd's limit of 128 operations, with the comparison.
const AT_ONCE: usize = 120;
/// Bytes of one write.
const BYTES: usize = 900_000;
/// Changes that are taken in before they are written. Each may touch several keys.
const STEP: usize = 40;

/// What the leader has before it.
pub(super) struct Desk {
    pub(super) book: Book,
    etcd: Etcd,
    term: i64,
    view: View,
    /// Keys of the inbox that the book has taken in: deleted with the next write.
    taken: Vec<String>,
    /// The tallies there are, with their revision and since when it is that.
    pub(super) tallies: BTreeMap<(NodeId, Name), (i64, Instant)>,
}

impl Desk {
    /// What the last leader has left.
    pub(super) async fn load(etcd: Etcd, term: i64, view: View) -> Result<Self, CoordError> {
        let mut book = Book::default();
        let mut at = None;
        for prefix in [keys::SUBJECTS, keys::GROUPS, keys::FLOWS, keys::OUTBOX] {
            let (entries, revision) = etcd.list(prefix, at).await?;
            at = Some(revision);
            for entry in entries {
                let Some(item) = keys::item_of(&entry.key) else { continue };
                if let Err(error) = book.load(item, &entry.value) {
                    warn!(key = entry.key, error, "unreadable value: this is not told");
                }
            }
        }
        let (taken, tallies) = (Vec::new(), BTreeMap::new());
        Ok(Self { book, etcd, term, view, taken, tallies })
    }

    /// Takes in what has changed. Answers whether this master still leads.
    pub(super) async fn apply(&mut self, batch: Batch) -> bool {
        let entries = match batch {
            Batch::Changes(changes) => {
                for change in changes {
                    match change {
                        Change::Put(entry) => self.put(&entry),
                        Change::Delete { key, .. } => self.delete(&key),
                    }
                    if self.book.dirty() >= STEP && !self.write().await {
                        return false;
                    }
                }
                return self.write().await;
            }
            Batch::Reset { entries, .. } => entries,
        };
        let names = |prefix| -> BTreeSet<Name> {
            entries.iter().filter_map(|e| keys::last(&e.key, prefix)).collect()
        };
        self.book.keep_only(&names(keys::RULES), &names(keys::CHANNELS));
        let there: BTreeSet<_> =
            entries.iter().filter_map(|e| keys::node_and_job(&e.key, keys::OUTCOMES)).collect();
        self.tallies.retain(|key, _| there.contains(key));
        // Those that went while nobody looked.
        let read = |s: &Subject| {
            let job = s.job.clone()?;
            Some(s.seen.keys().map(|node| (node.clone(), job.clone())).collect::<Vec<_>>())
        };
        let seen: Vec<_> = self.book.subjects().filter_map(|(_, s)| read(s)).flatten().collect();
        for (node, job) in seen.iter().filter(|key| !there.contains(*key)) {
            self.book.tally_gone(node, job);
        }
        for entry in &entries {
            self.put(entry);
            if self.book.dirty() >= STEP && !self.write().await {
                return false;
            }
        }
        self.write().await
    }

    fn put(&mut self, entry: &Entry) {
        let (key, now) = (entry.key.as_str(), Timestamp::now());
        if let Some(name) = keys::last(key, keys::CHANNELS) {
            if let Some(channel) = read::<Channel>(entry) {
                self.book.set_channel(name, Some(channel));
            }
        } else if let Some(name) = keys::last(key, keys::RULES) {
            if let Some(rule) = read::<Rule>(entry) {
                self.book.set_rule(name, Some(rule));
            }
        } else if let Some((node, job)) = keys::node_and_job(key, keys::OUTCOMES) {
            if let Some(tally) = read::<Tally>(entry) {
                self.book.tally(&node, &job, &tally, &Around(&self.view), now);
            }
            let there = (entry.mod_revision, Instant::now());
            let known = self.tallies.entry((node, job)).or_insert(there);
            if known.0 != entry.mod_revision {
                *known = there;
            }
        } else if key.starts_with(keys::INBOX) {
            if let Some(what) = read::<Happening>(entry) {
                let around = Around(&self.view);
                match (what.kind, what.state) {
                    (Kind::Failure, Some(RunState::Lost)) => self.book.lost(what, &around, now),
                    _ => self.book.event(what, &around, now),
                }
            }
            self.taken.push(key.to_owned());
        }
    }

    fn delete(&mut self, key: &str) {
        if let Some(name) = keys::last(key, keys::CHANNELS) {
            self.book.set_channel(name, None);
        } else if let Some(name) = keys::last(key, keys::RULES) {
            self.book.set_rule(name, None);
        } else if let Some((node, job)) = keys::node_and_job(key, keys::OUTCOMES) {
            self.book.tally_gone(&node, &job);
            self.tallies.remove(&(node, job));
        }
    }

    /// Deletes a tally that nobody needs any more, with the next write.
    pub(super) fn drop_tally(&mut self, node: &NodeId, job: &Name) {
        self.taken.push(keys::outcome(node, job));
    }

    /// Does what is due by now.
    pub(super) fn due(&mut self) {
        self.book.due(&Around(&self.view), Timestamp::now());
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.book.next_due()
    }

    /// Writes what has changed, trying until etcd takes it. Answers whether this master still
    /// leads; if not, what the book says is void.
    pub(super) async fn write(&mut self) -> bool {
        if !self.book.is_dirty() && self.taken.is_empty() {
            return true;
        }
        let mut changes = self.book.changes();
        // Where one transaction cannot hold them all, what is to be told is there before what
        // it was made from goes: it may be told twice then, with the same id, and is not lost.
        changes.sort_by_key(|c| match (&c.item, &c.value) {
            (Item::Message(_), Some(_)) => 0,
            (Item::Group(..), Some(_)) => 1,
            (Item::Flow(_), _) => 2,
            (Item::Subject(_), _) => 3,
            (Item::Group(..) | Item::Message(_), None) => 4,
        });
        let mut operations: Vec<(usize, TxnOp)> = changes
            .into_iter()
            .map(|c| {
                let key = keys::notify_item(&c.item);
                match c.value {
                    Some(value) => (value.len() + key.len(), TxnOp::put(key, value, None)),
                    None => (key.len(), TxnOp::delete(key, None)),
                }
            })
            .collect();
        let taken = std::mem::take(&mut self.taken);
        operations.extend(taken.into_iter().map(|key| (key.len(), TxnOp::delete(key, None))));
        let mut from = 0;
        while from < operations.len() {
            let mut bytes = 0;
            let fits = operations[from..].iter().take(AT_ONCE).take_while(|(size, _)| {
                bytes += size;
                bytes <= BYTES
            });
            let to = from + fits.count().max(1);
            let some: Vec<TxnOp> = operations[from..to].iter().map(|(_, op)| op.clone()).collect();
            if !self.commit(some).await {
                return false;
            }
            from = to;
        }
        true
    }

    async fn commit(&self, operations: Vec<TxnOp>) -> bool {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        let leads = Compare::create_revision(keys::LEADER, CompareOp::Equal, self.term);
        let txn = Txn::new().when([leads]).and_then(operations);
        loop {
            match self.etcd.txn("notifications", txn.clone()).await {
                Ok(done) => return done.is_some(),
                Err(e) if e.retryable() => {
                    let wait = backoff.next_wait();
                    warn!(error = %e, ?wait, "cannot write what is to be told, will try again");
                    tokio::time::sleep(wait).await;
                }
                Err(e) => {
                    // What it is about is found again by whoever leads next.
                    warn!(error = %e, "etcd refused what is to be told");
                    return false;
                }
            }
        }
    }
}

fn read<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    decode(&entry.value)
        .inspect_err(|e| warn!(key = entry.key, error = %e, "unreadable value"))
        .ok()
}
