//! From entries to jobs.

use super::Entry;
use crate::{
    id::Name,
    job::{Concurrency, Executor, JobSpec},
};
use std::{collections::BTreeMap, fmt::Write};

/// Longest part of a job's name that comes from the file's name.
const MAX_STEM: usize = 40;
/// Longest part of a job's name that comes from the command.
const MAX_SLUG: usize = 32;

/// What a crontab file does not say.
#[derive(Debug, Clone, Copy)]
pub struct Import<'a> {
    /// The file's path or name: its last part goes into the jobs' names, all of it into
    /// their descriptions.
    pub file: &'a str,
    /// Which nodes; usually the host the file is from.
    pub target: &'a str,
    /// The zone of entries without `CRON_TZ`: usually the host's own, which is what
    /// cron uses. `None` leaves meepo's default, UTC.
    pub timezone: Option<&'a str>,
    /// The user of entries that name none: the owner of a user's crontab.
    pub user: Option<&'a str>,
}

impl Entry {
    /// The job that runs what cron would.
    ///
    /// Its name is made of the file's name, the command and a hash of target, user,
    /// command and input. Moving the line, changing its schedule or changing other
    /// lines keeps the name, so importing a file again updates the jobs it made before,
    /// while the same file from another host makes other jobs.
    pub fn to_job(&self, import: &Import<'_>) -> JobSpec {
        let mut env = BTreeMap::clone(&self.env);
        let shell = env.entry("SHELL".into()).or_insert_with(|| "/bin/sh".into()).clone();
        env.entry("PATH".into()).or_insert_with(|| "/usr/bin:/bin".into());
        let (executor, cmd, args) = match shell.as_str() {
            "/bin/sh" | "/usr/bin/sh" => (Executor::Sh, self.command.clone(), Vec::new()),
            "/bin/bash" | "/usr/bin/bash" => (Executor::Bash, self.command.clone(), Vec::new()),
            _ => (Executor::Exec, shell, vec!["-c".to_owned(), self.command.clone()]),
        };
        JobSpec {
            description: Some(format!("from {}, line {}", import.file, self.line)),
            args,
            executor,
            schedule: Some(self.schedule.clone()),
            timezone: self.timezone.clone().or_else(|| import.timezone.map(str::to_owned)),
            target: import.target.to_owned(),
            // cron starts a command whether or not the last one has ended.
            concurrency: Concurrency::Allow,
            cwd: env.get("HOME").cloned(),
            env,
            user: self.user.clone().or_else(|| import.user.map(str::to_owned)),
            stdin: self.stdin.clone(),
            ..JobSpec::new(self.name(import), cmd)
        }
    }

    fn name(&self, import: &Import<'_>) -> Name {
        let stem = import.file.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
        let mut name = "crontab".to_owned();
        // Not `crontab-crontab-…` for /etc/crontab.
        for part in [slug(stem, MAX_STEM), self.slug()] {
            if !part.is_empty() && part != "crontab" {
                name.push('-');
                name.push_str(&part);
            }
        }
        let user = self.user.as_deref().or(import.user).unwrap_or_default();
        let stdin = self.stdin.as_deref().unwrap_or_default();
        let hash = fnv1a([import.target, user, &self.command, stdin]);
        // Writing to a String cannot fail.
        let _ = write!(name, "-{:08x}", (hash >> 32) as u32 ^ hash as u32);
        if self.twins > 0 {
            let _ = write!(name, "-{}", self.twins + 1);
        }
        match Name::new(&name) {
            Ok(name) => name,
            // The parts are short and of allowed characters, so this is not reached.
            Err(_) => unreachable!("{name} is a valid name"),
        }
    }

    /// The words of the command, without directories: `test-x-anacron-run-parts`.
    fn slug(&self) -> String {
        let words = self.command.split_whitespace();
        let words: Vec<&str> = words.filter_map(|w| w.rsplit('/').next()).collect();
        slug(&words.join(" "), MAX_SLUG)
    }
}

/// Runs of ASCII letters and digits joined by `-`, of at most `max` bytes, cut between
/// runs if there is more than one.
fn slug(text: &str, max: usize) -> String {
    let mut slug = String::new();
    for run in text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|r| !r.is_empty()) {
        if slug.is_empty() {
            slug.push_str(&run[..run.len().min(max)]);
        } else if slug.len() + 1 + run.len() <= max {
            slug.push('-');
            slug.push_str(run);
        } else {
            break;
        }
    }
    slug
}

/// The 64-bit FNV-1a hash; parts are kept apart by a byte that UTF-8 does not have.
fn fnv1a(parts: [&str; 4]) -> u64 {
    let bytes = parts.into_iter().flat_map(|p| p.bytes().chain([0xFF]));
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}
