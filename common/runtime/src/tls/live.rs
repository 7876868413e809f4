//! Certificates as they are at this moment.
//!
//! Nobody has to say when files have changed, and nothing watches them: whenever a
//! connection is made, the file system is asked whether they are as they were. That costs
//! three `stat` of a handshake's thousand microseconds, works on every file system and with
//! links that are switched over, and there is nothing to restart. Connections that are there
//! stay.

use super::{
    files::{Material, Stamp, TlsFiles},
    verify::{Expect, Verifier},
    x509,
};
use anyhow::Context;
use rustls::{
    ClientConfig, ServerConfig,
    client::WebPkiServerVerifier,
    crypto::{CryptoProvider, ring::default_provider},
    server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use tracing::{info, warn};

/// What is spoken over an encrypted connection, and who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1; clients may show a certificate or not.
    Http,
    /// HTTP/1.1; clients must show a certificate.
    HttpMutual,
    /// gRPC; clients may show a certificate or not.
    Grpc,
}

/// The one provider of cryptography.
pub(super) static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(default_provider()));

/// A certificate, its key and the authorities, from files that may change at any time.
pub struct Credentials {
    files: TlsFiles,
    current: RwLock<Current>,
}

struct Current {
    stamp: Stamp,
    configs: Arc<Configs>,
    /// The files as they were when they could not be used.
    refused: Option<Stamp>,
}

/// What connections are made with.
pub struct Configs {
    http: Arc<ServerConfig>,
    mutual: Arc<ServerConfig>,
    grpc: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    own: Arc<CertifiedKey>,
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn load(files: TlsFiles) -> anyhow::Result<Arc<Self>> {
        let stamp = files.stamp();
        let configs = Arc::new(Configs::new(&files.read().context("tls")?)?);
        let current = RwLock::new(Current { stamp, configs, refused: None });
        Ok(Arc::new(Self { files, current }))
    }

    /// The files.
    pub fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// What stands in the files now; what stood there before as long as they cannot be used,
    /// as when one of them has been replaced and the others not yet.
    pub fn now(&self) -> Arc<Configs> {
        let stamp = self.files.stamp();
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if current.stamp == stamp || current.refused.as_ref() == Some(&stamp) {
                return current.configs.clone();
            }
        }
        let read = self.files.read().and_then(|material| Configs::new(&material));
        // Nothing is left half done while it is held.
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(configs) => {
                if current.stamp != stamp {
                    let until = configs.facts().map(|facts| facts.not_after.to_string());
                    info!(cert = %self.files.cert.display(), until, "a new certificate is used");
                }
                *current = Current { stamp, configs: Arc::new(configs), refused: None };
            }
            Err(e) => {
                let error = format!("{e:#}");
                warn!(error, "the new certificate cannot be used; the one before still is");
                current.refused = Some(stamp);
            }
        }
        current.configs.clone()
    }
}

impl Configs {
    fn new(material: &Material) -> anyhow::Result<Self> {
        let own = &material.own;
        let leaf = own.end_entity_cert().context("there is no certificate")?;
        ParsedCertificate::try_from(leaf).context("the certificate cannot be read")?;
        let resolver = Arc::new(SingleCertAndKey::from(own.clone()));
        let verifier = || {
            WebPkiClientVerifier::builder_with_provider(material.roots.clone(), PROVIDER.clone())
        };
        let optional = verifier().allow_unauthenticated().build().context("ca")?;
        let required = verifier().build().context("ca")?;
        let server = |verifier: &Arc<dyn rustls::server::danger::ClientCertVerifier>,
                      alpn: &[u8]| {
            let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
                .with_safe_default_protocol_versions()?
                .with_client_cert_verifier(verifier.clone())
                .with_cert_resolver(resolver.clone());
            config.alpn_protocols = vec![alpn.to_vec()];
            // Whoever comes again shows its certificate again: it may have expired meanwhile.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            anyhow::Ok(Arc::new(config))
        };
        let inner =
            WebPkiServerVerifier::builder_with_provider(material.roots.clone(), PROVIDER.clone());
        let verifier = Verifier::new(inner.build().context("ca")?, Expect::Master);
        let mut client = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(resolver.clone());
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            http: server(&optional, b"http/1.1")?,
            mutual: server(&required, b"http/1.1")?,
            grpc: server(&optional, b"h2")?,
            client: Arc::new(client),
            own: own.clone(),
        })
    }

    pub(super) fn server(&self, protocol: Protocol) -> Arc<ServerConfig> {
        match protocol {
            Protocol::Http => self.http.clone(),
            Protocol::HttpMutual => self.mutual.clone(),
            Protocol::Grpc => self.grpc.clone(),
        }
    }

    /// For gRPC with a master: nobody else is spoken to.
    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// What its own certificate says.
    pub fn facts(&self) -> Option<x509::Facts> {
        x509::facts(self.own.end_entity_cert().ok()?)
    }

    /// The certificate of the authority that its own is from, as it is shown to others.
    pub fn authority(&self) -> Option<&[u8]> {
        self.own.cert.last().filter(|_| self.own.cert.len() > 1).map(AsRef::as_ref)
    }
}
