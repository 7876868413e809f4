//! Runs that have been decided on.

use jiff::Timestamp;
use meepo_core::{
    code::Code,
    id::{Name, NodeId, RunId},
    job::Assignment,
    run::{Cause, RunRecord, RunState, to_millis},
};
use std::sync::Arc;

/// What a run needs to start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its id.
    pub run_id: RunId,
    /// The job; none for synchronous commands.
    pub job: Option<Name>,
    /// What to run and how.
    pub assignment: Arc<Assignment>,
    /// The scheduled instant, or the submission.
    pub slot: Timestamp,
    /// 1 for the first try.
    pub attempt: u32,
    /// Why.
    pub cause: Cause,
    /// The fencing token, once claimed.
    pub fence: Option<i64>,
    /// The revision of the lock that it holds.
    pub permit: Option<i64>,
}

impl Plan {
    /// Of a run that has begun already, as its record tells. It holds no lock (any more).
    pub fn of(record: &RunRecord, assignment: Arc<Assignment>) -> Self {
        // Of other runs the record shows the token of their lock. One that was asked for has
        // none of its own, unless it stands for a lost one.
        let asked = record.cause == Cause::Trigger && assignment.lock.is_some();
        let claimed = assignment.is_once() && !asked;
        Self {
            run_id: record.run_id,
            job: record.job.clone(),
            assignment,
            slot: record.slot,
            attempt: record.attempt,
            cause: record.cause,
            fence: record.fence.filter(|_| claimed),
            permit: None,
        }
    }

    /// The record of a run that has only just been decided on.
    pub fn record(&self, node: &NodeId) -> RunRecord {
        RunRecord {
            run_id: self.run_id,
            job: self.job.clone(),
            node: node.clone(),
            slot: to_millis(self.slot),
            attempt: self.attempt,
            cause: self.cause,
            executor: self.assignment.executor,
            cmd: self.assignment.cmd.clone(),
            user: self.assignment.user.clone(),
            state: RunState::Running,
            code: Code::OK,
            message: None,
            exit_code: None,
            signal: None,
            fence: self.fence.or(self.permit),
            pid: None,
            started_at: None,
            ended_at: None,
            output_bytes: 0,
            dropped_bytes: 0,
        }
    }

    /// The record of a run that never got a process.
    pub fn not_run(
        &self,
        node: &NodeId,
        state: RunState,
        code: Code,
        message: Option<String>,
    ) -> RunRecord {
        RunRecord {
            state,
            code,
            message,
            ended_at: Some(to_millis(Timestamp::now())),
            ..self.record(node)
        }
    }
}
