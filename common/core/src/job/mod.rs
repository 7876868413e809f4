//! Job definitions ([`JobSpec`]) and their copies on nodes ([`Assignment`]).
//!
//! Both keep fields they do not know in `extra`, so that an older meepo hands a
//! newer one's record on unharmed. What a *user* sends is held to the known fields
//! by [`JobSpec::from_user`].

mod policy;
#[cfg(test)]
mod tests;
mod validate;
mod when;

pub use policy::{
    Concurrency, Executor, JobStatus, MAX_ANY, MAX_CONCURRENCY, Misfire, OnNodeLoss, OutputKeep,
    Placement,
};
pub use validate::check_command;
pub use when::When;

use crate::{
    code::Code,
    duration::HumanDuration,
    error::Invalid,
    http_job::HttpRequest,
    id::{Name, NodeId},
    input::{from_value, parse_json, unknown_field},
    kill_plan::KillPlan,
    limits::{CgroupLimits, Rlimits, Umask},
    lock::LockSpec,
    notify::JobNotify,
    retry::{self, Retry},
    tree::TreePath,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// Default limit of the output kept of one run, in bytes.
pub const DEFAULT_OUTPUT_LIMIT: u64 = 64 * 1024;
/// Largest output limit a job may ask for, in bytes.
pub const MAX_OUTPUT_LIMIT: u64 = 16 * 1024 * 1024;
/// Longest timeout.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(366 * 24 * 3600);
/// Longest jitter.
pub const MAX_JITTER: Duration = Duration::from_secs(24 * 3600);
/// Shortest `warn_after` and `expect_success_within`.
pub const MIN_WATCH: Duration = Duration::from_secs(1);
/// Largest `misfire_cap`: how many missed slots `misfire: all` makes up for.
pub const MAX_MISFIRE_CAP: u32 = 1_000;

fn is_default<T: Default + PartialEq>(v: &T) -> bool {
    *v == T::default()
}

fn target_all() -> String {
    "all".into()
}

/// Makes the two structs from the list of fields they share: a field stands in one place.
macro_rules! job_fields {
    ($($(#[$meta:meta])* $field:ident: $type:ty,)*) => {
        /// A stored, named definition: what to run, when, where and under which policies.
        /// Lives at `/meepo/jobs/<name>`.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct JobSpec {
            /// Unique name.
            pub name: Name,
            /// For people.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub description: Option<String>,
            /// The command: a script for the shells and python, a program for `exec`, a URL
            /// for `http`.
            pub cmd: String,
            /// What turns `cmd` into a run.
            #[serde(default)]
            pub executor: Executor,
            /// Cron expression of 5, 6 or 7 fields or an `@` form. Absent: only on demand.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub schedule: Option<String>,
            /// Which nodes. Default `all`.
            #[serde(default = "target_all")]
            pub target: String,
            /// On each of them, on some, or once in the cluster.
            #[serde(default)]
            #[cfg_attr(feature = "openapi", schema(value_type = String, example = "any(3)"))]
            pub placement: Placement,
            /// Switched off: no node gets it.
            #[serde(default, skip_serializing_if = "is_default")]
            pub disabled: bool,
            /// Whether the schedule is followed.
            #[serde(default)]
            pub status: JobStatus,
            $(
                $(#[$meta])*
                #[serde(default, skip_serializing_if = "is_default")]
                pub $field: $type,
            )*
            /// Fields this version does not know.
            #[serde(flatten)]
            #[cfg_attr(feature = "openapi", schema(ignore))]
            pub extra: BTreeMap<String, Value>,
        }

        /// The copy of a job on one node: the value at `/cron/jobs/<ip>/<job_id>`.
        ///
        /// A value put by hand needs only `cmd`, `express`, `task_id`, `status` and
        /// `executor`; `cmd` alone is enough. An empty `express` means: only on demand.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct Assignment {
            /// As [`JobSpec::cmd`].
            pub cmd: String,
            /// The cron expression; empty: only on demand.
            #[serde(default)]
            pub express: String,
            /// The job's id; for jobs placed by a master, the job's name. May be absent
            /// where the key names it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub task_id: Option<Name>,
            /// Whether the schedule is followed.
            #[serde(default)]
            pub status: JobStatus,
            /// What turns `cmd` into a run.
            #[serde(default)]
            pub executor: Executor,
            $(
                $(#[$meta])*
                #[serde(default, skip_serializing_if = "is_default")]
                pub $field: $type,
            )*
            /// Present on jobs that run once in the cluster: the nodes that hold the
            /// assignment, in the order in which they try to claim a slot.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub once: Vec<NodeId>,
            /// Where in the product tree the definition stands that decides here; absent at
            /// the root.
            #[serde(default, skip_serializing_if = "TreePath::is_root")]
            pub tree: TreePath,
            /// The etcd revision of the [`JobSpec`] this was made from. Absent on
            /// assignments put by hand, which no master ever touches.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub spec_revision: Option<i64>,
            /// Fields this version does not know.
            #[serde(flatten)]
            #[cfg_attr(feature = "openapi", schema(ignore))]
            pub extra: BTreeMap<String, Value>,
        }

        impl JobSpec {
            /// Names of the fields a user may give, for messages.
            pub const FIELDS: &'static [&'static str] = &[
                "name", "description", "cmd", "executor", "schedule", "target", "placement",
                "status", "disabled", $(stringify!($field)),*
            ];

            /// A definition that runs `cmd` on demand on all nodes, with the default of
            /// everything else.
            pub fn new(name: Name, cmd: impl Into<String>) -> Self {
                Self {
                    name,
                    description: None,
                    cmd: cmd.into(),
                    executor: Executor::default(),
                    schedule: None,
                    target: target_all(),
                    placement: Placement::default(),
                    disabled: false,
                    status: JobStatus::default(),
                    $($field: Default::default(),)*
                    extra: BTreeMap::new(),
                }
            }

            /// The copy of this job for a node. `once` is the claim order, empty for
            /// [`Placement::Each`].
            pub fn assignment(&self, revision: Option<i64>, once: Vec<NodeId>) -> Assignment {
                Assignment {
                    cmd: self.cmd.clone(),
                    express: self.schedule.clone().unwrap_or_default(),
                    task_id: Some(self.name.clone()),
                    status: self.status,
                    executor: self.executor,
                    $($field: self.$field.clone(),)*
                    once,
                    tree: TreePath::ROOT,
                    spec_revision: revision,
                    extra: BTreeMap::new(),
                }
            }
        }

        /// The field of an assignment for a run on request that names its trace; of a task and its
/// orders, too.
pub const TRACEPARENT: &str = "traceparent";

impl Assignment {
    /// The trace that a run on request belongs to, in the form of W3C Trace Context.
    pub fn traceparent(&self) -> Option<&str> {
        self.extra.get(TRACEPARENT)?.as_str()
    }

    /// Lets a run on request belong to a trace; `None`: to none.
    pub fn set_traceparent(&mut self, traceparent: Option<String>) {
        if let Some(traceparent) = traceparent {
            self.extra.insert(TRACEPARENT.to_owned(), Value::String(traceparent));
        }
    }
}

impl Assignment {
            /// One that runs `cmd` on demand, with the default of everything else.
            pub fn new(cmd: impl Into<String>) -> Self {
                Self {
                    cmd: cmd.into(),
                    express: String::new(),
                    task_id: None,
                    status: JobStatus::default(),
                    executor: Executor::default(),
                    $($field: Default::default(),)*
                    once: Vec::new(),
                    tree: TreePath::ROOT,
                    spec_revision: None,
                    extra: BTreeMap::new(),
                }
            }
        }
    };
}

job_fields! {
    /// Further arguments (`$1`, `$2` … of a script).
    args: Vec<String>,
    /// What is sent and which answers mean success, with `executor: http` only.
    http: Option<HttpRequest>,
    /// IANA time zone of the schedule. Default UTC.
    timezone: Option<String>,
    /// Slots before this instant do not exist.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    start_at: Option<Timestamp>,
    /// Slots after this instant do not exist.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    end_at: Option<Timestamp>,
    /// How many slots run at most; then the schedule has ended. Counted on each node, or
    /// over the cluster where `placement` is `once`.
    max_runs: Option<u32>,
    /// Spreads the nodes and jobs: each starts later by a part of this that depends on
    /// node and job only. The slot stays the instant of the schedule.
    jitter: Option<HumanDuration>,
    /// Longest time one run may take. Absent: no limit.
    timeout: Option<HumanDuration>,
    /// What happens when runs would overlap.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "queue(5)"))]
    concurrency: Concurrency,
    /// A lock in the cluster that a run needs.
    lock: Option<LockSpec>,
    /// Whether and when a run that failed is tried again.
    retry: Option<Retry>,
    /// What becomes of a run whose node is lost. Only with `placement: once`.
    on_node_loss: OnNodeLoss,
    /// What happens to slots nobody could run in time.
    misfire: Misfire,
    /// For `misfire: all`: how many slots at most are made up for. Default 10.
    misfire_cap: Option<u32>,
    /// How late a missed slot may still start. Default: no limit.
    starting_deadline: Option<HumanDuration>,
    /// Environment added to the worker's small default one.
    env: BTreeMap<String, String>,
    /// Working directory. Default: the home of `user`, else `/`.
    cwd: Option<String>,
    /// User to run as. Default: the worker's own.
    user: Option<String>,
    /// Group to run as. Default: the primary group of `user`.
    group: Option<String>,
    /// Permissions taken from files it creates. Default: the worker's own.
    umask: Option<Umask>,
    /// Priority from -20 (first) to 19 (last). Default: the worker's own.
    nice: Option<i32>,
    /// Limits of each process.
    rlimits: Rlimits,
    /// Whether it leads a session of its own.
    session: bool,
    /// A control group of its own, with limits of all processes of a run together.
    cgroup: Option<CgroupLimits>,
    /// How a run is ended. Default: three times SIGINT, a second apart, then SIGKILL.
    kill_plan: Option<KillPlan>,
    /// Text given on standard input. Default: `/dev/null`.
    stdin: Option<String>,
    /// Bytes of output kept of one run; the rest is dropped and counted. Default 65536.
    output_limit: Option<u64>,
    /// Which bytes are kept when there are more: the first, the last, or half of each.
    output_keep: OutputKeep,
    /// Whether a run goes on when its worker ends, to be taken over by the next. Not with
    /// `placement: once` nor with `lock`: nobody could end it when what it holds is lost.
    survive_restart: bool,
    /// Who is told when it fails, is well again, and so on; besides those whom rules name.
    notify: Option<Box<JobNotify>>,
    /// A run that takes longer is told of, and goes on.
    warn_after: Option<HumanDuration>,
    /// No success for so long is told of, also when it never runs.
    expect_success_within: Option<HumanDuration>,
}

impl JobSpec {
    /// Reads what a user sent: unknown fields are refused, everything is validated.
    pub fn from_user(value: Value) -> Result<Self, Invalid> {
        let spec: Self = from_value(value)?;
        if let Some(field) = spec.extra.keys().next() {
            return Err(unknown_field(field, Self::FIELDS));
        }
        spec.validate()?;
        Ok(spec)
    }
}

impl Assignment {
    /// Reads the value of a key and validates it.
    pub fn from_etcd(value: &[u8]) -> Result<Self, Invalid> {
        Self::read(value).map(|(assignment, _)| assignment)
    }

    /// Reads a value that was found valid before.
    ///
    /// # Errors
    /// When it is none.
    pub fn again(value: &[u8]) -> Result<Self, Invalid> {
        serde_json::from_slice(value).or_else(|_| Self::from_etcd(value))
    }

    /// Reads the value of a key, validates it, and answers when it fires (`None`: only on
    /// demand).
    pub fn read(value: &[u8]) -> Result<(Self, Option<When>), Invalid> {
        let assignment: Self = match serde_json::from_slice(value) {
            Ok(assignment) => assignment,
            // Slower, but the error names the field.
            Err(_) => from_value(parse_json(value)?)?,
        };
        let when = assignment.validate()?;
        Ok((assignment, when))
    }

    /// The id of the job whose assignment stands at `/cron/jobs/<ip>/<rest>`: `rest`,
    /// with which a `task_id` must agree, or in the oldest form, where `rest` is
    /// empty, the `task_id`.
    pub fn id_at(&self, rest: &str) -> Result<Name, Invalid> {
        let bad = |problem: String, expected: String| {
            Err(Invalid::new(Code::BAD_NAME, "task_id", problem, expected))
        };
        match (rest, &self.task_id) {
            ("", Some(task_id)) => Ok(task_id.clone()),
            ("", None) => bad(
                "missing, and the key names no job either".into(),
                "a task_id, or the job's id at the end of the key".into(),
            ),
            (rest, task_id) => {
                let id = Name::new(rest).map_err(|e| e.at("(key)"))?;
                match task_id.as_ref().filter(|t| **t != id) {
                    None => Ok(id),
                    Some(other) => bad(
                        format!("{:?} is not the job the key names", other.as_str()),
                        format!("{id:?}, or no task_id"),
                    ),
                }
            }
        }
    }

    /// The limit of output kept of one run, in bytes.
    pub fn output_limit(&self) -> u64 {
        self.output_limit.unwrap_or(DEFAULT_OUTPUT_LIMIT)
    }

    /// How much later than its slots job `id` starts on `node`: a part of its jitter. The
    /// nodes of a job that runs once agree on it, so that their order of claiming holds.
    pub fn delay(&self, id: &Name, node: &NodeId) -> Duration {
        let node = if self.is_once() { "" } else { node.as_str() };
        let jitter = self.jitter.map_or(Duration::ZERO, |j| j.0);
        retry::share(jitter, retry::seed([node, id.as_str()]))
    }

    /// Whether somebody waits for its successes, also if nothing has failed on the node.
    pub fn heeds_success(&self) -> bool {
        self.is_once() || self.expect_success_within.is_some()
    }

    /// Whether a slot runs on one node of the cluster only.
    pub fn is_once(&self) -> bool {
        !self.once.is_empty()
    }
}
