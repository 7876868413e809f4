//! The connection and the few calls meepo makes.

mod calls;
mod connection;
mod error;

pub use calls::{prefix_end, range_end};
pub use connection::{EtcdAccess, EtcdUser};
pub use error::CoordError;

use connection::Connection;
use error::{is_away, is_stale, never_arrived};
use etcd_client::{Client, KeyValue, KvClient, WatchClient};
use meepo_core::breaker::{Breaker, State};
use meepo_runtime::metrics::Calls;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Longest time a unary call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// … while somebody waits for the answer of a request; see [`Etcd::for_requests`].
pub const REQUEST_TIMEOUT: Duration = Duration::from_millis(2500);
/// Longest time for which requests are refused without asking etcd, and half of it again.
const BREAKER_CAP: Duration = Duration::from_secs(8);
/// How often a call is made that does not arrive, and the wait after the first time.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);
/// Keys read at once when listing.
pub const PAGE: i64 = 500;
/// Largest answer taken. tonic's own limit of 4 MiB is less than a page of large
/// values, or than what etcd sends a watcher that is behind.
const MAX_ANSWER: usize = usize::MAX;
/// Bytes of values in one transaction; with keys and the rest that stays below etcd's
/// default `--max-request-bytes` of 1.5 MiB.
pub const MAX_TXN_BYTES: usize = 1 << 20;
/// Most operations in one transaction (etcd's default `--max-txn-ops`).
pub const MAX_TXN_OPS: usize = 128;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Revision of its creation.
    pub create_revision: i64,
}

impl Entry {
    pub(crate) fn from_kv(kv: &KeyValue) -> Self {
        Self {
            key: String::from_utf8_lossy(kv.key()).into_owned(),
            value: kv.value().to_vec(),
            mod_revision: kv.mod_revision(),
            create_revision: kv.create_revision(),
        }
    }
}

/// What a conditional write did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cas {
    /// It was written at this revision.
    Done(i64),
    /// The key had another revision; this is what stands there.
    Conflict(Option<Entry>),
}

/// What is counted of the calls to etcd. Cloning is cheap and counts in the same place.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Calls with one answer.
    pub calls: Calls,
    /// Watches that were opened again, by [`Restart`].
    pub restarts: Family<Restart, Counter>,
}

/// Label of a watch that was opened again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Restart {
    /// `broken`: it goes on where it stood. `compacted`: etcd has forgotten that place, and
    /// everything is listed anew.
    pub reason: &'static str,
}

/// The process's one connection to etcd. Cloning is cheap.
#[derive(Clone)]
pub struct Etcd {
    connection: Arc<Connection>,
    breaker: Arc<Mutex<Breaker>>,
    /// Somebody waits for the answer of a request.
    requests: bool,
    stats: Stats,
}

impl Etcd {
    /// Prepares a connection to any of `endpoints`, neither encrypted nor as anybody; see
    /// [`Etcd::open`].
    ///
    /// # Errors
    /// When an endpoint is not a URL.
    pub async fn connect(endpoints: &[String]) -> Result<Self, CoordError> {
        Self::open(EtcdAccess::plain(endpoints)).await
    }

    /// Prepares a connection; it is made when first needed and made again when it breaks,
    /// or when the files change that certificates and password come from.
    ///
    /// # Errors
    /// When an endpoint is not a URL, or a file cannot be used.
    pub async fn open(access: EtcdAccess) -> Result<Self, CoordError> {
        if let Some(endpoint) = access.endpoints.iter().find(|e| !is_endpoint(e)) {
            return Err(CoordError::Endpoint { endpoint: endpoint.clone() });
        }
        let connection = Arc::new(Connection::new(access).await?);
        let breaker = Arc::new(Mutex::new(Breaker::new(BREAKER_CAP)));
        Ok(Self { connection, breaker, requests: false, stats: Stats::default() })
    }

