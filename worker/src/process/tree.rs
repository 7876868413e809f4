//! All that one run has started: found, signalled, ended.
//!
//! A process belongs to a run if it is the command, in its process group or session, in
//! its control group, has the run's id in its environment, or descends from one that
//! does. Once found it is remembered, so that it does not matter if its parents end.

use super::{
    cgroup::RunCgroup,
    procfs::{Process, Scanner, is_alive},
};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// How long killed processes may take to go. One that waits for its disk may take longer;
/// nothing helps then.
const PATIENCE: Duration = Duration::from_secs(5);

/// The processes of one run.
#[derive(Debug)]
pub(super) struct Tree {
    scanner: Arc<Scanner>,
    /// The command's process, also the number of its group, and when it was started; 0 as
    /// long as nobody has looked.
    root: Option<(u32, u64)>,
    /// The run's id, as in the environment.
    run: String,
    cgroup: Option<Arc<RunCgroup>>,
    /// All found so far: pid and start time.
    known: BTreeMap<u32, u64>,
}

impl Tree {
    /// Of the run `run`, whose command is process `root` with its start time, if known.
    pub(super) fn new(
        scanner: Arc<Scanner>,
        root: Option<(u32, u64)>,
        run: String,
        cgroup: Option<Arc<RunCgroup>>,
    ) -> Self {
        Self { scanner, root, run, cgroup, known: BTreeMap::new() }
    }

    /// Looks up when the command was started, unless that is known. It must be a child that
    /// nobody has waited for, so that its number is its own.
    pub(super) fn root_is_child(&mut self) {
        if let Some((pid, start @ 0)) = &mut self.root {
            *start = Process::started(*pid).unwrap_or(0);
        }
    }

    /// The processes of the run that have not ended, and whether these are all.
    async fn look(&mut self) -> (Vec<Process>, bool) {
        let all = self.scanner.look().await;
        let grouped: BTreeSet<u32> = self.cgroup.iter().flat_map(|c| c.processes()).collect();
        let found = match &all {
            Ok(all) => members(all, self.root, &self.run, &grouped, &self.known),
            Err(e) => {
                tracing::warn!(run = self.run, error = %e, "cannot look for a run's processes");
                self.without_look(&grouped)
            }
        };
        self.known.extend(found.iter().map(|p| (p.pid, p.start)));
        if all.is_ok() {
            self.known.retain(|pid, _| found.iter().any(|p| p.pid == *pid));
        }
        (found, all.is_ok())
    }

    /// Those that are known to be of the run without a look at all there are.
    fn without_look(&self, grouped: &BTreeSet<u32>) -> Vec<Process> {
        let mut pids = grouped.clone();
        pids.extend(self.known.keys().copied().chain(self.root.map(|(pid, _)| pid)));
        let is_ours = |p: &Process| {
            let start = Some(p.start);
            grouped.contains(&p.pid)
                || self.known.get(&p.pid).copied() == start
                || self.root == Some((p.pid, p.start))
        };
        pids.into_iter().filter_map(|pid| Process::read(pid).ok()?).filter(is_ours).collect()
    }

    /// Sends `signal` to every process of the run.
    pub(super) async fn signal(&mut self, signal: Signal) {
        // Before the signal: what it ends no longer shows what it has started.
        let (found, _) = self.look().await;
        if let Some((root, _)) = self.root {
            // In one go, so that nothing the group starts meanwhile is left out.
            if let Err(e) = signal_group(root, signal) {
                tracing::warn!(root, %signal, error = e.desc(), "cannot signal a process group");
            }
        }
        let group = self.root.map(|(root, _)| root);
        for p in found.iter().filter(|p| Some(p.group) != group) {
            signal_process(p, signal);
        }
        if signal == Signal::SIGKILL
            && let Some(cgroup) = &self.cgroup
        {
            cgroup.kill();
        }
    }

