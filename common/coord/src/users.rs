//! etcd's users and roles: what is to be there, and the steps that lead to it.
//!
//! Reading and planning are apart from carrying out, so that the steps can be shown first.
//! Steps that were carried out before are not planned again.

use crate::{
    access::{Access, Grant, master_grants, worker_grants},
    etcd::{CoordError, Etcd},
};
use etcd_client::{
    AuthClient, Error, Permission, PermissionType, RoleRevokePermissionOptions, UserAddOptions,
};
use meepo_core::id::NodeId;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// etcd's own superuser: authentication can only be switched on when it is there.
pub const ROOT: &str = "root";
/// The user and the role of all masters.
pub const MASTER: &str = "master";

/// The user, and its role, of a node's worker. Also the common name of its certificate, by which
/// etcd knows who a connection is.
pub fn worker_user(node: &NodeId) -> String {
    format!("node:{node}")
}

/// A role as it is to be: its name, and everything it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name; its user has the same.
    pub name: String,
    /// Everything it may do.
    pub grants: Vec<Grant>,
}

impl Role {
    /// That of all masters.
    pub fn master() -> Self {
        Self { name: MASTER.to_owned(), grants: master_grants() }
    }

    /// That of a node's worker.
    pub fn worker(node: &NodeId) -> Self {
        Self { name: worker_user(node), grants: worker_grants(node) }
    }
}

/// What etcd has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// Roles with what they may do.
    pub roles: BTreeMap<String, BTreeSet<GrantKey>>,
    /// Users with their roles.
    pub users: BTreeMap<String, BTreeSet<String>>,
}

/// Range and access of a grant, in an order.
pub type GrantKey = (Vec<u8>, Vec<u8>, &'static str);

fn key_of(grant: &Grant) -> GrantKey {
    (grant.key.clone(), grant.end.clone(), grant.access.as_str())
}

/// One step. Shown as the command of etcdctl that does the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A role that may do nothing yet.
    AddRole(String),
    /// The role may do more.
    Grant(String, Grant),
    /// The role may no longer do this.
    Revoke(String, Grant),
    /// A user without a password: it proves who it is by a certificate.
    AddUser(String),
    /// The user has the role.
    GrantRole(String, String),
    /// The user has the role no longer.
    RevokeRole(String, String),
    /// From now on etcd asks everybody who they are.
    Enable,
}

/// What a shell takes as one word.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |grant: &Grant| {
            let key = word(&String::from_utf8_lossy(&grant.key));
            match grant.end.is_empty() {
                true => key,
                false => format!("{key} {}", word(&String::from_utf8_lossy(&grant.end))),
            }
        };
        match self {
            Self::AddRole(role) => write!(f, "etcdctl role add {}", word(role)),
            Self::Grant(role, grant) => {
                let (role, access) = (word(role), grant.access.as_str());
                write!(f, "etcdctl role grant-permission {role} {access} {}", range(grant))
            }
            Self::Revoke(role, grant) => {
                write!(f, "etcdctl role revoke-permission {} {}", word(role), range(grant))
            }
            Self::AddUser(user) => write!(f, "etcdctl user add {} --no-password", word(user)),
            Self::GrantRole(user, role) => {
                write!(f, "etcdctl user grant-role {} {}", word(user), word(role))
            }
            Self::RevokeRole(user, role) => {
                write!(f, "etcdctl user revoke-role {} {}", word(user), word(role))
            }
            Self::Enable => f.write_str("etcdctl auth enable"),
        }
    }
}

