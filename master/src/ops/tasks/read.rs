//! Showing tasks: those that are not over from etcd, the others from the log store.

use crate::{
    error::{ApiError, ApiResult},
    ops::Ops,
};
use jiff::Timestamp;
use meepo_coord::{keys, records::decode};
use meepo_core::{
    auth::Permission,
    code::Code,
    error::Invalid,
    id::{Name, NodeId},
    placement::At,
    task::{
        Control, Part, PartId, PartState, PartView, Task, TaskId, TaskRef, TaskState, TaskView,
        answer::TaskList,
        dispatch::slots,
        waits::{self, Taker},
    },
};
use meepo_logstore::TaskQuery;
use std::collections::{BTreeMap, BTreeSet};

/// Which tasks to list. All filters must hold; an absent one holds for every task.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Tasks of this queue.
    pub queue: Option<Name>,
    /// Tasks in one of these states; empty means any.
    pub states: Vec<TaskState>,
    /// Most tasks: 1 to 1000, 50 if absent.
    pub limit: Option<u32>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

/// A task in etcd with those of its parts that have a key.
pub(super) struct Found {
    pub(super) task: At<Task>,
    pub(super) parts: BTreeMap<u32, At<Part>>,
}

impl Found {
    pub(super) fn part(&self, n: u32) -> Option<&Part> {
        self.parts.get(&n).map(|at| &at.value)
    }

    fn view(&self) -> TaskView {
        let part = |id: PartId| self.part(id.n);
        let task = &self.task.value;
        TaskView::new(task, part).with_rollout(task, part, Timestamp::now())
    }
}

impl Ops {
    /// A task with all its parts, or with one of them.
    pub async fn get_task(&self, what: TaskRef) -> ApiResult<TaskView> {
        let mut view = match self.find_task(what.task()).await? {
            Some(found) => {
                let mut view = found.view();
                self.tell_why(&found.task.value, &mut view);
                view
            }
            None => {
                let kept = self.store.get_task(what.task()).await?;
                kept.ok_or_else(|| ApiError::not_found("task", what.task()))?
            }
        };
        if !self.sight(Permission::TaskRead).task(&view) {
            return Err(ApiError::not_found("task", what.task()));
        }
        if let TaskRef::Part(id) = what {
            view.parts.retain(|p| p.id == id);
            if view.parts.is_empty() {
                return Err(ApiError::not_found("part", id));
            }
        }
        Ok(view)
    }

    /// Says of the parts that nobody can take now why they wait.
    fn tell_why(&self, task: &Task, view: &mut TaskView) {
        let waits = |p: &PartView| match p.state {
            PartState::Ready => true,
            // Not looked at yet, which takes no time if a master leads.
            PartState::Pending => task.policy.rollout.is_none(),
            _ => false,
        };
        if task.control != Control::Active || !view.parts.iter().any(waits) {
            return;
        }
        let leads = self.leadership.borrow().leader.is_some();
        let takers = self.takers();
        let queue = task
            .queue
            .is_some()
            .then(|| waits::for_queue(task.target.as_deref().unwrap_or("all"), &takers));
        for part in view.parts.iter_mut().filter(|p| waits(p)) {
            let node = task.part(part.id.n).and_then(|(spec, _)| spec.node.as_ref());
            part.waits = match (node, &queue) {
                _ if !leads => {
                    Some("no master leads, so nothing is given out; needs a leader".to_owned())
                }
                _ if part.state == PartState::Pending => None,
                (Some(node), _) => waits::for_node(node, &takers),
                (None, Some(why)) => why.clone(),
                (None, None) => None,
            };
        }
    }

