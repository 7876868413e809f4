//! Secrets: made, hashed, compared. Nothing here is logged.

use crate::error::{ApiError, ApiResult};
use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use meepo_core::{auth::TokenText, code::Code};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;
use tracing::error;

/// Hashes computed at once: each takes 19 MiB and some ten milliseconds of a processor.
const AT_ONCE: usize = 2;
/// Verified tokens that are remembered, at some hundred bytes each.
const REMEMBERED: usize = 10_000;
/// Memory in KiB, rounds and lanes: what OWASP recommends at least for Argon2id.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);

fn random<const N: usize>() -> ApiResult<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| broken("the kernel gives no random bytes"))?;
    Ok(bytes)
}

fn broken(why: &str) -> ApiError {
    error!(why, "cannot work with secrets");
    ApiError::new(Code::BUG, "this master cannot work with secrets; its log says why")
}

/// A new token.
pub(super) fn token() -> ApiResult<TokenText> {
    let id = random::<10>()?.iter().map(|b| format!("{b:02x}")).collect();
    Ok(TokenText { id, secret: URL_SAFE_NO_PAD.encode(random::<32>()?) })
}

/// A new key.
pub(super) fn key() -> ApiResult<String> {
    Ok(URL_SAFE_NO_PAD.encode(random::<32>()?))
}

fn argon2() -> ApiResult<Argon2<'static>> {
    let (memory, rounds, lanes) = COST;
    let params = Params::new(memory, rounds, lanes, None).map_err(|e| broken(&e.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Computes and checks hashes, a few at once and not on threads that serve requests.
pub(super) struct Hashing {
    turns: Semaphore,
    /// Of which process a digest is: what is remembered is of no use to who reads it.
    key: hmac::Key,
    /// Digests of tokens that were verified, with the hash that they were verified against.
    verified: Mutex<HashMap<[u8; 32], Arc<str>>>,
}

impl Hashing {
    pub(super) fn new() -> anyhow::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| anyhow::anyhow!("the kernel gives no random bytes"))?;
        Ok(Self { turns: Semaphore::new(AT_ONCE), key, verified: Mutex::default() })
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> ApiResult<T> {
        let _turn = self.turns.acquire().await.map_err(|e| broken(&e.to_string()))?;
        tokio::task::spawn_blocking(work).await.map_err(|e| broken(&e.to_string()))
    }

    /// The hash of a secret as a PHC string.
    pub(super) async fn hash(&self, secret: String) -> ApiResult<String> {
        let argon2 = argon2()?;
        let hashed =
            self.in_turn(move || argon2.hash_password(secret.as_bytes()).map(|h| h.to_string()));
        hashed.await?.map_err(|e| broken(&e.to_string()))
    }

    /// Whether a password is the one of a hash. Without a hash it takes as long and is not, so
    /// that the time tells nobody who there is.
    pub(super) async fn is_password(
        &self,
        password: String,
        hash: Option<&str>,
    ) -> ApiResult<bool> {
        let Some(hash) = hash.map(str::to_owned) else {
            self.hash(password).await?;
            return Ok(false);
        };
        self.verify(password, hash).await
    }

    async fn verify(&self, secret: String, hash: String) -> ApiResult<bool> {
        // Constant in time, as `verify_password` compares so.
        let verifying = self.in_turn(move || {
            let Ok(parsed) = PasswordHash::new(&hash) else { return false };
            Argon2::default().verify_password(secret.as_bytes(), &parsed).is_ok()
        });
        verifying.await
    }

    /// Whether a token is the one of a hash. Asked again, it takes microseconds.
    pub(super) async fn is_token(&self, token: &TokenText, hash: &str) -> ApiResult<bool> {
        let digest = self.digest(token);
        let known =
            |map: &HashMap<[u8; 32], Arc<str>>| map.get(&digest).is_some_and(|h| **h == *hash);
        if known(&self.verified.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(true);
        }
        if !self.verify(token.secret.clone(), hash.to_owned()).await? {
            return Ok(false);
        }
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        // Only what was right comes in: nobody can fill it but by as many tokens.
        if verified.len() >= REMEMBERED {
            verified.clear();
        }
        verified.insert(digest, hash.into());
        Ok(true)
    }

    /// Whether a token was found right before.
    pub(super) fn knows(&self, token: &TokenText) -> bool {
        let digest = self.digest(token);
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&digest)
    }

    fn digest(&self, token: &TokenText) -> [u8; 32] {
        let tag = hmac::sign(&self.key, token.reveal().as_bytes());
        let mut digest = [0; 32];
        digest.copy_from_slice(tag.as_ref());
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_fits_its_secret_alone_and_is_remembered_for_it_alone() {
        let hashing = Hashing::new().unwrap();
        let (one, two) = (token().unwrap(), token().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.reveal().parse::<TokenText>().unwrap(), one);
        let hash = hashing.hash(one.secret.clone()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$") && !hash.contains(&one.secret));
        assert!(hashing.is_token(&one, &hash).await.unwrap());
        assert_eq!(hashing.verified.lock().unwrap().len(), 1);
        assert!(hashing.is_token(&one, &hash).await.unwrap());
        assert!(!hashing.is_token(&two, &hash).await.unwrap());
        // A token that was replaced under the same id.
        let other = hashing.hash(two.secret.clone()).await.unwrap();
        assert!(!hashing.is_token(&one, &other).await.unwrap());
        assert!(!hashing.is_token(&one, "not a hash").await.unwrap());
        assert_eq!(hashing.verified.lock().unwrap().len(), 1);
        assert!(hashing.is_password(one.secret.clone(), Some(&hash)).await.unwrap());
        assert!(!hashing.is_password(one.secret.clone(), None).await.unwrap());
    }
}
