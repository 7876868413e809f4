//! An authority of one's own: it makes certificates, and signs for others.

use super::{Identity, files, x509};
use anyhow::Context;
use jiff::{Span, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::{net::IpAddr, path::Path};
use time::OffsetDateTime;

/// How long before now certificates begin to be valid: clocks differ.
const BEFORE: i64 = 5 * 60;
/// Longest life of a certificate, in days.
pub const MAX_DAYS: u32 = 36_500;

/// Whose a certificate is to be, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its common name, which etcd takes for the user.
    pub common_name: String,
    /// Whose it is for meepo.
    pub identity: Option<Identity>,
    /// Host names and addresses under which a server is reached.
    pub hosts: Vec<String>,
    /// Whether a server shows it. Clients show every certificate.
    pub server: bool,
}

impl Subject {
    /// Of one of meepo's own.
    pub fn of(identity: Identity, hosts: Vec<String>) -> Self {
        Self {
            common_name: identity.etcd_user(),
            server: !matches!(identity, Identity::Client(_)),
            identity: Some(identity),
            hosts,
        }
    }

    /// The same as that of a certificate.
    pub fn from_facts(facts: &x509::Facts) -> Self {
        Self {
            common_name: facts.common_name.clone(),
            identity: facts.identity.clone(),
            hosts: facts.hosts.clone(),
            server: facts.server,
        }
    }

    fn params(&self, days: u32) -> anyhow::Result<CertificateParams> {
        let mut params = validity(days)?;
        params.distinguished_name = named(&self.common_name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if self.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        for host in &self.hosts {
            let bad = || format!("{host:?} is neither a host name nor an address");
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().with_context(bad)?),
            });
        }
        if let Some(identity) = &self.identity {
            params.subject_alt_names.push(SanType::URI(identity.uri().try_into()?));
        }
        Ok(params)
    }
}

/// A certificate with its key, both in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

/// An authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    facts: x509::Facts,
    der: Vec<u8>,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When there is no randomness, or the time is out of range.
    pub fn create(common_name: &str, days: u32) -> anyhow::Result<Issued> {
        let key = KeyPair::generate()?;
        let mut params = validity(days)?;
        params.distinguished_name = named(common_name);
        // It signs for others itself, and for no other authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key)?;
        Ok(Issued { cert: cert.pem(), key: key.serialize_pem() })
    }

    /// Reads one from its files.
    ///
    /// # Errors
    /// When they cannot be read, do not belong together or are of no authority.
    pub fn load(cert: &Path, key: &Path) -> anyhow::Result<Self> {
        let text = String::from_utf8(files::read(key)?).context("it is no text");
        let key_pair = text.and_then(|text| Ok(KeyPair::from_pem(&text)?));
        let key_pair = key_pair.with_context(|| format!("{}: no private key", key.display()))?;
        // During a change of authority there are several: the one that the key is of.
        for der in files::certificates(cert)? {
            let Some(facts) = x509::facts(&der).filter(|facts| facts.authority) else { continue };
            if x509::public_key(&der).as_deref() == Some(key_pair.public_key_raw()) {
                let issuer = Issuer::from_ca_cert_der(&der, key_pair)?;
                return Ok(Self { issuer, facts, der: der.to_vec() });
            }
        }
        anyhow::bail!("{} is not the key of any authority in {}", key.display(), cert.display())
    }

    /// What its own certificate says.
    pub fn facts(&self) -> &x509::Facts {
        &self.facts
    }

    /// Its certificate, in PEM.
    pub fn pem(&self) -> String {
        x509::to_pem(&self.der)
    }

    /// Whether it has signed a certificate.
    pub fn has_signed(&self, cert: &[u8]) -> bool {
        x509::signed_by(cert, &self.der)
    }

    /// Makes a key and a certificate.
    ///
    /// # Errors
    /// When a host has no possible name, or the certificate would outlive the authority.
    pub fn issue(&self, subject: &Subject, days: u32) -> anyhow::Result<Issued> {
        let key = KeyPair::generate()?;
        let params = self.within(subject.params(days)?)?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { cert: cert.pem(), key: key.serialize_pem() })
    }

    /// Signs for whoever has the key of a request. Nothing is taken from it but that key: whose
    /// the certificate is, `subject` says.
    ///
    /// # Errors
    /// When it is no request, or was not made by whoever has that key.
    pub fn sign(&self, request: &str, subject: &Subject, days: u32) -> anyhow::Result<String> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .context("it is no request for a certificate")?;
        let params = self.within(subject.params(days)?)?;
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }

    /// Nothing is valid for longer than the authority is.
    fn within(&self, mut params: CertificateParams) -> anyhow::Result<CertificateParams> {
        let end = moment(self.facts.not_after)?;
        anyhow::ensure!(
            end > OffsetDateTime::now_utc(),
            "the authority has expired on {}; expected a new one, of `meepo tls init` in another \
             directory",
            self.facts.not_after
        );
        params.not_after = params.not_after.min(end);
        Ok(params)
    }
}

