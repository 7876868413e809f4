//! Answers about what was: statistics of a job, what did not run, what runs wrote.

use crate::{
    code::Code,
    id::{Name, NodeId, RunId},
    run::{RunRecord, RunState, Stream},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A run in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunBrief {
    /// Names it.
    pub run_id: RunId,
    /// Where it ran.
    pub node: NodeId,
    /// Its slot, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub slot: Timestamp,
    /// Where it stands.
    pub state: RunState,
    /// Its outcome.
    pub code: Code,
    /// When it ended, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub ended_at: Option<Timestamp>,
    /// How many milliseconds it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<i64>,
}

/// How long the runs of a job took, in milliseconds. Percentiles have three exact digits,
/// rounded down; the longest is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TookStats {
    /// Runs that started and ended.
    pub runs: u64,
    /// Half of them took no longer.
    pub p50_ms: i64,
    /// 95 of 100 took no longer.
    pub p95_ms: i64,
    /// 99 of 100 took no longer.
    pub p99_ms: i64,
    /// None took longer.
    pub max_ms: i64,
}

/// The runs of a job on one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DayStats {
    /// The day of their slots, UTC: `2026-11-27`.
    pub day: String,
    /// How many they were.
    pub runs: u64,
    /// How many succeeded.
    pub success: u64,
    /// How many failed, timed out, were killed or lost.
    pub failed: u64,
}

/// Answer of `GET /v1/jobs/{name}/stats`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobStats {
    /// The job.
    pub job: Name,
    /// Slots from this instant on were looked at, UTC; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub since: Option<Timestamp>,
    /// Slots before this instant were looked at, UTC; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub until: Option<Timestamp>,
    /// How many runs they are made of.
    pub runs: u64,
    /// Whether these are all of that time. If not, they are the newest, and `since` is the
    /// oldest slot among them.
    pub complete: bool,
    /// How many are in which state.
    pub by_state: BTreeMap<String, u64>,
    /// The share of successes in the runs that started and ended: 0 to 1. Absent if there
    /// were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<f64>,
    /// How long they took. Absent if none has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took: Option<TookStats>,
    /// The newest success, whenever it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<RunBrief>,
    /// The newest failure, whenever it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<RunBrief>,
    /// The next slot, UTC; absent when paused or only on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub next: Option<Timestamp>,
    /// Day by day, oldest first; days without runs are left out.
    pub days: Vec<DayStats>,
}

impl JobStats {
    /// Those of a job without runs.
    pub fn of(job: Name) -> Self {
        Self {
            job,
            since: None,
            until: None,
            runs: 0,
            complete: true,
            by_state: BTreeMap::new(),
            success_rate: None,
            took: None,
            last_success: None,
            last_failure: None,
            next: None,
            days: Vec::new(),
        }
    }
}

/// A place in the output of a run where a text was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutputMatch {
    /// The chunk in which it begins.
    pub seq: u64,
    /// Where it was written.
    pub stream: Stream,
    /// When that chunk was read, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub at: Timestamp,
    /// The line around it, as far as it is near; what is not UTF-8 is replaced.
    pub text: String,
}

/// A run in whose output a text was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SearchHit {
    /// The run.
    pub run: RunRecord,
    /// The first places.
    pub matches: Vec<OutputMatch>,
    /// Whether there are more places in it.
    pub more: bool,
}

/// Answer of `GET /v1/runs/search`, newest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SearchPage {
    /// The runs.
    pub hits: Vec<SearchHit>,
    /// How many runs were looked at.
    pub looked_at: u64,
    /// How many bytes of output were looked at.
    pub bytes: u64,
    /// Slot of the oldest run looked at, UTC: how far the search got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub reached: Option<Timestamp>,
    /// Give this as `cursor` to search further; absent when all runs were looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Why a slot did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum GapKind {
    /// Nobody could run it in time.
    Missed,
    /// An earlier run was active.
    Skipped,
    /// There is no record of it.
    Absent,
}

impl GapKind {
    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missed => "missed",
            Self::Skipped => "skipped",
            Self::Absent => "absent",
        }
    }
}

/// A slot that should have run and did not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gap {
    /// The slot, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub slot: Timestamp,
    /// The node; absent for a job that runs once in the cluster and of which nobody has
    /// said anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Why.
    pub kind: GapKind,
    /// The record that says so, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// What the record says about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Answer of `GET /v1/jobs/{name}/gaps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gaps {
    /// The job.
    pub job: Name,
    /// Slots after this instant were looked at, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub since: Timestamp,
    /// Slots up to this instant were looked at, UTC. Later ones may be on their way.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub until: Timestamp,
    /// How many slots the schedule has in that time, on all nodes together.
    pub due: u64,
    /// How many of them ran or run.
    pub ran: u64,
    /// Those that did not, oldest first.
    pub gaps: Vec<Gap>,
    /// Nodes that hold the job and have never run it as far as is known: it is new there, or
    /// something is wrong. Their slots are not counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<NodeId>,
    /// Whether these are all. If not, the rest is later: ask again with a later `since`.
    pub complete: bool,
}

