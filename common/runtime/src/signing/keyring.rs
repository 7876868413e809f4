//! The public keys that are trusted. Their files are read again when they change, so that a
//! key comes and goes without a restart.

use super::{BASE64, key_id, pem};
use anyhow::{Context, ensure};
use base64::Engine;
use meepo_core::signing::{Place, Refusal, Signature, message};
use ring::signature::{ED25519, UnparsedPublicKey};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::{Duration, Instant, SystemTime},
};
use tracing::{error, info};

/// How often it is looked whether files have changed, at most.
const LOOK: Duration = Duration::from_secs(1);

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Its id.
    pub id: String,
    bytes: [u8; 32],
}

impl PublicKey {
    /// Its 32 bytes.
    ///
    /// # Errors
    /// They are not that many.
    pub fn new(bytes: &[u8]) -> anyhow::Result<Self> {
        let bytes = <[u8; 32]>::try_from(bytes).ok().context("not the 32 bytes of a key")?;
        Ok(Self { id: key_id(&bytes), bytes })
    }

    /// It in PEM.
    pub fn pem(&self) -> String {
        pem::public(&self.bytes)
    }

    /// The keys in a file, of which there may be several.
    ///
    /// # Errors
    /// It cannot be read, or holds none.
    pub fn read(path: &Path) -> anyhow::Result<Vec<Self>> {
        let read = || -> anyhow::Result<Vec<Self>> {
            let text = std::fs::read_to_string(path)?;
            let blocks = pem::blocks(&text, pem::PUBLIC_KEY)?;
            ensure!(
                !blocks.is_empty(),
                "it has no block PUBLIC KEY; expected one, as `meepo signing show` prints it"
            );
            blocks.iter().map(|der| Self::new(&pem::public_of(der)?)).collect()
        };
        read().with_context(|| format!("the trusted key {}", path.display()))
    }
}

/// All keys that are trusted.
#[derive(Debug)]
pub struct Keyring {
    files: Vec<PathBuf>,
    /// Keys that are trusted whatever files say.
    own: Vec<PublicKey>,
    known: RwLock<Known>,
}

#[derive(Debug)]
struct Known {
    keys: BTreeMap<String, PublicKey>,
    /// When each file was changed last, as far as it is there.
    changed: Vec<Option<SystemTime>>,
    looked: Instant,
}

impl Keyring {
    /// The keys of these files, and `own`.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn open(files: Vec<PathBuf>, own: Vec<PublicKey>) -> anyhow::Result<Self> {
        let changed = changed(&files);
        let keys = read(&files, &own)?;
        let known = RwLock::new(Known { keys, changed, looked: Instant::now() });
        Ok(Self { files, own, known })
    }

    /// The ids of the keys.
    pub fn ids(&self) -> Vec<String> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).keys.keys().cloned().collect()
    }

    /// Whether a signature is genuine: of a trusted key, of this value, at this place. Not
    /// whether it is new and holds still.
    ///
    /// # Errors
    /// It is not.
    pub fn verify(
        &self,
        place: Place<'_>,
        signature: &Signature,
        value: &str,
    ) -> Result<(), Refusal> {
        self.refresh();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = known.keys.get(&signature.key) else {
            let trusted = known.keys.keys().cloned().collect();
            return Err(Refusal::UnknownKey { key: signature.key.clone(), trusted });
        };
        let forged = || Refusal::Forged { unknown: Vec::new() };
        let sig = BASE64.decode(&signature.sig).map_err(|_| forged())?;
        let bytes = message(place, signature, value);
        UnparsedPublicKey::new(&ED25519, key.bytes).verify(&bytes, &sig).map_err(|_| forged())
    }

    /// Reads the files again that have changed.
    fn refresh(&self) {
        let due = |known: &Known| known.looked.elapsed() >= LOOK && !self.files.is_empty();
        if !due(&self.known.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if !due(&known) {
            return;
        }
        known.looked = Instant::now();
        let now = changed(&self.files);
        if now == known.changed {
            return;
        }
        match read(&self.files, &self.own) {
            Ok(keys) => {
                info!(keys = ?keys.keys().collect::<Vec<_>>(), "trusted keys were read again");
                known.keys = keys;
                known.changed = now;
            }
            Err(e) => error!(error = %format!("{e:#}"), "trusted keys stay as they were"),
        }
    }
}

fn read(files: &[PathBuf], own: &[PublicKey]) -> anyhow::Result<BTreeMap<String, PublicKey>> {
    let mut keys: BTreeMap<_, _> = own.iter().map(|key| (key.id.clone(), key.clone())).collect();
    for file in files {
        keys.extend(PublicKey::read(file)?.into_iter().map(|key| (key.id.clone(), key)));
    }
    Ok(keys)
}

fn changed(files: &[PathBuf]) -> Vec<Option<SystemTime>> {
    files.iter().map(|file| std::fs::metadata(file).and_then(|m| m.modified()).ok()).collect()
}
