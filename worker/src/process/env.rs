//! Accounts and the environment a command starts with.

use super::{
    error::{StartError, StartProblem},
    procfs::RUN_VARIABLE,
};
use meepo_core::id::RunId;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// `PATH` unless the job gives its own.
pub(super) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `SHELL` for every command: that of the account may well be `nologin`.
const DEFAULT_SHELL: &str = "/bin/sh";

/// A user as a process needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) home: PathBuf,
}

impl Account {
    /// The account this process runs as. An account without an entry in the user
    /// database (common in containers) is called by its number and lives in `/`.
    pub(super) fn own() -> Self {
        let uid = geteuid();
        match User::from_uid(uid) {
            Ok(Some(user)) => user.into(),
            _ => Self { name: uid.to_string(), uid, gid: getegid(), home: "/".into() },
        }
    }

    /// The same account with `group`, looked up by its name, as its group. Blocks.
    pub(super) fn in_group(self, group: &str) -> Result<Self, StartError> {
        match Group::from_name(group) {
            Ok(Some(group)) => Ok(Self { gid: group.gid, ..self }),
            Ok(None) => Err(StartError::new(
                StartProblem::NoSuchGroup,
                format!("there is no group {group:?} on this node"),
            )),
            Err(e) => Err(StartError::new(
                StartProblem::Resources,
                format!("cannot look up the group {group:?}: {}", e.desc()),
            )),
        }
    }

    /// Looks `name` up in the user database. Blocks (it may ask a directory service).
    pub(super) fn named(name: &str) -> Result<Self, StartError> {
        match User::from_name(name) {
            Ok(Some(user)) => Ok(user.into()),
            Ok(None) => Err(StartError::new(
                StartProblem::NoSuchUser,
                format!("there is no user {name:?} on this node"),
            )),
            Err(e) => Err(StartError::new(
                StartProblem::Resources,
                format!("cannot look up the user {name:?}: {}", e.desc()),
            )),
        }
    }
}

impl From<User> for Account {
    fn from(user: User) -> Self {
        Self { name: user.name, uid: user.uid, gid: user.gid, home: user.dir }
    }
}

/// The whole environment of run `run_id` as `account` with the job's `extra`.
pub(super) fn environment(
    run_id: RunId,
    account: &Account,
    extra: &BTreeMap<String, String>,
) -> BTreeMap<OsString, OsString> {
    let mut env = BTreeMap::from([
        ("PATH".into(), DEFAULT_PATH.into()),
        ("HOME".into(), account.home.clone().into_os_string()),
        ("LOGNAME".into(), OsString::from(&account.name)),
        ("USER".into(), OsString::from(&account.name)),
        ("SHELL".into(), DEFAULT_SHELL.into()),
    ]);
    if let Some(lang) = std::env::var_os("LANG") {
        env.insert("LANG".into(), lang);
    }
    env.extend(extra.iter().map(|(k, v)| (k.into(), v.into())));
    // Last: a job that could change it could hide from its end, or pass for another.
    env.insert(RUN_VARIABLE.into(), run_id.to_string().into());
    env
}

/// The directory a command starts in where the job names none.
pub(super) fn default_cwd(home: Option<&Path>) -> &Path {
    match home {
        Some(home) if home.is_dir() => home,
        _ => Path::new("/"),
    }
}
