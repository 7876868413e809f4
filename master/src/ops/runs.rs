//! Runs that were and runs that are.

use super::{Ops, follow::is_fresh};
use crate::{
    audit,
    error::{ApiError, ApiResult},
};
use jiff::Timestamp;
use meepo_coord::{keys, records::KillRecord};
use meepo_core::{
    api::{RunList, RunRef},
    audit::AuditList,
    auth::Permission,
    code::Code,
    event::EventId,
    id::{NodeId, RunId},
    run::{OutputChunk, RunRecord},
};
use meepo_logstore::{AuditQuery, RunQuery};
use std::time::Duration;

/// How long a stop request waits for a worker that is away.
const KILL_TTL: Duration = Duration::from_secs(60);
/// How long a stop request waits to learn where a new run is.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

impl Ops {
    /// Runs, newest first.
    pub async fn list_runs(&self, query: &RunQuery) -> ApiResult<RunList> {
        let mut page = self.store.list_runs(query).await?;
        let sight = self.sight(Permission::RunRead);
        page.runs.retain(|run| sight.node(&run.node));
        Ok(RunList { runs: page.runs, next: page.next })
    }

    /// Who did what, newest first.
    pub async fn list_audit(&self, query: &AuditQuery) -> ApiResult<AuditList> {
        let page = self.store.list_audit(query).await?;
        Ok(AuditList { records: page.records, next: page.next })
    }

    /// One run.
    pub async fn get_run(&self, run_id: RunId) -> ApiResult<RunRecord> {
        let sight = self.sight(Permission::RunRead);
        let found = self.store.get_run(run_id).await?.filter(|run| sight.node(&run.node));
        found.ok_or_else(|| ApiError::not_found("run", run_id))
    }

    /// Output kept so far, and whether nothing follows.
    pub async fn output(
        &self,
        run_id: RunId,
        after: Option<u64>,
        limit: usize,
    ) -> ApiResult<(Vec<OutputChunk>, bool)> {
        // First the record: if it is final, all output was stored before it.
        let record = self.get_run(run_id).await?;
        let chunks = self.store.output(run_id, after, limit).await?;
        let complete = record.state.is_final() && chunks.is_empty();
        Ok((chunks, complete))
    }

    /// Asks for the end of a run. Kept in etcd until the worker takes it, a minute at
    /// most.
    pub async fn kill(&self, run_id: RunId) -> ApiResult<RunRef> {
        audit::object("run", run_id);
        // What is told from here on is not missed.
        let told = self.events.head();
        let node = match self.active_at(run_id).await? {
            Some(node) => node,
            None if !is_fresh(run_id) => return Err(ApiError::not_found("run", run_id)),
            // The leader knows what it has just started.
            None if self.term().is_none() => match self.kill_at_leader(run_id).await {
                Err(e) if e.0.code == Code::NO_LEADER => self.appear(run_id, told).await?,
                answer => return answer,
            },
            None => self.appear(run_id, told).await?,
        };
        audit::detail("node", &node);
        self.demand_node(Permission::RunKill, &node)?;
        let record = KillRecord { requested_at: Timestamp::now(), extra: Default::default() };
        let lease = self.etcd.grant(KILL_TTL).await?;
        let value = self.view.seal().kill(self.known_term(), &node, run_id, &record);
        self.etcd.put(&keys::kill(&node, run_id), value, Some(lease)).await?;
        Ok(RunRef { run_id, node })
    }

    /// Waits until somebody tells of a run that may have begun a moment ago.
    async fn appear(&self, run_id: RunId, told: EventId) -> ApiResult<NodeId> {
        if let Some(node) = self.sessions.node_of(run_id) {
            return Ok(node);
        }
        let appearing = self.events.first_of(run_id, told);
        if let Ok(Some(node)) = tokio::time::timeout(KILL_PATIENCE, appearing).await {
            return Ok(node);
        }
        // It may have ended meanwhile.
        let found = self.active_at(run_id).await?;
        found.ok_or_else(|| ApiError::not_found("run", run_id))
    }

    /// The node of a run that is on its way or active. Errors: it has ended.
    async fn active_at(&self, run_id: RunId) -> ApiResult<Option<NodeId>> {
        match self.store.get_run(run_id).await {
            Ok(Some(record)) if record.state.is_final() => {
                let message = format!("run {run_id} has ended already: {}", record.state);
                Err(ApiError::new(Code::CONFLICT, message))
            }
            Ok(Some(record)) => Ok(Some(record.node)),
            // Too new for the log store, or the log store is away.
            other => match self.find_run(run_id).await? {
                Some(node) => Ok(Some(node)),
                None => other.map(|_| None).map_err(ApiError::from),
            },
        }
    }

    /// The node of a run that the log store does not know yet: a part of a task is with it,
    /// it is asked for, or it is what some job runs now.
    pub(super) async fn find_run(&self, run_id: RunId) -> ApiResult<Option<NodeId>> {
        if let Some(node) = self.board.node_of(run_id) {
            return Ok(Some(node));
        }
        Ok(self.events.node_of(run_id).await?)
    }
}
