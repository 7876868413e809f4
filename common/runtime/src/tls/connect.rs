//! Connections to masters.

use super::Credentials;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

/// Where gRPC is meant to go without a port: nowhere in particular.
const DEFAULT_PORT: u16 = 7601;

/// Why a master cannot be spoken to at this address. Retrying never helps.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// It is no URL.
    #[error("{url:?} is no address of a master; expected a URL such as https://m1:7601")]
    Url {
        /// As it was given.
        url: String,
    },
    /// It does not speak TLS, and this process does.
    #[error(
        "the master at {url} does not speak TLS and this process does: whoever can write to etcd \
         could have put that address there; expected all masters to have [tls] set"
    )]
    Plain {
        /// As it was given.
        url: String,
    },
    /// It speaks TLS, and this process does not.
    #[error("the master at {url} speaks TLS; expected [tls] to be set here too")]
    Encrypted {
        /// As it was given.
        url: String,
    },
}

/// A channel to the master at `url`, made when it is first used and again when it breaks.
/// With credentials it is encrypted, with the certificates as they are at that moment, and
/// whoever does not show a master's certificate is not spoken to.
///
/// # Errors
/// When there is nothing that could be connected to.
pub fn channel(
    url: &str,
    credentials: Option<&Arc<Credentials>>,
    options: impl Fn(Endpoint) -> Endpoint,
) -> Result<Channel, ChannelError> {
    let bad = || ChannelError::Url { url: url.to_owned() };
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(bad());
    };
    match (credentials, scheme) {
        (None, "http") => Ok(options(Endpoint::from(uri.clone())).connect_lazy()),
        (Some(credentials), "https") => {
            // tonic would encrypt what is encrypted already.
            let plain: Uri = format!("http://{authority}").parse().map_err(|_| bad())?;
            let endpoint = options(Endpoint::from(plain)).origin(uri.clone());
            let connector = Connector { credentials: credentials.clone() };
            Ok(endpoint.connect_with_connector_lazy(connector))
        }
        (Some(_), "http") => Err(ChannelError::Plain { url: url.to_owned() }),
        (None, "https") => Err(ChannelError::Encrypted { url: url.to_owned() }),
        _ => Err(bad()),
    }
}

/// [`channel`]'s usual options: a master that has lost its power must not be waited for
/// without end.
pub fn usual(endpoint: Endpoint, connect_timeout: Duration) -> Endpoint {
    endpoint
        .connect_timeout(connect_timeout)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
}

#[derive(Clone)]
struct Connector {
    credentials: Arc<Credentials>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let credentials = self.credentials.clone();
        Box::pin(async move {
            // An address of IPv6 stands in brackets (RFC 3986 §3.2.2).
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let name = ServerName::try_from(host.clone())
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
            let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            // Without it the connection works all the same, only slower.
            let _ = tcp.set_nodelay(true);
            let config = credentials.now().client();
            Ok(TokioIo::new(TlsConnector::from(config).connect(name, tcp).await?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Authority, Identity, Subject, TlsFiles, replace_pair};

    #[tokio::test]
    async fn nobody_goes_back_to_what_is_not_encrypted() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        let made = Authority::create("meepo test", 1).unwrap();
        replace_pair(&place("ca.pem"), &place("ca.key"), &made).unwrap();
        let authority = Authority::load(&place("ca.pem"), &place("ca.key")).unwrap();
        let subject = Subject::of(Identity::Node("n1".into()), Vec::new());
        let own = authority.issue(&subject, 1).unwrap();
        replace_pair(&place("n1.pem"), &place("n1.key"), &own).unwrap();
        let files = TlsFiles { cert: place("n1.pem"), key: place("n1.key"), ca: place("ca.pem") };
        let credentials = Credentials::load(files).unwrap();
        // Masters show their authority along with their certificate.
        let shown = credentials.now().authority().map(<[u8]>::to_vec).unwrap();
        assert!(authority.has_signed(&shown), "it has signed itself");
        let told = |url: &str, credentials: Option<&Arc<Credentials>>| {
            channel(url, credentials, |endpoint| endpoint).map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(told("https://m1:7601", Some(&credentials)), Ok(()));
        assert_eq!(told("https://[::1]:7601", Some(&credentials)), Ok(()));
        assert_eq!(told("http://m1:7601", None), Ok(()));
        let e = told("http://m1:7601", Some(&credentials)).unwrap_err();
        assert!(e.contains("does not speak TLS"), "{e}");
        let e = told("https://m1:7601", None).unwrap_err();
        assert!(e.contains("expected [tls]"), "{e}");
        for bad in ["", "m1", "ftp://m1", "https://"] {
            assert!(told(bad, Some(&credentials)).is_err(), "{bad}");
        }
    }
}
