//! What etcd holds: the task, its parts once they are split off, and the order to the
//! worker that has a part.

use super::{id::PartId, id::TaskId, repeat::Repeat, state::PartState};
use crate::{
    code::Code,
    duration::HumanDuration,
    http_job::HttpRequest,
    id::{Name, NodeId, RunId},
    job::{Assignment, Executor, OutputKeep, TRACEPARENT},
    kill_plan::KillPlan,
    limits::{CgroupLimits, Rlimits, Umask},
    retry::Retry,
    rollout::Rollout,
    run::RunState,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// Priority unless a task says otherwise; the smaller is the first.
pub const DEFAULT_PRIORITY: u32 = 1024;
/// Time to run unless a task says otherwise.
pub const DEFAULT_TTR: Duration = Duration::from_secs(3600);
/// How long a part stays buried before it is given up.
pub const BURIED_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Runs that a part remembers; older ones are in the log store under its id.
pub const RUNS_KEPT: usize = 20;

fn is_default<T: Default + PartialEq>(v: &T) -> bool {
    *v == T::default()
}

/// What to run and how.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskCommand {
    /// The command: a script for the shells and python, a program for `exec`, a URL for
    /// `http`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cmd: String,
    /// What turns `cmd` into a run.
    #[serde(default, skip_serializing_if = "is_default")]
    pub executor: Executor,
    /// Further arguments (`$1`, `$2` … of a script).
    #[serde(default, skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    /// What is sent and which answers mean success, with `executor: http` only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub http: Option<HttpRequest>,
    /// Longest time one run may take, whatever `touch` says. Default: `ttr` alone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timeout: Option<HumanDuration>,
    /// Environment added to the worker's small default one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub env: BTreeMap<String, String>,
    /// Working directory. Default: the home of `user`, else `/`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cwd: Option<String>,
    /// User to run as. Default: the worker's own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub user: Option<String>,
    /// Group to run as. Default: the primary group of `user`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub group: Option<String>,
    /// Permissions taken from files it creates. Default: the worker's own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub umask: Option<Umask>,
    /// Priority from -20 (first) to 19 (last). Default: the worker's own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nice: Option<i32>,
    /// Limits of each process.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rlimits: Rlimits,
    /// A control group of its own, with limits of all processes of a run together.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cgroup: Option<CgroupLimits>,
    /// How a run is ended. Default: three times SIGINT, a second apart, then SIGKILL.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kill_plan: Option<KillPlan>,
    /// Text given on standard input. Default: `/dev/null`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdin: Option<String>,
    /// Bytes of output kept of one run; the rest is dropped and counted. Default 65536.
    #[serde(default, skip_serializing_if = "is_default")]
    pub output_limit: Option<u64>,
    /// Which bytes are kept when there are more: the first, the last, or half of each.
    #[serde(default, skip_serializing_if = "is_default")]
    pub output_keep: OutputKeep,
}

impl TaskCommand {
    /// Names of the fields, for messages.
    pub const FIELDS: &'static [&'static str] = &[
        "cmd",
        "executor",
        "args",
        "http",
        "timeout",
        "env",
        "cwd",
        "user",
        "group",
        "umask",
        "nice",
        "rlimits",
        "cgroup",
        "kill_plan",
        "stdin",
        "output_limit",
        "output_keep",
    ];

    /// As workers run it.
    pub fn assignment(&self) -> Assignment {
        Assignment {
            executor: self.executor,
            args: self.args.clone(),
            http: self.http.clone(),
            timeout: self.timeout,
            env: self.env.clone(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            group: self.group.clone(),
            umask: self.umask,
            nice: self.nice,
            rlimits: self.rlimits,
            cgroup: self.cgroup,
            kill_plan: self.kill_plan.clone(),
            stdin: self.stdin.clone(),
            output_limit: self.output_limit,
            output_keep: self.output_keep,
            ..Assignment::new(self.cmd.clone())
        }
    }
}

/// What becomes of a part that failed and is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It waits, buried, for somebody to look, a week at most.
    Bury,
    /// It has failed.
    Fail,
}

/// What becomes of a part whose worker died or gave it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// It is given back and run again, up to [`super::end::MAX_LOSSES`] times; then it is
    /// buried.
    #[default]
    Release,
    /// It is buried.
    Bury,
    /// It has failed.
    Fail,
}

/// How the parts of a task are dealt with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Policy {
    /// The smaller is the first.
    pub priority: u32,
    /// No part is begun before. UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub not_before: Option<Timestamp>,
    /// A part that has been ready for so long and was not begun is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<HumanDuration>,
    /// How long a worker may have a part.
    pub ttr: HumanDuration,
    /// Whether and when a part that failed is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// What becomes of it after that.
    pub on_failure: OnFailure,
    /// What becomes of a part whose worker died.
    #[serde(default)]
    pub on_loss: OnLoss,
    /// In which portions parts are let go; see [`super::release`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// How often each part is run. Default: once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Repeat>,
}

/// What somebody wants of a whole task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Control {
    /// It goes on.
    #[default]
    Active,
    /// No further part is begun for now.
    Paused,
    /// No further part is begun any more; what has begun goes on.
    Cancelled,
    /// … and what has begun is ended.
    Stopped,
}

impl Control {
    /// Whether parts that have not begun are withdrawn.
    pub const fn revokes(self) -> bool {
        matches!(self, Self::Cancelled | Self::Stopped)
    }
}

/// One part of a task as it was submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartSpec {
    /// The node it is for; absent: whoever serves the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Which of the task's commands, from 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub command: u32,
}

