//! What this master knows of tasks without asking etcd: kept by a watch, and by what it
//! writes itself. It may lag; whoever writes compares revisions.

use crate::seal::Seal;
use meepo_coord::{
    Entry, Etcd, keys,
    records::decode,
    watch::{Batch, Change, Options, watch},
};
use meepo_core::{
    id::{NodeId, RunId},
    placement::At,
    task::{Part, PartId, PartState, Task, TaskId, dispatch::Tasks},
};
use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use tokio::sync::{mpsc, watch as cell};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Tasks that are remembered as over.
const REMEMBERED: usize = 100_000;

/// The tasks that are not over, and those that are about to leave etcd. Cloning is cheap.
#[derive(Clone)]
pub struct Board {
    tasks: Arc<RwLock<Tasks>>,
    version: Arc<cell::Sender<Version>>,
    seal: Seal,
    over: Arc<Mutex<Over>>,
}

/// Tasks that have left etcd, so that they cannot be put back; the newest, in order.
#[derive(Default)]
struct Over {
    ids: HashSet<TaskId>,
    order: VecDeque<TaskId>,
}

impl Over {
    fn add(&mut self, id: TaskId) {
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
        while self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

/// How new the board is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version {
    /// Everything has been listed at least once.
    pub complete: bool,
    /// Grows with every change.
    pub changes: u64,
}

impl Board {
    /// An empty board; [`Board::keep`] fills it.
    pub fn new() -> Self {
        Self::sealed(Seal::default())
    }

    /// … that believes tasks as `seal` says.
    pub fn sealed(seal: Seal) -> Self {
        let version = Arc::new(cell::Sender::new(Version::default()));
        Self { tasks: Arc::default(), version, seal, over: Arc::default() }
    }

    /// Follows etcd until `stop` is cancelled.
    pub async fn keep(self, etcd: Etcd, stop: CancellationToken) -> anyhow::Result<()> {
        let (tx, mut rx) = mpsc::channel(64);
        let prefixes = vec![keys::TASKS.to_owned(), keys::PARTS.to_owned()];
        let watching = watch(etcd, prefixes, Options::default(), tx, stop);
        let applying = async {
            while let Some(batch) = rx.recv().await {
                self.apply(batch);
            }
        };
        tokio::join!(watching, applying);
        Ok(())
    }

    pub(super) fn apply(&self, batch: Batch) {
        match batch {
            Batch::Reset { entries, revision } => {
                let mut tasks = Tasks::default();
                entries.iter().for_each(|entry| self.put(&mut tasks, entry));
                let mut known = self.write();
                for id in known.tasks.keys().filter(|id| !tasks.tasks.contains_key(id)) {
                    self.close(*id);
                }
                // What this master has written since the list was made.
                let parts = std::mem::take(&mut known.parts);
                tasks.parts.extend(parts.into_iter().filter(|(_, p)| p.revision > revision));
                *known = tasks;
            }
            Batch::Changes(changes) => {
                let mut tasks = self.write();
                for change in changes {
                    match change {
                        Change::Put(entry) => self.put(&mut tasks, &entry),
                        Change::Delete { key, revision } => {
                            if let Some(id) = keys::task_of(&key) {
                                self.close(id);
                            }
                            delete(&mut tasks, &key, revision);
                        }
                    }
                }
            }
        }
        self.changed(true);
    }

    /// Takes a value in. A task that no master has accepted, or that was over, is given to
    /// nobody.
    fn put(&self, tasks: &mut Tasks, entry: &Entry) {
        put(tasks, entry);
        let Some(id) = keys::task_of(&entry.key).filter(|_| self.seal.is_on()) else { return };
        let Some(task) = tasks.tasks.get(&id) else { return };
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner).ids.contains(&id);
        let why = match self.seal.check_task(&task.value) {
            Err(e) => e.to_string(),
            Ok(()) if over => "it was over before; this value was put back".to_owned(),
            Ok(()) => return,
        };
        warn!(key = entry.key, why, "a task is not believed and not begun");
        tasks.opaque.insert(id);
    }

    /// A task is not to be put back.
    fn close(&self, id: TaskId) {
        if self.seal.is_on() {
            self.over.lock().unwrap_or_else(PoisonError::into_inner).add(id);
        }
    }

    /// Takes over what this master has written itself: its next plan must not repeat it.
    pub(super) fn written(&self, parts: Vec<(PartId, Part)>, revision: i64) {
        let mut tasks = self.write();
        for (id, value) in parts {
            insert(&mut tasks, id, At { value, revision });
        }
        drop(tasks);
        self.changed(false);
    }

    /// A task has left etcd.
    pub(super) fn finished(&self, ids: &[TaskId]) {
        let mut tasks = self.write();
        for id in ids {
            tasks.tasks.remove(id);
            tasks.bytes.remove(id);
            let parts: Vec<PartId> = tasks.parts_of(*id).map(|(id, _)| id).collect();
            parts.iter().for_each(|id| drop(tasks.parts.remove(id)));
        }
        drop(tasks);
        self.changed(false);
    }

    fn changed(&self, listed: bool) {
        self.version.send_modify(|v| {
            v.complete |= listed;
            v.changes += 1;
        });
    }

