//! Background tasks with a name, a policy on error and one way to shut down.

use futures::FutureExt;
use std::{
    collections::BTreeMap,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error};

/// What the failure of a task (an error or a panic) means for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The process cannot do its work without it: shut down.
    Shutdown,
    /// The failure concerns this task only.
    Log,
}

/// The tasks of one process (or of one part of it). Cloning is cheap.
#[derive(Clone, Default)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    token: CancellationToken,
    tracker: TaskTracker,
    running: Mutex<BTreeMap<&'static str, usize>>,
    failure: Mutex<Option<String>>,
}

impl Tasks {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when shutdown begins. Every task watches it.
    pub fn token(&self) -> CancellationToken {
        self.inner.token.clone()
    }

    /// Starts a task. It must end soon after [`Tasks::token`] is cancelled.
    pub fn spawn<F>(&self, name: &'static str, on_error: OnError, task: F) -> JoinHandle<()>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.count(name, 1);
        let this = self.clone();
        self.inner.tracker.spawn(async move {
            let failure = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(Ok(())) => None,
                Ok(Err(e)) => Some(format!("{e:#}")),
                Err(_) => Some("panicked".into()),
            };
            this.count(name, -1);
            match failure {
                None => debug!(task = name, "task ended"),
                Some(reason) => {
                    error!(task = name, reason, "task failed");
                    if on_error == OnError::Shutdown && !this.inner.token.is_cancelled() {
                        let mut slot =
                            this.inner.failure.lock().unwrap_or_else(PoisonError::into_inner);
                        slot.get_or_insert(format!("{name}: {reason}"));
                        this.inner.token.cancel();
                    }
                }
            }
        })
    }

    fn count(&self, name: &'static str, by: isize) {
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        let n = running.entry(name).or_default();
        *n = n.saturating_add_signed(by);
        if *n == 0 {
            running.remove(name);
        }
    }

    /// The failure that made the process shut down, if one did.
    pub fn failure(&self) -> Option<String> {
        self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells every task to end and waits for them, at most `deadline`. Answers the
    /// names of those that are still there.
    pub async fn shutdown(&self, deadline: Duration) -> Vec<&'static str> {
        self.inner.token.cancel();
        self.inner.tracker.close();
        if tokio::time::timeout(deadline, self.inner.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.keys().copied().collect()
    }
}

/// Waits for SIGINT or SIGTERM and answers its name.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn termination() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = int.recv() => "SIGINT",
        _ = term.recv() => "SIGTERM",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_waits_for_every_task() {
        let tasks = Tasks::new();
        let token = tasks.token();
        tasks.spawn("a", OnError::Log, async move {
            token.cancelled().await;
            Ok(())
        });
        assert!(tasks.shutdown(Duration::from_secs(5)).await.is_empty());
    }

    #[tokio::test]
    async fn a_stuck_task_is_named() {
        let tasks = Tasks::new();
        tasks.spawn("stuck", OnError::Log, std::future::pending());
        assert_eq!(tasks.shutdown(Duration::from_millis(10)).await, ["stuck"]);
    }

    #[tokio::test]
    async fn an_essential_failure_or_panic_shuts_down() {
        for panics in [false, true] {
            let tasks = Tasks::new();
            tasks.spawn("core", OnError::Shutdown, async move {
                assert!(!panics, "boom");
                anyhow::bail!("broken")
            });
            tasks.token().cancelled().await;
            assert!(tasks.failure().unwrap().starts_with("core: "));
        }
        let tasks = Tasks::new();
        tasks.spawn("side", OnError::Log, async { anyhow::bail!("broken") }).await.unwrap();
        assert!(!tasks.token().is_cancelled());
    }
}
