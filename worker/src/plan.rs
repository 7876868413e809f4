//! Runs that have been decided on.

use jiff::Timestamp;
use meepo_core::{
    code::Code,
    digest::pair,
    id::{Name, NodeId, RunId},
    job::Assignment,
    run::{Cause, RunRecord, RunState, to_millis},
};
use std::sync::Arc;
use uuid::Builder;

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

    /// The record of a slot that passes without a run. Of a job on each node it has the same id
    /// whenever it is made: a worker that dies before the cursor has passed the slot comes to it
    /// again, and it is recorded once.
    pub fn passed(
        &self,
        node: &NodeId,
        state: RunState,
        code: Code,
        message: Option<String>,
    ) -> RunRecord {
        let run_id = self.slot_id(node).unwrap_or(self.run_id);
        RunRecord { run_id, ..self.not_run(node, state, code, message) }
    }

    /// A UUIDv7 whose time is the slot and whose random part is a hash of all that names it.
    fn slot_id(&self, node: &NodeId) -> Option<RunId> {
        let scheduled = matches!(self.cause, Cause::Schedule | Cause::Misfire | Cause::Reboot);
        let guarded = scheduled && self.attempt == 1 && !self.assignment.is_once();
        let job = self.job.as_ref().filter(|_| guarded)?;
        let millis = u64::try_from(self.slot.as_millisecond()).ok()?;
        // Names hold no spaces.
        let named = format!("{node} {job} {millis}");
        let [first, second] = ["a", "b"].map(|half| pair(half, named.as_bytes()).to_le_bytes());
        let mut random = [0; 10];
        random[..8].copy_from_slice(&first);
        random[8..].copy_from_slice(&second[..2]);
        Some(RunId(Builder::from_unix_timestamp_millis(millis, &random).into_uuid()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn plan(assignment: &str) -> Plan {
        Plan {
            run_id: RunId(uuid::Uuid::now_v7()),
            job: Some(Name::new("j").unwrap()),
            assignment: Arc::new(serde_json::from_str(assignment).unwrap()),
            slot: Timestamp::from_second(1_800_000_000).unwrap(),
            attempt: 1,
            cause: Cause::Schedule,
            fence: None,
            permit: None,
        }
    }

    fn passed(plan: &Plan, node: &str) -> RunId {
        let node = NodeId::new(node).unwrap();
        plan.passed(&node, RunState::Missed, Code::MISSED, None).run_id
    }

    #[test]
    fn a_slot_that_passes_has_one_id_and_no_other_has_it() {
        let one = plan(r#"{"cmd":"true"}"#);
        let id = passed(&one, "n");
        assert_eq!(id, passed(&plan(r#"{"cmd":"false"}"#), "n"), "made up of its names only");
        assert_eq!(id.0.get_version_num(), 7);
        let later = Plan { slot: one.slot + std::time::Duration::from_secs(1), ..one.clone() };
        let other = Plan { job: Some(Name::new("k").unwrap()), ..one.clone() };
        let again = Plan { attempt: 2, ..one.clone() };
        let asked = Plan { cause: Cause::Trigger, ..one.clone() };
        let once = plan(r#"{"cmd":"true","once":["n"]}"#);
        let ids = [&later, &other, &again, &asked, &once].map(|p| passed(p, "n"));
        let ids = BTreeSet::from_iter(ids.into_iter().chain([id, passed(&one, "m")]));
        // The second attempt and the request were made of the first plan.
        assert_eq!(ids.len(), 6);
        assert!([again, asked, once].iter().all(|p| ids.contains(&p.run_id)), "these keep theirs");
    }
}