    /// What is known now. Hold it briefly.
    pub fn read(&self) -> RwLockReadGuard<'_, Tasks> {
        self.tasks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tasks> {
        self.tasks.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when something changes.
    pub fn changes(&self) -> cell::Receiver<Version> {
        self.version.subscribe()
    }

    /// The node that has a part for this run.
    pub fn node_of(&self, run_id: RunId) -> Option<NodeId> {
        let tasks = self.read();
        let parts = tasks.parts.values().map(|p| &p.value).filter(|p| is_reserved(p));
        let mut its = parts.filter(|p| p.run().is_some_and(|r| r.run_id == run_id));
        its.next().and_then(|p| p.node.clone())
    }

    /// All tasks there are, over and not yet in the log store ones among them.
    pub fn len(&self) -> usize {
        self.read().tasks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Parts of all tasks there are, and the bytes that the tasks take.
    pub fn weight(&self) -> (usize, usize) {
        let tasks = self.read();
        let parts = tasks.tasks.values().map(|t| t.value.parts.len()).sum();
        (parts, tasks.bytes.values().sum())
    }

    /// Tasks with a part that has not ended. Looks at every part.
    pub fn open(&self) -> usize {
        let tasks = self.read();
        let open = |task: &At<Arc<Task>>| {
            let ended = tasks.parts_of(task.value.id).filter(|(_, p)| p.value.state.is_final());
            ended.count() < task.value.parts.len()
        };
        tasks.tasks.values().filter(|t| open(t)).count()
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

fn put(tasks: &mut Tasks, entry: &Entry) {
    if let Some(id) = keys::task_of(&entry.key) {
        match decode::<Task>(&entry.value) {
            Ok(task) => {
                let at = At { value: Arc::new(task), revision: entry.mod_revision };
                let known = tasks.tasks.get(&id).is_some_and(|t| t.revision > at.revision);
                if !known {
                    tasks.tasks.insert(id, at);
                    tasks.bytes.insert(id, entry.value.len());
                }
            }
            // Perhaps of a newer version: that one may deal with it.
            Err(e) => {
                warn!(key = entry.key, error = %e, "a task cannot be read");
                tasks.opaque.insert(id);
            }
        }
    } else if let Some(id) = keys::part_of(&entry.key) {
        match decode::<Part>(&entry.value) {
            Ok(value) => insert(tasks, id, At { value, revision: entry.mod_revision }),
            Err(e) => {
                warn!(key = entry.key, error = %e, "a part of a task cannot be read");
                tasks.opaque.insert(id.task);
            }
        }
    }
}

/// What is older than what is known is left out.
fn insert(tasks: &mut Tasks, id: PartId, part: At<Part>) {
    let known = tasks.parts.get(&id).is_some_and(|p| p.revision > part.revision);
    if !known {
        tasks.parts.insert(id, part);
    }
}

fn delete(tasks: &mut Tasks, key: &str, revision: i64) {
    if let Some(id) = keys::task_of(key) {
        tasks.opaque.remove(&id);
        if tasks.tasks.get(&id).is_some_and(|t| t.revision < revision) {
            tasks.tasks.remove(&id);
            tasks.bytes.remove(&id);
        }
    } else if let Some(id) = keys::part_of(key)
        && tasks.parts.get(&id).is_some_and(|p| p.revision < revision)
    {
        tasks.parts.remove(&id);
    }
}

/// Whether a part is with a worker.
pub(super) fn is_reserved(part: &Part) -> bool {
    part.state == PartState::Reserved
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_coord::records::encode;
    use meepo_core::task::TaskRequest;
    use serde_json::json;

    #[test]
    fn a_list_does_not_take_back_what_was_written_since() {
        let request = TaskRequest::from_user(json!({"queue": "q", "cmd": "x"})).unwrap();
        let id = TaskId(uuid::Uuid::from_u128(1));
        let task = request.task(id, &Default::default(), jiff::Timestamp::now()).unwrap();
        let part_id = PartId { task: id, n: 1 };
        let part = |state| Part { state, ..Part::pending(&task, 1) };
        let entry = |key: String, value: Vec<u8>, revision| Entry {
            key,
            value,
            mod_revision: revision,
            create_revision: 1,
        };
        let entries = vec![
            entry(keys::task(id), encode(&task), 1),
            entry(keys::part(part_id), encode(&part(PartState::Reserved)), 2),
        ];
        let board = Board::new();
        board.apply(Batch::Reset { entries: entries.clone(), revision: 5 });
        assert_eq!(board.weight(), (1, encode(&task).len()));
        board.written(vec![(part_id, part(PartState::Success))], 7);
        let state = || board.read().parts.get(&part_id).map(|p| p.value.state);
        board.apply(Batch::Reset { entries: entries.clone(), revision: 6 });
        assert_eq!(state(), Some(PartState::Success));
        // One that is as new knows better.
        board.apply(Batch::Reset { entries, revision: 8 });
        assert_eq!(state(), Some(PartState::Reserved));
        board.apply(Batch::Reset { entries: Vec::new(), revision: 9 });
        assert_eq!((state(), board.weight()), (None, (0, 0)));
    }
}
