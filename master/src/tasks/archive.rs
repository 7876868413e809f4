//! Tasks that are over go to the log store, and then out of etcd.

use super::board::Board;
use crate::notify::note_in_inbox;
use etcd_client::{Compare, CompareOp, DeleteOptions, Txn, TxnOp};
use jiff::Timestamp;
use meepo_coord::{Etcd, election::Leadership, keys};
use meepo_core::{
    notify::{Happening, Kind},
    task::{TaskId, TaskState, TaskView},
};
use meepo_logstore::LogStore;
use meepo_runtime::backoff::Backoff;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Tasks kept with one write, at most.
const BATCH: usize = 40;
/// Parts of all of them together, at most, unless one has more.
const BATCH_PARTS: usize = 2_000;
/// How long tasks are gathered: a write costs the store as much for many as for one.
const GATHER: Duration = Duration::from_millis(10);

/// What is to be kept. It holds no more than there are tasks in etcd. Cloning is cheap.
#[derive(Clone, Default)]
pub(super) struct Archive {
    due: Arc<Mutex<BTreeMap<TaskId, i64>>>,
    more: Arc<Notify>,
}

impl Archive {
    /// Adds tasks with their revisions.
    pub(super) fn add(&self, tasks: Vec<(TaskId, i64)>) {
        if !tasks.is_empty() {
            self.due.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
            self.more.notify_one();
        }
    }

    fn some(&self) -> Vec<(TaskId, i64)> {
        let due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.iter().take(BATCH).map(|(id, revision)| (*id, *revision)).collect()
    }

    fn done(&self, tasks: &[(TaskId, i64)]) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, revision) in tasks {
            if due.get(id) == Some(revision) {
                due.remove(id);
            }
        }
    }
}

/// Keeps what is added while this master leads, until `stop` is cancelled.
pub(super) async fn run(
    archive: Archive,
    etcd: Etcd,
    store: Arc<dyn LogStore>,
    board: Board,
    leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(Duration::from_secs(30));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = archive.more.notified() => {}
        }
        tokio::time::sleep(GATHER).await;
        loop {
            let mut some = archive.some();
            let term = leadership.borrow().mine;
            let Some(term) = term.filter(|_| !some.is_empty()) else {
                // The next leader finds them by itself.
                archive.done(&some);
                break;
            };
            let (views, not_over) = views(&board, &mut some);
            // The next plan finds them when they are over.
            archive.done(&not_over);
            if views.is_empty() {
                continue;
            }
            let kept = async {
                store.put_tasks(&views).await?;
                anyhow::Ok(etcd.txn("tasks that are over", removal(term, &some, &views)).await?)
            };
            let wait = match kept.await {
                Ok(Some(_)) => {
                    let ids: Vec<TaskId> = some.iter().map(|(id, _)| *id).collect();
                    board.finished(&ids);
                    archive.done(&some);
                    backoff.reset();
                    continue;
                }
                // One that has changed is found again by the next plan; the others go alone.
                Ok(None) if some.len() > 1 => {
                    for one in &some {
                        let txn = removal(term, std::slice::from_ref(one), &views);
                        if let Ok(Some(_)) = etcd.txn("task that is over", txn).await {
                            board.finished(&[one.0]);
                        }
                    }
                    archive.done(&some);
                    continue;
                }
                Ok(None) => {
                    archive.done(&some);
                    continue;
                }
                Err(e) => {
                    let wait = backoff.next_wait();
                    let error = format!("{e:#}");
                    warn!(error, ?wait, "tasks that are over stay in etcd, will try again");
                    wait
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// What is to be kept of `some`, which is cut to what fits into one write and is over as far
/// as is known now: the board may have changed since the plan. Answers also what is not.
fn views(board: &Board, some: &mut Vec<(TaskId, i64)>) -> (Vec<TaskView>, Vec<(TaskId, i64)>) {
    let tasks = board.read();
    let (mut views, mut over, mut not_over, mut parts) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (id, revision) in some.drain(..) {
        let task = tasks.tasks.get(&id).filter(|t| t.revision == revision);
        let view = task
            .map(|task| TaskView::new(&task.value, |id| tasks.parts.get(&id).map(|p| &p.value)));
        let Some(view) = view.filter(|v| v.state.is_final()) else {
            not_over.push((id, revision));
            continue;
        };
        parts += view.parts.len();
        if parts > BATCH_PARTS && !views.is_empty() {
            break;
        }
        views.push(view);
        over.push((id, revision));
    }
    *some = over;
    (views, not_over)
}

/// Removes tasks, and notes those that failed for who is told of them.
fn removal(term: i64, tasks: &[(TaskId, i64)], views: &[TaskView]) -> Txn {
    let mut compares = vec![Compare::create_revision(keys::LEADER, CompareOp::Equal, term)];
    let mut operations = Vec::new();
    for (id, revision) in tasks {
        compares.push(Compare::mod_revision(keys::task(*id), CompareOp::Equal, *revision));
        operations.push(TxnOp::delete(keys::task(*id), None));
        let parts = DeleteOptions::new().with_prefix();
        operations.push(TxnOp::delete(keys::parts_of(*id), Some(parts)));
        let failed = |v: &&TaskView| v.id == *id && v.state == TaskState::Failed;
        operations.extend(views.iter().find(failed).map(note));
    }
    Txn::new().when(compares).and_then(operations)
}

fn note(view: &TaskView) -> TxnOp {
    let counts = &view.counts;
    let message = format!("{} of {} parts failed", counts.failed, counts.all());
    let what = Happening {
        task: Some(view.id.to_string()),
        since: Some(view.submitted_at),
        message: Some(message),
        ..Happening::new(Kind::TaskFailed, Timestamp::now())
    };
    note_in_inbox(format_args!("task-{}", view.id), &what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_coord::{Entry, records::encode, watch::Batch};
    use meepo_core::task::{Part, PartId, PartState, TaskRequest};
    use serde_json::json;

    #[test]
    fn only_what_is_over_now_is_kept() {
        let request = TaskRequest::from_user(json!({"queue": "q", "cmd": "x"})).unwrap();
        let mut entries = Vec::new();
        let mut ids = Vec::new();
        for (n, state) in [(1, PartState::Success), (2, PartState::Reserved)] {
            let id = TaskId(uuid::Uuid::from_u128(n));
            let task = request.task(id, &BTreeMap::new(), jiff::Timestamp::now()).unwrap();
            let part = Part { state, ..Part::pending(&task, 1) };
            let values = [
                (keys::task(id), encode(&task)),
                (keys::part(PartId { task: id, n: 1 }), encode(&part)),
            ];
            entries.extend(values.map(|(key, value)| Entry {
                key,
                value,
                mod_revision: 3,
                create_revision: 3,
            }));
            ids.push(id);
        }
        let board = Board::new();
        board.apply(Batch::Reset { entries, revision: 3 });
        let unknown = TaskId(uuid::Uuid::from_u128(9));
        let mut some = vec![(ids[0], 3), (ids[1], 3), (unknown, 3)];
        let (kept, not_over) = views(&board, &mut some);
        assert_eq!(kept.iter().map(|v| v.id).collect::<Vec<_>>(), [ids[0]]);
        assert_eq!((some, not_over), (vec![(ids[0], 3)], vec![(ids[1], 3), (unknown, 3)]));
        // One that was changed since the plan, likewise.
        assert!(views(&board, &mut vec![(ids[0], 2)]).0.is_empty());
    }
}
