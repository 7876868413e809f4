//! What the API takes and shows of users, tokens and roles. What is a secret is in requests and
//! in the one answer that makes a token, nowhere else.

use super::{Range, Role, Token, User};
use crate::{duration::HumanDuration, id::Name};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Body of `PUT /v1/users/{name}`: the user as it is to be. The password stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PutUser {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it may.
    pub roles: Vec<Name>,
    /// May do nothing, whatever its roles.
    pub disabled: bool,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UserView {
    /// Unique name.
    pub name: Name,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it may.
    pub roles: Vec<Name>,
    /// Whether a password is set.
    pub password: bool,
    /// May do nothing, whatever its roles.
    pub disabled: bool,
    /// UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub created_at: Timestamp,
}

impl From<&User> for UserView {
    fn from(u: &User) -> Self {
        Self {
            name: u.name.clone(),
            description: u.description.clone(),
            roles: u.roles.clone(),
            password: u.password.is_some(),
            disabled: u.disabled,
            created_at: u.created_at,
        }
    }
}

/// All users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UserList {
    /// By name.
    pub users: Vec<UserView>,
}

/// Body of `PUT /v1/users/{name}/password`.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PasswordRequest {
    /// The new password; absent: there is to be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// The old one, from who changes the own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
}

impl fmt::Debug for PasswordRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordRequest")
    }
}

/// Body of `POST /v1/login`.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// Who.
    pub user: Name,
    /// The password.
    pub password: String,
    /// How long the token is worth something. Default 12h, at most 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<HumanDuration>,
}

impl fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoginRequest({})", self.user)
    }
}

/// Body of `POST /v1/tokens`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CreateToken {
    /// For whom. Absent: for who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Name>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Only these of the user's roles. Absent: all that the user has at the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<Name>>,
    /// Only for who asks from one of these addresses or ranges.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub from: Option<Vec<Range>>,
    /// How long it is worth something. Default 90 days, at most ten years.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<HumanDuration>,
}

/// A token that has just been made: the only time that it is shown.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewToken {
    /// The token.
    pub token: String,
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user: Name,
    /// From then on it is worth nothing. UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub expires_at: Timestamp,
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewToken({})", self.id)
    }
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenView {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user: Name,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Only these of the user's roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<Name>>,
    /// Only for who asks from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub from: Option<Vec<Range>>,
    /// Made by a login with a password.
    pub login: bool,
    /// UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// From then on it is worth nothing. UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub expires_at: Timestamp,
}

impl From<&Token> for TokenView {
    fn from(t: &Token) -> Self {
        Self {
            id: t.id.clone(),
            user: t.user.clone(),
            description: t.description.clone(),
            roles: t.roles.clone(),
            from: t.from.clone(),
            login: t.login,
            created_at: t.created_at,
            created_by: t.created_by.clone(),
            expires_at: t.expires_at,
        }
    }
}

/// Tokens: all, or one's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenList {
    /// Newest first.
    pub tokens: Vec<TokenView>,
}

/// All roles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RoleList {
    /// Those that are always there, then the others by name.
    pub roles: Vec<Role>,
}

/// By what somebody is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// A token of meepo.
    Token,
    /// A bearer token of OpenID Connect.
    Oidc,
    /// A client certificate.
    Certificate,
    /// By nothing: this master asks nobody who they are.
    Nothing,
}

impl Via {
    /// As it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Oidc => "oidc",
            Self::Certificate => "certificate",
            Self::Nothing => "nothing",
        }
    }
}

/// Who asks, as the master sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhoAmI {
    /// Whether this master asks everybody who they are.
    pub auth: bool,
    /// The name.
    pub user: String,
    /// By what it is known.
    pub via: Via,
    /// What it may.
    pub roles: Vec<Name>,
    /// Permissions that it has for something at least.
    pub permissions: Vec<String>,
    /// The id of the token, where it is one of meepo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// From then on it is worth nothing. UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub expires_at: Option<Timestamp>,
    /// Where it asks from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}
