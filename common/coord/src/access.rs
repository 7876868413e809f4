//! Who may do what with which keys, for etcd's own users and roles.
//!
//! A worker's user has what its node needs and nothing of other nodes; a master's user has all
//! of meepo's keys. Every family of [`keys`] stands in [`FAMILIES`] with what a worker may do
//! with it: a family without a decision makes a test red.

use crate::{
    etcd::range_end,
    keys::{self, EVERYTHING},
};
use meepo_core::id::NodeId;
use std::fmt;

/// What may be done with keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read and watch.
    Read,
    /// Write and delete, without seeing what is there.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    /// The word for it that etcdctl takes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::ReadWrite => "readwrite",
        }
    }

    /// Whether it allows reading.
    pub const fn reads(self) -> bool {
        !matches!(self, Self::Write)
    }

    /// Whether it allows writing.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Read)
    }
}

/// Which keys of a family a worker's user has anything to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// None.
    Nothing,
    /// Those below `<family><its node>/`.
    Below(Access),
    /// The one at `<family><its node>`.
    Own(Access),
    /// All of the family: they belong to no node.
    Shared(Access),
}

/// Keys that begin alike, and what a worker's user may do with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// What its keys begin with; without a `/` at the end it is one key.
    pub prefix: &'static str,
    /// What a worker may do.
    pub worker: Scope,
}

const fn family(prefix: &'static str, worker: Scope) -> Family {
    Family { prefix, worker }
}

/// Every family there is.
pub const FAMILIES: &[Family] = &[
    family(keys::ASSIGNMENTS, Scope::Below(Access::Read)),
    family(keys::CRONIDS, Scope::Below(Access::ReadWrite)),
    family(keys::TRIGGERS, Scope::Below(Access::ReadWrite)),
    family(keys::KILLS, Scope::Below(Access::ReadWrite)),
    family(keys::ORDERS, Scope::Below(Access::ReadWrite)),
    // Any node may be the one that runs a slot or holds a lock.
    family(keys::CLAIMS, Scope::Shared(Access::ReadWrite)),
    family(keys::LOCKS, Scope::Shared(Access::ReadWrite)),
    family(keys::HEALTH, Scope::Own(Access::ReadWrite)),
    family(keys::NODES, Scope::Own(Access::ReadWrite)),
    family(keys::DRAINS, Scope::Own(Access::Read)),
    family(keys::RERUNS, Scope::Below(Access::ReadWrite)),
    family(keys::SPENT, Scope::Below(Access::ReadWrite)),
    family(keys::OUTCOMES, Scope::Below(Access::ReadWrite)),
    // A part is begun on condition that its task has not changed, and ended together with its
    // order; whose it is does not show in its key.
    family(keys::TASKS, Scope::Shared(Access::Read)),
    family(keys::PARTS, Scope::Shared(Access::Write)),
    family(keys::LEADER, Scope::Shared(Access::Read)),
    // Who may ask for what, and by what masters know each other's word.
    family(keys::USERS, Scope::Nothing),
    family(keys::TOKENS, Scope::Nothing),
    family(keys::ROLES, Scope::Nothing),
    family(keys::AUTH_KEY, Scope::Nothing),
    family(keys::JOBS, Scope::Nothing),
    family(keys::TREE_JOBS, Scope::Nothing),
    family(keys::LABELS, Scope::Nothing),
    // Whoever reads them has hashes; whoever writes them lets others in.
    family(keys::JOIN_TOKENS, Scope::Nothing),
    family(keys::TASK_KEYS, Scope::Nothing),
    family(keys::CHANNELS, Scope::Nothing),
    family(keys::RULES, Scope::Nothing),
    family(keys::INBOX, Scope::Nothing),
    family(keys::SUBJECTS, Scope::Nothing),
    family(keys::GROUPS, Scope::Nothing),
    family(keys::FLOWS, Scope::Nothing),
    family(keys::OUTBOX, Scope::Nothing),
];

/// Keys from `key` up to, without, `end`, and what may be done with them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grant {
    /// What may be done.
    pub access: Access,
    /// The first key.
    pub key: Vec<u8>,
    /// The first after them; empty: `key` is the only one.
    pub end: Vec<u8>,
}

