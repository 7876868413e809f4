//! What there is to tell.

use crate::{
    code::Code,
    error::Invalid,
    id::{Name, NodeId, RunId},
    run::RunState,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A run failed, and no further attempt follows.
    Failure,
    /// An attempt failed, and another follows.
    Attempt,
    /// The first success after a failure, or after a job was silent for too long.
    Recovery,
    /// A slot passed while nobody could run it.
    Missed,
    /// A run takes longer than its job's `warn_after`.
    Long,
    /// A job had no success within its `expect_success_within`.
    NoSuccess,
    /// A node is gone.
    NodeLost,
    /// It is back.
    NodeBack,
    /// A task has ended, and not all of it with success.
    TaskFailed,
    /// A part of a task waits for somebody to look at it.
    TaskBuried,
}

impl Kind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Failure,
        Self::Attempt,
        Self::Recovery,
        Self::Missed,
        Self::Long,
        Self::NoSuccess,
        Self::NodeLost,
        Self::NodeBack,
        Self::TaskFailed,
        Self::TaskBuried,
    ];

    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Attempt => "attempt",
            Self::Recovery => "recovery",
            Self::Missed => "missed",
            Self::Long => "long",
            Self::NoSuccess => "no_success",
            Self::NodeLost => "node_lost",
            Self::NodeBack => "node_back",
            Self::TaskFailed => "task_failed",
            Self::TaskBuried => "task_buried",
        }
    }

    /// What it means, for the documentation.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Failure => "a run failed, and no further attempt follows",
            Self::Attempt => "an attempt failed, and another follows",
            Self::Recovery => "the first success after a failure or a silence that was told",
            Self::Missed => "a slot passed while nobody could run it",
            Self::Long => "a run takes longer than its job's `warn_after`",
            Self::NoSuccess => "a job had no success within its `expect_success_within`",
            Self::NodeLost => "a node is gone",
            Self::NodeBack => "it is back",
            Self::TaskFailed => "a task has ended, and not all of it with success",
            Self::TaskBuried => "a part of a task is buried",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Kind {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|k| k.as_str() == s).ok_or_else(|| {
            let expected = Self::ALL.map(Self::as_str).join(", ");
            Invalid::new(Code::BAD_VALUE, "on", format!("unknown kind {s:?}"), expected)
        })
    }
}

/// Something that happened, with what a message says of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Happening {
    /// What.
    pub kind: Kind,
    /// When, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub at: Timestamp,
    /// Of which job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Name>,
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Of which task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Of which run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// How the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<RunState>,
    /// Its outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// Its exit status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Which try of its slot it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Its slot, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub slot: Option<Timestamp>,
    /// When it began, or since when it has been so, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub since: Option<Timestamp>,
    /// What happened, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The last lines of its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<String>,
    /// For how many this one stands: those like it since the last that was told.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub times: u64,
}

fn one() -> u64 {
    1
}

fn is_one(n: &u64) -> bool {
    *n == 1
}

impl Happening {
    /// Nothing known but what and when.
    pub fn new(kind: Kind, at: Timestamp) -> Self {
        Self {
            kind,
            at,
            job: None,
            node: None,
            task: None,
            run_id: None,
            state: None,
            code: None,
            exit_code: None,
            signal: None,
            attempt: None,
            slot: None,
            since: None,
            message: None,
            tail: None,
            times: 1,
        }
    }

    /// What it is about, as one says it: `job backup on 10.0.0.7`.
    pub fn about(&self) -> String {
        match (&self.task, &self.job, &self.node) {
            (Some(task), _, _) => format!("task {task}"),
            (None, Some(job), Some(node)) => format!("job {job} on {node}"),
            (None, Some(job), None) => format!("job {job}"),
            (None, None, Some(node)) => format!("node {node}"),
            (None, None, None) => "meepo".into(),
        }
    }

    /// One line for people, without the time.
    pub fn line(&self) -> String {
        let about = self.about();
        let often = if self.times > 1 { format!(" ({} times)", self.times) } else { String::new() };
        let what = match self.kind {
            Kind::Failure => format!("failed: {}", self.how()),
            Kind::Attempt => {
                format!("attempt {} failed: {}", self.attempt.unwrap_or(1), self.how())
            }
            Kind::Recovery => "is well again".into(),
            Kind::Missed => "missed a slot".into(),
            Kind::Long => "takes longer than it should".into(),
            Kind::NoSuccess => "had no success for too long".into(),
            Kind::NodeLost => "is gone".into(),
            Kind::NodeBack => "is back".into(),
            Kind::TaskFailed => format!("failed: {}", self.how()),
            Kind::TaskBuried => "has a buried part".into(),
        };
        format!("{about} {what}{often}")
    }

    fn how(&self) -> String {
        if self.state == Some(RunState::Timeout) {
            return "timed out".into();
        }
        match (&self.message, self.exit_code, self.signal) {
            (Some(message), _, _) => message.clone(),
            (None, Some(code), _) => format!("exit status {code}"),
            (None, None, Some(signal)) => format!("signal {signal}"),
            (None, None, None) => {
                self.code.map_or_else(|| "no success".into(), |c| c.meaning().to_owned())
            }
        }
    }
}
