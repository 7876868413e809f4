//! Connections to servers: kept, shared, and made with the right trust.

use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use meepo_core::{duration::HumanDuration, http_job::HttpRequest};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use std::{
    collections::HashMap,
    error::Error,
    path::Path,
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{net::TcpStream, sync::Mutex, time::Instant};
use tower_service::Service;

/// How long a connection is kept that nobody uses: less than the 5 s of common servers.
const IDLE: Duration = Duration::from_secs(4);
/// Idle connections kept for one server. Fewer than runs that are under way together would
/// be closed and made anew all the time.
const IDLE_PER_HOST: usize = 1024;
/// Clients kept; jobs with that many different settings are rare.
const MAX_CLIENTS: usize = 32;
/// How long a client serves before it is made anew, so that certificates that were
/// exchanged on the node come into use.
const MAX_AGE: Duration = Duration::from_secs(600);
/// How often an HTTP/2 connection in use is asked whether it lives, and how long it may take
/// to answer; else one whose server has gone without a word would be used on and on.
const PING: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(20));

/// What sends requests.
pub(super) type Client = legacy::Client<Connector, Full<bytes::Bytes>>;

type Failure = Box<dyn Error + Send + Sync>;

/// What a client is made for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Settings {
    ca: Option<String>,
    insecure: bool,
    connect_timeout: Duration,
    /// HTTP/1 only: with HTTP/2 a `Host` of the job would not take the place of the URL's.
    own_host: bool,
}

impl Settings {
    fn of(request: &HttpRequest) -> Self {
        Self {
            ca: request.ca.clone(),
            insecure: request.insecure,
            connect_timeout: request.connect_timeout(),
            own_host: request.headers.keys().any(|name| name.eq_ignore_ascii_case("host")),
        }
    }
}

/// A client that may be yet to be made. Locked while it is made, so that many runs at once
/// make but one.
type Slot = Arc<Mutex<Option<Arc<Client>>>>;

/// The clients in use, by their settings.
#[derive(Debug, Default)]
pub(super) struct Clients {
    made: std::sync::Mutex<HashMap<Settings, (Slot, Instant)>>,
}

impl Clients {
    /// The client for `request`. Errors: its certificates cannot be read.
    pub(super) async fn get(&self, request: &HttpRequest) -> Result<Arc<Client>, String> {
        let settings = Settings::of(request);
        let mut slot = self.slot(&settings).lock_owned().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        // The slot stays locked until the file is read, also if this run ends before: a
        // mount that hangs takes one thread, not one a run.
        tokio::task::spawn_blocking(move || {
            let client = client(&settings)?;
            Ok(slot.insert(Arc::new(client)).clone())
        })
        .await
        .map_err(|e| format!("cannot read certificates: {e}"))?
    }

    /// As if the client for `request` was just being made.
    #[cfg(test)]
    pub(super) async fn lock(&self, request: &HttpRequest) -> impl Drop + use<> {
        self.slot(&Settings::of(request)).lock_owned().await
    }

    fn slot(&self, settings: &Settings) -> Slot {
        // Nothing is left half done below.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|_, (slot, at)| at.elapsed() < MAX_AGE || slot.try_lock().is_err());
        if let Some((slot, _)) = made.get(settings) {
            return slot.clone();
        }
        if made.len() >= MAX_CLIENTS {
            let oldest = made.iter().min_by_key(|(_, (_, at))| *at).map(|(s, _)| s.clone());
            oldest.and_then(|settings| made.remove(&settings));
        }
        let slot = Slot::default();
        made.insert(settings.clone(), (slot.clone(), Instant::now()));
        slot
    }
}

/// Makes a client. Reads files.
fn client(settings: &Settings) -> Result<Client, String> {
    let provider = Arc::new(ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("cannot use TLS: {e}"))?;
    let tls = match (&settings.ca, settings.insecure) {
        (_, true) => tls
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth(),
        (ca, false) => {
            let roots =
                ca.as_deref().map_or_else(|| Ok(own_roots()), |ca| roots_in(ca.as_ref()))?;
            tls.with_root_certificates(roots).with_no_client_auth()
        }
    };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let https = match settings.own_host {
        true => https.enable_http1().wrap_connector(tcp),
        false => https.enable_all_versions().wrap_connector(tcp),
    };
    let connector = Connector { https, limit: settings.connect_timeout };
    Ok(legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .http2_keep_alive_interval(PING.0)
        .http2_keep_alive_timeout(PING.1)
        .build(connector))
}

/// The authorities this node trusts; none if it has none, as `http:` needs none.
fn own_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::warn!(
            errors = ?found.errors,
            "this node has no certificate authorities to trust: install ca-certificates"
        );
    }
    roots
}

/// The authorities in a file of a job.
fn roots_in(path: &Path) -> Result<RootCertStore, String> {
    let say = |e: &dyn std::fmt::Display| format!("http.ca: cannot use {}: {e}", path.display());
    // A pipe would be waited for.
    if !path.metadata().map_err(|e| say(&e))?.is_file() {
        return Err(say(&"it is not a regular file"));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| say(&e))? {
        roots.add(certificate.map_err(|e| say(&e))?).map_err(|e| say(&e))?;
    }
    if roots.is_empty() {
        return Err(say(&"it has no certificate in PEM form"));
    }
    Ok(roots)
}

/// Connects within a time: name, TCP and TLS together.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    https: HttpsConnector<HttpConnector>,
    limit: Duration,
}

impl Service<http::Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, url: http::Uri) -> Self::Future {
        let (connecting, limit) = (self.https.call(url), self.limit);
        Box::pin(async move {
            tokio::time::timeout(limit, connecting)
                .await
                .map_err(|_| format!("no connection within {}", HumanDuration(limit)))?
        })
    }
}

/// Takes any certificate, for jobs that ask for it; the handshake is still held to be that
/// of the certificate's owner.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
