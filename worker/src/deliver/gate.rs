//! While the log store takes nothing, one batch at a time is tried, with growing pauses in
//! between: a breaker for all who deliver.

use meepo_runtime::backoff::Backoff;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio_util::sync::CancellationToken;

/// Longest pause, and as much again at random: so long may a store be back unnoticed.
const CAP: Duration = Duration::from_secs(8);

/// The breaker.
pub(super) struct Gate {
    open: watch::Sender<bool>,
    backoff: Mutex<Backoff>,
}

/// The right to try while nobody else may.
pub(super) type Probe<'a> = MutexGuard<'a, Backoff>;

impl Gate {
    pub(super) fn new() -> Self {
        Self { open: watch::Sender::new(true), backoff: Mutex::new(Backoff::new(CAP)) }
    }

    /// Waits until a batch may be sent; with a probe it is one to see whether the store is
    /// back, and small.
    pub(super) async fn enter(&self) -> Option<Probe<'_>> {
        if *self.open.borrow() {
            return None;
        }
        let probe = self.backoff.lock().await;
        // Another's probe may have gone well meanwhile.
        (!*self.open.borrow()).then_some(probe)
    }

    /// A batch was taken.
    pub(super) fn succeeded(&self, probe: Option<Probe<'_>>) {
        if let Some(mut backoff) = probe {
            backoff.reset();
            self.open.send_replace(true);
        }
    }

    /// A batch was not taken: waits until it is worth trying again, `early` comes, or `stop`
    /// is cancelled. Nobody else tries meanwhile.
    pub(super) async fn failed(
        &self,
        probe: Option<Probe<'_>>,
        early: impl Future<Output = ()>,
        stop: &CancellationToken,
    ) {
        self.open.send_replace(false);
        let mut backoff = match probe {
            Some(backoff) => backoff,
            None => self.backoff.lock().await,
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = early => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn one_probes_while_the_store_is_away_and_all_go_on_when_it_is_back() {
        let (gate, stop) = (Gate::new(), CancellationToken::new());
        assert!(gate.enter().await.is_none(), "all may");
        gate.failed(None, std::future::pending(), &stop).await;
        let probe = gate.enter().await;
        assert!(probe.is_some());
        assert!(gate.enter().now_or_never().is_none(), "a second one waits");
        gate.failed(probe, std::future::pending(), &stop).await;
        let probe = gate.enter().await;
        let waiting = gate.enter();
        gate.succeeded(probe);
        assert!(waiting.await.is_none(), "and need not probe");
        assert!(gate.enter().await.is_none());
    }

    #[tokio::test]
    async fn a_pause_ends_early_for_a_reason() {
        let (gate, stop) = (Gate::new(), CancellationToken::new());
        // So often that the pauses would be long by now.
        for _ in 0..20 {
            gate.failed(gate.enter().await, std::future::ready(()), &stop).await;
        }
        stop.cancel();
        let probe = gate.enter().await;
        let ended = gate.failed(probe, std::future::pending(), &stop).now_or_never();
        assert!(ended.is_some());
    }
}
