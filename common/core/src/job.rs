//! Job definitions ([`JobSpec`]) and their copies on nodes ([`Assignment`]).
//!
//! Both keep fields they do not know in `extra`, so that an older meepo hands a
//! newer one's record on unharmed. What a *user* sends is held to the known fields
//! by [`JobSpec::from_user`].

use crate::{
    calendar::{self, Schedule},
    code::Code,
    duration::HumanDuration,
    error::Invalid,
    id::{Name, NodeId},
    input::{from_value, parse_json, unknown_field},
    target::Target,
};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// Default limit of the output kept of one run, in bytes.
pub const DEFAULT_OUTPUT_LIMIT: u64 = 64 * 1024;
/// Largest output limit a job may ask for, in bytes.
pub const MAX_OUTPUT_LIMIT: u64 = 16 * 1024 * 1024;
/// Longest timeout.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(366 * 24 * 3600);
/// Largest `misfire_cap`: how many missed slots `misfire: all` makes up for.
pub const MAX_MISFIRE_CAP: u32 = 1_000;

/// What turns `cmd` into a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Executor {
    /// `bash -c CMD ARGS…`
    #[default]
    Bash,
    /// `sh -c CMD ARGS…`
    Sh,
    /// The program `CMD` with the arguments `ARGS…`; no shell.
    Exec,
    /// `python3 -c CMD ARGS…`
    Python,
}

impl Executor {
    /// Every executor, for messages and documentation.
    pub const ALL: [Executor; 4] = [Self::Bash, Self::Sh, Self::Exec, Self::Python];

    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Sh => "sh",
            Self::Exec => "exec",
            Self::Python => "python",
        }
    }
}

impl std::fmt::Display for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Executor {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|e| e.as_str() == s).ok_or_else(|| {
            Invalid::new(
                Code::UNKNOWN_EXECUTOR,
                "executor",
                format!("unknown executor {s:?}"),
                "one of bash, sh, exec, python",
            )
        })
    }
}

/// Whether a job's schedule is followed. `pause` keeps the job and starts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// The schedule is followed.
    #[default]
    Running,
    /// The schedule is not followed; slots that pass are not made up for.
    Pause,
}

/// On how many of the matching nodes a slot runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// On every matching node.
    #[default]
    Each,
    /// On exactly one of them, whichever claims the slot.
    Once,
}

/// What happens when a slot comes while an earlier run of the same job on the
/// same node is still active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Concurrency {
    /// The new slot is skipped and recorded as skipped.
    #[default]
    Forbid,
    /// Both run.
    Allow,
    /// The earlier run is killed, then the new one starts.
    Replace,
    /// The new one waits until the earlier has ended (at most one waits).
    Queue,
}

/// What happens to slots that passed while the worker could not run them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Misfire {
    /// They are recorded as missed.
    #[default]
    Skip,
    /// The latest runs now, the others are recorded as missed.
    Once,
    /// All run now, oldest first, up to `misfire_cap`; the others are recorded as missed.
    All,
}

fn is_default<T: Default + PartialEq>(v: &T) -> bool {
    *v == T::default()
}

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
    /// The command: a script for the shells and python, a program for `exec`.
    pub cmd: String,
    /// Further arguments (`$1`, `$2` … of a script).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// What turns `cmd` into a process.
    #[serde(default)]
    pub executor: Executor,
    /// Cron expression of 5, 6 or 7 fields or an `@` form. Absent: only on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// IANA time zone of the schedule. Default UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Which nodes. Default `all`.
    #[serde(default = "target_all")]
    pub target: String,
    /// On each of them or once in the cluster.
    #[serde(default)]
    pub placement: Placement,
    /// Whether the schedule is followed.
    #[serde(default)]
    pub status: JobStatus,
    /// Longest time one run may take. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// What happens when runs would overlap.
    #[serde(default, skip_serializing_if = "is_default")]
    pub concurrency: Concurrency,
    /// What happens to slots nobody could run in time.
    #[serde(default, skip_serializing_if = "is_default")]
    pub misfire: Misfire,
    /// For `misfire: all`: how many slots at most are made up for. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfire_cap: Option<u32>,
    /// How late a missed slot may still start. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_deadline: Option<HumanDuration>,
    /// Environment added to the worker's small default one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory. Default: the home of `user`, else `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User to run as. Default: the worker's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Text given on standard input. Default: `/dev/null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Bytes of output kept of one run; the rest is dropped and counted. Default 65536.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_limit: Option<u64>,
    /// Fields this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub extra: BTreeMap<String, Value>,
}

fn target_all() -> String {
    "all".into()
}

/// The copy of a job on one node: the value at `/cron/jobs/<ip>/<job_id>`.
///
/// A value put by hand needs only `cmd`, `express`, `task_id`, `status` and
/// `executor`; `cmd` alone is enough. An empty `express` means: only on demand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// What turns `cmd` into a process.
    #[serde(default)]
    pub executor: Executor,
    /// As [`JobSpec::args`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// As [`JobSpec::timezone`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// As [`JobSpec::timeout`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// As [`JobSpec::concurrency`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub concurrency: Concurrency,
    /// As [`JobSpec::misfire`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub misfire: Misfire,
    /// As [`JobSpec::misfire_cap`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfire_cap: Option<u32>,
    /// As [`JobSpec::starting_deadline`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_deadline: Option<HumanDuration>,
    /// As [`JobSpec::env`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// As [`JobSpec::cwd`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// As [`JobSpec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As [`JobSpec::stdin`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// As [`JobSpec::output_limit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_limit: Option<u64>,
    /// Present on jobs that run once in the cluster: the nodes that hold the
    /// assignment, in the order in which they try to claim a slot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub once: Vec<NodeId>,
    /// The etcd revision of the [`JobSpec`] this was made from. Absent on
    /// assignments put by hand, which no master ever touches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_revision: Option<i64>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// When an assignment fires.
