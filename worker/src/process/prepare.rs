//! From a command to what is handed to `posix_spawn(3)`.

use super::{
    cgroup::RunCgroup,
    command::Command,
    env::{Account, default_cwd, environment},
    error::{StartError, StartProblem},
    helper::{self, Wishes},
    resolve,
    runner::Spawner,
};
use meepo_core::{id::RunId, secret::fill};
use std::{
    collections::BTreeMap, ffi::OsString, os::unix::process::CommandExt, path::PathBuf, sync::Arc,
};

/// The environment that the command asks for, with secrets in the place of references.
fn filled(command: &Command) -> Result<BTreeMap<String, String>, StartError> {
    let values = command.secrets.values();
    let fill = |(name, value): (&String, &String)| Ok((name.clone(), fill(value, values)?));
    let filled: Result<_, String> = command.env.iter().map(fill).collect();
    filled.map_err(|why| StartError::new(StartProblem::Other, why))
}

/// A command ready to be started.
pub(super) struct Prepared {
    pub(super) command: std::process::Command,
    pub(super) program: PathBuf,
    pub(super) cwd: PathBuf,
    /// Present if an exec helper comes in between.
    pub(super) nonce: Option<String>,
    pub(super) cgroup: Option<Arc<RunCgroup>>,
}

impl Spawner {
    /// Looks up what the command names, and makes its control group.
    pub(super) fn prepare(&self, run_id: RunId, command: &Command) -> Result<Prepared, StartError> {
        let (name, args) = resolve::argv(command.executor, &command.cmd, &command.args);
        let account = self.switch_to(command)?;
        let extra = filled(command)?;
        let env = environment(run_id, account.as_ref().unwrap_or(&self.own), &extra);
        let home = command.user.as_ref().map(|_| self.own.home.as_path());
        let cgroup = match (&command.cgroup, &self.cgroups) {
            (None, _) => None,
            (Some(limits), Some(all)) => Some(all.create(run_id, limits)?),
            (Some(_), None) => {
                let message = "the job asks for a control group, and this worker makes none";
                return Err(StartError::new(StartProblem::Limits, message));
            }
        };
        let other_home = account.is_some() && command.user.is_some();
        let wishes = Wishes {
            cgroup: cgroup.as_ref().map(|c| c.dir().to_path_buf()),
            nice: command.nice,
            account,
            rlimits: command.rlimits,
            umask: command.umask,
            session: command.session,
            // The helper knows the home of the user it becomes.
            cwd: match &command.cwd {
                None if !other_home => Some(default_cwd(home).to_path_buf()),
                cwd => cwd.clone(),
            },
        };
        if wishes.any() {
            if let Some(cwd) = &command.cwd {
                resolve::check_cwd(cwd)?;
            }
            // Time-ordered, but with 74 random bits.
            let nonce = uuid::Uuid::now_v7().simple().to_string();
            let mut std = std::process::Command::new(&self.helper);
            std.args(wishes.arguments(&nonce, name, args)).current_dir("/");
            std.env_clear().envs(helper::wrapped(env));
            let (program, cwd) = (self.helper.clone(), "/".into());
            return Ok(Prepared { command: std, program, cwd, nonce: Some(nonce), cgroup });
        }
        let cwd = command.cwd.as_deref().unwrap_or_else(|| default_cwd(home));
        let path = env.get(&OsString::from("PATH")).map(OsString::as_os_str).unwrap_or_default();
        let program = resolve::program(&name, path, cwd).map_err(|e| {
            // A missing directory explains why nothing was found in it.
            resolve::check_cwd(cwd).err().unwrap_or(e)
        })?;
        let mut std = std::process::Command::new(&program);
        std.arg0(&name).args(&args).current_dir(cwd).env_clear().envs(env);
        Ok(Prepared { command: std, program, cwd: cwd.into(), nonce: None, cgroup: None })
    }

    /// The account to become, if it is not the worker's own.
    fn switch_to(&self, command: &Command) -> Result<Option<Account>, StartError> {
        let mut account = match command.user.as_deref() {
            Some(user) if user != self.own.name => Account::named(user)?,
            _ => self.own.clone(),
        };
        if let Some(group) = &command.group {
            account = account.in_group(group)?;
        }
        let same_user = account.uid == self.own.uid;
        if same_user && (command.group.is_none() || account.gid == self.own.gid) {
            return Ok(None);
        }
        if self.own.uid.is_root() {
            return Ok(Some(account));
        }
        let what = match &command.group {
            Some(group) if same_user => format!("in group {group:?}"),
            _ => format!("as user {:?}", account.name),
        };
        Err(StartError::new(
            StartProblem::UserSwitch,
            format!(
                "cannot run {what}: the worker runs as {:?}; only a worker that runs as root can \
                 switch users and groups",
                self.own.name
            ),
        ))
    }
}
