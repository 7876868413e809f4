//! Executions: the record of a run, its states and its output.

use crate::{
    code::Code,
    id::{Name, NodeId, RunId},
    job::Executor,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a run stands. [`RunState::rank`] orders them: a record only ever moves up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// The process runs.
    Running,
    /// It ended with exit status 0, or with an answer that was expected.
    Success,
    /// It ended otherwise, or could not be started; the code says how.
    Failed,
    /// It ran longer than its timeout and was killed.
    Timeout,
    /// It was killed on request, replaced, or its worker shut down.
    Killed,
    /// Its worker died or vanished; its end is not known.
    Lost,
    /// The slot passed while nobody could run it. Nothing was started.
    Missed,
    /// The slot was skipped because an earlier run was active. Nothing was started.
    Skipped,
}

impl RunState {
    /// Every state, for messages and tests.
    pub const ALL: [RunState; 8] = [
        Self::Running,
        Self::Success,
        Self::Failed,
        Self::Timeout,
        Self::Killed,
        Self::Lost,
        Self::Missed,
        Self::Skipped,
    ];

    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Killed => "killed",
            Self::Lost => "lost",
            Self::Missed => "missed",
            Self::Skipped => "skipped",
        }
    }

    /// Precedence when two records of one run meet in a log store: the higher wins,
    /// the first of equals stays. A worker's own account of the end outranks a
    /// master's guess that the run is lost.
    pub const fn rank(self) -> u8 {
        match self {
            Self::Running => 1,
            Self::Lost => 2,
            _ => 3,
        }
    }

    /// Whether nothing more will happen to the run.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Running)
    }
}

impl std::fmt::Display for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for RunState {
    type Err = crate::error::Invalid;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|e| e.as_str() == s).ok_or_else(|| {
            crate::error::Invalid::new(
                Code::BAD_VALUE,
                "state",
                format!("unknown state {s:?}"),
                "one of running, success, failed, timeout, killed, lost, missed, skipped",
            )
        })
    }
}

/// Why a run came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its slot came.
    Schedule,
    /// Its slot was missed and made up for.
    Misfire,
    /// The worker's host started (`@reboot`).
    Reboot,
    /// Somebody asked for it (`meepo job trigger`).
    Trigger,
    /// A synchronous command (`meepo run`).
    Exec,
    /// It is a part of a task (`meepo task`); the run's job is the id of the part.
    Task,
}

impl Cause {
    /// Every cause, for messages and tests.
    pub const ALL: [Cause; 6] =
        [Self::Schedule, Self::Misfire, Self::Reboot, Self::Trigger, Self::Exec, Self::Task];

    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Misfire => "misfire",
            Self::Reboot => "reboot",
            Self::Trigger => "trigger",
            Self::Exec => "exec",
            Self::Task => "task",
        }
    }
}

impl std::str::FromStr for Cause {
    type Err = crate::error::Invalid;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|c| c.as_str() == s).ok_or_else(|| {
            crate::error::Invalid::new(
                Code::BAD_VALUE,
                "cause",
                format!("unknown cause {s:?}"),
                "one of schedule, misfire, reboot, trigger, exec, task",
            )
        })
    }
}

/// One execution. Its identity is (job, slot, node, attempt); `run_id` names it.
/// Times are UTC with millisecond precision (what every log store can keep).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunRecord {
    /// Names the run.
    pub run_id: RunId,
    /// The job's id; absent for synchronous commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Name>,
    /// Where it ran.
    pub node: NodeId,
    /// The scheduled instant, or the submission for on-demand runs.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub slot: Timestamp,
    /// 1 for the first try.
    pub attempt: u32,
    /// Why it came to be.
    pub cause: Cause,
    /// What turned `cmd` into a run.
    pub executor: Executor,
    /// What ran.
    pub cmd: String,
    /// The user it runs as, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where it stands.
    pub state: RunState,
    /// The outcome; success while it runs.
    pub code: Code,
    /// What happened, in words, where the code alone does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Exit status, if the process exited; of a request the status of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal number, if a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Fencing token: the etcd revision of the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<i64>,
    /// Process id on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When the process was started; absent if none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub started_at: Option<Timestamp>,
    /// When the outcome was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub ended_at: Option<Timestamp>,
    /// Bytes the process wrote.
    #[serde(default)]
    pub output_bytes: u64,
    /// Bytes of these that were not kept.
    #[serde(default)]
    pub dropped_bytes: u64,
}

