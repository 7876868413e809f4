//! What users do to tasks and parts. Parts are changed here, by any master, on condition
//! that nobody has changed them meanwhile; what concerns a whole task is noted in it, and
//! the leader does the rest.

use super::read::Found;
use crate::{
    audit,
    error::{ApiError, ApiResult},
    ops::Ops,
    seal::Seal,
    tasks::transaction,
};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use futures::StreamExt;
use jiff::Timestamp;
use meepo_coord::{
    CoordError, keys,
    records::{decode, encode},
};
use meepo_core::{
    auth::Permission,
    code::Code,
    placement::At,
    task::{
        Control, Order, Part, PartId, PartState, Task, TaskId, TaskRef, Verb,
        answer::{ActRequest, MAX_REFUSALS, PartRefusal, TaskActed},
        dispatch::OrderChange,
        release,
        verb::Done,
    },
};
use std::{collections::BTreeMap, time::Duration};
use tracing::info;

/// How often a change is tried again that others came before.
const TRIES: u32 = 20;
/// Parts changed at once.
const AT_ONCE: usize = 16;

/// What came of it for one part.
enum Acted {
    Changed,
    Asked,
    Refused(PartId, String),
}

impl Ops {
    /// Does something to a task or to one of its parts.
    pub async fn act_on_task(
        &self,
        what: TaskRef,
        verb: Verb,
        request: &ActRequest,
    ) -> ApiResult<TaskActed> {
        audit::object("task", what);
        audit::operation(format_args!("task.{verb}"));
        let id = what.task();
        let found = match self.find_task(id).await? {
            Some(found) => found,
            None => {
                let kept = self.store.get_task(id).await?;
                let kept = kept.ok_or_else(|| ApiError::not_found("task", id))?;
                return Err(over(id, kept.state.as_str()));
            }
        };
        if let TaskRef::Part(part) = what
            && found.task.value.part(part.n).is_none()
        {
            return Err(ApiError::not_found("part", part));
        }
        self.demand_whole_task(Permission::TaskWrite, &found.task.value)?;
        let acted = match (what, verb) {
            (TaskRef::Task(_), Verb::Cancel | Verb::Stop | Verb::Pause | Verb::Resume) => {
                self.control(id, verb).await?
            }
            (TaskRef::Part(_), Verb::Pause | Verb::Resume) => {
                let message = format!("{verb} holds a whole task: {id}, not one part");
                return Err(ApiError::new(Code::CONFLICT, message));
            }
            _ => self.act_on_parts(&found, what, verb, request).await?,
        };
        info!(task = %what, %verb, changed = acted.changed, asked = acted.asked, "task changed");
        Ok(acted)
    }

    /// Notes in the task what is wanted of all of it.
    async fn control(&self, id: TaskId, verb: Verb) -> ApiResult<TaskActed> {
        for _ in 0..TRIES {
            let entry = self.etcd.get(&keys::task(id)).await?;
            let entry = entry.ok_or_else(|| over(id, "it has left etcd just now"))?;
            let mut task: Task = decode(&entry.value)?;
            let control = match (verb, task.control) {
                (Verb::Stop, _) => Control::Stopped,
                (Verb::Cancel, Control::Stopped) => Control::Stopped,
                (Verb::Cancel, _) => Control::Cancelled,
                (_, old) if old.revokes() => {
                    let message = format!("task {id} is withdrawn already");
                    return Err(ApiError::new(Code::CONFLICT, message));
                }
                (Verb::Pause, _) => Control::Paused,
                _ => Control::Active,
            };
            let mut revision = None;
            let pardoned = match verb {
                Verb::Resume if task.policy.rollout.is_some() => self.failures(&task).await?,
                _ => task.pardoned,
            };
            if (task.control, task.pardoned) != (control, pardoned) {
                (task.control, task.pardoned) = (control, pardoned);
                let same =
                    Compare::mod_revision(keys::task(id), CompareOp::Equal, entry.mod_revision);
                let put = TxnOp::put(keys::task(id), encode(&task), None);
                let written = self.etcd.txn("task", Txn::new().when([same]).and_then([put])).await;
                revision = written.map_err(|e| unsure(id, e))?;
                if revision.is_none() {
                    continue;
                }
            }
            // As of the change: what had begun by then goes on, what had not never will.
            let (parts, _) = self.etcd.list(&keys::parts_of(id), revision).await?;
            // Without a change of its own: it may have left etcd before its parts were read.
            if revision.is_none() {
                let there = self.etcd.get(&keys::task(id)).await?;
                if there.is_none_or(|e| e.mod_revision != entry.mod_revision) {
                    continue;
                }
            }
            return control_answer(id, verb, control, &task, &parts);
        }
        Err(busy(id))
    }