    /// The nodes with their slots for tasks, as this master sees them.
    fn takers(&self) -> BTreeMap<NodeId, Taker> {
        let mut taken: BTreeMap<NodeId, u32> = BTreeMap::new();
        for part in self.board.read().parts.values().map(|at| &at.value) {
            if let (PartState::Reserved, Some(node)) = (part.state, &part.node) {
                *taken.entry(node.clone()).or_default() += 1;
            }
        }
        let data = self.view.read();
        let all = data.all_nodes_now().into_iter().map(|(id, node)| {
            let slots = data.health.get(&id).map_or(0, slots);
            let taken = taken.get(&id).copied().unwrap_or(0);
            (id, Taker { node, slots, taken })
        });
        all.collect()
    }

    /// A task as it stands in etcd.
    pub(super) async fn find_task(&self, id: TaskId) -> ApiResult<Option<Found>> {
        // The parts first: should it leave etcd in between, it is not shown without them.
        let (parts, _) = self.etcd.list(&keys::parts_of(id), None).await?;
        let Some(entry) = self.etcd.get(&keys::task(id)).await? else { return Ok(None) };
        let task = At { value: decode::<Task>(&entry.value)?, revision: entry.mod_revision };
        let mut found = BTreeMap::new();
        for entry in parts {
            if let Some(part) = keys::part_of(&entry.key) {
                let value = decode::<Part>(&entry.value)?;
                found.insert(part.n, At { value, revision: entry.mod_revision });
            }
        }
        Ok(Some(Found { task, parts: found }))
    }

    /// Tasks, newest first, without their parts.
    pub async fn list_tasks(&self, filter: &TaskFilter) -> ApiResult<TaskList> {
        let before = filter.cursor.as_deref().map(str::parse::<TaskId>).transpose();
        let before = before.map_err(|_| {
            let expected = "the `next` of an earlier page, unchanged";
            Invalid::new(Code::BAD_VALUE, "cursor", "not a cursor", expected)
        })?;
        let limit = filter.limit.unwrap_or(50).clamp(1, 1000);
        if !self.board.changes().borrow().complete {
            return Err(ApiError::new(Code::ETCD, "etcd has not been read yet"));
        }
        let wanted = limit as usize;
        let (sight, mut hidden) = (self.sight(Permission::TaskRead), BTreeSet::new());
        let mut tasks: BTreeMap<TaskId, TaskView> = {
            let board = self.board.read();
            let older = |id: &TaskId| before.is_none_or(|b| *id < b);
            let all = board.tasks.iter().rev().filter(|(id, _)| older(id));
            let ours = all.filter(|(_, t)| {
                filter.queue.as_ref().is_none_or(|q| t.value.queue.as_ref() == Some(q))
            });
            let part = |id: PartId| board.parts.get(&id).map(|p| &p.value);
            let ours = ours.filter(|(_, t)| sight.task_of(&t.value));
            let views = ours.map(|(id, t)| (*id, TaskView::summary(&t.value, part)));
            let fits = |v: &TaskView| filter.states.is_empty() || filter.states.contains(&v.state);
            views.filter(|(_, v)| fits(v)).take(wanted + 1).collect()
        };
        let states: Vec<TaskState> =
            filter.states.iter().copied().filter(|s| s.is_final()).collect();
        if filter.states.is_empty() || !states.is_empty() {
            let query =
                TaskQuery { queue: filter.queue.clone(), states, before, limit: Some(limit + 1) };
            // What is over and still in etcd may be in both: they say the same.
            for task in self.store.list_tasks(&query).await? {
                // Lists of the store have no parts.
                if !sight.all() {
                    let whole = self.store.get_task(task.id).await?;
                    if !whole.is_some_and(|whole| sight.task(&whole)) {
                        hidden.insert(task.id);
                    }
                }
                tasks.insert(task.id, task.without_parts());
            }
        }
        let more = tasks.len() > wanted;
        let mut tasks: Vec<TaskView> = tasks.into_values().rev().take(wanted).collect();
        let next = tasks.last().filter(|_| more).map(|t| t.id.to_string());
        // Afterwards: the next page goes on behind them all the same.
        tasks.retain(|t| !hidden.contains(&t.id));
        Ok(TaskList { tasks, next })
    }
}
