//! Definitions that were signed with another key, which this master trusts, are signed with
//! its own, so that the other one can be given up.

use crate::seal::Seal;
use meepo_coord::{CoordError, Etcd, election::Leadership, etcd::Cas, keys};
use meepo_runtime::backoff::Backoff;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Definitions that are signed anew in one step, …
const STEP: usize = 100;
/// … and the time from one step to the next: nodes get their assignments anew for each.
const BETWEEN: Duration = Duration::from_secs(1);

/// Looks at all definitions whenever this master begins to lead, until `stop` is cancelled.
pub(crate) async fn run(
    etcd: Etcd,
    seal: Seal,
    mut leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if !seal.is_on() {
        return Ok(());
    }
    let mut backoff = Backoff::new(Duration::from_secs(60));
    let mut done = None;
    loop {
        let term = leadership.borrow_and_update().mine;
        let mut retry = None;
        if term.is_some() && term != done {
            match resign(&etcd, &seal).await {
                Ok(n) => {
                    if n > 0 {
                        info!(definitions = n, "signed with the key of this master");
                    }
                    backoff.reset();
                    done = term;
                }
                Err(e) => {
                    let wait = backoff.next_wait();
                    warn!(error = %e, ?wait, "cannot sign definitions anew, will try again");
                    retry = Some(wait);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = leadership.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
    }
}

/// Signs what is believed and not of the own key; answers how much that was.
async fn resign(etcd: &Etcd, seal: &Seal) -> Result<usize, CoordError> {
    let mut signed = 0;
    for family in [keys::JOBS, keys::TREE_JOBS] {
        let (entries, _) = etcd.list(family, None).await?;
        for entry in entries.into_iter().filter(|e| !seal.is_own(&e.value)) {
            let Ok(mut fields) = serde_json::from_slice(&entry.value) else { continue };
            // Whoever may have put it there is not to have it signed.
            if seal.open_definition(&entry.key, &mut fields).is_err() {
                continue;
            }
            let value = seal.definition(&entry.key, &fields, Some(&entry.value));
            // Somebody else may change it meanwhile, who signs it then.
            let put = etcd.put_if(&entry.key, Some(value), entry.mod_revision, None).await?;
            if matches!(put, Cas::Done(_)) {
                signed += 1;
                if signed % STEP == 0 {
                    tokio::time::sleep(BETWEEN).await;
                }
            }
        }
    }
    Ok(signed)
}
