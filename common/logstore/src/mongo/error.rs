//! The driver's errors, sorted by whether waiting helps.

use super::COMMAND_TIMEOUT;
use crate::{BoxError, Observer, StoreError};
use meepo_core::breaker::{Breaker, State};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Server code: the time given for an answer was not enough (MaxTimeMSExpired).
const TOO_LATE: i32 = 50;
/// Longest time for which the server is not asked after it did not answer, and half of it
/// again.
const BREAKER_CAP: Duration = Duration::from_secs(8);

/// Names the store in its errors and says how long to wait for it.
#[derive(Clone)]
pub(super) struct Context {
    name: Arc<str>,
    patience: Duration,
    breaker: Option<Arc<Mutex<Breaker>>>,
    observer: Option<Observer>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Context").field(&self.name).finish()
    }
}

impl Context {
    pub(super) fn new(name: String) -> Self {
        Self { name: name.into(), patience: COMMAND_TIMEOUT, breaker: None, observer: None }
    }

    /// Who is told of every command.
    pub(super) fn set_observer(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    /// Refuses calls for a while when the server did not answer several in a row.
    pub(super) fn set_breaker(&mut self) {
        self.breaker = Some(Arc::new(Mutex::new(Breaker::new(BREAKER_CAP))));
    }

    /// How its breaker stands, if it has one.
    pub(super) fn breaker(&self) -> Option<State> {
        Some(self.locked(|b| b.state(Instant::now())))?
    }

    fn locked<T>(&self, with: impl FnOnce(&mut Breaker) -> T) -> Option<T> {
        // Nothing is left half done while it is held.
        let breaker = self.breaker.as_ref()?;
        Some(with(&mut breaker.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Changes how long a command may take.
    #[cfg(test)]
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Awaits a command, for as long as one may take.
    pub(super) async fn wait<T>(
        &self,
        op: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        self.within(self.patience, op, work).await
    }

    /// Awaits what the driver does, for so long at most.
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        op: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        if let Some(Err(wait)) = self.locked(|b| b.allow(Instant::now())) {
            let text = format!("it did not answer lately and is not asked again for {wait:?}");
            return Err(self.unavailable(op, text));
        }
        let begun = Instant::now();
        let result = match tokio::time::timeout(limit, work).await {
            Ok(done) => done.map_err(|e| self.error(op, e)),
            Err(_) => {
                let text = format!("no answer within {limit:?}");
                Err(self.unavailable(op, text))
            }
        };
        if let Some(tell) = &self.observer {
            tell(op, begun.elapsed(), result.is_ok());
        }
        let away = matches!(result, Err(StoreError::Unavailable { .. }));
        self.locked(|b| match away {
            true => b.failure(Instant::now(), (uuid::Uuid::now_v7().as_u128() & 0xffff) as u16),
            false => b.success(),
        });
        result
    }

    /// Awaits an answer for which the server was given [`crate::LIST_PATIENCE`].
    pub(super) async fn wait_briefly<T>(
        &self,
        op: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        let mut late = false;
        let look = async { work.await.inspect_err(|e| late = code_of(e) == Some(TOO_LATE)) };
        let done = self.wait(op, look).await;
        match late {
            true => Err(StoreError::TooMuch { store: self.name.to_string(), op }),
            false => done,
        }
    }

    pub(super) fn error(&self, op: &'static str, e: Error) -> StoreError {
        if waiting_helps(&e) { self.unavailable(op, e) } else { self.failed(op, e) }
    }

    /// The error for a code that the server put into an otherwise good reply.
    pub(super) fn code(&self, op: &'static str, code: i32, text: String) -> StoreError {
        let text = format!("error {code}: {text}");
        if transient(code) { self.unavailable(op, text) } else { self.failed(op, text) }
    }

    pub(super) fn unavailable(&self, op: &'static str, e: impl Into<BoxError>) -> StoreError {
        StoreError::Unavailable { store: self.name.to_string(), op, source: e.into() }
    }

    pub(super) fn failed(&self, op: &'static str, e: impl Into<BoxError>) -> StoreError {
        StoreError::Failed { store: self.name.to_string(), op, source: e.into() }
    }

    pub(super) fn unreadable(
        &self,
        op: &'static str,
        what: String,
        e: impl Into<BoxError>,
    ) -> StoreError {
        StoreError::Unreadable { store: self.name.to_string(), op, what, source: e.into() }
    }
}

/// What the driver complains of, without its wrapping.
pub(super) fn message(e: &Error) -> String {
    match &*e.kind {
        ErrorKind::InvalidArgument { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// Whether the connection broke or the server changed its role: worth one more try
/// at once, on another connection.
pub(super) fn again_at_once(e: &Error) -> bool {
    let broken = matches!(&*e.kind, ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. });
    broken || e.contains_label("RetryableWriteError")
}

/// The server's code, if the error holds one.
pub(super) fn code_of(e: &Error) -> Option<i32> {
    match &*e.kind {
        ErrorKind::Command(e) => Some(e.code),
        ErrorKind::Write(WriteFailure::WriteError(e)) => Some(e.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(e)) => Some(e.code),
        _ => None,
    }
}

/// Whether an index that a command names is not there. The code is that of any bad value.
pub(super) fn no_such_index(e: &Error) -> bool {
    match &*e.kind {
        ErrorKind::Command(e) => e.code == 2 && e.message.contains("hint"),
        _ => false,
    }
}

fn waiting_helps(e: &Error) -> bool {
    let labels = ["RetryableWriteError", "TransientTransactionError", "SystemOverloadedError"];
    if labels.iter().any(|label| e.contains_label(label)) || code_of(e).is_some_and(transient) {
        return true;
    }
    // Credentials, TLS files, unsupported servers, defects: these wait for somebody.
    matches!(
        &*e.kind,
        ErrorKind::Io(_)
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::ServerSelection { .. }
            | ErrorKind::DnsResolve { .. }
    )
}

/// Server codes that pass by themselves: elections, shutdowns, lost connections,
/// timeouts, conflicts, and shortages others may end.
fn transient(code: i32) -> bool {
    const CODES: [i32; 27] = [
        6,     // HostUnreachable
        7,     // HostNotFound
        24,    // LockTimeout
        43,    // CursorNotFound
        46,    // LockBusy
        50,    // MaxTimeMSExpired
        64,    // WriteConcernFailed (timed out)
        89,    // NetworkTimeout
        91,    // ShutdownInProgress
        112,   // WriteConflict
        117,   // ConflictingOperationInProgress
        133,   // FailedToSatisfyReadPreference
        134,   // ReadConcernMajorityNotAvailableYet
        146,   // ExceededMemoryLimit
        189,   // PrimarySteppedDown
        202,   // NetworkInterfaceExceededTimeLimit
        262,   // ExceededTimeLimit
        276,   // IndexBuildAborted
        9001,  // SocketException
        10107, // NotWritablePrimary
        11600, // InterruptedAtShutdown
        11601, // Interrupted
        11602, // InterruptedDueToReplStateChange
        13388, // StaleConfig
        13435, // NotPrimaryNoSecondaryOk
        13436, // NotPrimaryOrSecondary
        14031, // OutOfDiskSpace
    ];
    CODES.contains(&code)
}