#[derive(Debug, Clone)]
pub struct When {
    /// The compiled expression.
    pub schedule: Schedule,
    /// The zone its fields are read in.
    pub timezone: TimeZone,
}

impl JobSpec {
    /// Names of the fields a user may give, for messages.
    pub const FIELDS: &'static [&'static str] = &[
        "name",
        "description",
        "cmd",
        "args",
        "executor",
        "schedule",
        "timezone",
        "target",
        "placement",
        "status",
        "timeout",
        "concurrency",
        "misfire",
        "misfire_cap",
        "starting_deadline",
        "env",
        "cwd",
        "user",
        "stdin",
        "output_limit",
    ];

    /// Reads what a user sent: unknown fields are refused, everything is validated.
    pub fn from_user(value: Value) -> Result<Self, Invalid> {
        let spec: Self = from_value(value)?;
        if let Some(field) = spec.extra.keys().next() {
            return Err(unknown_field(field, Self::FIELDS));
        }
        spec.validate()?;
        Ok(spec)
    }

    /// Checks every field that its type alone does not.
    pub fn validate(&self) -> Result<(), Invalid> {
        Target::parse(&self.target)?;
        self.assignment(None, Vec::new()).validate().map(drop)
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
            args: self.args.clone(),
            timezone: self.timezone.clone(),
            timeout: self.timeout,
            concurrency: self.concurrency,
            misfire: self.misfire,
            misfire_cap: self.misfire_cap,
            starting_deadline: self.starting_deadline,
            env: self.env.clone(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            stdin: self.stdin.clone(),
            output_limit: self.output_limit,
            once,
            spec_revision: revision,
            extra: BTreeMap::new(),
        }
    }
}

impl Assignment {
    /// Reads the value of a key and validates it.
    pub fn from_etcd(value: &[u8]) -> Result<Self, Invalid> {
        let a: Self = from_value(parse_json(value)?)?;
        a.validate()?;
        Ok(a)
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

    /// Checks every field that its type alone does not; answers when it fires
    /// (`None`: only on demand).
    pub fn validate(&self) -> Result<Option<When>, Invalid> {
        let bad = |field: &str, problem: String, expected: &str| {
            Err(Invalid::new(Code::BAD_VALUE, field, problem, expected))
        };
        check_command(self.executor, &self.cmd, &self.args)?;
        for (k, v) in &self.env {
            if k.is_empty() || k.contains(['=', '\0']) || v.contains('\0') {
                return bad(
                    &format!("env.{k}"),
                    "not a valid environment variable".into(),
                    "a name without '=' and text without NUL",
                );
            }
        }
        if self.timeout.is_some_and(|t| t.0.is_zero() || t.0 > MAX_TIMEOUT) {
            let expected = "a positive duration such as 30s, at most a year";
            return bad("timeout", "out of range".into(), expected);
        }
        if self.output_limit.is_some_and(|l| l > MAX_OUTPUT_LIMIT) {
            return bad(
                "output_limit",
                format!("more than {MAX_OUTPUT_LIMIT}"),
                "a number of bytes up to 16777216",
            );
        }
        if self.misfire_cap.is_some_and(|c| c == 0 || c > MAX_MISFIRE_CAP) {
            return bad("misfire_cap", "out of range".into(), "1 to 1000");
        }
        if self.cwd.as_ref().is_some_and(|c| !c.starts_with('/') || c.contains('\0')) {
            return bad("cwd", "not an absolute path".into(), "a path that starts with '/'");
        }
        if self.user.as_ref().is_some_and(|u| u.is_empty() || u.contains(['\0', ':'])) {
            return bad("user", "not a user name".into(), "the name of a user on the node");
        }
        let zone = self.timezone.as_deref().unwrap_or("UTC");
        let timezone = calendar::time_zone(zone)?;
        if self.express.trim().is_empty() {
            return Ok(None);
        }
        // In etcd the field is called `express`, in job files `schedule`: the error keeps
        // the name that people write most.
        let schedule = Schedule::parse(&self.express)?;
        Ok(Some(When { schedule, timezone }))
    }

    /// The limit of output kept of one run, in bytes.
    pub fn output_limit(&self) -> u64 {
        self.output_limit.unwrap_or(DEFAULT_OUTPUT_LIMIT)
    }

    /// Whether a slot runs on one node of the cluster only.
    pub fn is_once(&self) -> bool {
        !self.once.is_empty()
    }
}

/// Checks that `cmd` and `args` can be handed to `execve(2)`.
pub fn check_command(executor: Executor, cmd: &str, args: &[String]) -> Result<(), Invalid> {
    if cmd.trim().is_empty() {
        let expected = match executor {
            Executor::Exec => "the path of a program",
            _ => "a command such as `date -u`",
        };
        return Err(Invalid::new(Code::EMPTY_COMMAND, "cmd", "empty command", expected));
    }
    if cmd.contains('\0') || args.iter().any(|a| a.contains('\0')) {
        return Err(Invalid::new(
            Code::BAD_VALUE,
            "cmd",
            "contains a NUL character",
            "text without NUL",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
