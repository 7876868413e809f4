//! How a worker joins a fleet: by a token that is good for one node, once.

use crate::{
    code::Code,
    duration::HumanDuration,
    error::Invalid,
    id::{Name, NodeId},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How every join token begins, so that one is recognized where it does not belong.
const PREFIX: &str = "meepo-join";
/// Digits of a fingerprint: SHA-256.
const FINGERPRINT: usize = 64;
/// Longest part of a token, in bytes.
const MAX_PART: usize = 64;

/// A token as its holder has it: `meepo-join.<id>.<secret>.<fingerprint>`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Under which it is known.
    pub id: String,
    /// What only its holder knows.
    pub secret: String,
    /// SHA-256 of the authority that masters have their certificates from, in hexadecimal:
    /// by it the holder knows that it speaks to them.
    pub authority: String,
}

impl JoinToken {
    /// The whole of it. To be shown once, and to nobody else.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}.{}.{}.{}", self.id, self.secret, self.authority)
    }
}

/// Without the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = Invalid;

    fn from_str(s: &str) -> Result<Self, Invalid> {
        // What was given is a secret, also where it is no token.
        let bad = || {
            Invalid::new(
                Code::BAD_VALUE,
                "token",
                "this is no join token".to_owned(),
                "one as `meepo node join-token` prints it, the whole of it",
            )
        };
        let part = |s: &str| -> Option<String> {
            let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            ((1..=MAX_PART).contains(&s.len()) && s.bytes().all(fine)).then(|| s.to_owned())
        };
        let mut parts = s.trim().split('.');
        let (Some(PREFIX), Some(id), Some(secret), Some(authority), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let hex =
            authority.len() == FINGERPRINT && authority.bytes().all(|b| b.is_ascii_hexdigit());
        match (part(id), part(secret)) {
            (Some(id), Some(secret)) if hex => {
                Ok(Self { id, secret, authority: authority.to_ascii_lowercase() })
            }
            _ => Err(bad()),
        }
    }
}

/// Body of `POST /v1/join-tokens`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CreateJoinToken {
    /// The node that may join with it, also one that is known already. Absent: any that is
    /// not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// Good for so long; an hour unless given, a week at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub ttl: Option<HumanDuration>,
    /// Host names and addresses that the certificate is to be valid for, where a node is given;
    /// its id unless given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinTokenView {
    /// By which it is revoked.
    pub id: String,
    /// The node that may join with it. Absent: any that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// Who made it, as the audit has it. Absent: nobody had to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub expires_at: Timestamp,
}

/// A join token that has just been made.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewJoinToken {
    /// The token. It is shown this once.
    pub token: String,
    /// SHA-256 of the authority it vouches for.
    pub authority: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub view: JoinTokenView,
}

/// Without the token.
impl fmt::Debug for NewJoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NewJoinToken").field(&self.view).finish()
    }
}

/// All join tokens that are neither spent nor expired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinTokenList {
    /// By id.
    pub tokens: Vec<JoinTokenView>,
}

/// Body of `POST /v1/join`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The token.
    pub token: String,
    /// Which node joins.
    pub node: NodeId,
    /// A request for a certificate (PKCS #10, PEM). Nothing but the key is taken from it.
    pub request: String,
}

/// Body of `POST /v1/renew`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// A request for a certificate (PKCS #10, PEM). Nothing but the key is taken from it.
    pub request: String,
}

/// A certificate that was signed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SignedCertificate {
    /// In PEM.
    pub certificate: String,
    /// The authorities of the fleet, in PEM.
    pub ca: String,
    /// URLs of etcd, as the master has them.
    pub etcd: Vec<String>,
    /// Until then it is valid. UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub not_after: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_what_is_shown_and_does_not_show_itself() {
        let token =
            JoinToken { id: "0f3a".into(), secret: "s3cr3t-_".into(), authority: "ab".repeat(32) };
        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert_eq!(format!(" {}\n", token.reveal()).parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("s3cr3t"));
        let whole = token.reveal();
        for bad in [
            "",
            "meepo-join",
            &whole[1..],
            &whole[..whole.len() - 1],
            &whole.replace("0f3a", ""),
            &whole.replace("0f3a", "0/3a"),
            &whole.replace("ab", "xy"),
            &format!("{whole}.x"),
        ] {
            let e = bad.parse::<JoinToken>().unwrap_err();
            assert!(!e.to_string().contains("s3cr3t"), "{e}");
        }
    }
}