    /// Kills until nothing is left of the run. Answers how many processes there were at
    /// the first look, and those that could not be killed.
    pub(super) async fn end(&mut self) -> (usize, Vec<u32>) {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(5);
        let mut first = None;
        loop {
            let (found, all) = self.look().await;
            first.get_or_insert(found.len());
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
            }
            let left: Vec<u32> = found.iter().map(|p| p.pid).collect();
            if all && left.is_empty() || begun.elapsed() > PATIENCE {
                return (first.unwrap_or_default(), left);
            }
            for p in &found {
                signal_process(p, Signal::SIGKILL);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

/// Those of `all` that belong to a run; see the head of this module.
fn members(
    all: &[Process],
    root: Option<(u32, u64)>,
    run: &str,
    grouped: &BTreeSet<u32>,
    known: &BTreeMap<u32, u64>,
) -> Vec<Process> {
    // The numbers of group and session are the run's as long as nobody else got the
    // command's pid.
    let number = root.filter(|(pid, start)| {
        all.iter().find(|p| p.pid == *pid).is_none_or(|p| p.start == *start)
    });
    let is_seed = |p: &Process| {
        p.run.as_deref() == Some(run)
            || grouped.contains(&p.pid)
            || known.get(&p.pid) == Some(&p.start)
            || number.is_some_and(|(n, start)| {
                [p.pid, p.group, p.session].contains(&n) && p.start >= start
            })
    };
    let mut children: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
    for p in all {
        children.entry(p.parent).or_default().push(p);
    }
    let mut found: BTreeMap<u32, &Process> = BTreeMap::new();
    let mut open: Vec<&Process> = all.iter().filter(|p| is_seed(p)).collect();
    while let Some(p) = open.pop() {
        if found.insert(p.pid, p).is_none() {
            open.extend(children.get(&p.pid).into_iter().flatten());
        }
    }
    found.into_values().cloned().collect()
}

/// Sends `signal` to group `pid`; answers whether there was anybody in it.
pub(super) fn signal_group(pid: u32, signal: Signal) -> Result<bool, Errno> {
    // 0 would be this process' own group, 1 and what does not fit are no jobs of ours.
    let Some(group) = i32::try_from(pid).ok().filter(|p| *p > 1) else { return Ok(false) };
    match killpg(Pid::from_raw(group), signal) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Sends `signal` to one process, unless it has ended.
fn signal_process(p: &Process, signal: Signal) {
    let Some(pid) = i32::try_from(p.pid).ok().filter(|pid| *pid > 1) else { return };
    if !is_alive(p.pid, p.start) {
        return;
    }
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => tracing::warn!(pid, %signal, error = e.desc(), "cannot signal a process"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, group: u32, run: Option<&str>) -> Process {
        let run = run.map(str::to_owned);
        Process { pid, parent, group, session: 2, start: u64::from(pid), run }
    }

    fn pids(
        all: &[Process],
        root: Option<(u32, u64)>,
        grouped: &[u32],
        known: &[(u32, u64)],
    ) -> Vec<u32> {
        let grouped = grouped.iter().copied().collect();
        let known = known.iter().copied().collect();
        members(all, root, "r", &grouped, &known).iter().map(|p| p.pid).collect()
    }

    #[test]
    fn everything_that_shows_a_process_to_be_of_the_run_counts() {
        let all = [
            process(5, 1, 5, Some("other")),
            process(10, 2, 10, Some("r")),
            process(11, 10, 10, None),
            // Left the group, its parent is known.
            process(12, 11, 12, None),
            // A daemon: adopted by another, but with the variable.
            process(13, 2, 13, Some("r")),
            process(14, 13, 14, Some("other")),
            // A daemon without the variable: nothing shows it.
            process(15, 2, 15, None),
        ];
        let root = Some((10, 10));
        assert_eq!(pids(&all, root, &[], &[]), [10, 11, 12, 13, 14]);
        assert_eq!(pids(&all, root, &[15], &[]), [10, 11, 12, 13, 14, 15], "the control group");
        assert_eq!(pids(&all, root, &[], &[(15, 15)]), [10, 11, 12, 13, 14, 15], "remembered");
        assert_eq!(pids(&all, root, &[], &[(15, 9)]), [10, 11, 12, 13, 14], "its pid is another's");
        assert_eq!(pids(&all, None, &[], &[]), [10, 11, 12, 13, 14]);
    }

    #[test]
    fn numbers_count_only_as_long_as_they_are_the_runs() {
        let session = Process { session: 10, ..process(20, 1, 20, None) };
        let all = [process(11, 1, 10, None), session];
        assert_eq!(pids(&all, Some((10, 10)), &[], &[]), [11, 20], "the command has ended");
        let reused = [process(10, 1, 10, None), process(11, 1, 10, None)];
        assert_eq!(pids(&reused, Some((10, 3)), &[], &[]), [0; 0], "the pid is another's now");
        assert_eq!(pids(&all, Some((10, 15)), &[], &[]), [20], "older than the run");
    }
}
