//! What etcd holds of users and tokens. Neither has a secret in it that could be used: of
//! passwords and tokens there are only hashes.

use super::Range;
use crate::{code::Code, error::Invalid, id::Name};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, str::FromStr};
use uuid::Uuid;

/// Shortest password, in characters.
pub const MIN_PASSWORD: usize = 12;
/// Longest password, in bytes: hashing must not take for ever.
pub const MAX_PASSWORD: usize = 1024;

/// Somebody, or something, that may ask: the value at `/meepo/users/<name>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Unique name.
    pub name: Name,
    /// Tells one from another who had the name before: tokens are of this one.
    pub id: Uuid,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it may.
    #[serde(default)]
    pub roles: Vec<Name>,
    /// The password as a PHC string of Argon2id. Absent: there is no login with a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// May do nothing, whatever its roles.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    /// UTC.
    pub created_at: Timestamp,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// A token: the value at `/meepo/tokens/<id>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its id: the part of the text that is no secret.
    pub id: String,
    /// Whose it is.
    pub user: Name,
    /// [`User::id`] of that user.
    pub user_id: Uuid,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The secret as a PHC string of Argon2id.
    pub hash: String,
    /// Only these of the user's roles. Absent: all that the user has at the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<Name>>,
    /// Only for who asks from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<Range>>,
    /// Made by a login with a password: ends when the password changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub login: bool,
    /// UTC.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// From then on it is worth nothing. UTC.
    pub expires_at: Timestamp,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// What all tokens begin with, for whoever looks for secrets in files.
const PREFIX: &str = "meepo_";
/// Characters of an id: 80 bits in hexadecimal digits.
const ID_LEN: usize = 20;
/// Characters of a secret: 256 bits in base64.
const SECRET_LEN: usize = 43;

/// A token as it is handed out: `meepo_<id>_<secret>`. It is shown once and kept by nobody
/// here; `Debug` leaves the secret out.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText {
    /// The id.
    pub id: String,
    /// The secret.
    pub secret: String,
}

impl TokenText {
    /// Whether a text looks like a token of meepo, whole or broken.
    pub fn is_like(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// The text itself, which is a secret.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, self.secret)
    }

    /// Whether a text can be the id of a token.
    pub fn is_id(text: &str) -> bool {
        text.len() == ID_LEN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }
}

impl FromStr for TokenText {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        // What it is must not stand in a message.
        let bad = || Invalid::new(Code::BAD_VALUE, "token", "not a token", "meepo_<id>_<secret>");
        let (id, secret) =
            s.strip_prefix(PREFIX).and_then(|s| s.split_once('_')).ok_or_else(bad)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !Self::is_id(id) || secret.len() != SECRET_LEN || !secret.bytes().all(plain) {
            return Err(bad());
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenText({})", self.id)
    }
}

/// Whether a password may be set for a user.
///
/// # Errors
/// When it is too short, too long, or the user's name.
pub fn check_password(user: &Name, password: &str) -> Result<(), Invalid> {
    let bad = |problem: &str| {
        let expected = format!("{MIN_PASSWORD} characters or more, up to {MAX_PASSWORD} bytes");
        Err(Invalid::new(Code::BAD_VALUE, "password", problem, expected))
    };
    match password.chars().count() {
        n if n < MIN_PASSWORD => bad("too short"),
        _ if password.len() > MAX_PASSWORD => bad("too long"),
        _ if password.eq_ignore_ascii_case(user.as_str()) => bad("it is the name of the user"),
        _ => Ok(()),
    }
}
