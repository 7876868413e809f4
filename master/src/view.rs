//! What this master knows of the fleet without asking: nodes, definitions and
//! assignments, kept by one watch. The API reads etcd itself where the answer must be
//! of this moment; the view serves synchronous commands and the leader's planning.

use meepo_coord::{
    Entry, Etcd, keys,
    records::{DrainRecord, decode},
    watch::{Batch, Change, Options, watch},
};
use meepo_core::{
    id::{Name, NodeId},
    job::{Assignment, JobSpec},
    node::{Health, NodeInfo, NodeRecord},
    placement::{At, Held, Snapshot},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};
use tokio::sync::{mpsc, watch as cell};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The view. Cloning is cheap.
#[derive(Clone)]
pub struct View {
    data: Arc<RwLock<Data>>,
    version: Arc<cell::Sender<Version>>,
}

/// How new the view is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version {
    /// Everything has been listed at least once.
    pub complete: bool,
    /// etcd's revision of the last change seen.
    pub revision: i64,
    /// Grows when something changes that placement looks at. Facts that nodes refresh
    /// now and then do not count; targets on facts are looked at with the next change
    /// or full comparison.
    pub placement: u64,
}

/// What is known.
#[derive(Default)]
pub struct Data {
    /// Records of nodes ever seen.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Records of nodes that are there.
    pub health: BTreeMap<NodeId, Health>,
    /// Nodes that are asked to take nothing new.
    pub drains: BTreeMap<NodeId, DrainRecord>,
    /// Definitions.
    pub jobs: BTreeMap<Name, At<JobSpec>>,
    /// Names of definitions that cannot be read.
    pub opaque: BTreeSet<Name>,
    /// Assignments, as far as placement cares.
    pub assignments: BTreeMap<(NodeId, Name), At<Held>>,
}

impl Data {
    /// What `entries` say.
    pub fn from_entries<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut data = Self::default();
        for entry in entries {
            data.put(entry);
        }
        data
    }

    /// A node as targets see it; facts and labels are the newest known.
    pub fn node(&self, id: &NodeId) -> Option<NodeInfo> {
        let (online, labels, facts) = match (self.health.get(id), self.nodes.get(id)) {
            (Some(h), _) => (true, &h.labels, &h.facts),
            (None, Some(n)) => (false, &n.labels, &n.facts),
            (None, None) => return None,
        };
        Some(NodeInfo {
            id: id.clone(),
            online,
            drained: self.drains.contains_key(id),
            labels: labels.clone(),
            facts: facts.clone(),
        })
    }

    /// Every node ever seen.
    pub fn all_nodes(&self) -> BTreeMap<NodeId, NodeInfo> {
        self.nodes
            .keys()
            .chain(self.health.keys())
            .filter_map(|id| Some((id.clone(), self.node(id)?)))
            .collect()
    }

    /// What placement is planned from.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            jobs: self.jobs.clone(),
            opaque: self.opaque.clone(),
            nodes: self.all_nodes(),
            assignments: self.assignments.clone(),
        }
    }

    /// Takes a value in; answers whether placement looks at what changed.
    fn put(&mut self, entry: &Entry) -> bool {
        let key = entry.key.as_str();
        if let Some(id) = keys::last(key, keys::HEALTH) {
            let Some(health) = read::<Health>(entry) else { return false };
            let labels = health.labels.clone();
            let old = self.health.insert(id, health);
            old.is_none_or(|old| old.labels != labels)
        } else if let Some(id) = keys::last(key, keys::NODES) {
            let Some(node) = read::<NodeRecord>(entry) else { return false };
            let labels = node.labels.clone();
            let old = self.nodes.insert(id, node);
            old.is_none_or(|old| old.labels != labels)
        } else if let Some(id) = keys::last(key, keys::DRAINS) {
            let Some(drain) = read(entry) else { return false };
            self.drains.insert(id, drain);
            true
        } else if let Some(name) = keys::last(key, keys::JOBS) {
            match read(entry) {
                Some(value) => {
                    self.opaque.remove(&name);
                    self.jobs.insert(name, At { value, revision: entry.mod_revision });
                }
                // Perhaps of a newer version: what it has on nodes is kept.
                None => {
                    self.jobs.remove(&name);
                    self.opaque.insert(name);
                }
            }
            true
        } else if let Some(pair) = keys::node_and_job(key, keys::ASSIGNMENTS) {
            let value = match decode::<Assignment>(&entry.value) {
                Ok(a) if a.spec_revision.is_some() => Held::Ours(Box::new(a)),
                _ => Held::Foreign,
            };
            self.assignments.insert(pair, At { value, revision: entry.mod_revision });
            true
        } else {
            false
        }
    }

    fn delete(&mut self, key: &str) {
        if let Some(id) = keys::last(key, keys::HEALTH) {
            self.health.remove(&id);
        } else if let Some(id) = keys::last(key, keys::NODES) {
            self.nodes.remove(&id);
        } else if let Some(id) = keys::last(key, keys::DRAINS) {
            self.drains.remove(&id);
        } else if let Some(name) = keys::last(key, keys::JOBS) {
            self.jobs.remove(&name);
            self.opaque.remove(&name);
        } else if let Some(pair) = keys::node_and_job(key, keys::ASSIGNMENTS) {
            self.assignments.remove(&pair);
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(entry: &Entry) -> Option<T> {
    decode(&entry.value)
        .inspect_err(|e| warn!(key = entry.key, error = %e, "unreadable value"))
        .ok()
}

impl View {
    /// An empty view; [`View::keep`] fills it.
    pub fn new() -> Self {
        Self { data: Arc::default(), version: Arc::new(cell::Sender::new(Version::default())) }
    }

    /// Follows etcd until `stop` is cancelled.
    pub async fn keep(self, etcd: Etcd, stop: CancellationToken) -> anyhow::Result<()> {
        let (tx, mut rx) = mpsc::channel(64);
        let prefixes = [keys::NODES, keys::HEALTH, keys::DRAINS, keys::JOBS, keys::ASSIGNMENTS];
        let prefixes = prefixes.map(str::to_owned).to_vec();
        let watching = watch(etcd, prefixes, Options::default(), tx, stop);
        let applying = async {
            while let Some(batch) = rx.recv().await {
                self.apply(batch);
            }
        };
        tokio::join!(watching, applying);
        Ok(())
    }

    fn apply(&self, batch: Batch) {
        let mut version = *self.version.borrow();
        let write = || self.data.write().unwrap_or_else(PoisonError::into_inner);
        match batch {
            Batch::Reset { entries, revision } => {
                // Read before anybody is kept waiting.
                let data = Data::from_entries(&entries);
                *write() = data;
                let placement = version.placement + 1;
                version = Version { complete: true, revision, placement };
            }
            Batch::Changes(changes) => {
                let mut data = write();
                for change in changes {
                    let (matters, revision) = match &change {
                        Change::Put(entry) => (data.put(entry), entry.mod_revision),
                        Change::Delete { key, revision, .. } => {
                            data.delete(key);
                            (true, *revision)
                        }
                    };
                    version.placement += u64::from(matters);
                    version.revision = version.revision.max(revision);
                }
            }
        }
        self.version.send_replace(version);
    }

    /// What is known now. Hold it briefly.
    pub fn read(&self) -> RwLockReadGuard<'_, Data> {
        self.data.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when something changes.
    pub fn changes(&self) -> cell::Receiver<Version> {
        self.version.subscribe()
    }
}

impl Default for View {
    fn default() -> Self {
        Self::new()
    }
}
