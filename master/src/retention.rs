//! What is old is removed from the log store by the leader, again and again, in small
//! steps. Its settings count: those of other masters should be the same.

use crate::metrics::{Metrics, Swept as Label};
use jiff::Timestamp;
use meepo_coord::election::Leadership;
use meepo_logstore::{LogStore, Retention, StoreError, Swept};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Longest time between two looks.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Shortest time between two looks.
const SHORTEST_WAIT: Duration = Duration::from_millis(500);

/// Sweeps while this master leads, until `stop` is cancelled.
pub(crate) async fn run(
    store: Arc<dyn LogStore>,
    retention: Retention,
    mut leadership: watch::Receiver<Leadership>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Some(shortest) = retention.shortest() else { return Ok(()) };
    // Nothing is kept longer than is said and a tenth of that.
    let wait = (shortest / 10).clamp(SHORTEST_WAIT, LONGEST_WAIT);
    loop {
        let leads = leadership.borrow_and_update().mine.is_some();
        if leads {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sweep(&*store, &retention, &metrics) => {}
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = leadership.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(wait), if leads => {}
        }
    }
}

/// Removes all that is too old now.
async fn sweep(store: &dyn LogStore, retention: &Retention, metrics: &Metrics) {
    let mut all = Swept::default();
    loop {
        let started = Instant::now();
        match store.sweep(retention, Timestamp::now()).await {
            Ok(step) => {
                count(metrics, &step);
                all.runs += step.runs;
                all.chunks += step.chunks;
                all.tasks += step.tasks;
                all.audit += step.audit;
                if !step.more {
                    break;
                }
            }
            // The schema is on its way; the next look comes soon enough.
            Err(StoreError::NotMigrated { .. }) => break,
            Err(e) => {
                warn!(error = %e.chain(), "cannot remove what is old, will try again");
                break;
            }
        }
        // Half of the store's time is for others.
        tokio::time::sleep(started.elapsed()).await;
    }
    if all != Swept::default() {
        let Swept { runs, chunks: output, tasks, audit, .. } = all;
        info!(runs, output, tasks, audit, "removed what is old");
    }
}

fn count(metrics: &Metrics, step: &Swept) {
    let all = [
        ("runs", step.runs),
        ("output", step.chunks),
        ("tasks", step.tasks),
        ("audit", step.audit),
    ];
    for (what, n) in all {
        if n > 0 {
            metrics.swept.get_or_create(&Label { what: what.into() }).inc_by(n);
        }
    }
}