    /// The same connection, counted there.
    pub fn counted(self, stats: Stats) -> Self {
        Self { stats, ..self }
    }

    /// A watch is opened again.
    pub(crate) fn restarted(&self, reason: &'static str) {
        self.stats.restarts.get_or_create(&Restart { reason }).inc();
    }

    /// The same connection for those who serve requests: calls are given up after
    /// [`REQUEST_TIMEOUT`], and refused at once while etcd does not answer. What works in
    /// the background tries on by its own back-off, and ends that by its first success.
    pub fn for_requests(&self) -> Self {
        Self { requests: true, ..self.clone() }
    }

    /// Whether requests are refused at the moment.
    pub fn breaker(&self) -> State {
        self.lock().state(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        // Nothing is left half done while it is held.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client itself, for streams.
    pub(crate) fn client(&self) -> Client {
        self.connection.client()
    }

    pub(crate) fn watch_client(&self) -> WatchClient {
        self.client().watch_client().max_decoding_message_size(MAX_ANSWER)
    }

    fn kv(&self) -> KvClient {
        self.client().kv_client().max_decoding_message_size(MAX_ANSWER)
    }

    /// Calls come in boxes: what awaits several of them, one inside the other, would
    /// otherwise be as large as all of them, for every request under way.
    ///
    /// A call that cannot have arrived is made again at once: with one of several members
    /// down, the channel hands it to another sooner or later, and likes the dead one best,
    /// as that is always free.
    pub(crate) async fn call<T, F: Future<Output = Result<T, etcd_client::Error>>>(
        &self,
        op: &'static str,
        key: &str,
        call: impl Fn() -> F,
    ) -> Result<T, CoordError> {
        if self.requests {
            let allowed = self.lock().allow(Instant::now());
            allowed.map_err(|retry_in| CoordError::Away { op, key: key.to_owned(), retry_in })?;
        }
        let waited = if self.requests { REQUEST_TIMEOUT } else { CALL_TIMEOUT };
        let tries = async {
            self.connection.refresh().await?;
            let (mut tries, mut renewed) = (1, false);
            loop {
                match call().await {
                    Err(e) if tries < TRIES && never_arrived(&e) => {
                        tokio::time::sleep(PAUSE * tries).await;
                        tries += 1;
                    }
                    // etcd refused it before it did anything.
                    Err(e) if !renewed && is_stale(&e) => {
                        self.connection.renew().await?;
                        renewed = true;
                    }
                    result => return result.map_err(|e| CoordError::new(op, key, e)),
                }
            }
        };
        let begun = Instant::now();
        let late = || Err(CoordError::Timeout { op, key: key.to_owned(), waited });
        let result = tokio::time::timeout(waited, tries).await.unwrap_or_else(|_| late());
        self.stats.calls.observe(op, begun.elapsed(), result.is_ok());
        let away = match &result {
            Err(CoordError::Timeout { .. }) => true,
            Err(CoordError::Etcd { source, .. }) => is_away(source),
            _ => false,
        };
        let mut breaker = self.lock();
        if away {
            breaker.failure(Instant::now(), dice());
        } else {
            breaker.success();
        }
        drop(breaker);
        result
    }
}

/// Any number, another one in each process.
fn dice() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(()) & 0xffff) as u16
}

/// Whether a URL (or host and port) can lead anywhere.
pub(crate) fn is_endpoint(endpoint: &str) -> bool {
    let rest = match endpoint.split_once("://") {
        Some(("http" | "https", rest)) => rest,
        Some(_) => return false,
        None => endpoint,
    };
    let host = rest.split('/').next().unwrap_or_default();
    !host.is_empty() && !host.starts_with(':') && !host.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_or_hosts() {
        for good in ["http://127.0.0.1:2379", "https://e1:2379", "e1:2379", "e1", "http://[::1]:1"]
        {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in ["", "nonsense://x", "http://", ":2379", "http://a b"] {
            assert!(!is_endpoint(bad), "{bad}");
        }
    }
}
