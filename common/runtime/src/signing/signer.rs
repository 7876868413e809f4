//! A private key, and signatures made with it.

use super::{BASE64, key_id, pem};
use anyhow::{Context, ensure};
use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use meepo_core::signing::{Place, Signature, message};
use ring::{
    rand::{SecureRandom, SystemRandom},
    signature::{Ed25519KeyPair, KeyPair},
};
use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::atomic::{AtomicI64, Ordering},
};

/// A private key. Two signatures of one process never have the same time, so that it is
/// always known which is newer.
#[derive(Debug)]
pub struct Signer {
    pair: Ed25519KeyPair,
    id: String,
    /// The time of the last signature, in milliseconds since 1970.
    last: AtomicI64,
}

/// Makes a key: its file as PEM.
///
/// # Errors
/// The system gives no random numbers.
pub fn generate() -> anyhow::Result<String> {
    let mut seed = [0; 32];
    let filled = SystemRandom::new().fill(&mut seed);
    filled.ok().context("the system gives no random numbers")?;
    Ok(pem::private(&seed))
}

/// Reads a file with a private key, which nobody else may be able to read.
///
/// # Errors
/// It cannot be read, others can read it too, or it holds no such key.
pub fn read_private(path: &Path) -> anyhow::Result<Signer> {
    let read = || -> anyhow::Result<Signer> {
        let meta = std::fs::metadata(path)?;
        let mode = meta.permissions().mode() & 0o777;
        ensure!(
            mode & 0o077 == 0,
            "its permissions are {mode:o}, so that others than user {} can read it; expected 600",
            meta.uid()
        );
        Signer::from_pem(&std::fs::read_to_string(path)?)
    };
    read().with_context(|| format!("the signing key {}", path.display()))
}

impl Signer {
    /// Reads a private key in PEM.
    ///
    /// # Errors
    /// It is none of Ed25519.
    pub fn from_pem(text: &str) -> anyhow::Result<Self> {
        let blocks = pem::blocks(text, pem::PRIVATE_KEY)?;
        ensure!(
            blocks.len() == 1,
            "it has {} blocks PRIVATE KEY; expected one, as `meepo signing init` writes it",
            blocks.len()
        );
        let pair = blocks.first().map(|der| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der));
        let pair = pair.and_then(Result::ok).context("not an Ed25519 key in PKCS#8")?;
        let id = key_id(pair.public_key().as_ref());
        Ok(Self { pair, id, last: AtomicI64::new(0) })
    }

    /// The id of the key.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The bytes of the public key.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The public key in PEM.
    pub fn public_pem(&self) -> String {
        pem::public(self.public())
    }

    /// Signs a value, given as [`meepo_core::signing::canonical`]. `lives`: for how long it
    /// holds; none: for ever. `newer_than`: the time of an older signature of the same key,
    /// which another master with another clock may have made.
    pub fn sign(
        &self,
        place: Place<'_>,
        term: i64,
        lives: Option<SignedDuration>,
        newer_than: Option<Timestamp>,
        value: &str,
    ) -> Signature {
        let issued_at = self.now(newer_than);
        let mut signature = Signature {
            key: self.id.clone(),
            term,
            issued_at,
            expires_at: lives.map(|d| issued_at.checked_add(d).unwrap_or(Timestamp::MAX)),
            sig: String::new(),
        };
        let bytes = message(place, &signature, value);
        signature.sig = BASE64.encode(self.pair.sign(&bytes));
        signature
    }

    /// A time that no signature has had.
    fn now(&self, newer_than: Option<Timestamp>) -> Timestamp {
        let now = Timestamp::now().as_millisecond();
        let now = newer_than.map_or(now, |old| now.max(old.as_millisecond().saturating_add(1)));
        let next = |last: i64| Some(now.max(last + 1));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let at = now.max(last.unwrap_or(0) + 1);
        Timestamp::from_millisecond(at).unwrap_or(Timestamp::MAX)
    }
}