/// A new key, and the request that an authority signs.
///
/// # Errors
/// When there is no randomness.
pub fn request(identity: &Identity) -> anyhow::Result<Issued> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&identity.to_string());
    Ok(Issued { cert: params.serialize_request(&key)?.pem()?, key: key.serialize_pem() })
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn validity(days: u32) -> anyhow::Result<CertificateParams> {
    anyhow::ensure!(
        (1..=MAX_DAYS).contains(&days),
        "{days} days are out of range; expected 1 to {MAX_DAYS}"
    );
    let now = Timestamp::now();
    let mut params = CertificateParams::default();
    params.not_before = moment(now - Span::new().seconds(BEFORE))?;
    params.not_after = moment(now + Span::new().hours(i64::from(days) * 24))?;
    Ok(params)
}

fn moment(at: Timestamp) -> anyhow::Result<OffsetDateTime> {
    Ok(OffsetDateTime::from_unix_timestamp(at.as_second())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;

    fn facts(pem: &str) -> x509::Facts {
        let der = rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        x509::facts(&der).unwrap()
    }

    fn authority(dir: &Path) -> Authority {
        let made = Authority::create("meepo test", 30).unwrap();
        let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        std::fs::write(&cert, made.cert).unwrap();
        std::fs::write(&key, made.key).unwrap();
        Authority::load(&cert, &key).unwrap()
    }

    #[test]
    fn a_certificate_says_what_was_asked_for_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let node = Identity::Node("10.0.0.7".into());
        let hosts = vec!["10.0.0.7".to_owned(), "fe80::1".to_owned(), "web1".to_owned()];
        let subject = Subject::of(node.clone(), hosts.clone());
        let cert = facts(&authority.issue(&subject, 7).unwrap().cert);
        assert_eq!((cert.common_name.as_str(), &cert.hosts), ("node:10.0.0.7", &hosts));
        assert_eq!((cert.identity.as_ref(), cert.issuer.as_str()), (Some(&node), "meepo test"));
        assert!(!cert.authority && cert.server && authority.facts().authority);
        assert_eq!(Subject::from_facts(&cert), subject);
        let days = (cert.not_after - Timestamp::now()).get_seconds() as f64 / 86_400.0;
        assert!((6.9..7.1).contains(&days), "{days}");
        // Not even the authority's own time is exceeded.
        let long = facts(&authority.issue(&subject, 400).unwrap().cert);
        assert_eq!(long.not_after, authority.facts().not_after);
        assert!(authority.issue(&subject, 0).is_err());
        let odd = Subject { hosts: vec!["ü".into()], ..subject };
        assert!(authority.issue(&odd, 7).is_err());
    }

    #[test]
    fn nothing_is_taken_from_a_request_but_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let greedy = request(&Identity::Master("m1".into())).unwrap();
        let node = Subject::of(Identity::Node("n1".into()), Vec::new());
        let cert = authority.sign(&greedy.cert, &node, 7).unwrap();
        assert_eq!(facts(&cert).common_name, "node:n1");
        assert_eq!(facts(&cert).identity, Some(Identity::Node("n1".into())));
        let broken = greedy.cert.replacen('A', "B", 3);
        for bad in [
            "",
            "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
            &broken,
        ] {
            assert!(authority.sign(bad, &node, 7).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_that_is_not_the_authoritys_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        authority(dir.path());
        let other = Authority::create("other", 1).unwrap();
        let key = dir.path().join("other.key");
        std::fs::write(&key, &other.key).unwrap();
        let e = Authority::load(&dir.path().join("ca.pem"), &key).err().unwrap().to_string();
        assert!(e.contains("is not the key of any authority"), "{e}");
        // Beside another it is found.
        let both = dir.path().join("both.pem");
        let first = std::fs::read_to_string(dir.path().join("ca.pem")).unwrap();
        std::fs::write(&both, format!("{first}{}", other.cert)).unwrap();
        assert_eq!(Authority::load(&both, &key).unwrap().facts().common_name, "other");
    }
}
