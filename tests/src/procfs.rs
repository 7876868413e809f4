//! The kernel's view of processes.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::fs;

/// A process id with the start time that tells it from a later one of the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pid: i32,
    started: String,
}

impl Identity {
    fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|(_, started)| Self { pid, started })
    }

    /// Kills it, unless it has ended.
    pub(crate) fn kill(&self) {
        if Self::of(self.pid).as_ref() == Some(self) {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// Parent and start time of a process, from `/proc/<pid>/stat`.
fn stat(pid: i32) -> Option<(i32, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(1)?.parse().ok()?, (*fields.get(19)?).to_owned()))
}

/// Every living process below `root`, whatever group or session it moved to.
pub(crate) fn descendants(root: i32) -> Vec<Identity> {
    let all: Vec<(i32, i32, String)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| stat(pid).map(|(parent, started)| (pid, parent, started)))
        .collect();
    let mut found: Vec<Identity> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for (pid, _, started) in all.iter().filter(|(_, p, _)| *p == parent) {
            parents.push(*pid);
            found.push(Identity { pid: *pid, started: started.clone() });
        }
    }
    found
}
