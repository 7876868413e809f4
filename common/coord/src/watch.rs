//! List, then watch from the next revision, for ever.
//!
//! One stream carries the watches of all prefixes. When it breaks it is resumed
//! where it stood; when that revision was compacted away, or after
//! [`Options::resync`], everything is listed anew, which also repairs any drift.

use crate::etcd::{CALL_TIMEOUT, CoordError, Entry, Etcd, range_end};
use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use meepo_runtime::backoff::Backoff;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// Everything there is, as of `revision`. Whatever was known before is void.
    Reset {
        /// All entries of all prefixes.
        entries: Vec<Entry>,
        /// The revision of the list.
        revision: i64,
    },
    /// What changed since, in order.
    Changes(Vec<Change>),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key was written.
    Put(Entry),
    /// The key was deleted or its lease ended.
    Delete {
        /// The key.
        key: String,
        /// Revision of the deletion.
        revision: i64,
    },
}

/// How to watch.
#[derive(Debug, Clone)]
pub struct Options {
    /// List everything anew after this time without having had to. The low-frequency
    /// full comparison.
    pub resync: Duration,
    /// Asks for it now.
    pub asked: Arc<Notify>,
}

impl Default for Options {
    fn default() -> Self {
        Self { resync: Duration::from_secs(600), asked: Arc::default() }
    }
}

/// Watches `prefixes` (what does not end with `/` is one key) and sends what happens to `out` until `stop` is cancelled or
/// the receiver is gone. A slow receiver slows the stream, it loses nothing.
pub async fn watch(
    etcd: Etcd,
    prefixes: Vec<String>,
    options: Options,
    out: mpsc::Sender<Batch>,
    stop: CancellationToken,
) {
    let watch = Watch { etcd, prefixes, options, out };
    tokio::select! {
        () = stop.cancelled() => {}
        () = watch.run() => {}
    }
}

struct Watch {
    etcd: Etcd,
    prefixes: Vec<String>,
    options: Options,
    out: mpsc::Sender<Batch>,
}

/// Why a stream is no longer read.
enum End {
    /// The receiver is gone.
    Receiver,
    /// Resume from where it stood.
    Broken(String),
    /// List anew.
    Compacted,
    /// List anew, as planned.
    Resync,
}

impl Watch {
    async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        // For each prefix the revision to go on from; empty: list first.
        let mut next: Vec<i64> = Vec::new();
        let mut listed = Instant::now();
        loop {
            if next.is_empty() {
                match self.list().await {
                    Ok((entries, revision)) => {
                        next = vec![revision + 1; self.prefixes.len()];
                        listed = Instant::now();
                        if self.out.send(Batch::Reset { entries, revision }).await.is_err() {
                            return;
                        }
                    }
                    Err(e) => {
                        let wait = backoff.next_wait();
                        warn!(error = %e, ?wait, "cannot list keys, will try again");
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                }
            }
            let resync_at = listed + self.options.resync;
            match self.stream(&mut next, resync_at, &mut backoff).await {
                End::Receiver => return,
                End::Resync => {
                    debug!(prefixes = ?self.prefixes, "comparing everything");
                    next.clear();
                }
                End::Compacted => {
                    self.etcd.restarted("compacted");
                    info!(prefixes = ?self.prefixes, "watch was compacted, listing anew");
                    next.clear();
                }
                End::Broken(reason) => {
                    self.etcd.restarted("broken");
                    let wait = backoff.next_wait();
                    info!(reason, ?wait, prefixes = ?self.prefixes, "watch broke, will resume");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// All prefixes as of one revision.
    async fn list(&self) -> Result<(Vec<Entry>, i64), CoordError> {
        let (mut entries, mut at) = (Vec::new(), None);
        for prefix in &self.prefixes {
            let (page, revision) = self.etcd.list(prefix, at).await?;
            entries.extend(page);
            at = Some(revision);
        }
        Ok((entries, at.unwrap_or(0)))
    }

    async fn open(&self, next: &[i64]) -> Result<WatchStream, etcd_client::Error> {
        // What it is refused for comes out in what follows.
        let _ = self.etcd.ready().await;
        let mut client = self.etcd.watch_client();
        let mut stream: Option<WatchStream> = None;
        for (i, prefix) in self.prefixes.iter().enumerate() {
            let options = WatchOptions::new()
                .with_range(range_end(prefix))
                .with_start_revision(next[i])
                .with_progress_notify()
                .with_watch_id(i as i64 + 1);
            match &mut stream {
                None => stream = Some(client.watch(prefix.as_str(), Some(options)).await?),
                Some(stream) => stream.watch(prefix.as_str(), Some(options)).await?,
            }
        }
        stream.ok_or_else(|| etcd_client::Error::InvalidArgs("no prefixes".into()))
    }

    async fn stream(&self, next: &mut [i64], resync_at: Instant, backoff: &mut Backoff) -> End {
        let mut stream = match tokio::time::timeout(CALL_TIMEOUT, self.open(next)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return End::Broken(e.to_string()),
            Err(_) => return End::Broken("no answer from etcd".into()),
        };
        loop {
            let response = tokio::select! {
                () = tokio::time::sleep_until(resync_at) => return End::Resync,
                () = self.options.asked.notified() => return End::Resync,
                r = stream.message() => match r {
                    Ok(Some(r)) => r,
                    Ok(None) => return End::Broken("stream ended".into()),
                    Err(e) => return End::Broken(e.to_string()),
                },
            };
            backoff.reset();
            if response.compact_revision() != 0 {
                return End::Compacted;
            }
            if response.canceled() {
                return End::Broken(format!("cancelled by etcd: {}", response.cancel_reason()));
            }
            let changes = changes(&response);
            let seen = seen(&response);
            let slot = usize::try_from(response.watch_id() - 1).ok().and_then(|i| next.get_mut(i));
            if let (Some(slot), Some(seen)) = (slot, seen) {
                *slot = (*slot).max(seen + 1);
            }
            if !changes.is_empty() && self.out.send(Batch::Changes(changes)).await.is_err() {
                return End::Receiver;
            }
        }
    }
}

/// Up to which revision a watch has been told everything. The header of a late batch of
/// events is ahead of its events; the header of the answer to the creation may be, too. So:
/// the last event tells, or a progress notification, which etcd sends when nothing is under
/// way.
pub(crate) fn seen(response: &WatchResponse) -> Option<i64> {
    match response.events().last().and_then(|e| e.kv()) {
        Some(kv) => Some(kv.mod_revision()),
        None if response.created() => None,
        None => response.header().map(|h| h.revision()),
    }
}

pub(crate) fn changes(response: &WatchResponse) -> Vec<Change> {
    let mut changes = Vec::with_capacity(response.events().len());
    for event in response.events() {
        let Some(kv) = event.kv() else { continue };
        let entry = Entry::from_kv(kv);
        changes.push(match event.event_type() {
            EventType::Put => Change::Put(entry),
            EventType::Delete => Change::Delete { key: entry.key, revision: entry.mod_revision },
        });
    }
    changes
}
