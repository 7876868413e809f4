//! Roles: lists of grants.

use super::{Range, permission};
use crate::{
    auth::Scope,
    code::Code,
    error::Invalid,
    id::Name,
    input::{from_value, unknown_field},
    target::Target,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Grants of one role, permissions, commands, users and ranges of one grant, at most.
pub(super) const MAX_LIST: usize = 100;
/// Longest pattern of a command, in bytes.
pub(super) const MAX_PATTERN: usize = 4096;

/// The role that only looks.
pub const VIEWER: &str = "viewer";
/// The role that works with the fleet.
pub const OPERATOR: &str = "operator";
/// The role that may everything.
pub const ADMIN: &str = "admin";
/// The roles that are always there and never change.
pub const BUILT_IN: [&str; 3] = [VIEWER, OPERATOR, ADMIN];

/// What a role allows: each of the permissions, where all limits hold. An absent limit limits
/// nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GrantSpec {
    /// Names of permissions; `job.*` stands for all of a kind, `*` for all.
    pub permissions: Vec<String>,
    /// Only on nodes that match this target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Only commands that match one of these patterns; `*` is a part of a word that means
    /// nothing to a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands: Option<Vec<String>>,
    /// Only commands that run as one of these users, who must be asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<String>>,
    /// Only for who asks from one of these addresses or ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub from: Option<Vec<Range>>,
}

/// A named list of grants: the value at `/meepo/roles/<name>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Role {
    /// Unique name.
    pub name: Name,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it allows: everything that one of them allows.
    pub grants: Vec<GrantSpec>,
    /// Fields this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub extra: BTreeMap<String, Value>,
}

impl Role {
    const FIELDS: &'static [&'static str] = &["name", "description", "grants"];

    /// One of the roles that are always there.
    pub fn built_in(name: &str) -> Option<Self> {
        use permission::Permission;
        let of = |has: fn(Permission) -> bool| -> Vec<String> {
            let all = Permission::ALL.iter().filter(|p| has(**p));
            all.map(|p| p.as_str().to_owned()).collect()
        };
        let (permissions, description) = match name {
            VIEWER => (of(Permission::of_viewer), "sees the fleet, and changes nothing"),
            OPERATOR => (of(Permission::of_operator), "works with the fleet"),
            ADMIN => (vec!["*".to_owned()], "may everything"),
            _ => return None,
        };
        Some(Self {
            name: Name::new(name).ok()?,
            description: Some(description.to_owned()),
            grants: vec![GrantSpec { permissions, ..GrantSpec::default() }],
            extra: BTreeMap::new(),
        })
    }

    /// Reads what a user sent: unknown fields are refused, everything is validated.
    pub fn from_user(value: Value) -> Result<Self, Invalid> {
        let role: Self = from_value(value)?;
        if let Some(field) = role.extra.keys().next() {
            return Err(unknown_field(field, Self::FIELDS));
        }
        if BUILT_IN.contains(&role.name.as_str()) {
            let problem = format!("{} is a role that does not change", role.name);
            return bad("name", problem, "another name");
        }
        if role.grants.is_empty() || role.grants.len() > MAX_LIST {
            return bad("grants", "none, or too many", "1 to 100 grants");
        }
        for (i, grant) in role.grants.iter().enumerate() {
            grant.validate().map_err(|e| {
                let field = format!("grants[{i}].{}", e.field);
                e.at(field)
            })?;
        }
        Ok(role)
    }
}

impl GrantSpec {
    /// Checks what the types do not.
    pub fn validate(&self) -> Result<(), Invalid> {
        let lists = [
            ("permissions", Some(self.permissions.len())),
            ("commands", self.commands.as_ref().map(Vec::len)),
            ("users", self.users.as_ref().map(Vec::len)),
            ("from", self.from.as_ref().map(Vec::len)),
        ];
        for (field, len) in lists {
            if len.is_some_and(|n| n == 0 || n > MAX_LIST) {
                return bad(field, "empty, or too long", "1 to 100 of them");
            }
        }
        let target = self.target.as_deref().map(Target::parse).transpose()?;
        if target.as_ref().is_some_and(Target::is_limited) {
            let expected =
                "a target without `limit`: whether a node is meant must not depend on others";
            return bad("target", "it has a limit", expected);
        }
        if let Some(fact) = target.as_ref().and_then(Target::asks_for_load) {
            let expected = "labels and facts that do not change from moment to moment";
            return bad("target", format!("it asks for {fact}"), expected);
        }
        let patterns = self.commands.iter().flatten();
        if patterns.clone().any(|p| p.is_empty() || p.len() > MAX_PATTERN) {
            return bad("commands", "an empty or too long pattern", "1 to 4096 bytes each");
        }
        if self.users.iter().flatten().any(String::is_empty) {
            return bad("users", "an empty name", "names of users of the hosts");
        }
        let limits = [
            ("target", self.target.is_some()),
            ("commands", self.commands.is_some()),
            ("users", self.users.is_some()),
        ];
        let limit = limits.iter().find(|(_, set)| *set);
        for text in &self.permissions {
            let of_fleet = |p: &permission::Permission| p.scope() == Scope::Fleet;
            let meant = permission::meant(text)?;
            // A limit that means nothing would look like one.
            if let (Some((field, _)), Some(p)) = (limit, meant.into_iter().find(of_fleet)) {
                let problem = format!("{p} cannot be limited by `{field}`");
                return bad(
                    "permissions",
                    problem,
                    "a grant of its own for it, without that limit",
                );
            }
        }
        Ok(())
    }
}

fn bad<T>(field: &str, problem: impl Into<String>, expected: &str) -> Result<T, Invalid> {
    Err(Invalid::new(Code::BAD_VALUE, field, problem, expected))
}
