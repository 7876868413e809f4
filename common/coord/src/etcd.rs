//! The connection and the few calls meepo makes.

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, KvClient, PutOptions, Txn,
    TxnOp, TxnOpResponse, TxnResponse, WatchClient,
};
use meepo_core::breaker::{Breaker, State};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tonic::Code;

/// Longest time a unary call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// … while somebody waits for the answer of a request; see [`Etcd::for_requests`].
pub const REQUEST_TIMEOUT: Duration = Duration::from_millis(2500);
/// Longest time for which requests are refused without asking etcd, and half of it again.
const BREAKER_CAP: Duration = Duration::from_secs(8);
/// How often a call is made that does not arrive, and the wait after the first time.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);
/// Calls that only read, or do nothing to anybody who does not hear the answer.
const READS: [&str; 4] = ["get", "list", "watch", "grant"];
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

/// A call to etcd that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CoordError {
    /// No answer in time; whether the call took effect is not known.
    #[error("{op} {key}: no answer from etcd within {waited:?}")]
    Timeout {
        /// What was tried.
        op: &'static str,
        /// On which key.
        key: String,
        /// For so long.
        waited: Duration,
    },
    /// etcd did not answer the last calls. This one was not made.
    #[error("{op} {key}: etcd did not answer lately and is not asked again for {retry_in:?}")]
    Away {
        /// What was wanted.
        op: &'static str,
        /// On which key.
        key: String,
        /// When it is worth asking again.
        retry_in: Duration,
    },
    /// What should lead to etcd does not.
    #[error(
        "etcd: {endpoint:?} is no address of etcd; expected a URL such as http://10.0.0.7:2379"
    )]
    Endpoint {
        /// As it was given.
        endpoint: String,
    },
    /// The lease that the key was bound to ended meanwhile.
    #[error("{key}: the lease ended while waiting")]
    LeaseLost {
        /// The key.
        key: String,
    },
    /// etcd or the connection refused.
    #[error("{op} {key}: {source}")]
    Etcd {
        /// What was tried.
        op: &'static str,
        /// On which key.
        key: String,
        /// Why.
        source: Box<etcd_client::Error>,
    },
}

impl CoordError {
    pub(crate) fn new(op: &'static str, key: &str, source: etcd_client::Error) -> Self {
        Self::Etcd { op, key: key.to_owned(), source: Box::new(source) }
    }

    /// Whether the revision asked for was compacted away.
    pub fn compacted(&self) -> bool {
        let Self::Etcd { source, .. } = self else { return false };
        matches!(source.as_ref(), etcd_client::Error::GRpcStatus(status)
            if status.code() == Code::OutOfRange && status.message().contains("compacted"))
    }

    /// Whether it is not known if the call took effect: it was a write, it may have
    /// reached etcd, and etcd did not say that it refused it.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Timeout { op, .. } => !READS.contains(op),
            Self::Etcd { op, source, .. } => {
                !READS.contains(op) && !never_arrived(source) && is_away(source)
            }
            Self::Away { .. } | Self::Endpoint { .. } | Self::LeaseLost { .. } => false,
        }
    }

    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        let Self::Etcd { source, .. } = self else { return !matches!(self, Self::Endpoint { .. }) };
        match source.as_ref() {
            etcd_client::Error::GRpcStatus(status) => {
                !matches!(
                    status.code(),
                    Code::InvalidArgument
                        | Code::PermissionDenied
                        | Code::Unauthenticated
                        | Code::Unimplemented
                ) && !too_large(status)
            }
            etcd_client::Error::InvalidArgs(_) | etcd_client::Error::InvalidUri(_) => false,
            _ => true,
        }
    }

    /// Whether the lease that a write named is not there any more.
    pub fn no_such_lease(&self) -> bool {
        let Self::Etcd { source, .. } = self else { return false };
        matches!(source.as_ref(), etcd_client::Error::GRpcStatus(status)
            if status.code() == Code::NotFound && status.message().contains("lease not found"))
    }
}

