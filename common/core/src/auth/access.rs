//! Decisions: what somebody may, given the grants of all roles. Deny by default.

use super::{Command, GrantSpec, Permission, Range, Role, Scope, permission};
use crate::{error::Invalid, node::NodeInfo, target::Target};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// A grant, ready to be asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant {
    /// Bit `n` stands for the permission number `n` of [`Permission::ALL`].
    permissions: u64,
    target: Option<Target>,
    commands: Option<Vec<String>>,
    users: Option<Vec<String>>,
    from: Option<Vec<Range>>,
}

fn bit(permission: Permission) -> u64 {
    1 << (permission as u64)
}

impl Grant {
    /// What a grant says.
    ///
    /// # Errors
    /// When it cannot be read: then it grants nothing.
    pub fn new(spec: &GrantSpec) -> Result<Self, Invalid> {
        let mut permissions = 0;
        for text in &spec.permissions {
            permission::meant(text)?.into_iter().for_each(|p| permissions |= bit(p));
        }
        Ok(Self {
            permissions,
            target: spec.target.as_deref().map(Target::parse).transpose()?,
            commands: spec.commands.clone(),
            users: spec.users.clone(),
            from: spec.from.clone(),
        })
    }

    /// Whether it has the permission for who asks from there, whatever it is about.
    fn has(&self, permission: Permission, from: Option<IpAddr>) -> bool {
        let near = match (&self.from, from) {
            (None, _) => true,
            (Some(ranges), Some(from)) => ranges.iter().any(|r| r.contains(from)),
            (Some(_), None) => false,
        };
        // A limit that a permission cannot have grants nothing.
        let fits = permission.scope() != Scope::Fleet
            || (self.target.is_none() && self.commands.is_none() && self.users.is_none());
        near && fits && self.permissions & bit(permission) != 0
    }

    /// Whether its limits allow the command. For what runs none they say nothing.
    fn allows(&self, permission: Permission, command: Option<&Command>) -> bool {
        if permission.scope() != Scope::Commands {
            return true;
        }
        match command {
            Some(command) => {
                self.commands.as_ref().is_none_or(|patterns| command.fits(patterns))
                    && self.users.as_ref().is_none_or(|users| command.runs_as(users))
            }
            // Something is done to what is there already: nothing new runs.
            None => true,
        }
    }
}

/// What somebody may. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Access {
    grants: Vec<Arc<Grant>>,
    from: Option<IpAddr>,
}

impl Access {
    /// What these grants allow to who asks from there.
    pub fn new(grants: Vec<Arc<Grant>>, from: Option<IpAddr>) -> Self {
        Self { grants, from: from.map(|a| a.to_canonical()) }
    }

    fn having(&self, permission: Permission) -> impl Iterator<Item = &Grant> {
        let grants = self.grants.iter().map(AsRef::as_ref);
        grants.filter(move |g| g.has(permission, self.from))
    }

    /// Whether there is anything that it may do this to.
    pub fn may(&self, permission: Permission) -> bool {
        self.having(permission).next().is_some()
    }

    /// Whether it may do this on every node there is or will be.
    pub fn may_everywhere(&self, permission: Permission) -> bool {
        self.having(permission).any(|g| g.target.is_none())
    }

    /// Whether it may do this on a node; with `command`, run that there. Nobody knows whether
    /// a node that is not known matches.
    pub fn may_on(
        &self,
        permission: Permission,
        node: Option<&NodeInfo>,
        command: Option<&Command>,
    ) -> bool {
        self.having(permission).any(|g| {
            let reaches = match (&g.target, node) {
                (None, _) => true,
                (Some(target), Some(node)) => target.matches(node),
                (Some(_), None) => false,
            };
            reaches && g.allows(permission, command)
        })
    }

    /// Whether it may do this wherever a target leads, now and later. That one grant covers the
    /// target must follow from how both are written; only nodes that the target names one by
    /// one are looked up in `nodes`.
    pub fn may_at(
        &self,
        permission: Permission,
        target: &Target,
        nodes: &BTreeMap<crate::id::NodeId, NodeInfo>,
        command: Option<&Command>,
    ) -> bool {
        self.having(permission).any(|g| {
            let covers = g.target.as_ref().is_none_or(|own| target.within(own, nodes));
            covers && g.allows(permission, command)
        })
    }
}

/// The grants of some roles. What cannot be read grants nothing.
pub fn grants(role: &Role) -> Vec<Arc<Grant>> {
    role.grants.iter().filter_map(|spec| Grant::new(spec).ok().map(Arc::new)).collect()
}
