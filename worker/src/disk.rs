//! A disk that refuses writes: noticed by the state, looked at here until it takes them
//! again. Meanwhile the agent starts nothing.

use crate::state::{Refusal, State};
use std::{path::PathBuf, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

/// How often a disk that refuses is tried.
const RETRY: Duration = Duration::from_secs(1);
/// A disk that goes to and fro is not worth a line in the log each time.
const QUIET: Duration = Duration::from_secs(60);

/// Looks after the disk until `stop` is cancelled.
pub async fn watch(state: State, dir: PathBuf, stop: CancellationToken) -> anyhow::Result<()> {
    let mut refusal = state.refusal();
    let mut logged: Option<Instant> = None;
    loop {
        let found = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            found = refusal.wait_for(Option::is_some) => match found {
                Ok(found) => found.clone(),
                Err(_) => return Ok(()),
            },
        };
        let log = logged.is_none_or(|at| at.elapsed() > QUIET);
        if let Some(Refusal { error, .. }) = found.filter(|_| log) {
            error!(%error, "nothing can be written: no run starts until the disk takes writes again");
            logged = Some(Instant::now());
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY) => {}
            }
            match state.try_again(&dir).await {
                Ok(()) => break,
                Err(error) => debug!(%error, "the disk refuses still"),
            }
        }
        if log {
            info!("the disk takes writes again");
        }
    }
}
