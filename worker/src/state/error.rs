//! What can go wrong with the worker's state.

use rusqlite::ErrorCode;
use std::path::Path;

/// The kind of a [`StateError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateProblem {
    /// The disk, or the file's own limit, is full.
    Full,
    /// The file cannot be read or written.
    Io,
    /// Another program holds the file; it may let go.
    Busy,
    /// Another worker uses the directory.
    Locked,
    /// The file is no state file or is damaged.
    Corrupt,
    /// The file was written by a newer version.
    Newer,
    /// The state was closed.
    Closed,
    /// Anything else: a defect.
    Other,
}

/// An operation on the state that was not done; nothing of it is in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StateError {
    /// The kind.
    pub problem: StateProblem,
    /// What is wrong, with the file, and what would be right.
    pub message: String,
}

impl StateError {
    pub(super) fn new(problem: StateProblem, message: impl Into<String>) -> Self {
        Self { problem, message: message.into() }
    }

    pub(super) fn closed() -> Self {
        Self::new(StateProblem::Closed, "the worker's state is closed")
    }

    /// An error of SQLite about the file `path`.
    pub(super) fn sqlite(path: &Path, error: &rusqlite::Error) -> Self {
        let problem = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StateProblem::Full,
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::ReadOnly) => {
                StateProblem::Io
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StateProblem::Busy,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StateProblem::Corrupt,
            _ => StateProblem::Other,
        };
        let remedy = match problem {
            StateProblem::Full => "; make room on its disk",
            StateProblem::Io => "; check its disk and its permissions",
            StateProblem::Corrupt => {
                "; the file is damaged: restore it or move it away to start afresh (records of \
                 runs that wait in it are lost then)"
            }
            _ => "",
        };
        Self::new(problem, format!("state file {}: {error}{remedy}", path.display()))
    }

    /// Whether the disk, and not the operation, is at fault.
    pub fn refused(&self) -> bool {
        self.retryable() || self.problem == StateProblem::Corrupt
    }

    /// Whether the same operation may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(
            self.problem,
            StateProblem::Full | StateProblem::Io | StateProblem::Busy | StateProblem::Locked
        )
    }
}
