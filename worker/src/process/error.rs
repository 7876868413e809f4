//! Why a process could not be started.

use super::command::Ended;
use jiff::Timestamp;
use std::{fmt, str::FromStr};

/// The kind of a [`StartError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartProblem {
    /// There is no such program, or the interpreter its first line names.
    NotFound,
    /// The program must not be executed by this user.
    PermissionDenied,
    /// There is no such user.
    NoSuchUser,
    /// There is no such group.
    NoSuchGroup,
    /// The worker may not switch to that user or group.
    UserSwitch,
    /// A limit, a priority or a control group that cannot be had on this node.
    Limits,
    /// The working directory is missing or cannot be entered.
    WorkingDirectory,
    /// The host is short of memory, processes or file descriptors at the moment.
    Resources,
    /// Anything else: an argument list that is too long, a file that is no program, …
    Other,
}

impl StartProblem {
    /// Every kind with its name between exec helper and worker.
    const NAMES: [(Self, &'static str); 9] = [
        (Self::NotFound, "not-found"),
        (Self::PermissionDenied, "permission"),
        (Self::NoSuchUser, "no-user"),
        (Self::NoSuchGroup, "no-group"),
        (Self::UserSwitch, "switch"),
        (Self::Limits, "limits"),
        (Self::WorkingDirectory, "cwd"),
        (Self::Resources, "resources"),
        (Self::Other, "other"),
    ];
}

impl fmt::Display for StartProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(k, _)| k == self).map_or("other", |(_, n)| n);
        f.write_str(name)
    }
}

impl FromStr for StartProblem {
    type Err = std::convert::Infallible;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(Self::NAMES.iter().find(|(_, n)| *n == s).map_or(Self::Other, |(k, _)| *k))
    }
}

/// A process that could not be started: what is wrong, in words for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// The kind.
    pub problem: StartProblem,
    /// What is wrong and, where it is not obvious, what would be right.
    pub message: String,
}

impl StartError {
    pub(super) fn new(problem: StartProblem, message: impl Into<String>) -> Self {
        Self { problem, message: message.into() }
    }

    /// Whether starting the same command again a little later can help.
    pub fn retryable(&self) -> bool {
        self.problem == StartProblem::Resources
    }

    /// The end of a run that never started, known at `now`.
    pub fn ended(&self, now: Timestamp) -> Ended {
        Ended::not_started(self.message.clone(), now)
    }
}
