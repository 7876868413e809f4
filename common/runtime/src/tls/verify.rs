//! Whose certificate a server must show, beyond that an authority of ours has signed it.

use super::{Identity, live::PROVIDER, x509};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::sync::Arc;

/// Who the other side must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// A master: a worker must not take orders from whoever has got hold of another
    /// worker's key.
    Master,
    /// Anybody but a worker. The HTTP API may stand behind a balancer that has a certificate
    /// of its own.
    NoNode,
}

/// Verifies as rustls does, and then who it is.
#[derive(Debug)]
pub struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    expect: Expect,
}

impl Verifier {
    /// Verifies by `inner` and then that it is whom one expects.
    pub fn new(inner: Arc<WebPkiServerVerifier>, expect: Expect) -> Self {
        Self { inner, expect }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let inner = &self.inner;
        let verified =
            inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        check(self.expect, x509::identity(end_entity).as_ref())?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn check(expect: Expect, identity: Option<&Identity>) -> Result<(), Error> {
    match (expect, identity) {
        (Expect::Master, Some(Identity::Master(_))) => Ok(()),
        (Expect::NoNode, None | Some(Identity::Master(_) | Identity::Client(_))) => Ok(()),
        (Expect::Master, Some(other)) => {
            Err(Error::General(format!("its certificate is of {other}, not of a master")))
        }
        (Expect::Master, None) => {
            Err(Error::General("its certificate does not say that it is a master's".into()))
        }
        (Expect::NoNode, Some(node)) => {
            Err(Error::General(format!("its certificate is of {node}, not of a master")))
        }
    }
}

/// Trusts the authority with this fingerprint, which the server must show along with its own
/// certificate, and nobody else: for the first contact of a worker that knows no more.
#[derive(Debug)]
pub struct Pinned {
    /// SHA-256 of the authority's certificate, in hexadecimal.
    fingerprint: String,
}

impl Pinned {
    /// Trusts only the authority with this fingerprint.
    pub fn new(fingerprint: &str) -> Self {
        Self { fingerprint: fingerprint.to_ascii_lowercase() }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let known = |cert: &&CertificateDer<'_>| x509::fingerprint(cert) == self.fingerprint;
        let Some(authority) = intermediates.iter().find(known) else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), PROVIDER.clone())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        Verifier::new(inner, Expect::Master).verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_master_passes_for_a_master() {
        let [node, master, client] =
            ["node", "master", "client"].map(|kind| Identity::new(kind, "a").unwrap());
        assert!(check(Expect::Master, Some(&master)).is_ok());
        for other in [Some(&node), Some(&client), None] {
            assert!(check(Expect::Master, other).is_err(), "{other:?}");
        }
        assert!(check(Expect::NoNode, Some(&node)).is_err());
        for other in [Some(&master), Some(&client), None] {
            assert!(check(Expect::NoNode, other).is_ok(), "{other:?}");
        }
    }
}