impl RunRecord {
    /// How long it took or takes, as far as is known.
    pub fn elapsed(&self, now: Timestamp) -> Option<std::time::Duration> {
        let started = self.started_at?;
        self.ended_at.unwrap_or(now).duration_since(started).try_into().ok()
    }

    /// How many milliseconds it took; none if it has not ended or nothing was started. A
    /// clock that was set back meanwhile gives 0.
    pub fn took_ms(&self) -> Option<i64> {
        let (started, ended) = (self.started_at?, self.ended_at?);
        let took = to_millis(ended).as_millisecond() - to_millis(started).as_millisecond();
        Some(took.max(0))
    }
}

/// Where a piece of output was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// File descriptor 1; the body of an answer.
    Stdout,
    /// File descriptor 2; what is told of an answer.
    Stderr,
}

/// A piece of a run's output, as read from the process: any bytes.
/// (`run_id`, `seq`) is its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// The run that wrote it.
    pub run_id: RunId,
    /// Position within the run over both streams, from 0, without gaps.
    pub seq: u64,
    /// Where it was written.
    pub stream: Stream,
    /// When it was read, UTC, millisecond precision.
    pub at: Timestamp,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Cuts `t` to the precision every log store can keep.
pub fn to_millis(t: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(t.as_millisecond()).unwrap_or(t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_names_match_serde() {
        for s in RunState::ALL {
            assert_eq!(serde_json::to_value(s).unwrap(), s.as_str());
            assert_eq!(s.as_str().parse::<RunState>().unwrap(), s);
        }
    }

    #[test]
    fn cause_names_match_serde() {
        for c in Cause::ALL {
            assert_eq!(serde_json::to_value(c).unwrap(), c.as_str());
            assert_eq!(c.as_str().parse::<Cause>().unwrap(), c);
        }
        assert!("".parse::<Cause>().is_err());
    }

    /// Which record takes the place of which, for every pair: `1` where the one of the row
    /// gives way to that of the column. Rows and columns as in [`RunState::ALL`].
    const GIVES_WAY: [(RunState, &str); 8] = [
        (RunState::Running, "0 1 1 1 1 1 1 1"),
        (RunState::Success, "0 0 0 0 0 0 0 0"),
        (RunState::Failed, "0 0 0 0 0 0 0 0"),
        (RunState::Timeout, "0 0 0 0 0 0 0 0"),
        (RunState::Killed, "0 0 0 0 0 0 0 0"),
        (RunState::Lost, "0 1 1 1 1 0 1 1"),
        (RunState::Missed, "0 0 0 0 0 0 0 0"),
        (RunState::Skipped, "0 0 0 0 0 0 0 0"),
    ];

    #[test]
    fn a_record_gives_way_only_to_one_that_knows_more() {
        assert_eq!(GIVES_WAY.map(|(first, _)| first), RunState::ALL);
        for (first, row) in GIVES_WAY {
            let row: Vec<_> = row.split(' ').map(|cell| cell == "1").collect();
            assert_eq!(row.len(), RunState::ALL.len());
            for (second, gives_way) in RunState::ALL.into_iter().zip(row) {
                assert_eq!(second.rank() > first.rank(), gives_way, "{first} then {second}");
                assert!(!gives_way || second.is_final(), "{first} then {second}");
            }
        }
    }
}
