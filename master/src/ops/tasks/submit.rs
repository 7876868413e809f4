//! Taking tasks.

use crate::{
    audit,
    error::{ApiError, ApiResult},
    ops::{Ops, live::overlay},
    view::Data,
};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use jiff::Timestamp;
use meepo_coord::{
    CoordError, Etcd, keys,
    records::{TaskKeyRecord, decode, encode},
};
use meepo_core::{
    code::Code,
    error::Invalid,
    id::{Name, NodeId},
    job::TRACEPARENT,
    node::NodeInfo,
    target::Target,
    task::{Task, TaskId, TaskRef, TaskRequest, TaskView},
};
use meepo_runtime::telemetry::trace;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tracing::{info, warn};
use uuid::Uuid;

/// Largest task in etcd, in bytes; etcd takes one and a half million.
const MAX_TASK: usize = 1_200_000;
/// How long an idempotency key is remembered at least.
const KEY_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long keys are bound to the same lease: one for each would be a burden to etcd.
const LEASE_SHARED: Duration = Duration::from_secs(3600);
/// Parts of tasks that may be in etcd. They take about half a kilobyte each, several times
/// over until etcd compacts.
const MOST_PARTS: usize = 200_000;
/// Bytes of tasks that may be in etcd, whose own quota is two gigabytes unless set.
const MOST_BYTES: usize = 500_000_000;

/// The lease that new idempotency keys are bound to. Cloning is cheap.
#[derive(Clone, Default)]
pub struct KeyLease(Arc<Mutex<Option<(i64, Instant)>>>);

impl KeyLease {
    async fn get(&self, etcd: &Etcd) -> Result<i64, CoordError> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, _)) = known.filter(|(_, since)| since.elapsed() < LEASE_SHARED) {
            return Ok(id);
        }
        // Several may do this at once: then there is a lease too many.
        let since = Instant::now();
        let id = etcd.grant(KEY_KEPT + LEASE_SHARED).await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, since));
        Ok(id)
    }

    fn forget(&self, lease: i64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some_and(|(id, _)| id == lease) {
            *known = None;
        }
    }
}

/// Whether etcd is to take a task with so many more parts and bytes.
fn room((parts, bytes): (usize, usize), more_parts: usize, more_bytes: usize) -> ApiResult<()> {
    let message = if parts + more_parts > MOST_PARTS {
        format!(
            "tasks that are unfinished, or wait to be taken by the log store, have {parts} \
             parts; this one has {more_parts} more, and the limit is {MOST_PARTS}"
        )
    } else if bytes + more_bytes > MOST_BYTES {
        format!(
            "tasks that are unfinished, or wait to be taken by the log store, take {bytes} \
             bytes; this one takes {more_bytes} more, and the limit is {MOST_BYTES}"
        )
    } else {
        return Ok(());
    };
    Err(ApiError::new(Code::BUSY, message))
}

/// What is told of a task when etcd did not say whether it has it.
fn perhaps_kept(id: TaskId, key: Option<&Name>) -> String {
    let then = match key {
        Some(_) => "the same request with the same key is safe to repeat".to_owned(),
        None => format!(
            "look whether `meepo task get {id}` shows it before you repeat the request; with an \
             idempotency key it would be safe to repeat"
        ),
    };
    format!("etcd did not say whether it has kept task {id}; {then}")
}

/// What came of a request.
#[derive(Debug)]
pub struct Submitted {
    /// The task.
    pub task: TaskView,
    /// Whether it is new: if not, an earlier request with the same key made it.
    pub new: bool,
}

