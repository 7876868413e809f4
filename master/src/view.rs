//! What this master knows of the fleet without asking: nodes, definitions and
//! assignments, kept by one watch. The API reads etcd itself where the answer must be
//! of this moment; the view serves synchronous commands and the leader's planning.

use crate::{digests::Digests, seal::Seal};
use jiff::Timestamp;
use meepo_coord::{
    Entry, Etcd, keys,
    records::{DrainRecord, LabelsRecord, RerunRecord, decode},
    watch::{Batch, Change, Options, watch},
};
use meepo_core::{
    id::{Name, NodeId, RunId},
    job::{Assignment, JobSpec},
    labels,
    node::{Facts, Health, NodeInfo, NodeRecord},
    placement::{At, Dirty, Fleet, Held},
    signing::FIELD,
    tree::{Definition, TreePath},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};
use tokio::sync::{mpsc, watch as cell};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Where definitions are, at the root and below.
pub const DEFINITIONS: [&str; 2] = [keys::JOBS, keys::TREE_JOBS];

/// The view. Cloning is cheap.
#[derive(Clone)]
pub struct View {
    data: Arc<RwLock<Data>>,
    version: Arc<cell::Sender<Version>>,
    seal: Seal,
    /// Nodes that were seen to go, and when.
    gone: Arc<RwLock<BTreeMap<NodeId, Timestamp>>>,
}

/// How new the view is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version {
    /// Everything has been listed at least once.
    pub complete: bool,
    /// etcd's revision of the last change seen.
    pub revision: i64,
    /// Grows when nodes come, go or change, but not with their facts of the moment.
    pub nodes: u64,
    /// Grows with these, with definitions and with [`Data::reruns`].
    pub news: u64,
    /// Grows when an assignment goes, and when all have been listed anew.
    pub unassigned: u64,
    /// The newest of those at which a definition was put, at the root and below: each prefix
    /// has a watch of its own, and one may be behind another.
    pub defined: [i64; 2],
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
    /// Nodes that are known and not there.
    pub away: BTreeSet<NodeId>,
    /// Assignments that no master wrote, by job and node.
    pub by_hand: BTreeMap<Name, BTreeMap<NodeId, Arc<ByHand>>>,
    /// Those of them under the oldest form of key, whose job stands in the value.
    oldest: BTreeMap<NodeId, Name>,
    /// The assignment read last: on many nodes a job's are the same, byte for byte.
    last: Option<(Name, Vec<u8>, Read, u32)>,
    /// What each node should hold, as its worker counts it in its heartbeats.
    pub digests: Digests,
    /// By which definitions are believed and assignments signed.
    seal: Seal,
}

/// An assignment: a master's, or one that was put by hand.
type Read = Result<Arc<Assignment>, Arc<ByHand>>;

/// An assignment that was put into etcd by hand.
#[derive(Debug)]
pub struct ByHand {
    /// What it says; `None` if it cannot be read at all.
    pub assignment: Option<Assignment>,
    /// Whether a worker cannot use it.
    pub broken: bool,
}

impl ByHand {
    /// Reads what stands at `rest` below a node's prefix.
    fn read(rest: &str, value: &[u8]) -> Self {
        let read = Assignment::from_etcd(value).and_then(|a| a.id_at(rest).map(|_| a));
        match read {
            Ok(assignment) => Self { assignment: Some(assignment), broken: false },
            Err(_) => Self { assignment: decode(value).ok(), broken: true },
        }
    }
}

