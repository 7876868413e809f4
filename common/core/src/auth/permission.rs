//! What there is to be allowed.

use crate::{code::Code, error::Invalid};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// By what a permission can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// By nothing but the address of who asks: it concerns the fleet as a whole.
    Fleet,
    /// Also by the nodes it is about.
    Nodes,
    /// Also by what is run there, and as which user.
    Commands,
}

/// Makes [`Permission`] from the table of all: name, scope, meaning, and whether viewers and
/// operators have it.
macro_rules! permissions {
    ($($variant:ident = $name:literal, $scope:ident, $viewer:literal, $operator:literal, $meaning:literal;)*) => {
        /// One thing that may be allowed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Permission {
            $(
                #[doc = $meaning]
                #[serde(rename = $name)]
                $variant,
            )*
        }

        impl Permission {
            /// Every permission.
            pub const ALL: &'static [Permission] = &[$(Self::$variant),*];

            /// Its name: what it is about, a dot, and what is done.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// By what it can be limited.
            pub const fn scope(self) -> Scope {
                match self { $(Self::$variant => Scope::$scope),* }
            }

            /// What it allows, in words.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }

            /// Whether the role `viewer` has it.
            pub const fn of_viewer(self) -> bool {
                match self { $(Self::$variant => $viewer),* }
            }

            /// Whether the role `operator` has it.
            pub const fn of_operator(self) -> bool {
                match self { $(Self::$variant => $operator),* }
            }
        }
    };
}

permissions! {
    JobRead = "job.read", Nodes, true, true, "see jobs, their nodes, next slots, statistics and gaps";
    JobWrite = "job.write", Commands, false, true, "create, change and delete jobs";
    JobPause = "job.pause", Nodes, false, true, "pause and resume jobs";
    JobTrigger = "job.trigger", Commands, false, true, "run jobs on request";
    RunRead = "run.read", Nodes, true, true, "see runs and their output, and search in it";
    RunKill = "run.kill", Nodes, false, true, "end runs";
    NodeRead = "node.read", Nodes, true, true, "see nodes, their facts and labels";
    NodeLabel = "node.label", Nodes, false, true, "change labels of nodes";
    NodeDrain = "node.drain", Nodes, false, true, "drain nodes and take that back";
    NodeJoin = "node.join", Fleet, false, false, "make and revoke the tokens by which nodes join";
    Exec = "exec", Commands, false, true, "run commands now";
    TaskRead = "task.read", Nodes, true, true, "see tasks and their parts";
    TaskWrite = "task.write", Commands, false, true, "hand in tasks, and cancel, stop, bury, … them";
    EventRead = "event.read", Nodes, true, true, "hear what happens in the fleet";
    NotifyRead = "notify.read", Fleet, true, true, "see channels, rules and messages";
    NotifyWrite = "notify.write", Fleet, false, true, "change and test channels and rules";
    DoctorRead = "doctor.read", Fleet, true, true, "see what is wrong with the fleet";
    MetricsRead = "metrics.read", Fleet, true, true, "read the metrics of masters";
    AuditRead = "audit.read", Fleet, false, false, "see who did what";
    UserRead = "user.read", Fleet, false, false, "see users";
    UserWrite = "user.write", Fleet, false, false, "create, change and delete users, and set their passwords";
    TokenRead = "token.read", Fleet, false, false, "see the tokens of others";
    TokenWrite = "token.write", Fleet, false, false, "make tokens for others and revoke theirs";
    RoleRead = "role.read", Fleet, false, false, "see roles";
    RoleWrite = "role.write", Fleet, false, false, "create, change and delete roles";
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Permission {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let found = Self::ALL.iter().copied().find(|p| p.as_str() == s);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|p| p.as_str()).collect();
            let expected = format!("*, a kind such as job.*, or one of {}", names.join(", "));
            Invalid::new(Code::BAD_VALUE, "permissions", format!("no permission {s:?}"), expected)
        })
    }
}

/// The permissions that `text` means: one by its name, all of a kind (`job.*`), or all (`*`).
///
/// # Errors
/// When it means none.
pub fn meant(text: &str) -> Result<Vec<Permission>, Invalid> {
    if text == "*" {
        return Ok(Permission::ALL.to_vec());
    }
    let Some(kind) = text.strip_suffix('*').filter(|kind| kind.ends_with('.')) else {
        return text.parse().map(|p| vec![p]);
    };
    let of_kind = |p: &&Permission| p.as_str().starts_with(kind);
    match Permission::ALL.iter().filter(of_kind).copied().collect::<Vec<_>>() {
        none if none.is_empty() => text.parse().map(|p| vec![p]),
        some => Ok(some),
    }
}
