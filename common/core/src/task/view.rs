//! How tasks are shown, and how they are kept once they are over.

use super::{
    id::{PartId, TaskId},
    record::{Ask, Control, Outcome, Part, PartRun, Policy, Task, TaskCommand},
    release,
    state::PartState,
};
use crate::{
    code::Code,
    error::Invalid,
    id::{Name, NodeId},
    rollout::{Phase, Progress},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Where a task as a whole stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Nothing of it has begun.
    Waiting,
    /// Some of it has begun.
    Running,
    /// Somebody holds it.
    Paused,
    /// What has not ended is buried: it needs somebody to look.
    Buried,
    /// All of it was done.
    Success,
    /// All of it has ended, and some of it failed.
    Failed,
    /// All of it has ended, nothing failed, and some of it was withdrawn or not begun in
    /// time.
    Revoked,
}

impl TaskState {
    /// Every state.
    pub const ALL: [TaskState; 7] = [
        Self::Waiting,
        Self::Running,
        Self::Paused,
        Self::Buried,
        Self::Success,
        Self::Failed,
        Self::Revoked,
    ];

    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Buried => "buried",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Revoked => "revoked",
        }
    }

    /// Whether nothing more happens.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Revoked)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TaskState {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|e| e.as_str() == s).ok_or_else(|| {
            let expected = "one of waiting, running, paused, buried, success, failed, revoked";
            Invalid::new(Code::BAD_VALUE, "state", format!("unknown state {s:?}"), expected)
        })
    }
}

/// How many parts are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Counts {
    /// Kept with the task, not yet looked at.
    pub pending: u32,
    /// Waiting for their time.
    pub delayed: u32,
    /// Waiting for a worker.
    pub ready: u32,
    /// With a worker.
    pub reserved: u32,
    /// Failed for the last time, not given up.
    pub buried: u32,
    /// Done.
    pub success: u32,
    /// Tried and not done.
    pub failed: u32,
    /// Withdrawn or not begun in time.
    pub revoked: u32,
}

impl Counts {
    /// Counts one more part.
    pub fn add(&mut self, state: PartState) {
        let n = match state {
            PartState::Pending => &mut self.pending,
            PartState::Delayed => &mut self.delayed,
            PartState::Ready => &mut self.ready,
            PartState::Reserved => &mut self.reserved,
            PartState::Buried => &mut self.buried,
            PartState::Success => &mut self.success,
            PartState::Failed => &mut self.failed,
            PartState::Revoked => &mut self.revoked,
        };
        *n += 1;
    }

    /// All parts.
    pub fn all(&self) -> u32 {
        self.open() + self.ended()
    }

    /// Those that have ended.
    pub fn ended(&self) -> u32 {
        self.success + self.failed + self.revoked
    }

    /// Those that have not.
    pub fn open(&self) -> u32 {
        self.pending + self.delayed + self.ready + self.reserved + self.buried
    }

    /// What that makes of the task.
    pub fn state(&self, control: Control) -> TaskState {
        match () {
            () if self.open() == 0 && self.failed > 0 => TaskState::Failed,
            () if self.open() == 0 && self.revoked > 0 => TaskState::Revoked,
            () if self.open() == 0 => TaskState::Success,
            () if control == Control::Paused => TaskState::Paused,
            () if self.buried == self.open() => TaskState::Buried,
            () if self.reserved + self.buried + self.ended() > 0 => TaskState::Running,
            () => TaskState::Waiting,
        }
    }
}

