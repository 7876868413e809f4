//! Names and ids: what may stand in a key of etcd and in a URL without escaping.

use crate::{code::Code, error::Invalid};
use serde::{Deserialize, Deserializer, Serialize};
use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// Longest name in bytes.
pub const MAX_NAME: usize = 128;

/// The name of a job or a node: letters, digits, `.`, `_`, `-`, `:`, at most
/// [`MAX_NAME`] bytes, and neither `.` nor `..` (they would vanish from URLs).
/// Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[A-Za-z0-9._:-]{1,128}$"))]
#[serde(transparent)]
pub struct Name(Arc<str>);

/// The id of a node: its primary IP unless configured otherwise.
pub type NodeId = Name;

impl Name {
    /// Checks `s`. The error's field is `name`; use [`Invalid::at`] to move it.
    pub fn new(s: &str) -> Result<Self, Invalid> {
        let bad = |problem: String| {
            Err(Invalid::new(
                Code::BAD_NAME,
                "name",
                problem,
                "1 to 128 letters, digits, '.', '_', '-' or ':'",
            ))
        };
        if s.is_empty() {
            return bad("empty name".into());
        }
        if s.len() > MAX_NAME {
            return bad(format!("name of {} bytes is too long", s.len()));
        }
        if let Some(c) =
            s.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-' | ':'))
        {
            return bad(format!("{s:?} contains {c:?}"));
        }
        if s == "." || s == ".." {
            return bad(format!("{s:?} cannot stand in a path"));
        }
        Ok(Self(s.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::new(s)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = String::deserialize(d)?;
        Self::new(&s).map_err(|e| {
            serde::de::Error::custom(format!("{}; expected {}", e.problem, e.expected))
        })
    }
}

/// The id of a run: a UUIDv7, so that ids sort by creation time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, format = "uuid"))]
#[serde(transparent)]
pub struct RunId(pub uuid::Uuid);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for RunId {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        s.parse().map(Self).map_err(|_| {
            Invalid::new(
                Code::BAD_NAME,
                "run_id",
                format!("{s:?} is not a run id"),
                "a UUID as printed by `meepo runs`",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_key_are_refused() {
        for bad in ["", "a/b", "a b", "ü", "..", ".", "a\n", &"x".repeat(129)] {
            assert_eq!(Name::new(bad).unwrap_err().code, Code::BAD_NAME, "{bad:?}");
        }
        for good in ["127.0.0.2", "a", "backup-db_1:x", &"x".repeat(128), "fe80::1"] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
    }
}
