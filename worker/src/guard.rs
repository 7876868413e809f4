//! What a node may no longer own: runs of jobs that run once in the cluster, when its
//! lease has been lost for so long that others take the node for dead.

use crate::{engine::Engine, process::KillReason};
use meepo_coord::lease::LeaseState;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Kills claimed runs once the lease has been lost for one `ttl`, until `stop` is
/// cancelled. Jobs that run on each node go on.
pub async fn guard(
    engine: Arc<Engine>,
    mut lease: watch::Receiver<LeaseState>,
    ttl: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut until = Instant::now() + ttl;
    loop {
        if let LeaseState::Held { until: end, .. } = *lease.borrow_and_update() {
            until = end + ttl;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = lease.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep_until(until) => {
                let killed = engine.registry.kill_claimed(KillReason::LeaseLost);
                if killed > 0 {
                    warn!(killed, "the lease is lost: runs that may be run elsewhere are killed");
                }
                // What begins meanwhile is looked at later.
                until = Instant::now() + ttl;
            }
        }
    }
}
