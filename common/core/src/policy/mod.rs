//! What a node runs, whatever masters say: its own lists of users, executors, commands,
//! scripts and directories. A list that is absent restricts nothing; an empty one lets
//! nothing through.

mod command;
#[cfg(test)]
mod tests;

use crate::job::{Assignment, Executor};
use command::{Pattern, plain_words};
use serde::Deserialize;
use std::fmt;

/// The table `[allow]` of a worker's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Allow {
    /// Users to run as. A job that names none runs as the worker's own.
    pub users: Option<Vec<String>>,
    /// Groups to run as. With `users` and without this list a job may name none.
    pub groups: Option<Vec<String>>,
    /// Executors.
    pub executors: Option<Vec<Executor>>,
    /// Commands, as words: `systemctl restart nginx`. A last word `*` stands for any further
    /// arguments; a word that ends with `*` for all that begin so.
    pub commands: Option<Vec<String>>,
    /// Scripts by the SHA-256 of their text, in hexadecimal.
    pub scripts_sha256: Option<Vec<String>>,
    /// Directories to work in, with all below them. A job must name one then.
    pub directories: Option<Vec<String>>,
    /// Variables that a job may set, as `NAME` or `PREFIX*`. None where `commands` or
    /// `scripts_sha256` are given and this is not: a variable can make another program of
    /// one that is allowed.
    pub environment: Option<Vec<String>>,
}

/// Why a node does not run something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The list that does not let it through: `users`.
    pub rule: &'static str,
    /// What it does not let through, and what it would.
    pub message: String,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "allow.{}: {}", self.rule, self.message)
    }
}

/// What the host has to say about a command.
pub trait Host {
    /// The user that the worker runs as.
    fn own_user(&self) -> &str;
    /// SHA-256 in lower-case hexadecimal.
    fn sha256(&self, text: &str) -> String;
}

/// Names that messages show at the most.
const SHOWN: usize = 8;

