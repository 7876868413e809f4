//! Whether the disk takes what the worker writes.

use super::{
    State,
    error::{StateError, StateProblem},
    open,
};
use jiff::Timestamp;
use std::{
    io::Write,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::sync::watch;

/// Bytes a disk must have left before it counts as one that takes writes again.
const ROOM: usize = 512 << 10;
/// The file these are tried with.
const TRIAL: &str = "trial";

/// The state file does not take writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Since when.
    pub since: Timestamp,
    /// Why, when it was first noticed.
    pub error: StateError,
}

/// What the thread that owns the file tells of the disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    refusal: watch::Sender<Option<Refusal>>,
    flush_ms: AtomicU64,
}

impl Disk {
    /// A transaction took so long and went so. One that went well says nothing: it may
    /// only have read.
    pub(super) fn note(&self, outcome: &Result<(), StateError>, took: Duration) {
        match outcome {
            Ok(()) => {
                let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                self.flush_ms.store(ms, Ordering::Relaxed);
            }
            Err(error) if error.refused() => {
                self.refusal.send_if_modified(|refusal| {
                    let first = refusal.is_none();
                    let now = || Refusal { since: Timestamp::now(), error: error.clone() };
                    refusal.get_or_insert_with(now);
                    first
                });
            }
            Err(_) => {}
        }
    }
}

impl State {
    /// Whether the file takes writes, and since when it does not. Only
    /// [`try_again`](Self::try_again) ends a refusal.
    pub fn refusal(&self) -> watch::Receiver<Option<Refusal>> {
        self.counters.disk.refusal.subscribe()
    }

    /// Whether the file does not take writes.
    pub fn refuses(&self) -> bool {
        self.counters.disk.refusal.borrow().is_some()
    }

    /// Looks whether the disk of `dir`, the state's directory, takes writes; if it does,
    /// a refusal is over. Errors say why not.
    pub async fn try_again(&self, dir: &Path) -> Result<(), StateError> {
        let dir = dir.to_owned();
        let trial = tokio::task::spawn_blocking(move || write(&dir)).await;
        trial.unwrap_or_else(|e| Err(StateError::new(StateProblem::Other, e.to_string())))?;
        // Writes a page, whatever the value was.
        self.call(|cx| {
            let version: i64 = cx.conn.pragma_query_value(None, "user_version", |r| r.get(0))?;
            cx.conn.pragma_update(None, "user_version", version)
        })
        .await?;
        self.counters.disk.refusal.send_replace(None);
        Ok(())
    }

    /// How long the last transaction took, in milliseconds.
    pub fn flush_ms(&self) -> u64 {
        self.counters.disk.flush_ms.load(Ordering::Relaxed)
    }

    /// Operations that wait for the thread.
    pub fn pending(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }
}

fn write(dir: &Path) -> Result<(), StateError> {
    open::private_dir(dir).map_err(|e| io(dir, &e))?;
    let path = dir.join(TRIAL);
    let written = std::fs::File::create(&path)
        .and_then(|mut file| file.write_all(&vec![1; ROOM]).and_then(|()| file.sync_all()));
    // Left behind it would be overwritten by the next trial.
    let _ = std::fs::remove_file(&path);
    written.map_err(|e| io(&path, &e))
}

fn io(path: &Path, e: &std::io::Error) -> StateError {
    let problem = match e.kind() {
        std::io::ErrorKind::StorageFull => StateProblem::Full,
        _ => StateProblem::Io,
    };
    StateError::new(problem, format!("cannot write {}: {e}", path.display()))
}
