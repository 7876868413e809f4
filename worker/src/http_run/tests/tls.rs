//! Whom a request trusts.

use super::*;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

/// An authority, and a server on 127.0.0.1 with a certificate of it.
struct Server {
    addr: SocketAddr,
    ca: tempfile::NamedTempFile,
}

impl Server {
    async fn start(protocol: &'static [u8]) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that does not trust this server hangs up.
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let answer = service_fn(async |_| {
                    Ok::<_, std::convert::Infallible>(http::Response::new("hello".to_owned()))
                });
                let io = TokioIo::new(stream);
                if protocol == b"h2" {
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    tokio::spawn(http.serve_connection(io, answer));
                } else {
                    let http = hyper::server::conn::http1::Builder::new();
                    tokio::spawn(http.serve_connection(io, answer));
                }
            }
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ca.pem()).unwrap();
        Self { addr, ca: file }
    }

    fn url(&self) -> String {
        format!("https://{}/", self.addr)
    }

    fn ca(&self) -> &str {
        self.ca.path().to_str().unwrap()
    }
}

#[tokio::test]
async fn an_authority_of_the_job_is_trusted_with_both_protocols() {
    for (protocol, version) in [(&b"http/1.1"[..], "HTTP/1.1"), (b"h2", "HTTP/2")] {
        let server = Server::start(protocol).await;
        let seen = run(call(&server.url(), json!({"ca": server.ca()}))).await;
        assert_eq!((seen.outcome(), seen.out.as_str()), (OK, "hello"), "{}", seen.message());
        assert!(seen.err.starts_with(&format!("{version} 200 OK in ")), "{}", seen.err);
    }
}

#[tokio::test]
async fn an_unknown_authority_is_refused_unless_the_job_does_not_care() {
    let (server, other) = (Server::start(b"http/1.1").await, Server::start(b"http/1.1").await);
    for request in [json!({}), json!({"ca": other.ca()})] {
        let seen = run(call(&server.url(), request)).await;
        assert_eq!(seen.outcome(), (Code::CANNOT_START, RunState::Failed, None));
        assert!(seen.message().contains("invalid peer certificate"), "{}", seen.message());
    }
    let seen = run(call(&server.url(), json!({"insecure": true}))).await;
    assert_eq!((seen.outcome(), seen.out.as_str()), (OK, "hello"), "{}", seen.message());
    // What is trusted holds for the job that says so and for no other.
    let requests = Requests::default();
    for (request, want) in [
        (json!({"insecure": true}), Code::OK),
        (json!({"ca": server.ca()}), Code::OK),
        (json!({}), Code::CANNOT_START),
    ] {
        let call = call(&server.url(), request);
        let seen = end_of(requests.start(RunId(uuid::Uuid::now_v7()), call)).await;
        assert_eq!(seen.ended.code, want, "{}", seen.message());
    }
}

#[tokio::test]
async fn a_file_without_certificates_is_named() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let empty = empty.path().to_str().unwrap();
    // What is no regular file might never end.
    for path in ["/no/such/file.pem", empty, "/dev/null"] {
        let seen = run(call("https://127.0.0.1:1/", json!({"ca": path}))).await;
        assert_eq!(seen.ended.code, Code::CANNOT_START);
        let named = seen.message().contains("http.ca") && seen.message().contains(path);
        assert!(named, "{}", seen.message());
        assert_eq!(seen.message().contains("not a regular file"), path == "/dev/null");
    }
}

#[tokio::test]
async fn a_file_that_is_slow_holds_up_no_other_job() {
    let clients = client::Clients::default();
    let (slow, plain): (HttpRequest, HttpRequest) = (
        serde_json::from_value(json!({"ca": "/slow"})).unwrap(),
        serde_json::from_value(json!({})).unwrap(),
    );
    let _reading = clients.lock(&slow).await;
    timeout(DEADLINE, clients.get(&plain)).await.expect("it does not wait").unwrap();
}

#[tokio::test]
async fn a_host_of_the_job_is_for_http_1() {
    // With HTTP/2 it would stand beside the one of the URL. This server speaks nothing else.
    let server = Server::start(b"h2").await;
    let request = json!({"ca": server.ca(), "headers": {"host": "shop.example"}});
    let seen = run(call(&server.url(), request)).await;
    assert_eq!(seen.ended.code, Code::NO_RESPONSE, "{}", seen.err);
}
