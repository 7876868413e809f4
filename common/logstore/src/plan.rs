//! Which index answers a question, the same in every store.
//!
//! Lists come newest first without sorting if the fields before the slot in the index are
//! fixed. So each index is entered at one or more points, and what is found there is
//! merged in order.

use crate::RunQuery;
use meepo_core::{
    code::Code,
    id::{Name, NodeId},
    run::RunState,
    task::TaskId,
};

/// Most points at which an index is entered. MongoDB merges up to 200 before it sorts.
const MAX_POINTS: usize = 50;

/// How to find the runs of a query.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Plan {
    /// No run can match.
    Nothing,
    /// By time alone; all filters are checked on what is found.
    Time,
    /// By job.
    Job(Vec<Name>),
    /// By job and state.
    JobState(Vec<Name>, Vec<RunState>),
    /// By node and state.
    NodeState(NodeId, Vec<RunState>),
    /// By state.
    State(Vec<RunState>),
    /// By code; none of them is success, whose runs this index leaves out.
    Code(Vec<Code>),
    /// By user.
    User(String),
    /// All parts of a task, sorted: these are as many as the task has.
    Task(TaskId),
}

impl Plan {
    /// The plan for `query`.
    pub(crate) fn of(query: &RunQuery) -> Self {
        let (states, codes) = (query.distinct_states(), query.distinct_codes());
        if let Some(task) = query.task {
            return Self::Task(task);
        }
        match query.distinct_jobs() {
            Some(jobs) if jobs.is_empty() => return Self::Nothing,
            Some(jobs) if !states.is_empty() && jobs.len() * states.len() <= MAX_POINTS => {
                return Self::JobState(jobs, states);
            }
            Some(jobs) if jobs.len() <= MAX_POINTS => return Self::Job(jobs),
            Some(_) => return Self::Time,
            None => {}
        }
        if let Some(node) = &query.node {
            let all = || RunState::ALL.to_vec();
            let states = if states.is_empty() { all() } else { states };
            return Self::NodeState(node.clone(), states);
        }
        if !codes.is_empty() && codes.len() <= MAX_POINTS && codes.iter().all(|c| !c.is_ok()) {
            return Self::Code(codes);
        }
        match &query.user {
            Some(user) => Self::User(user.clone()),
            None if states.is_empty() => Self::Time,
            None => Self::State(states),
        }
    }
}

/// The names of a task's parts lie between these two; the second is none of them.
pub(crate) fn parts_of(task: TaskId) -> (String, String) {
    // The slash is the character after the dot.
    (format!("{task}."), format!("{task}/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::name;

    #[test]
    fn the_narrowest_filter_that_keeps_the_order_is_taken() {
        let q = RunQuery::default;
        let (job, node) = (Some(name("j")), Some(name("n")));
        let failed = vec![RunState::Failed];
        for (query, plan) in [
            (q(), Plan::Time),
            (RunQuery { job: job.clone(), node: node.clone(), ..q() }, Plan::Job(vec![name("j")])),
            (
                RunQuery { job: job.clone(), states: failed.clone(), ..q() },
                Plan::JobState(vec![name("j")], failed.clone()),
            ),
            (
                RunQuery { node: node.clone(), ..q() },
                Plan::NodeState(name("n"), RunState::ALL.to_vec()),
            ),
            (
                RunQuery { node, states: failed.clone(), codes: vec![Code::LOST], ..q() },
                Plan::NodeState(name("n"), failed.clone()),
            ),
            (RunQuery { states: failed.clone(), ..q() }, Plan::State(failed.clone())),
            (
                RunQuery { codes: vec![Code::LOST], states: failed, ..q() },
                Plan::Code(vec![Code::LOST]),
            ),
            (RunQuery { codes: vec![Code::OK], ..q() }, Plan::Time),
            (RunQuery { user: Some("u".into()), ..q() }, Plan::User("u".into())),
            (RunQuery { job: job.clone(), jobs: vec![name("other")], ..q() }, Plan::Nothing),
            (RunQuery { job, jobs: vec![name("j")], ..q() }, Plan::Job(vec![name("j")])),
        ] {
            assert_eq!(Plan::of(&query), plan, "{query:?}");
        }
        let many = RunQuery { jobs: (0..51).map(|i| name(&format!("j{i}"))).collect(), ..q() };
        assert_eq!(Plan::of(&many), Plan::Time);
    }
}