fn denied<T>(rule: &'static str, what: &str, allowed: &[T]) -> Result<(), Denied>
where
    T: fmt::Display,
{
    let mut names: Vec<String> = allowed.iter().take(SHOWN).map(ToString::to_string).collect();
    if allowed.len() > SHOWN {
        names.push("…".to_owned());
    }
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    Err(Denied { rule, message: format!("this node does not allow {what}; it allows {names}") })
}

impl Allow {
    /// Whether it restricts nothing.
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the lists can be meant.
    ///
    /// # Errors
    /// The first entry that never could let anything through.
    pub fn check_lists(&self) -> Result<(), String> {
        for text in self.commands.iter().flatten() {
            Pattern::new(text).map_err(|why| format!("allow.commands: {text:?} {why}"))?;
        }
        for hash in self.scripts_sha256.iter().flatten() {
            if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!(
                    "allow.scripts_sha256: {hash:?} is no SHA-256; expected 64 hexadecimal digits, \
                     as sha256sum prints them"
                ));
            }
        }
        for dir in self.directories.iter().flatten() {
            if !dir.starts_with('/') || has_parent(dir) {
                return Err(format!(
                    "allow.directories: {dir:?} is no absolute path without `..`; expected one \
                     such as /srv/app"
                ));
            }
        }
        Ok(())
    }

    /// Whether the node runs this.
    ///
    /// # Errors
    /// The first list that does not let it through.
    pub fn check(&self, job: &Assignment, host: &impl Host) -> Result<(), Denied> {
        if let Some(executors) = &self.executors
            && !executors.contains(&job.executor)
        {
            return denied("executors", &format!("the executor {}", job.executor), executors);
        }
        // A request has no process: neither user nor directory.
        if job.executor != Executor::Http {
            self.check_user(job, host)?;
            self.check_directory(job)?;
        }
        self.check_command(job, host)?;
        self.check_environment(job)
    }

    fn check_user(&self, job: &Assignment, host: &impl Host) -> Result<(), Denied> {
        if let Some(users) = &self.users {
            let user = job.user.as_deref().unwrap_or(host.own_user());
            if !users.iter().any(|u| u == user) {
                let own = if job.user.is_none() { " (the worker's own)" } else { "" };
                return denied("users", &format!("to run as {user:?}{own}"), users);
            }
        }
        match (&job.group, &self.groups) {
            (Some(group), Some(groups)) if !groups.contains(group) => {
                denied("groups", &format!("to run as group {group:?}"), groups)
            }
            (Some(group), None) if self.users.is_some() => {
                denied("groups", &format!("to run as group {group:?}"), &["no group by name"])
            }
            _ => Ok(()),
        }
    }

    fn check_directory(&self, job: &Assignment) -> Result<(), Denied> {
        let Some(directories) = &self.directories else { return Ok(()) };
        match &job.cwd {
            None => denied("directories", "a job without cwd", directories),
            Some(cwd) if self.has_directory(cwd) => Ok(()),
            Some(cwd) => denied("directories", &format!("to work in {cwd:?}"), directories),
        }
    }

    /// Whether a path is one of the directories, or below one.
    pub fn has_directory(&self, path: &str) -> bool {
        let Some(directories) = &self.directories else { return true };
        let below = |dir: &String| {
            let dir = dir.trim_end_matches('/');
            path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        path.starts_with('/') && !has_parent(path) && directories.iter().any(below)
    }

    fn check_command(&self, job: &Assignment, host: &impl Host) -> Result<(), Denied> {
        if self.commands.is_none() && self.scripts_sha256.is_none() {
            return Ok(());
        }
        let script = matches!(job.executor, Executor::Bash | Executor::Sh | Executor::Python);
        let hash = script.then(|| host.sha256(&job.cmd));
        let known = |hash: &String| {
            self.scripts_sha256.iter().flatten().any(|h| h.eq_ignore_ascii_case(hash))
        };
        if hash.as_ref().is_some_and(known) {
            return Ok(());
        }
        if let Some(words) = words(job)
            && let Some(commands) = &self.commands
        {
            let fits = |text: &String| Pattern::new(text).is_ok_and(|p| p.fits(&words));
            if commands.iter().any(fits) {
                return Ok(());
            }
        }
        match (hash, &self.commands, &self.scripts_sha256) {
            (Some(hash), None, Some(_)) => Err(Denied {
                rule: "scripts_sha256",
                message: format!("this node does not allow the script with SHA-256 {hash}"),
            }),
            (None, None, Some(hashes)) => denied(
                "scripts_sha256",
                &format!("the executor {}, which runs no script", job.executor),
                &[format!("{} scripts", hashes.len())],
            ),
            (hash, Some(commands), _) => {
                let shell = hash.is_some();
                let why = match words(job) {
                    None if shell => " (it is more than plain words, so its SHA-256 must be known)",
                    _ => "",
                };
                denied("commands", &format!("{:?}{why}", shown(&job.cmd)), commands)
            }
            _ => Ok(()),
        }
    }

    fn check_environment(&self, job: &Assignment) -> Result<(), Denied> {
        let strict = self.commands.is_some() || self.scripts_sha256.is_some();
        let none = Vec::new();
        let allowed = match &self.environment {
            Some(allowed) => allowed,
            None if strict => &none,
            None => return Ok(()),
        };
        let fits = |name: &str, entry: &String| match entry.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == entry,
        };
        for name in job.env.keys() {
            if !allowed.iter().any(|entry| fits(name, entry)) {
                return denied("environment", &format!("to set {name}"), allowed);
            }
        }
        Ok(())
    }
}

/// The words that a command consists of; `None` if it is a script that is more than these.
fn words(job: &Assignment) -> Option<Vec<&str>> {
    match job.executor {
        Executor::Exec | Executor::Http => Some(
            [job.cmd.as_str()].into_iter().chain(job.args.iter().map(String::as_str)).collect(),
        ),
        // The arguments of a script are not words of its command.
        Executor::Bash | Executor::Sh => plain_words(&job.cmd),
        Executor::Python => None,
    }
}

fn has_parent(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

fn shown(cmd: &str) -> String {
    const MOST: usize = 80;
    match cmd.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &cmd[..end]),
        None => cmd.to_owned(),
    }
}