/// The beginning of a command: lists of tasks are not to grow with their scripts.
fn begin(cmd: &str) -> String {
    cmd.chars().take(500).collect()
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A part as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartView {
    /// Its id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: PartId,
    /// The node it is for, or that has or had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Which of the task's commands, from 0.
    #[serde(default)]
    pub command: u32,
    /// Where it stands.
    pub state: PartState,
    /// Since when, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub since: Timestamp,
    /// Delayed: until when. Later: when it became ready. UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub ready_at: Option<Timestamp>,
    /// How often it was given to a worker.
    pub attempt: u32,
    /// How many rounds of a task that repeats were done.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rounds: u32,
    /// Reserved: until when it must have ended, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub deadline: Option<Timestamp>,
    /// When the worker that has it began to run it, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub begun_at: Option<Timestamp>,
    /// Ready, and nobody can take it now: why, and what it would need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// What somebody wants of it, until it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
    /// How its newest run ended, or why there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Its newest runs, the last one last, for `meepo logs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<PartRun>,
}

impl PartView {
    /// Part `id` of `task`; `None` if it has no such part.
    pub fn new(task: &Task, id: PartId, part: Option<&Part>) -> Option<Self> {
        let (spec, _) = task.part(id.n)?;
        let pending;
        let part = match part {
            Some(part) => part,
            None => {
                pending = Part::pending(task, id.n);
                &pending
            }
        };
        Some(Self {
            id,
            node: part.node.clone(),
            command: spec.command,
            state: part.state,
            since: part.since,
            ready_at: part.ready_at,
            attempt: part.attempt,
            rounds: part.rounds,
            deadline: part.deadline,
            begun_at: part.begun_at,
            waits: None,
            ask: part.ask,
            outcome: part.outcome.clone(),
            runs: part.runs.clone(),
        })
    }
}

/// A task as it is shown, and as the log store keeps it once it is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskView {
    /// Its id.
    pub id: TaskId,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was accepted, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub submitted_at: Timestamp,
    /// When its last part ended, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub ended_at: Option<Timestamp>,
    /// The queue, if it is for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Name>,
    /// Which nodes, as asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The beginning of the first of its commands.
    pub cmd: String,
    /// Where it stands.
    pub state: TaskState,
    /// How many parts are in which state.
    pub counts: Counts,
    /// What is wanted of it.
    pub control: Control,
    /// How its parts are dealt with.
    pub policy: Policy,
    /// How far its roll-out is; left out in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Progress>,
    /// What to run; left out in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<TaskCommand>,
    /// Its parts; left out in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartView>,
}

impl TaskView {
    /// A task with its parts; `part` looks up those that have a key.
    pub fn new<'a>(task: &Task, part: impl Fn(PartId) -> Option<&'a Part>) -> Self {
        let parts = task.part_ids().filter_map(|id| PartView::new(task, id, part(id))).collect();
        let commands = task.commands.clone();
        Self { commands, parts, ..Self::summary(task, part) }
    }

    /// A task without its parts, as lists show it.
    pub fn summary<'a>(task: &Task, part: impl Fn(PartId) -> Option<&'a Part>) -> Self {
        let (mut counts, mut last) = (Counts::default(), task.submitted_at);
        for id in task.part_ids() {
            let part = part(id);
            counts.add(part.map_or(PartState::Pending, |p| p.state));
            last = last.max(part.map_or(last, |p| p.since));
        }
        let state = counts.state(task.control);
        Self {
            id: task.id,
            name: task.name.clone(),
            submitted_at: task.submitted_at,
            ended_at: state.is_final().then_some(last),
            queue: task.queue.clone(),
            target: task.target.clone(),
            cmd: task.commands.first().map(|c| begin(&c.cmd)).unwrap_or_default(),
            state,
            counts,
            control: task.control,
            policy: task.policy.clone(),
            rollout: None,
            commands: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Without what lists leave out.
    #[must_use]
    pub fn without_parts(self) -> Self {
        Self { commands: Vec::new(), parts: Vec::new(), ..self }
    }

    /// With how far its roll-out is.
    #[must_use]
    pub fn with_rollout<'a>(
        self,
        task: &Task,
        part: impl Fn(PartId) -> Option<&'a Part>,
        now: Timestamp,
    ) -> Self {
        let part = |n| part(PartId { task: task.id, n });
        Self { rollout: release::progress(task, part, now), ..self }
    }

    /// Whether nothing more comes without somebody's doing.
    pub fn rests(&self) -> bool {
        let c = &self.counts;
        let stopped = self.rollout.as_ref().is_some_and(|r| r.phase == Phase::Stopped);
        let under_way = c.delayed + c.ready + c.reserved > 0;
        self.state.is_final() || self.state == TaskState::Buried || (stopped && !under_way)
    }
}
