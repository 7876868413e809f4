//! The files that certificates and keys are kept in.

use super::{Issued, x509};
use anyhow::Context;
use rustls::{
    RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Where a certificate, its key and the authorities are. All in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those between it and the authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that others must have their certificates from. During a change of
    /// authority both.
    pub ca: PathBuf,
}

/// What is in the files.
pub(super) struct Material {
    pub(super) own: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
}

impl TlsFiles {
    /// Reads them all.
    ///
    /// # Errors
    /// When one cannot be read, is not what it should be, or the key is of another
    /// certificate. A retry helps once somebody has put that right.
    pub(super) fn read(&self) -> anyhow::Result<Material> {
        let ca = certificates(&self.ca)?;
        let roots = roots(&ca).with_context(|| self.ca.display().to_string())?;
        let own = pair(&self.cert, &self.key, &ca)?;
        Ok(Material { own: Arc::new(own), roots: Arc::new(roots) })
    }

    /// What tells whether one of them has changed.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp([&self.cert, &self.key, &self.ca].map(|path| stat(path)).to_vec())
    }
}

/// What the file system says of some files: as long as it is the same, so is what is in
/// them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp(Vec<Option<[i64; 7]>>);

impl Stamp {
    /// Of these files, of which some may be missing.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        Self(paths.into_iter().map(stat).collect())
    }
}

fn stat(path: &Path) -> Option<[i64; 7]> {
    let m = fs::metadata(path).ok()?;
    let inode = [m.dev().cast_signed(), m.ino().cast_signed(), m.size().cast_signed()];
    let [dev, ino, size] = inode;
    Some([dev, ino, size, m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()])
}

/// Reads a file that should be small.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let text = || -> std::io::Result<Vec<u8>> {
        let length = fs::metadata(path)?.len();
        if length > MAX_FILE {
            return Err(std::io::Error::other("it is larger than 1 MiB"));
        }
        fs::read(path)
    };
    text().with_context(|| format!("cannot read {}", path.display()))
}

/// Puts a file into the place of what is there, if anything, in one step. No link is followed.
///
/// # Errors
/// The system refuses.
pub fn replace(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let fresh = path.with_added_extension(format!("new-{}", std::process::id()));
    let write = || {
        // Of an earlier attempt.
        let _ = fs::remove_file(&fresh);
        let options = OpenOptions::new().write(true).create_new(true).mode(mode).clone();
        let mut file = options.open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Puts a certificate and its key into their places, the key first: whoever reads them in
/// between finds that they do not belong together, and tries again.
///
/// # Errors
/// The system refuses.
pub fn replace_pair(cert: &Path, key: &Path, issued: &Issued) -> anyhow::Result<()> {
    replace(key, &issued.key, 0o600)?;
    replace(cert, &issued.cert, 0o644)
}

/// The certificates of a file.
///
/// # Errors
/// When it cannot be read, or there is none in it.
pub fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    x509::pem(&read(path)?).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))
}

/// The authorities that these certificates are of.
pub(super) fn roots(ca: &[CertificateDer<'static>]) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for cert in ca {
        roots.add(cert.clone()).context("a certificate of no authority")?;
    }
    Ok(roots)
}

/// A certificate with its key.
fn pair(cert: &Path, key: &Path, ca: &[CertificateDer<'static>]) -> anyhow::Result<CertifiedKey> {
    let mut chain = certificates(cert)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|e| anyhow::anyhow!("{}: it is no private key in PEM: {e}", key.display()))?;
    // Whoever does not know the authority yet recognizes it by its fingerprint, which a join
    // token carries.
    if let Some(last) = chain.last()
        && let Some(issuer) = ca.iter().find(|ca| x509::names_as_issuer(last, ca))
        && !chain.contains(issuer)
    {
        chain.push(issuer.clone());
    }
    let own = CertifiedKey::from_der(chain, private, &default_provider());
    own.with_context(|| format!("{} is not the key of {}", key.display(), cert.display()))
}