    /// So many of its parts have failed: who lets a roll-out go on has seen them.
    async fn failures(&self, task: &Task) -> ApiResult<u32> {
        let (entries, _) = self.etcd.list(&keys::parts_of(task.id), None).await?;
        let mut parts = BTreeMap::new();
        for entry in entries {
            if let Some(id) = keys::part_of(&entry.key) {
                parts.insert(id.n, decode::<Part>(&entry.value)?);
            }
        }
        Ok(release::failures(task, |n| parts.get(&n)))
    }

    async fn act_on_parts(
        &self,
        found: &Found,
        what: TaskRef,
        verb: Verb,
        request: &ActRequest,
    ) -> ApiResult<TaskActed> {
        let task = &found.task.value;
        let delay = request.delay.map_or(Duration::ZERO, |d| d.0);
        let ids: Vec<PartId> = task.part_ids().filter(|id| what.means(id.n)).collect();
        let acting = ids.into_iter().map(|id| {
            let known = found.parts.get(&id.n).cloned();
            self.act_on_part(&found.task, id, known, verb, delay)
        });
        let acting: Vec<_> = acting.collect();
        let mut acting = futures::stream::iter(acting).buffer_unordered(AT_ONCE);
        let mut answer = TaskActed {
            task: task.id,
            verb,
            control: task.control,
            changed: 0,
            asked: 0,
            refused: Vec::new(),
            refused_total: 0,
        };
        while let Some(acted) = acting.next().await {
            // When one cannot be reached, those under way may be changed all the same.
            let acted = acted.map_err(|e| match e.0.code {
                Code::ETCD if matches!(what, TaskRef::Task(_)) => perhaps_done(what),
                _ => e,
            });
            match acted? {
                Acted::Changed => answer.changed += 1,
                Acted::Asked => answer.asked += 1,
                Acted::Refused(part, reason) => refuse(&mut answer, part, reason),
            }
        }
        answer.refused.sort_by_key(|r| r.part);
        nothing_done(answer)
    }

    async fn act_on_part(
        &self,
        task: &At<Task>,
        id: PartId,
        mut known: Option<At<Part>>,
        verb: Verb,
        delay: Duration,
    ) -> ApiResult<Acted> {
        let (task, task_revision) = (&task.value, task.revision);
        let seal = self.view.seal();
        for _ in 0..TRIES {
            let expect = known.as_ref().map_or(0, |at| at.revision);
            let part = known.map_or_else(|| Part::pending(task, id.n), |at| at.value);
            let now = Timestamp::now();
            let (part, order, acted) = match part.act(verb, delay, task, now) {
                Done::Refused(reason) => return Ok(Acted::Refused(id, reason)),
                Done::Changed(next) => {
                    let order = match (part.state, part.node) {
                        (PartState::Reserved, Some(node)) => OrderChange::Delete(node),
                        _ => OrderChange::None,
                    };
                    (next, order, Acted::Changed)
                }
                Done::Asked(next) => {
                    let order = Order::of(task, task_revision, id, &next).zip(next.node.clone());
                    let order = order.map(|(order, node)| OrderChange::Put(node, Box::new(order)));
                    (next, order.unwrap_or(OrderChange::None), Acted::Asked)
                }
            };
            // What no master has accepted is not signed either.
            let unsigned = Seal::default();
            let seal = match seal.check_task(task) {
                Ok(()) => seal,
                Err(_) => &unsigned,
            };
            let txn = transaction(id, expect, &part, &order, (seal, self.known_term()));
            let written = self.etcd.txn("part of a task", txn).await;
            if written.map_err(|e| unsure(id, e))?.is_some() {
                return Ok(acted);
            }
            let (task_key, part_key) = (keys::task(id.task), keys::part(id));
            let both = self.etcd.get_all(&[task_key.clone(), part_key.clone()]).await?;
            if !both.iter().any(|e| e.key == task_key) {
                return Ok(Acted::Refused(id, "it has ended already".to_owned()));
            }
            known = match both.into_iter().find(|e| e.key == part_key) {
                Some(e) => Some(At { value: decode(&e.value)?, revision: e.mod_revision }),
                None => None,
            };
        }
        Err(busy(id))
    }
}

