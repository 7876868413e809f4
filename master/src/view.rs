//! What this master knows of the fleet without asking: nodes, definitions and
//! assignments, kept by one watch. The API reads etcd itself where the answer must be
//! of this moment; the view serves synchronous commands and the leader's planning.

use crate::digests::Digests;
use meepo_coord::{
    Entry, Etcd, keys,
    records::{DrainRecord, LabelsRecord, RerunRecord, decode},
    watch::{Batch, Change, Options, watch},
};
use meepo_core::{
    id::{NodeId, RunId},
    job::{Assignment, JobSpec},
    labels,
    node::{Facts, Health, NodeInfo, NodeRecord},
    placement::{At, Dirty, Fleet, Held},
    tree::{Definition, TreePath},
};
use std::{
    collections::BTreeMap,
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
    /// Labels that the API set.
    pub labels: BTreeMap<NodeId, LabelsRecord>,
    /// Nodes, definitions and assignments as placement sees them, and what changed.
    pub fleet: Fleet,
    /// Runs that are started again elsewhere should their node be lost.
    pub reruns: BTreeMap<(NodeId, RunId), At<RerunRecord>>,
    /// The assignment read last: on many nodes a job's are the same, byte for byte.
    last: Option<(Vec<u8>, Held)>,
    /// What each node should hold, as its worker counts it in its heartbeats.
    pub digests: Digests,
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

    /// A node as stored jobs see it. Its facts are those of its registration: they do not
    /// change with the load, so that jobs do not move with it.
    pub fn node(&self, id: &NodeId) -> Option<NodeInfo> {
        self.fleet.nodes().get(id).cloned()
    }

    /// Every node ever seen, as stored jobs see it.
    pub fn all_nodes(&self) -> BTreeMap<NodeId, NodeInfo> {
        self.fleet.nodes().clone()
    }

    /// Every node ever seen, as of now: with the newest facts in etcd.
    pub fn all_nodes_now(&self) -> BTreeMap<NodeId, NodeInfo> {
        let now = |(id, node): (&NodeId, &NodeInfo)| {
            let facts = self.health.get(id).map_or(&node.facts, |h| &h.facts).clone();
            let node = NodeInfo { facts, labels: node.labels.clone(), id: id.clone(), ..*node };
            (id.clone(), node)
        };
        self.fleet.nodes().iter().map(now).collect()
    }

    /// Puts together what targets and placement see of a node.
    fn refresh(&mut self, id: &NodeId) {
        let (health, record) = (self.health.get(id), self.nodes.get(id));
        let configured = health.map(|h| &h.labels).or(record.map(|r| &r.labels));
        let facts: Option<&Facts> = record.map(|r| &r.facts).or(health.map(|h| &h.facts));
        let (Some(configured), Some(facts)) = (configured, facts) else {
            return self.fleet.remove_node(id);
        };
        let labels = match self.labels.get(id) {
            Some(set) => labels::merged(configured, &set.labels),
            None => configured.clone(),
        };
        let (online, drained) = (health.is_some(), self.drains.contains_key(id));
        let facts = facts.clone();
        self.fleet.set_node(NodeInfo { id: id.clone(), online, drained, labels, facts });
    }

    /// Takes a value in.
    fn put(&mut self, entry: &Entry) {
        let key = entry.key.as_str();
        self.digests.put(key, &entry.value);
        if let Some(id) = keys::last(key, keys::HEALTH) {
            let Some(health) = read::<Health>(entry) else { return };
            self.health.insert(id.clone(), health);
            self.refresh(&id);
        } else if let Some(id) = keys::last(key, keys::NODES) {
            let Some(node) = read::<NodeRecord>(entry) else { return };
            self.nodes.insert(id.clone(), node);
            self.refresh(&id);
        } else if let Some(id) = keys::last(key, keys::DRAINS) {
            let Some(drain) = read(entry) else { return };
            self.drains.insert(id.clone(), drain);
            self.refresh(&id);
        } else if let Some(id) = keys::last(key, keys::LABELS) {
            let Some(labels) = read(entry) else { return };
            self.labels.insert(id.clone(), labels);
            self.refresh(&id);
        } else if let Some(name) = keys::last(key, keys::JOBS) {
            // One that this version cannot read is perhaps of a newer one: what it has on
            // nodes is kept.
            let readable = read::<JobSpec>(entry).and_then(|_| read(entry));
            let revision = entry.mod_revision;
            let definition = readable.map(|fields| Definition { fields, revision });
            self.fleet.set_definition(name, TreePath::ROOT, definition);
        } else if let Some((name, path)) = keys::job_and_path(key) {
            let revision = entry.mod_revision;
            let definition = read(entry).map(|fields| Definition { fields, revision });
            self.fleet.set_definition(name, path, definition);
        } else if let Some(run) = keys::node_and_run(key, keys::RERUNS) {
            let Some(value) = read(entry) else { return };
            self.reruns.insert(run, At { value, revision: entry.mod_revision });
        } else if let Some((node, job)) = keys::node_and_job(key, keys::ASSIGNMENTS) {
            let value = match &self.last {
                Some((bytes, held)) if *bytes == entry.value => held.clone(),
                _ => match decode::<Assignment>(&entry.value) {
                    Ok(a) if a.spec_revision.is_some() => Held::Ours(Arc::new(a)),
                    _ => Held::Foreign,
                },
            };
            self.last = Some((entry.value.clone(), value.clone()));
            let revision = entry.mod_revision;
            self.fleet.set_assignment(node, job, At { value, revision });
        }
    }

    fn delete(&mut self, key: &str) {
        self.digests.delete(key);
        if let Some(id) = keys::last(key, keys::HEALTH) {
            self.health.remove(&id);
            self.refresh(&id);
        } else if let Some(id) = keys::last(key, keys::NODES) {
            self.nodes.remove(&id);
            self.refresh(&id);
        } else if let Some(id) = keys::last(key, keys::DRAINS) {
            self.drains.remove(&id);
            self.refresh(&id);
        } else if let Some(id) = keys::last(key, keys::LABELS) {
            self.labels.remove(&id);
            self.refresh(&id);
        } else if let Some(name) = keys::last(key, keys::JOBS) {
            self.fleet.remove_definition(&name, &TreePath::ROOT);
        } else if let Some((name, path)) = keys::job_and_path(key) {
            self.fleet.remove_definition(&name, &path);
        } else if let Some(run) = keys::node_and_run(key, keys::RERUNS) {
            self.reruns.remove(&run);
        } else if let Some((node, job)) = keys::node_and_job(key, keys::ASSIGNMENTS) {
            self.fleet.remove_assignment(&node, &job);
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
        // Definitions before assignments: these are compared with them as they are read.
        let prefixes = [
            keys::NODES,
            keys::HEALTH,
            keys::DRAINS,
            keys::LABELS,
            keys::JOBS,
            keys::TREE_JOBS,
            keys::ASSIGNMENTS,
            keys::RERUNS,
        ];
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
                let mut data = Data::from_entries(&entries);
                // All is compared anew.
                data.fleet.take_dirty();
                data.fleet.mark(Dirty::all());
                *write() = data;
                version = Version { complete: true, revision };
            }
            Batch::Changes(changes) => {
                let mut data = write();
                for change in changes {
                    let revision = match &change {
                        Change::Put(entry) => {
                            data.put(entry);
                            entry.mod_revision
                        }
                        Change::Delete { key, revision, .. } => {
                            data.delete(key);
                            *revision
                        }
                    };
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

    /// What placement has to look at since it last asked. One asks: the leader's planner.
    pub fn take_dirty(&self) -> Dirty {
        self.data.write().unwrap_or_else(PoisonError::into_inner).fleet.take_dirty()
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
