//! How commands end: exit codes and the one line that says what went wrong.

use meepo_core::{
    api::ErrorInfo,
    code::{self, Code},
    error::Invalid,
};
use std::{fmt, io};

/// Exit codes, the same for every command. `meepo --help` prints this table.
///
/// | code | meaning |
/// |---|---|
/// | 0 | done; for `run` and `--follow`: every node succeeded |
/// | 1 | the command or run failed on some node |
/// | 2 | usage, or input that is not valid |
/// | 3 | no such job, run or node |
/// | 4 | the master, or something it needs, cannot be reached |
/// | 5 | conflict: the object changed or exists already |
/// | 6 | internal error |
/// | 7 | not logged in, or not allowed to do this |
/// | 130 | interrupted |
/// | 141 | the reader of the output went away |
pub(crate) mod exit {
    /// Done.
    pub(crate) const OK: u8 = 0;
    /// The command or run failed on some node.
    pub(crate) const FAILED: u8 = 1;
    /// Usage, or input that is not valid.
    pub(crate) const USAGE: u8 = 2;
    /// No such job, run or node.
    pub(crate) const NOT_FOUND: u8 = 3;
    /// The master, or something it needs, cannot be reached.
    pub(crate) const UNAVAILABLE: u8 = 4;
    /// The object changed or exists already.
    pub(crate) const CONFLICT: u8 = 5;
    /// A defect, or an answer that cannot be understood.
    pub(crate) const INTERNAL: u8 = 6;
    /// Not logged in, or not allowed to do this.
    pub(crate) const DENIED: u8 = 7;
    /// Ctrl-C, as shells count it (128 + SIGINT).
    pub(crate) const INTERRUPTED: u8 = 130;
    /// Broken pipe, as shells count it (128 + SIGPIPE).
    pub(crate) const PIPE: u8 = 141;
}

/// The table of [`exit`] for `--help`.
pub(crate) const EXIT_HELP: &str = "\
Exit codes:
  0    done; for `run` and `job trigger --follow`: every node succeeded
  1    the command or run failed on some node
       (with exactly one node its own non-zero exit status is passed through)
  2    usage, or input that is not valid
  3    no such job, run or node
  4    the master, or something it needs, cannot be reached
  5    conflict: the object changed or exists already
  6    internal error
  7    not logged in, or not allowed to do this
  130  interrupted
  141  the reader of the output went away";

/// What every command answers: its exit code or the reason it has none.
pub(crate) type CliResult<T> = Result<T, CliError>;

/// Why a command could not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CliError {
    /// One of [`exit`].
    pub(crate) exit: u8,
    /// Where: a field, an option, a file.
    pub(crate) place: Option<String>,
    /// What was wrong.
    pub(crate) problem: String,
    /// What would be right.
    pub(crate) expected: Option<String>,
}

impl CliError {
    /// An error without a place.
    pub(crate) fn new(exit: u8, problem: impl Into<String>) -> Self {
        Self { exit, place: None, problem: problem.into(), expected: None }
    }

    /// Input that is not valid.
    pub(crate) fn usage(
        place: impl Into<String>,
        problem: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::new(exit::USAGE, problem).at(place).expected(expected)
    }

    /// The same error with a place, before any it already has.
    pub(crate) fn at(mut self, place: impl Into<String>) -> Self {
        let place = place.into();
        self.place = Some(match self.place {
            Some(inner) => format!("{place}: {inner}"),
            None => place,
        });
        self
    }

    /// The same error, saying what would be right.
    pub(crate) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Whether nothing should be printed: the reader of our output is gone.
    pub(crate) fn is_silent(&self) -> bool {
        self.exit == exit::PIPE
    }
}

impl fmt::Display for CliError {
    /// One line, whatever the parts contain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        if let Some(place) = &self.place {
            line.push_str(place);
            line.push_str(": ");
        }
        line.push_str(&self.problem);
        if let Some(expected) = &self.expected {
            line.push_str("; expected ");
            line.push_str(expected);
        }
        f.write_str(&crate::output::text::one_line(&line))
    }
}

impl From<Invalid> for CliError {
    fn from(e: Invalid) -> Self {
        Self {
            exit: exit_of(e.code),
            place: Some(e.field),
            problem: e.problem,
            expected: Some(e.expected),
        }
    }
}

impl From<ErrorInfo> for CliError {
    fn from(e: ErrorInfo) -> Self {
        Self { exit: exit_of(e.code), place: e.field, problem: e.message, expected: e.expected }
    }
}

impl From<io::Error> for CliError {
    /// For writing to our own output; files name themselves with [`CliError::at`].
    fn from(e: io::Error) -> Self {
        let exit = match e.kind() {
            io::ErrorKind::BrokenPipe => exit::PIPE,
            io::ErrorKind::NotFound => exit::NOT_FOUND,
            _ => exit::INTERNAL,
        };
        Self::new(exit, e.to_string())
    }
}

/// The exit code for an outcome code.
pub(crate) fn exit_of(code: Code) -> u8 {
    match code {
        c if c.is_ok() => exit::OK,
        Code::NOT_FOUND | Code::NO_SUCH_HOST | Code::NO_TARGET => exit::NOT_FOUND,
        Code::CONFLICT => exit::CONFLICT,
        Code::UNAUTHENTICATED | Code::DENIED => exit::DENIED,
        c => match c.kind() {
            code::RUN | code::DISPATCH => exit::FAILED,
            code::VALIDATION => exit::USAGE,
            code::UNAVAILABLE => exit::UNAVAILABLE,
            _ => exit::INTERNAL,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_exit_code_of_its_kind() {
        for (code, want) in [
            (Code::OK, exit::OK),
            (Code::EXIT_STATUS, exit::FAILED),
            (Code::HOST_OFFLINE, exit::FAILED),
            (Code::NO_TARGET, exit::NOT_FOUND),
            (Code::BAD_SCHEDULE, exit::USAGE),
            (Code::NOT_FOUND, exit::NOT_FOUND),
            (Code::CONFLICT, exit::CONFLICT),
            (Code::UNAUTHENTICATED, exit::DENIED),
            (Code::ETCD, exit::UNAVAILABLE),
            (Code::BUG, exit::INTERNAL),
            (Code(0x7777), exit::INTERNAL),
        ] {
            assert_eq!(exit_of(code), want, "{code}");
        }
    }

    #[test]
    fn an_error_is_one_line_without_escape_sequences() {
        let e = CliError::usage("f.yaml", "bad\n\x1b[31mthing", "a\tgood one").at("x");
        assert_eq!(e.to_string(), r"x: f.yaml: bad \x1b[31mthing; expected a good one");
    }
}
