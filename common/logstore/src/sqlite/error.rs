//! SQLite's errors, sorted by whether waiting helps.

use crate::{BoxError, StoreError};
use rusqlite::ErrorCode;
use std::{path::Path, sync::Arc};

/// Names the store in its errors.
#[derive(Debug, Clone)]
pub(super) struct Context {
    path: Arc<Path>,
}

impl Context {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn name(&self) -> String {
        format!("sqlite:{}", self.path.display())
    }

    pub(super) fn error(&self, op: &'static str, e: rusqlite::Error) -> StoreError {
        let (store, retry) = (self.name(), waiting_helps(&e));
        let unmigrated = matches!(&e, rusqlite::Error::SqliteFailure(_, Some(m)) if m.starts_with("no such table"))
            || matches!(&e, rusqlite::Error::SqlInputError { msg, .. } if msg.starts_with("no such table"));
        // By ourselves, see `patiently`: nobody else interrupts.
        if e.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) {
            return StoreError::TooMuch { store, op };
        }
        let source: BoxError = Box::new(e);
        if unmigrated {
            StoreError::NotMigrated { store, op, source }
        } else if retry {
            StoreError::Unavailable { store, op, source }
        } else {
            StoreError::Failed { store, op, source }
        }
    }

    pub(super) fn io(&self, op: &'static str, e: std::io::Error) -> StoreError {
        StoreError::Failed { store: self.name(), op, source: Box::new(e) }
    }

    pub(super) fn unreadable(
        &self,
        op: &'static str,
        what: String,
        source: impl Into<BoxError>,
    ) -> StoreError {
        StoreError::Unreadable { store: self.name(), op, what, source: source.into() }
    }

    /// One failure for several callers.
    pub(super) fn unavailable(&self, op: &'static str, why: String) -> StoreError {
        StoreError::Unavailable { store: self.name(), op, source: why.into() }
    }

    /// The writer ended: it panicked, which is a defect.
    pub(super) fn writer_gone(&self, op: &'static str) -> StoreError {
        StoreError::Failed { store: self.name(), op, source: "the writer has ended".into() }
    }

    /// A blocking task did not come to its end: the runtime shuts down or it panicked.
    pub(super) fn aborted(&self, op: &'static str, e: tokio::task::JoinError) -> StoreError {
        let (store, retry) = (self.name(), e.is_cancelled());
        let source = Box::new(e);
        if retry {
            StoreError::Unavailable { store, op, source }
        } else {
            StoreError::Failed { store, op, source }
        }
    }
}

/// Whether another process holds the file.
pub(super) fn is_busy(e: &rusqlite::Error) -> bool {
    matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Whether the same statement can succeed later as things are.
fn waiting_helps(e: &rusqlite::Error) -> bool {
    match e.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OperationInterrupted
            | ErrorCode::OperationAborted
            | ErrorCode::SchemaChanged
            // Space and memory come back when others let go of them.
            | ErrorCode::DiskFull
            | ErrorCode::OutOfMemory
            | ErrorCode::SystemIoFailure,
        ) => true,
        // Rights, a damaged or missing file, a defect in a statement.
        Some(_) | None => false,
    }
}
