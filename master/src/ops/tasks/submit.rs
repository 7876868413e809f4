//! Taking tasks.

use crate::{
    error::{ApiError, ApiResult},
    ops::{Ops, live::overlay},
    view::Data,
};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use jiff::Timestamp;
use meepo_coord::{
    CoordError, keys,
    records::{TaskKeyRecord, decode, encode},
};
use meepo_core::{
    code::Code,
    error::Invalid,
    id::{Name, NodeId},
    node::NodeInfo,
    target::Target,
    task::{TaskId, TaskRef, TaskRequest, TaskView},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tracing::{info, warn};
use uuid::Uuid;

/// Largest task in etcd, in bytes; etcd takes one and a half million.
const MAX_TASK: usize = 1_200_000;
/// How long an idempotency key is remembered.
const KEY_KEPT: Duration = Duration::from_secs(24 * 3600);

/// What came of a request.
#[derive(Debug)]
pub struct Submitted {
    /// The task.
    pub task: TaskView,
    /// Whether it is new: if not, an earlier request with the same key made it.
    pub new: bool,
}

impl Ops {
    /// Takes a task. Accepted means: it and its idempotency key are kept by etcd's quorum,
    /// and with it its parts, whose ids follow from it.
    pub async fn submit_task(&self, request: &TaskRequest) -> ApiResult<Submitted> {
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
        let task = request.task(TaskId(Uuid::now_v7()), &nodes, Timestamp::now())?;
        let value = encode(&task);
        if value.len() > MAX_TASK {
            let problem = format!("the task takes {} bytes", value.len());
            let expected = "at most 1200000; shorter commands, or several tasks";
            return Err(Invalid::new(Code::TOO_LARGE, "commands", problem, expected).into());
        }
        let mut compares = vec![Compare::create_revision(keys::task(task.id), CompareOp::Equal, 0)];
        let mut puts = vec![TxnOp::put(keys::task(task.id), value, None)];
        if let Some(key) = &request.key {
            let lease = self.etcd.grant(KEY_KEPT).await?;
            let record =
                TaskKeyRecord { task: task.id, digest: request.digest(), extra: BTreeMap::new() };
            let options = PutOptions::new().with_lease(lease);
            compares.push(Compare::create_revision(keys::task_key(key), CompareOp::Equal, 0));
            puts.push(TxnOp::put(keys::task_key(key), encode(&record), Some(options)));
        }
        let written = self.etcd.txn("task", Txn::new().when(compares).and_then(puts)).await;
        match written {
            Ok(Some(_)) => {}
            // Somebody was faster with the same key.
            Ok(None) => {
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
            Err(e @ CoordError::Timeout { .. }) => {
                warn!(task = %task.id, error = %e, "a task may or may not be kept");
                let message = format!(
                    "etcd did not answer in time: whether task {} is kept is not known; the \
                     same request with the same key is safe to repeat",
                    task.id
                );
                return Err(ApiError::new(Code::UNKNOWN_OUTCOME, message));
            }
            Err(e) => return Err(e.into()),
        }
        info!(task = %task.id, parts = task.parts.len(), queue = ?task.queue, "task accepted");
        self.metrics.tasks_submitted.inc();
        Ok(Submitted { task: TaskView::new(&task, |_| None), new: true })
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
