//! What a node may no longer own: runs of jobs that run once in the cluster, when its
//! lease has been lost for so long that others take the node for dead.

use crate::{engine::Engine, process::KillReason};
use jiff::Timestamp;
use meepo_coord::lease::LeaseState;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How soon the guard looks again at what was claimed, or began, while it acted.
const AGAIN: Duration = Duration::from_secs(1);

/// Kills claimed runs once the lease has been lost for one `ttl`, and has the agent end
/// those that may be run elsewhere and have not begun, until `stop` is cancelled. Jobs that
/// run on each node go on.
pub async fn guard(
    engine: Arc<Engine>,
    mut lease: watch::Receiver<LeaseState>,
    ttl: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut until = Instant::now() + ttl;
    let mut cut_off = false;
    loop {
        let held = *lease.borrow_and_update();
        if cut_off {
            engine.cut_off.store(Timestamp::now().as_millisecond(), Ordering::Relaxed);
        }
        cut_off = matches!(held, LeaseState::None);
        if let LeaseState::Held { until: end, .. } = held {
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
                engine.custody.lapse();
                // A claim whose answer was on its way may have come meanwhile.
                until = Instant::now() + AGAIN.min(ttl);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Plan;
    use meepo_core::{
        code::Code,
        id::RunId,
        run::{Cause, RunState},
    };

    #[tokio::test]
    async fn without_a_lease_only_claimed_runs_are_ended() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::in_dir(dir.path()).await;
        let run = async |fence| {
            let plan = Plan {
                run_id: RunId(uuid::Uuid::now_v7()),
                job: Some(meepo_core::id::Name::new("j").unwrap()),
                assignment: Arc::new(serde_json::from_str(r#"{"cmd":"sleep 600"}"#).unwrap()),
                slot: Timestamp::UNIX_EPOCH,
                attempt: 1,
                cause: Cause::Trigger,
                fence,
                permit: None,
            };
            let (id, begun, engine) = (plan.run_id, engine.begin(&plan).await, engine.clone());
            (id, tokio::spawn(async move { engine.execute(plan, begun, None, |_| None).await }))
        };
        let ((_, claimed), (own, goes_on)) = (run(Some(1)).await, run(None).await);
        let (_lease, lost) = watch::channel(LeaseState::None);
        let stop = CancellationToken::new();
        let ttl = Duration::from_millis(50);
        let guarding = tokio::spawn(guard(engine.clone(), lost, ttl, stop.clone()));
        let ended = tokio::time::timeout(Duration::from_secs(30), claimed).await;
        let ended = ended.unwrap().unwrap().unwrap().record;
        assert_eq!((ended.state, ended.code), (RunState::Killed, Code::ETCD));
        assert!(ended.message.as_ref().unwrap().contains("lost its lease"), "{ended:?}");
        assert_eq!(engine.registry.active(), [own]);
        stop.cancel();
        guarding.await.unwrap().unwrap();
        engine.registry.kill_all(KillReason::Requested);
        tokio::time::timeout(Duration::from_secs(30), goes_on).await.unwrap().unwrap();
    }
}