/// Whether a request is larger than a server or client of gRPC takes. etcd's own limit is an
/// invalid argument; beyond half a megabyte more, gRPC refuses before etcd sees it.
fn too_large(status: &tonic::Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().contains("larger than max")
}

/// Whether the error says that etcd, or its quorum, cannot be reached.
fn is_away(e: &etcd_client::Error) -> bool {
    match e {
        etcd_client::Error::GRpcStatus(status) => matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
        ),
        etcd_client::Error::IoError(_) | etcd_client::Error::TransportError(_) => true,
        _ => false,
    }
}

/// Whether the call cannot have reached the quorum: there was no connection, or the
/// member that was asked knew of no leader and said so without trying.
fn never_arrived(e: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = e else { return false };
    let mut cause = std::error::Error::source(status);
    while let Some(e) = cause {
        if e.is::<tonic::ConnectError>() {
            return true;
        }
        cause = e.source();
    }
    // The words of etcd's rpctypes.ErrGRPCNoLeader and ErrGRPCTooManyRequests.
    ["etcdserver: no leader", "etcdserver: too many requests"].contains(&status.message())
}

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

/// The process's one connection to etcd. Cloning is cheap.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
    breaker: Arc<Mutex<Breaker>>,
    /// Somebody waits for the answer of a request.
    requests: bool,
}

impl Etcd {
    /// Prepares a connection to any of `endpoints`; it is made when first needed
    /// and made again when it breaks.
    ///
    /// # Errors
    /// When an endpoint is not a URL.
    pub async fn connect(endpoints: &[String]) -> Result<Self, CoordError> {
        if let Some(endpoint) = endpoints.iter().find(|e| !is_endpoint(e)) {
            return Err(CoordError::Endpoint { endpoint: endpoint.clone() });
        }
        let options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(3))
            .with_keep_alive(Duration::from_secs(5), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let client = Client::connect(endpoints, Some(options))
            .await
            .map_err(|e| CoordError::new("connect to", &endpoints.join(","), e))?;
        let breaker = Arc::new(Mutex::new(Breaker::new(BREAKER_CAP)));
        Ok(Self { client, breaker, requests: false })
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
        self.client.clone()
    }

    pub(crate) fn watch_client(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(MAX_ANSWER)
    }

    fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(MAX_ANSWER)
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
            for n in 1..TRIES {
                match call().await {
                    Err(e) if never_arrived(&e) => tokio::time::sleep(PAUSE * n).await,
                    result => return result,
                }
            }
            call().await
        };
        let result = match tokio::time::timeout(waited, tries).await {
            Ok(result) => result.map_err(|e| CoordError::new(op, key, e)),
            Err(_) => Err(CoordError::Timeout { op, key: key.to_owned(), waited }),
        };
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

    /// The value of a key.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, CoordError> {
        let kv = self.kv();
        let get = || {
            let (mut kv, key) = (kv.clone(), key.to_owned());
            Box::pin(async move { kv.get(key, None).await })
        };
        let response = self.call("get", key, get).await?;
        Ok(response.kvs().first().map(Entry::from_kv))
    }

    /// The keys that are there, in no particular order. Read at one revision for each
    /// [`MAX_TXN_OPS`] of them.
    pub async fn get_all(&self, keys: &[String]) -> Result<Vec<Entry>, CoordError> {
        let mut found = Vec::new();
        for some in keys.chunks(MAX_TXN_OPS) {
            let gets: Vec<TxnOp> = some.iter().map(|k| TxnOp::get(k.as_str(), None)).collect();
            let kv = self.kv();
            let txn = Txn::new().and_then(gets);
            let response = self.call("get", &some[0], transaction(&kv, &txn)).await?;
            found.extend(response.op_responses().iter().flat_map(|r| match r {
                TxnOpResponse::Get(get) => get.kvs().iter().map(Entry::from_kv).collect(),
                _ => Vec::new(),
            }));
        }
        Ok(found)
    }

    /// Writes unconditionally, bound to a lease if one is given. Answers the revision.
    pub async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        lease: Option<i64>,
    ) -> Result<i64, CoordError> {
        let kv = self.kv();
        let options = lease.map(|id| PutOptions::new().with_lease(id));
        let put = || {
            let (mut kv, key) = (kv.clone(), key.to_owned());
            let (value, options) = (value.clone(), options.clone());
            Box::pin(async move { kv.put(key, value, options).await })
        };
        let response = self.call("put", key, put).await?;
        Ok(response.header().map_or(0, |h| h.revision()))
    }

    /// Writes some keys in one transaction, all bound to one lease: much cheaper than one
    /// by one. At most [`MAX_TXN_OPS`] different keys and [`MAX_TXN_BYTES`] in all.
    pub async fn put_all(
        &self,
        what: &str,
        entries: impl IntoIterator<Item = (String, Vec<u8>)>,
        lease: i64,
    ) -> Result<(), CoordError> {
        let put = |(key, value)| TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
        let puts: Vec<TxnOp> = entries.into_iter().map(put).collect();
        self.txn(what, Txn::new().and_then(puts)).await.map(drop)
    }

    /// Deletes a key. Answers whether there was one.
    pub async fn delete(&self, key: &str) -> Result<bool, CoordError> {
        let kv = self.kv();
        let delete = || {
            let (mut kv, key) = (kv.clone(), key.to_owned());
            Box::pin(async move { kv.delete(key, None).await })
        };
        let response = self.call("delete", key, delete).await?;
        Ok(response.deleted() > 0)
    }

    /// Writes (or with `None` deletes) provided the key's `mod_revision` is still
    /// `expect` (0: there is no key).
    pub async fn put_if(
        &self,
        key: &str,
        value: Option<Vec<u8>>,
        expect: i64,
        lease: Option<i64>,
    ) -> Result<Cas, CoordError> {
        self.put_if_with(key, value, expect, lease, None).await
    }

    /// As [`Etcd::put_if`], and puts another key in the same transaction.
    pub async fn put_if_with(
        &self,
        key: &str,
        value: Option<Vec<u8>>,
        expect: i64,
        lease: Option<i64>,
        beside: Option<(String, Vec<u8>)>,
    ) -> Result<Cas, CoordError> {
        let op = match value {
            Some(value) => TxnOp::put(key, value, lease.map(|id| PutOptions::new().with_lease(id))),
            None => TxnOp::delete(key, None),
        };
        let beside = beside.map(|(key, value)| TxnOp::put(key, value, None));
        let ops: Vec<_> = [op].into_iter().chain(beside).collect();
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expect)])
            .and_then(ops)
            .or_else([TxnOp::get(key, None)]);
        let kv = self.kv();
        let response = self.call("compare and put", key, transaction(&kv, &txn)).await?;
        if response.succeeded() {
            return Ok(Cas::Done(response.header().map_or(0, |h| h.revision())));
        }
        let there = response.op_responses().into_iter().find_map(|r| match r {
            TxnOpResponse::Get(get) => get.kvs().first().map(Entry::from_kv),
            _ => None,
        });
        Ok(Cas::Conflict(there))
    }

    /// Writes, or with `None` deletes, a key that is there; one that is not stays so.
    /// Answers whether it was there.
    pub async fn put_there(&self, key: &str, value: Option<Vec<u8>>) -> Result<bool, CoordError> {
        let op = match value {
            Some(value) => TxnOp::put(key, value, None),
            None => TxnOp::delete(key, None),
        };
        let there = Compare::version(key, CompareOp::Greater, 0);
        Ok(self.txn(key, Txn::new().when([there]).and_then([op])).await?.is_some())
    }

    /// Performs a transaction as it stands. Answers its revision if the comparison
    /// held.
    pub async fn txn(&self, what: &str, txn: Txn) -> Result<Option<i64>, CoordError> {
        let kv = self.kv();
        let response = self.call("transaction", what, transaction(&kv, &txn)).await?;
        Ok(response.succeeded().then(|| response.header().map_or(0, |h| h.revision())))
    }

    /// All keys below `prefix` as of one revision, in pages, and that revision.
    /// With `at` the list is as of that revision.
    pub async fn list(
        &self,
        prefix: &str,
        at: Option<i64>,
    ) -> Result<(Vec<Entry>, i64), CoordError> {
        let kv = self.kv();
        let end = prefix_end(prefix);
        let (mut from, mut revision) = (prefix.as_bytes().to_vec(), at.unwrap_or(0));
        let mut entries = Vec::new();
        loop {
            let options =
                GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
            let get = || {
                let (mut kv, from, options) = (kv.clone(), from.clone(), options.clone());
                Box::pin(async move { kv.get(from, Some(options)).await })
            };
            let page = self.call("list", prefix, get).await?;
            if revision == 0 {
                revision = page.header().map_or(0, |h| h.revision());
            }
            entries.extend(page.kvs().iter().map(Entry::from_kv));
            match page.kvs().last() {
                Some(last) if page.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => return Ok((entries, revision)),
            }
        }
    }

    /// Grants a lease that nobody keeps alive: it ends after `ttl`.
    pub async fn grant(&self, ttl: Duration) -> Result<i64, CoordError> {
        let lease = self.client.lease_client();
        // etcd counts whole seconds; a lease must not end before we think it does.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).max(1);
        let grant = || {
            let mut lease = lease.clone();
            Box::pin(async move { lease.grant(seconds, None).await })
        };
        Ok(self.call("grant", "lease", grant).await?.id())
    }
}