/// What a request is about, for the audit.
fn note(request: &TaskRequest) {
    let details = [
        ("queue", request.queue.as_ref().map(ToString::to_string)),
        ("target", request.target.clone()),
        ("name", request.name.clone()),
        ("key", request.key.as_ref().map(ToString::to_string)),
        ("cmd", Some(request.command.cmd.clone()).filter(|cmd| !cmd.is_empty())),
        ("user", request.command.user.clone()),
        ("hosts", (!request.hosts.is_empty()).then(|| request.hosts.len().to_string())),
        ("commands", (!request.commands.is_empty()).then(|| request.commands.len().to_string())),
    ];
    for (key, value) in details {
        if let Some(value) = value {
            audit::detail(key, value);
        }
    }
    // Where it is refused there is no task to name.
    match (&request.queue, &request.target) {
        (Some(queue), _) => audit::object("queue", queue),
        (None, Some(target)) => audit::object("target", target),
        (None, None) => {}
    }
}

impl Ops {
    /// Takes a task. Accepted means: it and its idempotency key are kept by etcd's quorum,
    /// and with it its parts, whose ids follow from it.
    pub async fn submit_task(&self, request: &TaskRequest) -> ApiResult<Submitted> {
        note(request);
        let submitted = self.take_task(request).await?;
        audit::object("task", submitted.task.id);
        Ok(submitted)
    }

    async fn take_task(&self, request: &TaskRequest) -> ApiResult<Submitted> {
        request.validate()?;
        if let Some(key) = &request.key
            && let Some(known) = self.known_task(key, request).await?
        {
            return Ok(Submitted { task: known, new: false });
        }
        let all = self.board.len();
        if all >= self.tasks_limit {
            let open = self.board.open();
            let message = match all.saturating_sub(open) {
                0 => format!("{open} tasks are unfinished, which is the limit (tasks_limit)"),
                done => format!(
                    "{open} tasks are unfinished and {done} wait to be taken by the log store; \
                     the limit is {} (tasks_limit)",
                    self.tasks_limit
                ),
            };
            return Err(ApiError::new(Code::BUSY, message));
        }
        let nodes = match request.only_ids() {
            Some(ids) => self.these_nodes(&ids).await?,
            None => self.nodes_for(request).await?,
        };
        let mut task = request.task(TaskId(Uuid::now_v7()), &nodes, Timestamp::now())?;
        self.demand_task(request, &task)?;
        if let Some(traceparent) = trace::current() {
            task.extra.insert(TRACEPARENT.to_owned(), traceparent.into());
        }
        let value = self.view.seal().task(&task);
        if value.len() > MAX_TASK {
            let problem = format!("the task takes {} bytes", value.len());
            let expected = "at most 1200000; shorter commands, or several tasks";
            return Err(Invalid::new(Code::TOO_LARGE, "commands", problem, expected).into());
        }
        room(self.board.weight(), task.parts.len(), value.len())?;
        match self.write_task(&task, value, request).await {
            Ok(true) => {}
            // Somebody was faster with the same key.
            Ok(false) => {
                let key = request.key.as_ref();
                let known = match key {
                    Some(key) => self.known_task(key, request).await?,
                    None => None,
                };
                let task = known.ok_or_else(|| {
                    ApiError::new(Code::CONFLICT, "the idempotency key is being used by others")
                })?;
                return Ok(Submitted { task, new: false });
            }
            Err(e) if e.outcome_unknown() => {
                warn!(task = %task.id, error = %e, "a task may or may not be kept");
                // That it is not there yet would not mean that it never will be.
                if !matches!(self.etcd.get(&keys::task(task.id)).await, Ok(Some(_))) {
                    let message = perhaps_kept(task.id, request.key.as_ref());
                    return Err(ApiError::new(Code::UNKNOWN_OUTCOME, message));
                }
            }
            Err(e) => return Err(e.into()),
        }
        info!(task = %task.id, parts = task.parts.len(), queue = ?task.queue, "task accepted");
        self.metrics.tasks_submitted.inc();
        Ok(Submitted { task: TaskView::new(&task, |_| None), new: true })
    }

