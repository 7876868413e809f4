//! Records on their way to the log store.

use super::spill::Spill;
use crate::metrics::Metrics;
use meepo_core::audit::AuditRecord;
use meepo_logstore::LogStore;
use meepo_runtime::backoff::Backoff;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Records written at once.
const BATCH: usize = 256;
/// How long the log store may take for new records. What it keeps later all the same is
/// written again, which changes nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long requests that are still served at shutdown may take to be recorded.
const LAST: Duration = Duration::from_millis(300);

/// Writes records until `stop` is cancelled and no more come. What the log store does not
/// take waits in a file in `dir` and is written when it does.
pub async fn write(
    mut records: mpsc::Receiver<AuditRecord>,
    store: Arc<dyn LogStore>,
    dir: PathBuf,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let spill = tokio::task::spawn_blocking(move || Spill::open(&dir)).await?;
    let mut writer = Writer { store, spill: Some(spill), metrics, backoff: fresh(), again: None };
    if writer.waits() > 0 {
        writer.again = Some(Instant::now());
    }
    writer.show();
    let mut batch = Vec::new();
    loop {
        let again = writer.again;
        tokio::select! {
            n = records.recv_many(&mut batch, BATCH) => {
                if n == 0 {
                    return Ok(());
                }
                writer.take(&mut batch).await;
            }
            () = async { tokio::time::sleep_until(again.unwrap_or_else(Instant::now)).await },
                if again.is_some() => writer.catch_up().await,
            () = stop.cancelled() => break,
        }
    }
    while let Ok(1..) = timeout(LAST, records.recv_many(&mut batch, BATCH)).await {
        writer.take(&mut batch).await;
    }
    Ok(())
}

fn fresh() -> Backoff {
    Backoff::new(Duration::from_secs(10))
}

struct Writer {
    store: Arc<dyn LogStore>,
    /// Away only while a blocking thread has it.
    spill: Option<Spill>,
    metrics: Arc<Metrics>,
    backoff: Backoff,
    /// When what waits is tried again. `None`: nothing waits.
    again: Option<Instant>,
}

impl Writer {
    fn waits(&self) -> u64 {
        self.spill.as_ref().map_or(0, Spill::bytes)
    }

    fn show(&self) {
        self.metrics.audit_spill.set(i64::try_from(self.waits()).unwrap_or(i64::MAX));
    }

    /// Writes a batch, or lets it wait.
    async fn take(&mut self, batch: &mut Vec<AuditRecord>) {
        let records = std::mem::take(batch);
        // What waits is not overtaken, and a store that is away not asked by everybody.
        if self.again.is_none() {
            match timeout(PATIENCE, self.store.append_audit(&records)).await {
                Ok(Ok(())) => return,
                Ok(Err(e)) => {
                    warn!(error = %e.chain(), "the audit waits in a file for the log store");
                }
                Err(_) => warn!("the log store is slow: the audit waits in a file for it"),
            }
            self.again = Some(Instant::now() + self.backoff.next_wait());
        }
        let n = records.len();
        let pushed = self.with_spill(move |spill| spill.push(&records)).await;
        let lost = pushed.unwrap_or_else(|e| {
            error!(target: "audit", error = format!("{e:#}"), "records are in this log alone");
            n
        });
        if lost > 0 {
            self.metrics.audit_dropped.inc_by(lost as u64);
            error!(target: "audit", lost, "no room for records: they are in this log alone");
        }
        self.show();
    }

    /// Writes what waits.
    async fn catch_up(&mut self) {
        let waiting = match self.with_spill(Spill::read).await {
            Ok(waiting) => waiting,
            Err(e) => {
                error!(error = format!("{e:#}"), "what waits of the audit cannot be read");
                self.again = Some(Instant::now() + self.backoff.next_wait());
                return;
            }
        };
        for some in waiting.chunks(BATCH) {
            if let Err(e) = self.store.append_audit(some).await {
                let wait = self.backoff.next_wait();
                warn!(error = %e.chain(), ?wait, "the audit cannot be written, will try again");
                self.again = Some(Instant::now() + wait);
                return;
            }
        }
        if let Err(e) = self.with_spill(Spill::clear).await {
            // Written again later, which changes nothing.
            warn!(error = format!("{e:#}"), "the file of what waited cannot be emptied");
        }
        info!(records = waiting.len(), "the log store has taken what waited of the audit");
        (self.backoff, self.again) = (fresh(), None);
        self.show();
    }

    async fn with_spill<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Spill) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let Some(mut spill) = self.spill.take() else { anyhow::bail!("the file is gone") };
        let (spill, done) = tokio::task::spawn_blocking(move || {
            let done = work(&mut spill);
            (spill, done)
        })
        .await?;
        self.spill = Some(spill);
        done
    }
}