/// The value at `/meepo/tasks/<task_id>`: what was submitted, and what is wanted of it
/// since. Parts that have no key of their own yet are [`PartState::Pending`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was accepted. UTC.
    pub submitted_at: Timestamp,
    /// The idempotency key it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Name>,
    /// The queue; absent where every part has a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Name>,
    /// Which nodes: those it was split over, or those that may serve the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What to run.
    pub commands: Vec<TaskCommand>,
    /// Part `n` stands at `n - 1`.
    pub parts: Vec<PartSpec>,
    /// How they are dealt with.
    pub policy: Policy,
    /// What is wanted of it.
    #[serde(default)]
    pub control: Control,
    /// Of a roll-out: so many parts had failed when somebody last let it go on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pardoned: u32,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Task {
    /// The part's place and command.
    pub fn part(&self, n: u32) -> Option<(&PartSpec, &TaskCommand)> {
        let spec = self.parts.get(usize::try_from(n).ok()?.checked_sub(1)?)?;
        Some((spec, self.commands.get(usize::try_from(spec.command).ok()?)?))
    }

    /// The ids of all parts.
    pub fn part_ids(&self) -> impl Iterator<Item = PartId> + use<> {
        let id = self.id;
        // Their number is bounded far below u32.
        (1..=self.parts.len() as u32).map(move |n| PartId { task: id, n })
    }
}

/// What somebody wants of a part that a worker has begun. Done when its run has ended,
/// unless that was a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase", tag = "then")]
pub enum Ask {
    /// End it: it has failed.
    Stop,
    /// End it and give it up.
    Delete,
    /// End it and put it aside.
    Bury,
    /// End it and give it back.
    Release {
        /// Not before. UTC.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
        not_before: Option<Timestamp>,
    },
}

/// How the newest run of a part ended, or why there was none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Outcome {
    /// The outcome.
    pub code: Code,
    /// How the run ended; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<RunState>,
    /// Exit status, if the process exited; of a request the status of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal number, if a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What happened, in words, where the code alone does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was known. UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub at: Timestamp,
}

/// A run of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartRun {
    /// The run.
    pub run_id: RunId,
    /// Where.
    pub node: NodeId,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// How it ended; absent while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
}

/// The value at `/meepo/parts/<task_id>/<n>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Where it stands.
    pub state: PartState,
    /// Since when. UTC.
    pub since: Timestamp,
    /// Delayed: until when. Ready and later: when it became ready. UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Timestamp>,
    /// Who it is for, has it, or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// How often it was given to a worker.
    #[serde(default)]
    pub attempt: u32,
    /// How many rounds of a task that repeats were done.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rounds: u32,
    /// How many of its runs failed, since it was put, kicked or done.
    #[serde(default, skip_serializing_if = "is_default")]
    pub failures: u32,
    /// How many workers died with it or gave it up, since it was put or kicked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub losses: u32,
    /// Reserved: until when it must have ended. UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// How often it was touched.
    #[serde(default, skip_serializing_if = "is_default")]
    pub touched: u32,
    /// When the worker that has it began to run it. UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_at: Option<Timestamp>,
    /// What somebody wants of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
    /// How the newest run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Its newest runs, the last one last.
    #[serde(default, skip_serializing_if = "is_default")]
    pub runs: Vec<PartRun>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Part {
    /// As it is before it has a key of its own.
    pub fn pending(task: &Task, n: u32) -> Self {
        Self {
            state: PartState::Pending,
            since: task.submitted_at,
            ready_at: None,
            node: task.part(n).and_then(|(spec, _)| spec.node.clone()),
            attempt: 0,
            rounds: 0,
            failures: 0,
            losses: 0,
            deadline: None,
            touched: 0,
            begun_at: None,
            ask: None,
            outcome: None,
            runs: Vec::new(),
            extra: BTreeMap::new(),
        }
    }

    /// The newest run.
    pub fn run(&self) -> Option<&PartRun> {
        self.runs.last()
    }
}

/// The value at `/cron/tasks/<ip>/<part_id>`: a part for a worker to run. It is put, changed
/// and deleted only together with the part, so it is there exactly while the part is
/// reserved by that node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The run it will be.
    pub run_id: RunId,
    /// The part as it was reserved.
    pub part: Part,
    /// What to run.
    pub command: TaskCommand,
    /// What becomes of it when the run has ended.
    pub policy: Policy,
    /// When the task was submitted: the slot of its runs. UTC.
    pub submitted_at: Timestamp,
    /// Revision of the task at `/meepo/tasks/<task_id>` this was made from: the part is not
    /// begun if somebody has withdrawn the task since.
    pub task_revision: i64,
    /// Whether another node may be given the part when this one is taken for dead.
    #[serde(default, skip_serializing_if = "is_default")]
    pub queued: bool,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Order {
    /// The order for a part that a worker has.
    pub fn of(task: &Task, task_revision: i64, id: PartId, part: &Part) -> Option<Self> {
        let (spec, command) = task.part(id.n)?;
        Some(Self {
            run_id: part.run()?.run_id,
            part: part.clone(),
            command: command.clone(),
            policy: task.policy.clone(),
            submitted_at: task.submitted_at,
            task_revision,
            queued: spec.node.is_none(),
            extra: task
                .extra
                .get_key_value(TRACEPARENT)
                .map(|(key, value)| (key.clone(), value.clone()))
                .into_iter()
                .collect(),
        })
    }

    /// The trace that the task belongs to, in the form of W3C Trace Context.
    pub fn traceparent(&self) -> Option<&str> {
        self.extra.get(TRACEPARENT)?.as_str()
    }
}
