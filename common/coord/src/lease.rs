//! One lease per process, renewed at a third of its time and granted anew when lost.

use crate::etcd::{CALL_TIMEOUT, CoordError, Etcd};
use meepo_runtime::backoff::Backoff;
use std::time::Duration;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How the process's lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// None: not granted yet, or lost. Whatever was bound to an earlier one is gone.
    None,
    /// Held for certain until `until` on this process's monotonic clock.
    Held {
        /// etcd's id of it.
        id: i64,
        /// Counted from when the last renewal was *sent*, so never later than etcd's
        /// own reckoning.
        until: Instant,
    },
}

impl LeaseState {
    /// The id, if the lease is certain to be alive now.
    pub fn id(self) -> Option<i64> {
        match self {
            Self::Held { id, until } if Instant::now() < until => Some(id),
            _ => None,
        }
    }
}

/// Keeps a lease of `ttl` until `stop` is cancelled; then revokes it, so that the
/// records bound to it vanish at once. States go to `state`, which need not be read.
pub async fn keep(
    etcd: Etcd,
    ttl: Duration,
    state: watch::Sender<LeaseState>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(ttl / 2);
    loop {
        let granted = tokio::select! {
            () = stop.cancelled() => return,
            g = grant(&etcd, ttl) => g,
        };
        match granted {
            Ok((id, until)) => {
                info!(lease = format!("{id:x}"), ?ttl, "lease granted");
                backoff.reset();
                state.send_replace(LeaseState::Held { id, until });
                let reason = tokio::select! {
                    () = stop.cancelled() => {
                        state.send_replace(LeaseState::None);
                        revoke(&etcd, id).await;
                        return;
                    }
                    reason = renew(&etcd, id, until, ttl, &state) => reason,
                };
                state.send_replace(LeaseState::None);
                warn!(lease = format!("{id:x}"), reason, "lease lost");
                // It may live on in etcd with our records bound to it: they must not
                // outlive the loss that we have just announced.
                revoke(&etcd, id).await;
            }
            Err(e) => {
                let wait = backoff.next_wait();
                warn!(error = %e, ?wait, "cannot get a lease from etcd, will try again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

async fn grant(etcd: &Etcd, ttl: Duration) -> Result<(i64, Instant), CoordError> {
    let sent = Instant::now();
    Ok((etcd.grant(ttl).await?, sent + ttl))
}

async fn revoke(etcd: &Etcd, id: i64) {
    let revoke = || {
        let mut client = etcd.client().lease_client();
        async move { client.revoke(id).await }
    };
    // An error is no loss: the lease ends by itself.
    let _ = etcd.call("revoke", "lease", revoke).await;
}

/// Renews until the lease is lost; answers why.
async fn renew(
    etcd: &Etcd,
    id: i64,
    mut until: Instant,
    ttl: Duration,
    state: &watch::Sender<LeaseState>,
) -> String {
    let mut last_error = "no renewal in time".to_owned();
    loop {
        let opening = async {
            // What it is refused for comes out in what follows.
            let _ = etcd.ready().await;
            etcd.client().lease_client().keep_alive(id).await
        };
        let opened = tokio::time::timeout(CALL_TIMEOUT.min(ttl / 3), opening).await;
        let (mut keeper, mut stream) = match opened {
            Ok(Ok(pair)) => pair,
            // etcd answers, and knows no such lease.
            Ok(Err(e @ etcd_client::Error::LeaseKeepAliveError(_))) => return e.to_string(),
            other => {
                if let Ok(Err(e)) = other {
                    last_error = e.to_string();
                }
                if Instant::now() >= until {
                    return last_error;
                }
                tokio::time::sleep(ttl / 20).await;
                continue;
            }
        };
        loop {
            let sent = Instant::now();
            let answer = async {
                keeper.keep_alive().await?;
                stream.message().await
            };
            match tokio::time::timeout(ttl / 3, answer).await {
                Ok(Ok(Some(r))) if r.ttl() > 0 => {
                    until = sent + ttl;
                    state.send_replace(LeaseState::Held { id, until });
                    tokio::time::sleep(ttl / 3).await;
                }
                Ok(Ok(Some(_))) => return "etcd says it has expired".into(),
                Ok(Ok(None)) => break,
                Ok(Err(e)) => {
                    last_error = e.to_string();
                    break;
                }
                Err(_) => {
                    last_error = "no answer from etcd".into();
                    break;
                }
            }
        }
        if Instant::now() >= until {
            return last_error;
        }
        tokio::time::sleep(ttl / 20).await;
    }
}
