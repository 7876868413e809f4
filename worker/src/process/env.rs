//! Accounts and the environment a command starts with.

use super::error::{StartError, StartProblem};
use nix::unistd::{Gid, Uid, User, getegid, geteuid};
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

/// The whole environment of a command run as `account` with the job's `extra`.
pub(super) fn environment(
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
    env
}

/// The directory a command starts in where the job names none.
pub(super) fn default_cwd(home: Option<&Path>) -> &Path {
    match home {
        Some(home) if home.is_dir() => home,
        _ => Path::new("/"),
    }
}
