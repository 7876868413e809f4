//! The tables `[tls]` and `[etcd_tls]` of the settings, and their flags.

use super::TlsFiles;
use clap::Args;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// `[tls]`: what a process shows and whom it believes.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// Certificate of this process, in PEM: with it, everything that listens or connects to
    /// masters speaks TLS. [default: none]
    #[arg(id = "tls_cert", long = "tls-cert", env = "MEEPO_TLS_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(id = "tls_key", long = "tls-key", env = "MEEPO_TLS_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The authorities that masters, workers and clients have their certificates from, in PEM.
    #[arg(id = "tls_ca", long = "tls-ca", env = "MEEPO_TLS_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Key of the authority, with which a master signs for workers that join; only in the file.
    #[arg(skip)]
    pub ca_key: Option<PathBuf>,
}

impl TlsSettings {
    /// These, and what is not set as in `base`.
    #[must_use]
    pub fn over(self, base: Self) -> Self {
        Self {
            cert: self.cert.or(base.cert),
            key: self.key.or(base.key),
            ca: self.ca.or(base.ca),
            ca_key: self.ca_key.or(base.ca_key),
        }
    }

    /// The files, if there are any.
    ///
    /// # Errors
    /// When some are named and others not.
    pub fn files(&self) -> anyhow::Result<Option<TlsFiles>> {
        match (&self.cert, &self.key, &self.ca) {
            (None, None, None) => {
                anyhow::ensure!(
                    self.ca_key.is_none(),
                    "tls.ca_key: it is of no use alone; expected cert, key and ca beside it"
                );
                Ok(None)
            }
            (Some(cert), Some(key), Some(ca)) => {
                Ok(Some(TlsFiles { cert: cert.clone(), key: key.clone(), ca: ca.clone() }))
            }
            (cert, key, ca) => {
                let all = [("cert", cert), ("key", key), ("ca", ca)];
                let missing: Vec<_> =
                    all.iter().filter(|(_, path)| path.is_none()).map(|(name, _)| *name).collect();
                anyhow::bail!(
                    "tls: {} missing; expected all of cert, key and ca (made by `meepo tls init`), \
                     or none of them",
                    missing.join(" and ")
                )
            }
        }
    }
}

/// `[etcd_tls]`: what etcd is shown and believed.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdTlsSettings {
    /// The authority that etcd has its certificate from, in PEM. [default: that of --tls-ca]
    #[arg(id = "etcd_ca", long = "etcd-ca", env = "MEEPO_ETCD_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Certificate shown to etcd, in PEM. [default: that of --tls-cert]
    #[arg(id = "etcd_cert", long = "etcd-cert", env = "MEEPO_ETCD_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(id = "etcd_key", long = "etcd-key", env = "MEEPO_ETCD_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
}

/// What connections to etcd are encrypted with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// The authority that etcd has its certificate from.
    pub ca: PathBuf,
    /// The certificate that is shown to etcd, and its key.
    pub pair: Option<(PathBuf, PathBuf)>,
}

impl EtcdTls {
    /// All files there are.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let pair = self.pair.iter().flat_map(|(cert, key)| [cert, key]);
        std::iter::once(&self.ca).chain(pair).map(PathBuf::as_path)
    }
}

impl EtcdTlsSettings {
    /// These, and what is not set as in `base`.
    #[must_use]
    pub fn over(self, base: Self) -> Self {
        Self { ca: self.ca.or(base.ca), cert: self.cert.or(base.cert), key: self.key.or(base.key) }
    }

    /// What to use with these endpoints: nothing where they are plain; where nothing is set,
    /// what stands in `[tls]`.
    ///
    /// # Errors
    /// When a certificate comes without its key, or would be shown to nobody.
    pub fn resolve(
        self,
        endpoints: &[String],
        tls: Option<&TlsFiles>,
    ) -> anyhow::Result<Option<EtcdTls>> {
        let pair = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => anyhow::bail!(
                "etcd_tls: a certificate and its key belong together; expected both of cert and \
                 key, or neither"
            ),
        };
        let set = self.ca.is_some() || pair.is_some();
        let encrypted = endpoints.iter().filter(|url| url.starts_with("https://")).count();
        anyhow::ensure!(
            encrypted == 0 || encrypted == endpoints.len(),
            "etcd: some URLs are encrypted and others not; expected all of them with https://"
        );
        if encrypted == 0 {
            anyhow::ensure!(
                !set,
                "etcd_tls: the URLs of etcd are not encrypted; expected them with https://, or no \
                 etcd_tls"
            );
            return Ok(None);
        }
        let own = || tls.map(|tls| (tls.cert.clone(), tls.key.clone()));
        let ca = self.ca.or_else(|| tls.map(|tls| tls.ca.clone())).ok_or_else(|| {
            anyhow::anyhow!(
                "etcd_tls.ca: missing, and the URLs of etcd are encrypted; expected the file of \
                 the authority that etcd has its certificate from"
            )
        })?;
        Ok(Some(EtcdTls { ca, pair: if set { pair } else { own() } }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> TlsFiles {
        TlsFiles { cert: "c".into(), key: "k".into(), ca: "a".into() }
    }

    #[test]
    fn all_files_or_none_are_named() {
        let settings = TlsSettings { cert: Some("c".into()), ..TlsSettings::default() };
        let e = settings.files().unwrap_err().to_string();
        assert!(e.starts_with("tls: key and ca missing"), "{e}");
        let rest =
            TlsSettings { key: Some("k".into()), ca: Some("a".into()), ..TlsSettings::default() };
        assert_eq!(settings.over(rest).files().unwrap(), Some(files()));
        assert_eq!(TlsSettings::default().files().unwrap(), None);
        let alone = TlsSettings { ca_key: Some("x".into()), ..TlsSettings::default() };
        assert!(alone.files().is_err());
    }

    #[test]
    fn etcd_is_shown_what_masters_are_unless_said_otherwise() {
        let [https, http] = ["https://e:2379", "http://e:2379"].map(|url| vec![url.to_owned()]);
        let none = EtcdTlsSettings::default();
        let found = none.clone().resolve(&https, Some(&files())).unwrap().unwrap();
        assert_eq!(found.pair, Some(("c".into(), "k".into())));
        assert_eq!(found.paths().count(), 3);
        assert_eq!(none.clone().resolve(&http, Some(&files())).unwrap(), None);
        let ca = EtcdTlsSettings { ca: Some("other".into()), ..none };
        let found = ca.clone().resolve(&https, Some(&files())).unwrap().unwrap();
        assert_eq!((found.ca, found.pair), ("other".into(), None));
        let e = ca.resolve(&http, None).unwrap_err().to_string();
        assert!(e.contains("https://"), "{e}");
        assert!(EtcdTlsSettings::default().resolve(&https, None).is_err());
        let both = [https, http].concat();
        assert!(EtcdTlsSettings::default().resolve(&both, None).is_err());
    }
}