/// What a change of the whole task means for its parts.
fn control_answer(
    id: TaskId,
    verb: Verb,
    control: Control,
    task: &Task,
    parts: &[meepo_coord::Entry],
) -> ApiResult<TaskActed> {
    let mut answer = TaskActed {
        task: id,
        verb,
        control,
        changed: 0,
        asked: 0,
        refused: Vec::new(),
        refused_total: 0,
    };
    let with_key = parts.len() as u32;
    answer.changed = (task.parts.len() as u32).saturating_sub(with_key);
    for entry in parts {
        let Some(part_id) = keys::part_of(&entry.key) else { continue };
        let part: Part = decode(&entry.value)?;
        let begun = part.state == PartState::Reserved && part.begun_at.is_some();
        match (verb, begun) {
            _ if part.state.is_final() => {
                let reason = format!("it has ended already: {}", part.state);
                refuse(&mut answer, part_id, reason);
            }
            (Verb::Cancel, true) => {
                let reason = "it is reserved: a worker runs it; `stop` ends it".to_owned();
                refuse(&mut answer, part_id, reason);
            }
            (Verb::Stop, true) => answer.asked += 1,
            _ => answer.changed += 1,
        }
    }
    nothing_done(answer)
}

fn refuse(answer: &mut TaskActed, part: PartId, reason: String) {
    answer.refused_total += 1;
    if answer.refused.len() < MAX_REFUSALS {
        answer.refused.push(PartRefusal { part, reason });
    }
}

/// A verb that no part could follow is an error.
fn nothing_done(answer: TaskActed) -> ApiResult<TaskActed> {
    match answer.refused.first() {
        Some(first) if answer.changed + answer.asked == 0 => {
            let others = answer.refused_total - 1;
            let others = match others {
                0 => String::new(),
                1 => " (and another part likewise)".to_owned(),
                n => format!(" (and {n} other parts likewise)"),
            };
            let verb = answer.verb;
            let message = format!("cannot {verb} part {}: {}{others}", first.part, first.reason);
            Err(ApiError::new(Code::CONFLICT, message))
        }
        _ => Ok(answer),
    }
}

/// The error for a write that may have taken effect.
fn unsure(what: impl std::fmt::Display, e: CoordError) -> ApiError {
    if e.outcome_unknown() { perhaps_done(what) } else { e.into() }
}

fn perhaps_done(what: impl std::fmt::Display) -> ApiError {
    let message = format!(
        "etcd did not say whether it has changed {what}; `meepo task get {what}` shows how it \
         stands"
    );
    ApiError::new(Code::UNKNOWN_OUTCOME, message)
}

fn over(id: TaskId, state: &str) -> ApiError {
    ApiError::new(Code::CONFLICT, format!("task {id} has ended already: {state}"))
}

fn busy(what: impl std::fmt::Display) -> ApiError {
    ApiError::new(Code::CONFLICT, format!("{what} is being changed by others"))
}
