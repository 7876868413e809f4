//! The keys with which masters sign and workers check, and the Ed25519 (RFC 8032) of it.
//! What is signed, and when a signature holds, is [`meepo_core::signing`].

mod keyring;
mod pem;
mod signer;
#[cfg(test)]
mod tests;

pub use keyring::{Keyring, PublicKey};
pub use signer::{Signer, generate, read_private};

use base64::engine::general_purpose::STANDARD as BASE64;
use ring::digest::{SHA256, digest};

/// SHA-256 in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// The id of a public key: the first 16 hexadecimal digits of its SHA-256.
fn key_id(public: &[u8]) -> String {
    let mut id = sha256_hex(public);
    id.truncate(16);
    id
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a text cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