/// The steps from `present` to where every role of `wanted` has a user of its name and may do
/// exactly what is said there. Other users and roles are left alone. With `enable` the last step
/// switches authentication on.
pub fn plan(present: &Present, wanted: &[Role], enable: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let root = Role { name: ROOT.to_owned(), grants: Vec::new() };
    for role in [&root].into_iter().chain(wanted) {
        let name = &role.name;
        let has = present.roles.get(name);
        if has.is_none() {
            steps.push(Step::AddRole(name.clone()));
        }
        let has = has.cloned().unwrap_or_default();
        let wants: BTreeSet<GrantKey> = role.grants.iter().map(key_of).collect();
        let range = |g: &GrantKey| (g.0.clone(), g.1.clone());
        let ranges: BTreeSet<_> = wants.iter().map(range).collect();
        // etcd's root may do everything, whatever its role says. A range that stays with another
        // access is replaced by the grant.
        for (key, end, access) in has.iter().filter(|g| name != ROOT && !ranges.contains(&range(g)))
        {
            let grant = Grant { access: access_of(access), key: key.clone(), end: end.clone() };
            steps.push(Step::Revoke(name.clone(), grant));
        }
        let missing = role.grants.iter().filter(|g| !has.contains(&key_of(g)));
        steps.extend(missing.map(|g| Step::Grant(name.clone(), g.clone())));
        let user = present.users.get(name);
        if user.is_none() {
            steps.push(Step::AddUser(name.clone()));
        }
        if !user.is_some_and(|roles| roles.contains(name)) {
            steps.push(Step::GrantRole(name.clone(), name.clone()));
        }
        // More than its own role would be more than its own keys.
        let more = user.into_iter().flatten().filter(|r| *r != name && name != ROOT);
        steps.extend(more.map(|r| Step::RevokeRole(name.clone(), r.clone())));
    }
    if enable {
        steps.push(Step::Enable);
    }
    steps
}

fn access_of(word: &str) -> Access {
    match word {
        "read" => Access::Read,
        "write" => Access::Write,
        _ => Access::ReadWrite,
    }
}

/// Reads and changes users and roles, as whoever the connection is.
pub struct Users {
    etcd: Etcd,
}

impl Users {
    /// On the connection `etcd`.
    pub fn new(etcd: &Etcd) -> Self {
        Self { etcd: etcd.clone() }
    }

    /// Asks until it is answered, logged in if the connection has a user.
    async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        op: &'static str,
        what: &str,
        ask: impl Fn(AuthClient) -> F,
    ) -> Result<T, CoordError> {
        self.etcd.call(op, what, || ask(self.etcd.client().auth_client())).await
    }

    /// What there is of the roles in `wanted`, their users and root.
    ///
    /// # Errors
    /// etcd does not answer, or authentication is on and the connection is not root's.
    pub async fn present(&self, wanted: &[Role]) -> Result<Present, CoordError> {
        let list = |mut auth: AuthClient| async move { auth.role_list().await };
        let roles = self.ask("list", "roles", list).await?;
        let list = |mut auth: AuthClient| async move { auth.user_list().await };
        let users = self.ask("list", "users", list).await?;
        let mut present = Present::default();
        let names = wanted.iter().map(|r| r.name.as_str()).chain([ROOT]);
        for name in names {
            if roles.roles().iter().any(|r| r == name) {
                let get = |mut auth: AuthClient| async move { auth.role_get(name).await };
                let role = self.ask("get", name, get).await?;
                let grants = role.permissions();
                let grants = grants.iter().map(|p| {
                    let access = match p.get_type() {
                        t if t == i32::from(PermissionType::Read) => Access::Read,
                        t if t == i32::from(PermissionType::Write) => Access::Write,
                        _ => Access::ReadWrite,
                    };
                    (p.key().to_vec(), p.range_end().to_vec(), access.as_str())
                });
                present.roles.insert(name.to_owned(), grants.collect());
            }
            if users.users().iter().any(|u| u == name) {
                let get = |mut auth: AuthClient| async move { auth.user_get(name).await };
                let user = self.ask("get", name, get).await?;
                present.users.insert(name.to_owned(), user.roles().iter().cloned().collect());
            }
        }
        Ok(present)
    }

    /// Carries a step out. A user gets the password, where one is given. Carried out once more
    /// it does nothing.
    ///
    /// # Errors
    /// etcd does not answer, or refuses.
    pub async fn carry_out(&self, step: &Step, password: Option<String>) -> Result<(), CoordError> {
        let password = &password;
        let change = |mut auth: AuthClient| async move {
            match step {
                Step::AddRole(role) => auth.role_add(role.as_str()).await.map(drop),
                Step::Grant(role, grant) => {
                    let kind = match grant.access {
                        Access::Read => PermissionType::Read,
                        Access::Write => PermissionType::Write,
                        Access::ReadWrite => PermissionType::Readwrite,
                    };
                    let mut permission = Permission::new(kind, grant.key.clone());
                    if !grant.end.is_empty() {
                        permission = permission.with_range_end(grant.end.clone());
                    }
                    auth.role_grant_permission(role.as_str(), permission).await.map(drop)
                }
                Step::Revoke(role, grant) => {
                    let options = (!grant.end.is_empty()).then(|| {
                        RoleRevokePermissionOptions::new().with_range_end(grant.end.clone())
                    });
                    let key = grant.key.clone();
                    auth.role_revoke_permission(role.as_str(), key, options).await.map(drop)
                }
                Step::AddUser(user) => {
                    let options = password.is_none().then(|| UserAddOptions::new().with_no_pwd());
                    let password = password.clone().unwrap_or_default();
                    auth.user_add(user.as_str(), password, options).await.map(drop)
                }
                Step::GrantRole(user, role) => {
                    auth.user_grant_role(user.as_str(), role.as_str()).await.map(drop)
                }
                Step::RevokeRole(user, role) => {
                    auth.user_revoke_role(user.as_str(), role.as_str()).await.map(drop)
                }
                Step::Enable => auth.auth_enable().await.map(drop),
            }
        };
        match self.ask("change users", &step.to_string(), change).await {
            // Somebody else was faster.
            Err(CoordError::Etcd { source, .. }) if exists(&source) => Ok(()),
            done => done,
        }
    }
}

