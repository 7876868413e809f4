//! What is to run, how it is ended, and how it ended.

use jiff::Timestamp;
use meepo_core::{code::Code, job::Executor, run::RunState};
use nix::sys::signal::Signal;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// A command to run as a process.
#[derive(Debug, Clone)]
pub struct Command {
    /// What turns `cmd` into a process.
    pub executor: Executor,
    /// The script, or the program for [`Executor::Exec`].
    pub cmd: String,
    /// Further arguments: `$1`, `$2` … of a script.
    pub args: Vec<String>,
    /// Environment added to the small default one (`PATH`, `HOME`, `LOGNAME`, `USER`,
    /// `SHELL`, and `LANG` if the worker has it). Nothing else of the worker's own
    /// environment is handed on.
    pub env: BTreeMap<String, String>,
    /// Working directory. Default: the home of `user` if it can be entered, else `/`.
    pub cwd: Option<PathBuf>,
    /// User to run as. Default: the worker's own.
    pub user: Option<String>,
    /// Text given on standard input. Default: `/dev/null`.
    pub stdin: Option<String>,
    /// Longest time it may run. Default: no limit.
    pub timeout: Option<Duration>,
    /// Bytes of output kept; the rest is dropped and counted.
    pub output_limit: u64,
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
            stdin: None,
            timeout: None,
            output_limit: meepo_core::job::DEFAULT_OUTPUT_LIMIT,
            kill: KillPlan::default(),
        }
    }
}

/// Signals to a process group with the time to wait after each. SIGKILL follows when
/// the list is through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillPlan {
    /// The signals in order, each with the time the processes get to end on it.
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

/// Why a run is killed. The first reason given stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

impl KillReason {
    /// The code and the state of a run that was killed for this reason.
    pub const fn outcome(self) -> (Code, RunState) {
        match self {
            Self::Timeout => (Code::TIMED_OUT, RunState::Timeout),
            Self::Requested => (Code::KILLED, RunState::Killed),
            Self::Replaced => (Code::REPLACED, RunState::Killed),
            Self::Shutdown => (Code::SHUTDOWN, RunState::Killed),
            Self::LeaseLost => (Code::ETCD, RunState::Killed),
        }
    }
}

/// How a run ended; the fields have the meaning of their namesakes in
/// [`meepo_core::run::RunRecord`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The outcome.
    pub code: Code,
    /// The final state.
    pub state: RunState,
    /// Exit status, if the process exited; also after a signal that it handled.
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