impl Data {
    /// What `entries` say.
    pub fn from_entries<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        Self::sealed(entries, Seal::default())
    }

    /// The same, with definitions believed and assignments renewed as `seal` says.
    fn sealed<'a>(entries: impl IntoIterator<Item = &'a Entry>, seal: Seal) -> Self {
        let mut data = Self { seal, ..Self::default() };
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
            self.away.remove(id);
            return self.fleet.remove_node(id);
        };
        if health.is_some() {
            self.away.remove(id);
        } else {
            self.away.insert(id.clone());
        }
        let labels = match self.labels.get(id) {
            Some(set) => labels::merged(configured, &set.labels),
            None => configured.clone(),
        };
        let (online, drained) = (health.is_some(), self.drains.contains_key(id));
        let facts = facts.clone();
        self.fleet.set_node(NodeInfo { id: id.clone(), online, drained, labels, facts });
    }

    /// Whether a job is assigned to a node, by whomever.
    pub fn is_assigned(&self, node: &NodeId, job: &Name) -> bool {
        // The fleet does not know the oldest form of key.
        self.fleet.holds(node, job) || self.by_hand.get(job).is_some_and(|n| n.contains_key(node))
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
            // Somebody meant something by it; the worker takes it for a drain as well.
            let unreadable = || DrainRecord {
                requested_at: Timestamp::UNIX_EPOCH,
                deadline: None,
                extra: BTreeMap::new(),
            };
            let drain = read(entry).unwrap_or_else(unreadable);
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
            self.define(name, TreePath::ROOT, readable, entry);
        } else if let Some((name, path)) = keys::job_and_path(key) {
            self.define(name, path, read(entry), entry);
        } else if let Some(run) = keys::node_and_run(key, keys::RERUNS) {
            let Some(value) = read(entry) else { return };
            self.reruns.insert(run, At { value, revision: entry.mod_revision });
        } else if let Some((node, job)) = keys::node_and_job(key, keys::ASSIGNMENTS) {
            let (read, renew_at) = match self.last.take() {
                // Whether one put by hand is right depends on its key, too.
                Some((of, bytes, read, renew_at))
                    if bytes == entry.value && (read.is_ok() || of == job) =>
                {
                    (read, renew_at)
                }
                _ => match decode::<Assignment>(&entry.value) {
                    Ok(mut a) if a.spec_revision.is_some() => {
                        // What a job is on its nodes is one thing, whoever signed it when.
                        let signature = a.extra.remove(FIELD);
                        (Ok(Arc::new(a)), self.seal.renew_at(signature.as_ref()))
                    }
                    _ => (Err(Arc::new(ByHand::read(job.as_str(), &entry.value))), 0),
                },
            };
            self.set_by_hand(&node, &job, read.as_ref().err().cloned());
            let ours = |a: &Arc<Assignment>| Held::Ours(a.clone(), renew_at);
            let value = read.as_ref().map_or(Held::Foreign, ours);
            self.last = Some((job.clone(), entry.value.clone(), read, renew_at));
            let revision = entry.mod_revision;
            self.fleet.set_assignment(node, job, At { value, revision });
        } else if let Some((node, "")) = keys::node_and_rest(key, keys::ASSIGNMENTS) {
            self.forget_oldest(&node);
            let by_hand = ByHand::read("", &entry.value);
            let job = by_hand.assignment.as_ref().and_then(|a| a.task_id.clone());
            if let Some(job) = job {
                self.set_by_hand(&node, &job, Some(Arc::new(by_hand)));
                self.oldest.insert(node, job);
            }
        }
    }

    /// Takes a definition in, if a master has accepted it.
    fn define(
        &mut self,
        job: Name,
        path: TreePath,
        fields: Option<serde_json::Map<String, serde_json::Value>>,
        entry: &Entry,
    ) {
        let Some(mut fields) = fields else {
            return self.fleet.set_definition(job, path, None);
        };
        match self.seal.open_definition(&entry.key, &mut fields) {
            Ok(()) => {
                let definition = Definition { fields, revision: entry.mod_revision };
                self.fleet.set_definition(job, path, Some(definition));
            }
            Err(e) => {
                warn!(key = entry.key, error = %e, "a definition is not believed, its job keeps what it has");
                self.fleet.refuse_definition(job, path, e);
            }
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
            self.seal.close_definition(key);
            self.fleet.remove_definition(&name, &TreePath::ROOT);
        } else if let Some((name, path)) = keys::job_and_path(key) {
            self.seal.close_definition(key);
            self.fleet.remove_definition(&name, &path);
        } else if let Some(run) = keys::node_and_run(key, keys::RERUNS) {
            self.reruns.remove(&run);
        } else if let Some((node, job)) = keys::node_and_job(key, keys::ASSIGNMENTS) {
            self.set_by_hand(&node, &job, None);
            self.fleet.remove_assignment(&node, &job);
        } else if let Some((node, "")) = keys::node_and_rest(key, keys::ASSIGNMENTS) {
            self.forget_oldest(&node);
        }
    }

    fn set_by_hand(&mut self, node: &NodeId, job: &Name, by_hand: Option<Arc<ByHand>>) {
        if let Some(by_hand) = by_hand {
            self.by_hand.entry(job.clone()).or_default().insert(node.clone(), by_hand);
        } else if let Some(nodes) = self.by_hand.get_mut(job)
            && nodes.remove(node).is_some()
            && nodes.is_empty()
        {
            self.by_hand.remove(job);
        }
    }

    fn forget_oldest(&mut self, node: &NodeId) {
        if let Some(job) = self.oldest.remove(node) {
            self.set_by_hand(node, &job, None);
        }
    }
}

/// Whether a change that `data` does not have yet is more of a node than facts and figures,
/// which change all the time.
fn is_of_nodes(change: &Change, data: &Data) -> bool {
    let (Change::Put(Entry { key, .. }) | Change::Delete { key, .. }) = change;
    if let (Some(id), Change::Put(entry)) = (keys::last(key, keys::HEALTH), change) {
        let (Some(there), Ok(now)) = (data.health.get(&id), decode::<Health>(&entry.value)) else {
            return true;
        };
        return (&there.instance, &there.status, &there.labels, there.task_slots, there.lease_ttl)
            != (&now.instance, &now.status, &now.labels, now.task_slots, now.lease_ttl);
    }
    let families = [keys::HEALTH, keys::NODES, keys::DRAINS, keys::LABELS];
    families.iter().any(|family| key.starts_with(family))
}