fn exists(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains("already exists"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::id::Name;

    fn present(wanted: &[Role]) -> Present {
        let root = Role { name: ROOT.to_owned(), grants: Vec::new() };
        let mut there = Present::default();
        for role in wanted.iter().chain([&root]) {
            let grants = role.grants.iter().map(key_of).collect();
            there.roles.insert(role.name.clone(), grants);
            there.users.insert(role.name.clone(), [role.name.clone()].into());
        }
        there
    }

    fn wanted() -> Vec<Role> {
        vec![Role::master(), Role::worker(&Name::new("10.0.0.7").unwrap())]
    }

    #[test]
    fn what_is_there_is_not_done_again() {
        let wanted = wanted();
        assert_eq!(plan(&present(&wanted), &wanted, false), []);
        assert_eq!(plan(&present(&wanted), &wanted, true), [Step::Enable]);
        let all = plan(&Present::default(), &wanted, true);
        assert_eq!(all[0], Step::AddRole(ROOT.into()));
        assert_eq!(all.last(), Some(&Step::Enable));
        let grants = wanted.iter().map(|r| r.grants.len()).sum::<usize>();
        // For each a role, a user and its role; then the grants.
        assert_eq!(all.len(), 3 * 3 + grants + 1);
    }

    #[test]
    fn what_is_too_much_is_taken_away() {
        let wanted = wanted();
        let mut there = present(&wanted);
        let node = &wanted[1].name;
        let all = Grant::new(Access::ReadWrite, "/meepo/");
        there.roles.get_mut(node).unwrap().insert(key_of(&all));
        there.users.get_mut(node).unwrap().insert(ROOT.into());
        let steps = plan(&there, &wanted, false);
        let want =
            [Step::Revoke(node.clone(), all), Step::RevokeRole(node.clone(), ROOT.to_owned())];
        assert_eq!(steps, want);
    }

    #[test]
    fn another_access_to_the_same_keys_is_replaced_by_the_grant() {
        let wanted = wanted();
        let mut there = present(&wanted);
        let node = &wanted[1];
        let mine = there.roles.get_mut(&node.name).unwrap();
        let read = node.grants.iter().find(|g| g.access == Access::Read).unwrap();
        mine.remove(&key_of(read));
        mine.insert((read.key.clone(), read.end.clone(), "readwrite"));
        let want = [Step::Grant(node.name.clone(), read.clone())];
        assert_eq!(plan(&there, &wanted, false), want);
    }

    #[test]
    fn steps_are_commands_that_a_shell_takes() {
        let grant = Grant::new(Access::Read, "/a b/'c'/");
        let step = Step::Grant("node:10.0.0.7".into(), grant).to_string();
        let want =
            r"etcdctl role grant-permission node:10.0.0.7 read '/a b/'\''c'\''/' '/a b/'\''c'\''0'";
        assert_eq!(step, want);
        let user = Step::AddUser("node:::1".into()).to_string();
        assert_eq!(user, "etcdctl user add node:::1 --no-password");
    }
}