    /// Writes the task, with its idempotency key if it has one. Answers whether neither was
    /// there.
    async fn write_task(
        &self,
        task: &Task,
        value: Vec<u8>,
        request: &TaskRequest,
    ) -> Result<bool, CoordError> {
        let absent = |key: String| Compare::create_revision(key, CompareOp::Equal, 0);
        let compare = absent(keys::task(task.id));
        let put = TxnOp::put(keys::task(task.id), value, None);
        let Some(key) = &request.key else {
            let txn = Txn::new().when([compare]).and_then([put]);
            return Ok(self.etcd.txn("task", txn).await?.is_some());
        };
        let key = keys::task_key(key);
        let record =
            TaskKeyRecord { task: task.id, digest: request.digest(), extra: BTreeMap::new() };
        let mut again = true;
        loop {
            let lease = self.key_lease.get(&self.etcd).await?;
            let options = PutOptions::new().with_lease(lease);
            let beside = TxnOp::put(key.as_str(), encode(&record), Some(options));
            let txn = Txn::new().when([compare.clone(), absent(key.clone())]);
            match self.etcd.txn("task", txn.and_then([put.clone(), beside])).await {
                // Somebody revoked it, or etcd was restored from a backup.
                Err(e) if e.no_such_lease() && again => {
                    self.key_lease.forget(lease);
                    again = false;
                }
                written => return Ok(written?.is_some()),
            }
        }
    }

    /// The task that an earlier request with this key made.
    async fn known_task(&self, key: &Name, request: &TaskRequest) -> ApiResult<Option<TaskView>> {
        let Some(entry) = self.etcd.get(&keys::task_key(key)).await? else { return Ok(None) };
        let record: TaskKeyRecord = decode(&entry.value)?;
        if record.digest != request.digest() {
            let message = format!(
                "the idempotency key {key} came with another request before, which is task {}",
                record.task
            );
            return Err(ApiError::new(Code::CONFLICT, message));
        }
        self.get_task(TaskRef::Task(record.task)).await.map(Some)
    }

    /// All nodes as of this moment; with what their workers tell where a target asks for it.
    async fn nodes_for(&self, request: &TaskRequest) -> ApiResult<BTreeMap<NodeId, NodeInfo>> {
        let mut nodes = self.nodes_now().await?;
        let asks = |t: &String| Target::parse(t).is_ok_and(|t| t.asks_for_live_facts());
        if request.targets().any(asks) {
            overlay(&mut nodes, &self.live(&[]).await?);
        }
        Ok(nodes)
    }

    /// Those of these nodes that exist, as of this moment.
    async fn these_nodes(&self, ids: &BTreeSet<NodeId>) -> ApiResult<BTreeMap<NodeId, NodeInfo>> {
        let wanted = ids.iter().flat_map(|id| [keys::node(id), keys::health(id), keys::drain(id)]);
        let found = self.etcd.get_all(&wanted.collect::<Vec<_>>()).await?;
        Ok(Data::from_entries(&found).all_nodes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_bytes_are_bounded() {
        assert!(room((0, 0), 10_000, MAX_TASK).is_ok());
        assert!(room((MOST_PARTS - 1, MOST_BYTES - 1), 1, 1).is_ok());
        for (there, parts, bytes) in [((MOST_PARTS, 0), 1, 1), ((1, MOST_BYTES), 1, 1)] {
            let e = room(there, parts, bytes).unwrap_err();
            assert_eq!(e.0.code, Code::BUSY, "{e}");
            assert!(e.0.message.contains("the limit is"), "{e}");
        }
    }

    #[test]
    fn what_to_do_depends_on_the_key() {
        let id = TaskId(Uuid::from_u128(1));
        let key = Name::new("k").unwrap();
        assert!(perhaps_kept(id, Some(&key)).ends_with("safe to repeat"));
        let without = perhaps_kept(id, None);
        assert!(without.contains(&format!("task get {id}")), "{without}");
        assert!(!without.contains("same key"), "{without}");
    }
}
