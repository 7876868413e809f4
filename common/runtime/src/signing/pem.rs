//! Keys as files: PKCS#8 (RFC 8410) in PEM (RFC 7468), as openssl(1) reads and writes them.

use super::BASE64;
use anyhow::{Context, ensure};
use base64::Engine;

/// What stands before the 32 bytes of a private key (RFC 8410 §7).
const PRIVATE: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// … and before those of a public one (§4).
const PUBLIC: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The labels of PEM.
pub(super) const PRIVATE_KEY: &str = "PRIVATE KEY";
pub(super) const PUBLIC_KEY: &str = "PUBLIC KEY";

pub(super) fn private(seed: &[u8; 32]) -> String {
    block(PRIVATE_KEY, &[&PRIVATE[..], seed].concat())
}

pub(super) fn public(key: &[u8]) -> String {
    block(PUBLIC_KEY, &[&PUBLIC[..], key].concat())
}

fn block(label: &str, der: &[u8]) -> String {
    // Shorter than a line of 64 characters or two.
    let text = BASE64.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// The contents of all blocks with this label.
pub(super) fn blocks(text: &str, label: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(&begin) {
        let (body, after) =
            after.split_once(&end).with_context(|| format!("a block {begin} has no {end}"))?;
        let body: String = body.split_whitespace().collect();
        found.push(BASE64.decode(body).with_context(|| format!("the block {begin} is no base64"))?);
        rest = after;
    }
    Ok(found)
}

/// The 32 bytes of a public key.
pub(super) fn public_of(der: &[u8]) -> anyhow::Result<[u8; 32]> {
    let key = der.strip_prefix(&PUBLIC).and_then(|key| <[u8; 32]>::try_from(key).ok());
    ensure!(key.is_some(), "not an Ed25519 public key");
    Ok(key.unwrap_or_default())
}