impl Grant {
    /// Everything below `key` if that ends with `/`, else `key` alone.
    pub fn new(access: Access, key: &str) -> Self {
        let end = if key.ends_with('/') { range_end(key) } else { Vec::new() };
        Self { access, key: key.into(), end }
    }

    /// Whether `key` is among its keys.
    pub fn covers(&self, key: &str) -> bool {
        let key = key.as_bytes();
        match self.end.is_empty() {
            true => key == self.key,
            false => *self.key <= *key && *key < *self.end,
        }
    }
}

impl fmt::Display for Grant {
    /// As etcdctl takes it: `read /cron/jobs/10.0.0.7/ /cron/jobs/10.0.0.70`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.access.as_str(), String::from_utf8_lossy(&self.key))?;
        match self.end.is_empty() {
            true => Ok(()),
            false => write!(f, " {}", String::from_utf8_lossy(&self.end)),
        }
    }
}

/// What the user of a node's worker may do.
pub fn worker_grants(node: &NodeId) -> Vec<Grant> {
    let grant = |family: &Family| {
        Some(match family.worker {
            Scope::Nothing => return None,
            Scope::Below(access) => Grant::new(access, &format!("{}{node}/", family.prefix)),
            Scope::Own(access) => Grant::new(access, &format!("{}{node}", family.prefix)),
            Scope::Shared(access) => Grant::new(access, family.prefix),
        })
    };
    FAMILIES.iter().filter_map(grant).collect()
}

/// What the masters' user may do: everything of meepo, in one range, as masters watch it by one
/// watch.
pub fn master_grants() -> Vec<Grant> {
    let (key, end) = EVERYTHING;
    vec![Grant { access: Access::ReadWrite, key: key.into(), end: end.into() }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::id::Name;

    #[test]
    fn every_family_of_the_key_module_has_a_decision() {
        let source = include_str!("keys.rs");
        let code = source.split("#[cfg(test)]").next().unwrap();
        let mut seen = 0;
        for literal in code.split('"').skip(1).step_by(2).filter(|s| s.starts_with('/')) {
            // Separators, and the ends of the range of all.
            if ["/", "/agent/", "/meepo0"].contains(&literal) {
                continue;
            }
            let decided = FAMILIES.iter().any(|f| literal.starts_with(f.prefix));
            assert!(decided, "{literal} is in no family of access.rs: what may a worker do there?");
            seen += 1;
        }
        assert!(seen > 20, "{seen}");
        for (i, family) in FAMILIES.iter().enumerate() {
            let clash = FAMILIES[i + 1..].iter().find(|other| {
                other.prefix.starts_with(family.prefix) || family.prefix.starts_with(other.prefix)
            });
            assert_eq!(clash, None, "{} stands twice", family.prefix);
        }
    }

    #[test]
    fn a_worker_has_nothing_of_a_node_whose_name_begins_like_its_own() {
        let (node, other) = (Name::new("10.0.0.2").unwrap(), Name::new("10.0.0.20").unwrap());
        let grants = worker_grants(&node);
        let may =
            |key: &str, f: fn(Access) -> bool| grants.iter().any(|g| g.covers(key) && f(g.access));
        let job = Name::new("j").unwrap();
        for (mine, theirs) in [
            (keys::assignment(&node, &job), keys::assignment(&other, &job)),
            (keys::health(&node), keys::health(&other)),
            (keys::drain(&node), keys::drain(&other)),
            (keys::node(&node), keys::node(&other)),
        ] {
            assert!(may(&mine, Access::reads), "{mine}");
            assert!(!may(&theirs, |_| true), "{theirs}");
        }
        assert!(!may(&keys::assignment(&node, &job), Access::writes));
        assert!(!may(&keys::drain(&node), Access::writes));
        assert!(!may(keys::LEADER, Access::writes));
        assert!(!may(&keys::job(&job), |_| true));
    }

    #[test]
    fn masters_have_every_family() {
        let grants = master_grants();
        assert!(FAMILIES.iter().all(|f| grants.iter().all(|g| g.covers(f.prefix))));
    }

    #[test]
    fn grants_are_told_as_etcdctl_takes_them() {
        let below = Grant::new(Access::Read, "/cron/jobs/10.0.0.7/");
        assert_eq!(below.to_string(), "read /cron/jobs/10.0.0.7/ /cron/jobs/10.0.0.70");
        assert_eq!(Grant::new(Access::Write, "/x").to_string(), "write /x");
    }
}
