//! What stands in certificates.

use super::Identity;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use ring::digest;
use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

/// Whose a certificate is: the first of its names that is one of meepo's. Whether anybody
/// has signed that is another question.
pub fn identity(der: &[u8]) -> Option<Identity> {
    names(&parse(der)?).iter().find_map(|name| Identity::from_uri(name))
}

/// SHA-256 of a certificate, in hexadecimal.
pub fn fingerprint(der: &[u8]) -> String {
    let sum = digest::digest(&digest::SHA256, der);
    sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a person wants to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its common name.
    pub common_name: String,
    /// The common name of who signed it.
    pub issuer: String,
    /// Whose it is, if it says so as meepo does.
    pub identity: Option<Identity>,
    /// The host names and addresses it is valid for.
    pub hosts: Vec<String>,
    /// Valid from then on. UTC.
    pub not_before: Timestamp,
    /// Valid until then. UTC.
    pub not_after: Timestamp,
    /// Whether it may sign others.
    pub authority: bool,
    /// Whether a server may show it.
    pub server: bool,
    /// SHA-256, in hexadecimal.
    pub fingerprint: String,
}

/// Reads a certificate; `None` when it is none.
pub fn facts(der: &[u8]) -> Option<Facts> {
    let cert = parse(der)?;
    let common = |name: &x509_parser::x509::X509Name<'_>| {
        let found = name.iter_common_name().next().and_then(|cn| cn.as_str().ok());
        found.unwrap_or_default().to_owned()
    };
    let time = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).ok();
    let usage = cert.extended_key_usage().ok().flatten().map(|u| u.value.clone());
    let all = names(&cert);
    Some(Facts {
        common_name: common(cert.subject()),
        issuer: common(cert.issuer()),
        identity: all.iter().find_map(|name| Identity::from_uri(name)),
        hosts: all.into_iter().filter(|name| !name.contains("://")).collect(),
        not_before: time(cert.validity().not_before)?,
        not_after: time(cert.validity().not_after)?,
        authority: cert.is_ca(),
        server: usage.is_none_or(|u| u.any || u.server_auth),
        fingerprint: fingerprint(der),
    })
}

/// As [`facts`], of the first certificate of a text in PEM.
pub fn facts_of_pem(text: &str) -> Option<Facts> {
    facts(pem(text.as_bytes()).ok()?.first()?)
}

/// Whether `issuer` says that it is who signed `cert`. Nothing is verified.
pub(super) fn names_as_issuer(cert: &[u8], issuer: &[u8]) -> bool {
    let (Some(cert), Some(issuer)) = (parse(cert), parse(issuer)) else { return false };
    cert.issuer().as_raw() == issuer.subject().as_raw()
}

/// Whether the key of `issuer` has signed `cert`.
pub(super) fn signed_by(cert: &[u8], issuer: &[u8]) -> bool {
    let (Some(cert), Some(issuer)) = (parse(cert), parse(issuer)) else { return false };
    cert.verify_signature(Some(issuer.public_key())).is_ok()
}

/// The public key of a certificate, as it stands there.
pub(super) fn public_key(der: &[u8]) -> Option<Vec<u8>> {
    Some(parse(der)?.public_key().subject_public_key.data.to_vec())
}

/// A certificate in PEM.
pub(super) fn to_pem(der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, cert)| cert)
}

/// The alternative names: hosts, addresses, URIs.
fn names(cert: &X509Certificate<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for extension in cert.extensions() {
        let ParsedExtension::SubjectAlternativeName(all) = extension.parsed_extension() else {
            continue;
        };
        names.extend(all.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        }));
    }
    names
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|b| std::net::IpAddr::from(b).to_string());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|b| std::net::IpAddr::from(b).to_string());
    v4.or_else(|_| v6()).ok()
}

/// The certificates of a file in PEM.
pub(super) fn pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    use rustls::pki_types::pem::PemObject;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match all {
        Ok(all) if all.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(all) => Ok(all),
        Err(e) => Err(format!("it is no file of certificates in PEM: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Authority, Subject, request};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static AUTHORITY: LazyLock<(tempfile::TempDir, Authority)> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let made = Authority::create("meepo test", 30).unwrap();
        let (cert, key) = (dir.path().join("ca.pem"), dir.path().join("ca.key"));
        std::fs::write(&cert, made.cert).unwrap();
        std::fs::write(&key, made.key).unwrap();
        let authority = Authority::load(&cert, &key).unwrap();
        (dir, authority)
    });

    fn node() -> Subject {
        Subject::of(Identity::Node("10.0.0.7".into()), vec!["10.0.0.7".into(), "web1".into()])
    }

    #[test]
    fn a_certificate_in_pem_comes_back_the_same() {
        let cert = AUTHORITY.1.issue(&node(), 7).unwrap().cert;
        let der = pem(cert.as_bytes()).unwrap().remove(0);
        assert_eq!(pem(to_pem(&der).as_bytes()).unwrap(), std::slice::from_ref(&der));
        assert!(AUTHORITY.1.has_signed(&der));
        let other = Authority::create("meepo test", 30).unwrap().cert;
        // By the same name, but another key.
        assert!(!AUTHORITY.1.has_signed(&pem(other.as_bytes()).unwrap()[0]));
        assert!(names_as_issuer(&der, &pem(other.as_bytes()).unwrap()[0]));
    }

    proptest! {
        /// Certificates and requests come from other machines.
        #[test]
        fn whatever_comes_is_read_or_refused(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let cert = AUTHORITY.1.issue(&node(), 7).unwrap().cert;
            let mut der = pem(cert.as_bytes()).unwrap()[0].to_vec();
            for (at, byte) in &flips {
                let at = at.index(der.len());
                der[at] ^= byte;
            }
            let _ = (identity(&der), facts(&der), public_key(&der));
            let _ = (signed_by(&der, &der), names_as_issuer(&der, &der), pem(&der));
            let half = &der[..cut.index(der.len())];
            let _ = (identity(half), facts(half));
            // Only what was not touched is whose it was.
            if AUTHORITY.1.has_signed(&der) {
                prop_assert_eq!(facts(&der).unwrap().common_name, "node:10.0.0.7");
            }
            let asked = request(&Identity::Master("m1".into())).unwrap().cert;
            let mut asked = asked.into_bytes();
            for (at, byte) in &flips {
                let at = at.index(asked.len());
                asked[at] ^= byte & 0x7f;
            }
            if let Ok(text) = String::from_utf8(asked)
                && let Ok(signed) = AUTHORITY.1.sign(&text, &node(), 7)
            {
                prop_assert_eq!(
                    facts_of_pem(&signed).unwrap().identity.unwrap().to_string(),
                    "node:10.0.0.7"
                );
            }
        }

        #[test]
        fn nonsense_is_no_certificate(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(facts(&bytes).is_none() && identity(&bytes).is_none());
            let _ = pem(&bytes);
        }
    }
}