/// Whether a change that is not of nodes may be a reason to start a lost run elsewhere, or
/// not to.
fn is_of_reruns(change: &Change) -> bool {
    let (Change::Put(Entry { key, .. }) | Change::Delete { key, .. }) = change;
    [keys::RERUNS, keys::JOBS, keys::TREE_JOBS].iter().any(|family| key.starts_with(family))
}

fn read<T: serde::de::DeserializeOwned>(entry: &Entry) -> Option<T> {
    decode(&entry.value)
        .inspect_err(|e| warn!(key = entry.key, error = %e, "unreadable value"))
        .ok()
}

impl View {
    /// An empty view; [`View::keep`] fills it.
    pub fn new() -> Self {
        Self::sealed(Seal::default())
    }

    /// … that believes definitions as `seal` says.
    pub fn sealed(seal: Seal) -> Self {
        let version = Arc::new(cell::Sender::new(Version::default()));
        let data = Data { seal: seal.clone(), ..Data::default() };
        Self { data: Arc::new(RwLock::new(data)), version, seal, gone: Arc::default() }
    }

    /// What this master signs and believes by.
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    /// Assignments that are to be written again by now, at most so many, after `after`.
    pub fn due_again(&self, after: Option<&(Name, NodeId)>, most: usize) -> Vec<(Name, NodeId)> {
        let now = u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX - 1);
        let mut data = self.data.write().unwrap_or_else(PoisonError::into_inner);
        data.fleet.set_clock(now);
        data.fleet.due_again(after, most)
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
        self.note_gone(&batch);
        let mut version = *self.version.borrow();
        let write = || self.data.write().unwrap_or_else(PoisonError::into_inner);
        match batch {
            Batch::Reset { entries, revision } => {
                // Read before anybody is kept waiting.
                self.seal.close_definitions_but(&entries.iter().map(|e| e.key.as_str()).collect());
                let mut data = Data::sealed(&entries, self.seal.clone());
                // All is compared anew.
                data.fleet.take_dirty();
                data.fleet.mark(Dirty::all());
                *write() = data;
                version = Version {
                    complete: true,
                    revision,
                    nodes: version.nodes + 1,
                    news: version.news + 1,
                    unassigned: version.unassigned + 1,
                    defined: [revision; 2],
                };
            }
            Batch::Changes(changes) => {
                let mut data = write();
                for change in changes {
                    let of_nodes = is_of_nodes(&change, &data);
                    version.nodes += u64::from(of_nodes);
                    version.news += u64::from(of_nodes || is_of_reruns(&change));
                    let revision = match &change {
                        Change::Put(entry) => {
                            data.put(entry);
                            let family = DEFINITIONS.iter().position(|p| entry.key.starts_with(p));
                            if let Some(i) = family {
                                version.defined[i] = version.defined[i].max(entry.mod_revision);
                            }
                            entry.mod_revision
                        }
                        Change::Delete { key, revision, .. } => {
                            data.delete(key);
                            version.unassigned += u64::from(key.starts_with(keys::ASSIGNMENTS));
                            *revision
                        }
                    };
                    version.revision = version.revision.max(revision);
                }
            }
        }
        self.version.send_replace(version);
    }

    /// Notes who comes and goes.
    fn note_gone(&self, batch: &Batch) {
        let mut gone = self.gone.write().unwrap_or_else(PoisonError::into_inner);
        let health = |key: &str| keys::last(key, keys::HEALTH);
        match batch {
            Batch::Reset { entries, .. } => {
                let there: BTreeSet<NodeId> =
                    entries.iter().filter_map(|e| health(&e.key)).collect();
                let before = self.read();
                for id in before.health.keys().filter(|id| !there.contains(*id)) {
                    gone.insert(id.clone(), Timestamp::now());
                }
                gone.retain(|id, _| !there.contains(id));
            }
            Batch::Changes(changes) => {
                for change in changes {
                    match change {
                        Change::Put(entry) => {
                            if let Some(id) = health(&entry.key) {
                                gone.remove(&id);
                            }
                        }
                        Change::Delete { key, .. } => {
                            if let Some(id) = health(key) {
                                gone.insert(id, Timestamp::now());
                            } else if let Some(id) = keys::last(key, keys::NODES) {
                                // Nobody asks for it any more.
                                gone.remove(&id);
                            }
                        }
                    }
                }
            }
        }
    }

    /// When a node was seen to go, if it was since this master began to look.
    pub fn offline_since(&self, id: &NodeId) -> Option<Timestamp> {
        self.gone.read().unwrap_or_else(PoisonError::into_inner).get(id).copied()
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

#[cfg(test)]
pub(crate) mod tests;
