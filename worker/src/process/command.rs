//! What is to run, how it is ended, and how it ended.

use crate::secrets::Secrets;
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    job::{Executor, OutputKeep},
    limits::{CgroupLimits, Rlimits, Umask},
    run::{RunRecord, RunState, to_millis},
};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// A command to run as a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    /// What turns `cmd` into a process.
    pub executor: Executor,
    /// The script, or the program for [`Executor::Exec`].
    pub cmd: String,
    /// Further arguments: `$1`, `$2` … of a script.
    pub args: Vec<String>,
    /// Environment added to the small default one (`PATH`, `HOME`, `LOGNAME`, `USER`,
    /// `SHELL`, and `LANG` if the worker has it). Nothing else of the worker's own
    /// environment is handed on. `MEEPO_RUN_ID` is always the run's id, by which what it
    /// starts is found. Values may refer to `secrets`.
    pub env: BTreeMap<String, String>,
    /// Working directory. Default: the home of `user` if it can be entered, else `/`.
    pub cwd: Option<PathBuf>,
    /// User to run as. Default: the worker's own.
    pub user: Option<String>,
    /// Group to run as. Default: the user's own.
    pub group: Option<String>,
    /// Permissions taken from files it creates. Default: the worker's own.
    pub umask: Option<Umask>,
    /// Priority, -20 (first) to 19 (last). Default: the worker's own.
    pub nice: Option<i32>,
    /// Limits of each of its processes.
    pub rlimits: Rlimits,
    /// Whether it leads a session of its own (setsid(2)).
    pub session: bool,
    /// A control group of its own with these limits.
    pub cgroup: Option<CgroupLimits>,
    /// Text given on standard input, which may refer to `secrets`. Default: `/dev/null`.
    pub stdin: Option<String>,
    /// What `env` and `stdin` refer to. Goes to no disk.
    #[serde(skip)]
    pub secrets: Secrets,
    /// Longest time it may run. Default: no limit.
    pub timeout: Option<Duration>,
    /// Bytes of output kept; the rest is dropped and counted.
    pub output_limit: u64,
    /// Which bytes these are.
    pub output_keep: OutputKeep,
    /// How it is ended, on request and for its timeout.
    pub kill: KillPlan,
}

impl Command {
    /// `cmd` under `executor` with defaults for everything else.
    pub fn new(executor: Executor, cmd: impl Into<String>) -> Self {
        Self {
            executor,
            cmd: cmd.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            group: None,
            umask: None,
            nice: None,
            rlimits: Rlimits::default(),
            session: false,
            cgroup: None,
            stdin: None,
            secrets: Secrets::default(),
            timeout: None,
            output_limit: meepo_core::job::DEFAULT_OUTPUT_LIMIT,
            output_keep: OutputKeep::default(),
            kill: KillPlan::default(),
        }
    }
}

/// Signals to the processes of a run with the time to wait after each. SIGKILL follows when
/// the list is through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillPlan {
    /// The signals in order, each with the time the processes get to end on it.
    #[serde(with = "by_name")]
    pub signals: Vec<(Signal, Duration)>,
}

impl KillPlan {
    /// SIGKILL at once.
    pub const NOW: KillPlan = KillPlan { signals: Vec::new() };
}

impl Default for KillPlan {
    /// Three times SIGINT with a second after each.
    fn default() -> Self {
        Self { signals: vec![(Signal::SIGINT, Duration::from_secs(1)); 3] }
    }
}

impl From<&meepo_core::kill_plan::KillPlan> for KillPlan {
    fn from(plan: &meepo_core::kill_plan::KillPlan) -> Self {
        let steps = plan.0.iter();
        // Every signal a plan may name is known here; a test goes through them.
        let signals = steps.filter_map(|s| Some((s.signal().parse().ok()?, s.wait())));
        Self { signals: signals.collect() }
    }
}

/// Signals by their names.
mod by_name {
    use super::{Duration, Signal};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    type Steps = Vec<(Signal, Duration)>;

    pub(super) fn serialize<S: Serializer>(steps: &Steps, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(steps.iter().map(|(signal, wait)| (signal.as_str(), wait)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Steps, D::Error> {
        let steps = Vec::<(String, Duration)>::deserialize(d)?.into_iter();
        steps.map(|(name, wait)| Ok((name.parse().map_err(D::Error::custom)?, wait))).collect()
    }
}

/// Why a run is killed. The first reason given stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillReason {
    /// It ran longer than its timeout.
    Timeout,
    /// Somebody asked for it.
    Requested,
    /// It makes room for a newer run of its job.
    Replaced,
    /// The worker shuts down.
    Shutdown,
    /// The node's lease is lost: the run may be run elsewhere.
    LeaseLost,
    /// The deadline of the node's drain has passed.
    Drained,
}

impl KillReason {
    /// Whether a kill for this reason must not take long, whatever the plan: the worker
    /// shuts down, or others may soon run what this run does.
    pub(super) const fn is_urgent(self) -> bool {
        matches!(self, Self::Shutdown | Self::LeaseLost)
    }

    /// The code and the state of a run that was killed for this reason.
    pub const fn outcome(self) -> (Code, RunState) {
        match self {
            Self::Timeout => (Code::TIMED_OUT, RunState::Timeout),
            Self::Requested => (Code::KILLED, RunState::Killed),
            Self::Replaced => (Code::REPLACED, RunState::Killed),
            Self::Shutdown => (Code::SHUTDOWN, RunState::Killed),
            Self::LeaseLost => (Code::ETCD, RunState::Killed),
            Self::Drained => (Code::DRAINED, RunState::Killed),
        }
    }
}

/// How a run ended; the fields have the meaning of their namesakes in
/// [`meepo_core::run::RunRecord`]. Supervisors of older versions write it: new fields need a
/// default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The outcome.
    pub code: Code,
    /// The final state.
    pub state: RunState,
    /// Exit status, if the process exited, also after a signal that it handled; of a
    /// request the status of the answer.
    pub exit_code: Option<i32>,
    /// Signal number, if a signal ended it.
    pub signal: Option<i32>,
    /// What happened, where the code alone does not say it.
    pub message: Option<String>,
    /// When the process ended, millisecond precision.
    pub ended_at: Timestamp,
    /// Bytes it wrote.
    pub output_bytes: u64,
    /// Bytes of these that were not kept.
    pub dropped_bytes: u64,
}

impl Ended {
    /// The end of a run that never started, known at `now`.
    pub fn not_started(message: String, now: Timestamp) -> Self {
        Self {
            code: Code::CANNOT_START,
            state: RunState::Failed,
            exit_code: None,
            signal: None,
            message: Some(message),
            ended_at: to_millis(now),
            output_bytes: 0,
            dropped_bytes: 0,
        }
    }

    /// Enters the end into the record of its run.
    pub fn enter(self, record: &mut RunRecord) {
        record.state = self.state;
        record.code = self.code;
        record.exit_code = self.exit_code;
        record.signal = self.signal;
        record.message = self.message;
        record.ended_at = Some(self.ended_at);
        record.output_bytes = self.output_bytes;
        record.dropped_bytes = self.dropped_bytes;
    }
}