/// What is known of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where it was to run.
    pub node: NodeId,
    /// The slot, UTC.
    pub slot: Timestamp,
    /// How it went.
    pub state: RunState,
    /// The record that says so.
    pub run_id: RunId,
    /// What it says.
    pub message: Option<String>,
}

/// Compares the slots that were due with what is known of them. `due` names slot and node;
/// no node: any node of the cluster will do. The gaps are those of `due` without a run, and
/// what is recorded as missed or skipped beside.
pub fn gaps(due: &[(Timestamp, Option<NodeId>)], seen: &[Seen]) -> (u64, Vec<Gap>) {
    let mut of_node: BTreeMap<(Timestamp, &NodeId), &Seen> = BTreeMap::new();
    let mut of_slot: BTreeMap<Timestamp, &Seen> = BTreeMap::new();
    let not_run = |s: &Seen| matches!(s.state, RunState::Missed | RunState::Skipped);
    for s in seen {
        // Of several records of a slot that of a run says that it ran.
        let better = |old: &&Seen| not_run(old) && !not_run(s);
        if of_node.get(&(s.slot, &s.node)).is_none_or(better) {
            of_node.insert((s.slot, &s.node), s);
        }
        if of_slot.get(&s.slot).is_none_or(better) {
            of_slot.insert(s.slot, s);
        }
    }
    let gap = |s: &Seen| Gap {
        slot: s.slot,
        node: Some(s.node.clone()),
        kind: if s.state == RunState::Missed { GapKind::Missed } else { GapKind::Skipped },
        run_id: Some(s.run_id),
        message: s.message.clone(),
    };
    let (mut ran, mut found) = (0, BTreeSet::new());
    for (slot, node) in due {
        let known = match node {
            Some(node) => of_node.get(&(*slot, node)),
            None => of_slot.get(slot),
        };
        match known {
            Some(s) if not_run(s) => {
                found.insert(gap(s));
            }
            Some(_) => ran += 1,
            None => {
                found.insert(Gap {
                    slot: *slot,
                    node: node.clone(),
                    kind: GapKind::Absent,
                    run_id: None,
                    message: None,
                });
            }
        }
    }
    // Recorded by a schedule that has changed since, or on a node that has left.
    let once: BTreeSet<Timestamp> =
        due.iter().filter(|(_, node)| node.is_none()).map(|(slot, _)| *slot).collect();
    for s in of_node.values().filter(|s| not_run(s)) {
        let told = !once.is_empty()
            && (once.contains(&s.slot) || of_slot.get(&s.slot).is_some_and(|o| !not_run(o)));
        if !told {
            found.insert(gap(s));
        }
    }
    (ran, found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).unwrap()
    }

    fn node(s: &str) -> NodeId {
        Name::new(s).unwrap()
    }

    fn seen(slot: i64, on: &str, state: RunState) -> Seen {
        let run_id = RunId(uuid::Uuid::from_u128(slot as u128));
        Seen { node: node(on), slot: at(slot), state, run_id, message: None }
    }

    fn short(gaps: &[Gap]) -> Vec<(i64, Option<&str>, &'static str)> {
        gaps.iter()
            .map(|g| (g.slot.as_second(), g.node.as_ref().map(|n| n.as_str()), g.kind.as_str()))
            .collect()
    }

    #[test]
    fn each_node_owes_each_slot() {
        let due: Vec<_> = [10, 20, 30]
            .into_iter()
            .flat_map(|s| ["a", "b"].map(|n| (at(s), Some(node(n)))))
            .collect();
        let known = [
            seen(10, "a", RunState::Success),
            seen(10, "b", RunState::Failed),
            seen(20, "a", RunState::Missed),
            seen(20, "b", RunState::Skipped),
            seen(30, "a", RunState::Running),
            seen(15, "gone", RunState::Missed),
        ];
        let (ran, found) = gaps(&due, &known);
        assert_eq!(ran, 3);
        assert_eq!(
            short(&found),
            [
                (15, Some("gone"), "missed"),
                (20, Some("a"), "missed"),
                (20, Some("b"), "skipped"),
                (30, Some("b"), "absent"),
            ]
        );
    }

    #[test]
    fn one_node_does_for_a_job_that_runs_once() {
        let due: Vec<_> = [10, 20, 30].map(|s| (at(s), None)).into();
        let known = [
            seen(10, "a", RunState::Missed),
            seen(10, "b", RunState::Success),
            seen(20, "a", RunState::Missed),
        ];
        let (ran, found) = gaps(&due, &known);
        assert_eq!(ran, 1);
        assert_eq!(short(&found), [(20, Some("a"), "missed"), (30, None, "absent")]);
    }

    #[test]
    fn a_run_that_made_up_for_a_slot_fills_it() {
        let due = [(at(10), Some(node("a")))];
        let known = [seen(10, "a", RunState::Success), seen(10, "a", RunState::Missed)];
        assert_eq!(gaps(&due, &known), (1, Vec::new()));
    }
}