/// The call that performs a transaction.
fn transaction<'a>(
    kv: &'a KvClient,
    txn: &'a Txn,
) -> impl Fn() -> Pin<Box<dyn Future<Output = Result<TxnResponse, etcd_client::Error>> + Send>> + 'a
{
    || {
        let (mut kv, txn) = (kv.clone(), txn.clone());
        Box::pin(async move { kv.txn(txn).await })
    }
}

/// Any number, another one in each process.
fn dice() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(()) & 0xffff) as u16
}

/// Whether a URL (or host and port) can lead anywhere.
fn is_endpoint(endpoint: &str) -> bool {
    let rest = match endpoint.split_once("://") {
        Some(("http" | "https", rest)) => rest,
        Some(_) => return false,
        None => endpoint,
    };
    let host = rest.split('/').next().unwrap_or_default();
    !host.is_empty() && !host.starts_with(':') && !host.contains(char::is_whitespace)
}

/// The first key after all keys with `prefix` (etcd's range end of a prefix).
pub fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
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

    #[test]
    fn what_is_too_large_stays_so_and_what_is_refused_has_not_happened() {
        let error = |code, message: &str| {
            let status = tonic::Status::new(code, message);
            CoordError::new("transaction", "x", etcd_client::Error::GRpcStatus(status))
        };
        let large = "grpc: received message larger than max (2200000 vs. 2097152)";
        let large = error(Code::ResourceExhausted, large);
        assert!(!large.retryable() && !large.outcome_unknown());
        let full = error(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        assert!(full.retryable() && !full.outcome_unknown());
        let away = error(Code::Unavailable, "etcdserver: leader changed");
        assert!(away.retryable() && away.outcome_unknown());
        let lease = error(Code::NotFound, "etcdserver: requested lease not found");
        assert!(lease.no_such_lease() && !lease.outcome_unknown());
        let timeout =
            CoordError::Timeout { op: "transaction", key: "x".into(), waited: CALL_TIMEOUT };
        assert!(timeout.retryable() && timeout.outcome_unknown());
    }

    #[test]
    fn the_end_of_a_prefix_is_the_next_key() {
        assert_eq!(prefix_end("/a/"), b"/a0");
        assert_eq!(prefix_end(""), [0]);
    }
}
