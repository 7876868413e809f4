//! What one master tells another of who asked: signed with a key that only masters can read, so
//! that nobody else can say it. The other one looks up by itself what the caller may.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use meepo_core::{auth::Via, id::Name};
use ring::hmac;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The metadata that says it.
pub(crate) const CALLER: &str = "meepo-caller";
/// For so many seconds it counts, also if clocks differ.
const VALID: i64 = 60;
/// Longest such word, in bytes.
const MAX: usize = 8192;

/// The caller as it is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) name: String,
    pub(super) via: Via,
    /// Of who is not in the directory: those that its token came with.
    #[serde(default)]
    pub(super) roles: Vec<Name>,
    pub(super) address: Option<IpAddr>,
    pub(super) token: Option<String>,
    /// The call that it is told with.
    pub(super) method: String,
    /// Seconds since 1970.
    pub(super) at: i64,
}

/// Signs it: what it says in base64, a dot, and the signature in base64.
pub(super) fn seal(key: &[u8], told: &Told) -> String {
    let text = serde_json::to_vec(told).unwrap_or_default();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &text);
    format!("{}.{}", URL_SAFE_NO_PAD.encode(text), URL_SAFE_NO_PAD.encode(tag))
}

/// What a master told with a call, if one did, and a moment ago.
pub(super) fn open(key: &[u8], word: &str, method: &str, now: i64) -> Option<Told> {
    let (text, tag) = Some(word).filter(|w| w.len() <= MAX)?.split_once('.')?;
    let (text, tag) = (URL_SAFE_NO_PAD.decode(text).ok()?, URL_SAFE_NO_PAD.decode(tag).ok()?);
    // Constant in time.
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), &text, &tag).ok()?;
    let told: Told = serde_json::from_slice(&text).ok()?;
    let fresh = now.checked_sub(told.at).is_some_and(|age| (-VALID..=VALID).contains(&age));
    (fresh && told.method == method).then_some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fresh_word_of_a_master_for_this_call_counts() {
        let told = Told {
            name: "ann".into(),
            via: Via::Oidc,
            roles: vec![Name::new("viewer").unwrap()],
            address: Some("10.0.0.1".parse().unwrap()),
            token: None,
            method: "/meepo.v1.Exec/Run".into(),
            at: 1_000,
        };
        let word = seal(b"key", &told);
        let read = |key: &[u8], word: &str, method, now| open(key, word, method, now);
        assert_eq!(read(b"key", &word, "/meepo.v1.Exec/Run", 1_030), Some(told.clone()));
        assert_eq!(read(b"yek", &word, "/meepo.v1.Exec/Run", 1_030), None);
        assert_eq!(read(b"key", &word, "/meepo.v1.Runs/Kill", 1_030), None);
        assert_eq!(read(b"key", &word, "/meepo.v1.Exec/Run", 1_061), None);
        assert_eq!(read(b"key", &word, "/meepo.v1.Exec/Run", 900), None);
        assert_eq!(read(b"key", &word, "/meepo.v1.Exec/Run", i64::MIN), None);
        let (text, tag) = word.split_once('.').unwrap();
        let other = seal(b"key", &Told { name: "bob".into(), ..told });
        let mixed = format!("{}.{tag}", other.split_once('.').unwrap().0);
        for bad in [text, &mixed, "", ".", &format!("{text}."), &"x".repeat(10_000)] {
            assert_eq!(read(b"key", bad, "/meepo.v1.Exec/Run", 1_000), None, "{bad}");
        }
    }
}
