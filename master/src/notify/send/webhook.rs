//! Webhooks: a request with the message, signed where a secret is named.

use super::{
    Failure, secrets,
    template::{Escape, context, render},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::Timestamp;
use meepo_core::notify::{Message, Webhook};
use ring::hmac;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, pem::PemObject},
};
use std::{error::Error, path::Path, sync::Arc};
use tokio::sync::OnceCell;
use tracing::warn;

/// Bytes of an answer that are looked at.
const MAX_ANSWER: usize = 4096;

pub(crate) type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// What makes requests.
#[derive(Debug, Default)]
pub(super) struct Web {
    /// With the authorities of this host.
    usual: OnceCell<Http>,
}

impl Web {
    /// Sends a message.
    pub(super) async fn send(
        &self,
        hook: &Webhook,
        message: &Message,
        dir: &Path,
    ) -> Result<(), Failure> {
        let request = request(hook, message, dir).await?;
        let client = match &hook.ca {
            None => {
                let make = || async { load(None).await };
                self.usual.get_or_try_init(make).await.map_err(Failure::again)?.clone()
            }
            Some(ca) => load(Some(ca.clone())).await.map_err(Failure::again)?,
        };
        let answer = client.request(request).await.map_err(|e| {
            let mut cause: &dyn Error = &e;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            Failure::again(format!("{}: {cause}", hook.url))
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let said = body.map(|b| b.to_bytes()).unwrap_or_default();
        let said: String = String::from_utf8_lossy(&said).trim().chars().take(100).collect();
        let reason = format!("the server answered {status}: {said}");
        // Told to wait, or something is wrong there; anything else is wrong here.
        let later = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
        Err(if later { Failure::again(reason) } else { Failure::never(reason) })
    }
}

/// Reads certificates, on a thread that may wait for the disk.
pub(crate) async fn load(ca: Option<String>) -> Result<Http, String> {
    let loading = tokio::task::spawn_blocking(move || client(ca.as_deref()));
    loading.await.map_err(|e| format!("cannot read certificates: {e}"))?
}

fn client(ca: Option<&str>) -> Result<Http, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(path) => {
            let say = |e: &dyn std::fmt::Display| format!("webhook.ca: cannot use {path}: {e}");
            if !Path::new(path).metadata().map_err(|e| say(&e))?.is_file() {
                return Err(say(&"it is not a regular file"));
            }
            for certificate in CertificateDer::pem_file_iter(path).map_err(|e| say(&e))? {
                roots.add(certificate.map_err(|e| say(&e))?).map_err(|e| say(&e))?;
            }
        }
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("cannot use TLS: {e}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    // A connection that waited may be dead, and messages are few.
    Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
}

async fn request(
    hook: &Webhook,
    message: &Message,
    dir: &Path,
) -> Result<Request<Full<Bytes>>, Failure> {
    let own = || context(message).to_string();
    let body = match &hook.body {
        None => own(),
        Some(template) => render(template, Escape::Json, message).unwrap_or_else(|error| {
            // It worked when it was tried; better another text than none.
            warn!(channel = %message.channel, error, "a template failed: sent without it");
            own()
        }),
    };
    let unusable = |what: &str| Failure::never(format!("{what} cannot be sent in a request"));
    let mut request = Request::builder()
        .method(hook.method.as_deref().unwrap_or("POST"))
        .uri(&hook.url)
        .body(Full::new(Bytes::from(body.clone())))
        .map_err(|e| Failure::never(format!("no request can be made of it: {e}")))?;
    let headers = request.headers_mut();
    let mut set = |name: &str, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unusable(name))?;
        let value = HeaderValue::from_str(value).map_err(|_| unusable(name.as_str()))?;
        headers.insert(name, value);
        Ok(())
    };
    set(header::CONTENT_TYPE.as_str(), "application/json")?;
    set(header::USER_AGENT.as_str(), concat!("meepo/", env!("CARGO_PKG_VERSION")))?;
    for (name, value) in &hook.headers {
        set(name, value)?;
    }
    for (name, secret) in &hook.secret_headers {
        set(name, &secrets::read(secret, dir).await?)?;
    }
    set("meepo-notification", &message.id)?;
    if let Some(secret) = &hook.secret {
        let secret = secrets::read(secret, dir).await?;
        let at = Timestamp::now().as_second();
        set("meepo-timestamp", &at.to_string())?;
        set("meepo-signature", &signature(&secret, at, &body))?;
    }
    Ok(request)
}

/// `sha256=` and HMAC-SHA256 of the time in seconds, a full stop and the body, in hexadecimal.
fn signature(secret: &str, at: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{at}.{body}").as_bytes());
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_other_programs() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac key
        assert_eq!(
            signature("key", 1_700_000_000, r#"{"a":1}"#),
            "sha256=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03"
        );
    }
}
