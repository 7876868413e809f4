//! Certificates for tests: an authority of a cluster's own, and whatever it makes.

use crate::api::Api;
use meepo_runtime::tls::{self, Authority, Identity, Issued, Subject};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair, SanType, date_time_ymd};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// An authority, and the folder with its files.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Pair {
    /// The arguments of a master or worker that shows this one and believes in `ca`.
    pub fn flags(&self, ca: &Path) -> Vec<String> {
        let all = [("--tls-cert", &*self.cert), ("--tls-key", &*self.key), ("--tls-ca", ca)];
        all.into_iter().flat_map(|(f, path)| [f.to_owned(), path.display().to_string()]).collect()
    }
}

impl Pki {
    /// A new authority in that folder, which is made.
    pub fn new(dir: &Path) -> Self {
        // Clients of the tests' own that are not told what to use take it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        fs::create_dir_all(dir).unwrap();
        let pki = Self { dir: dir.to_path_buf() };
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("meepo test {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        pki.write("ca", &Authority::create(&name, 30).unwrap());
        pki
    }

    /// Its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Its key.
    pub fn ca_key(&self) -> PathBuf {
        self.dir.join("ca.key")
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The authority itself.
    pub fn authority(&self) -> Authority {
        Authority::load(&self.ca(), &self.ca_key()).unwrap()
    }

    /// Of a master on 127.0.0.1.
    pub fn master(&self, name: &str) -> Pair {
        let hosts = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        self.of(Identity::Master(name.to_owned()), hosts)
    }

    /// Of a node on its own address.
    pub fn node(&self, id: &str) -> Pair {
        self.of(Identity::Node(id.to_owned()), vec![id.to_owned(), "127.0.0.1".to_owned()])
    }

    /// Of somebody who uses the API.
    pub fn client(&self, name: &str) -> Pair {
        self.of(Identity::Client(name.to_owned()), Vec::new())
    }

    fn of(&self, identity: Identity, hosts: Vec<String>) -> Pair {
        let stem = identity.to_string().replace(':', "-");
        self.issue(&stem, &Subject::of(identity, hosts))
    }

    /// Of whoever; the files are called `stem`. What is there is replaced.
    pub fn issue(&self, stem: &str, subject: &Subject) -> Pair {
        self.write(stem, &self.authority().issue(subject, 20).unwrap())
    }

    /// Of a server that is none of meepo's, on 127.0.0.1.
    pub fn server(&self, name: &str) -> Pair {
        let hosts = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let common_name = name.to_owned();
        self.issue(name, &Subject { common_name, identity: None, hosts, server: true })
    }

    /// Of a user of etcd by that name.
    pub fn user(&self, name: &str) -> Pair {
        let common_name = name.to_owned();
        let hosts = Vec::new();
        self.issue(name, &Subject { common_name, identity: None, hosts, server: false })
    }

    /// As `of` would make it, but it expired years ago.
    pub fn expired(&self, identity: &Identity) -> Pair {
        let ca_key = KeyPair::from_pem(&fs::read_to_string(self.ca_key()).unwrap()).unwrap();
        let ca = fs::read_to_string(self.ca()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&ca, ca_key).unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        params.distinguished_name.push(DnType::CommonName, identity.etcd_user());
        params.subject_alt_names.push(SanType::URI(identity.uri().try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        let stem = format!("expired-{}", identity.to_string().replace(':', "-"));
        self.write(&stem, &Issued { cert: cert.pem(), key: key.serialize_pem() })
    }

    fn write(&self, stem: &str, issued: &Issued) -> Pair {
        let pair = Pair {
            cert: self.dir.join(format!("{stem}.pem")),
            key: self.dir.join(format!("{stem}.key")),
        };
        tls::replace_pair(&pair.cert, &pair.key, issued).unwrap();
        pair
    }

    /// A client of the HTTP API at `base` (`https://…`), which shows this certificate or none.
    pub fn api(&self, base: &str, pair: Option<&Pair>) -> Api {
        Api::encrypted(base, &self.ca(), pair)
    }

    /// What a gRPC client of the tests' own needs.
    pub fn tonic(&self, pair: Option<&Pair>) -> tonic::transport::ClientTlsConfig {
        let read = |path: &Path| fs::read(path).unwrap();
        let config = tonic::transport::ClientTlsConfig::new()
            .ca_certificate(tonic::transport::Certificate::from_pem(read(&self.ca())));
        match pair {
            Some(pair) => config
                .identity(tonic::transport::Identity::from_pem(read(&pair.cert), read(&pair.key))),
            None => config,
        }
    }
}
