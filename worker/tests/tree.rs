//! Ends that leave nothing behind, and orphans that are reaped without taking away a
//! status somebody waits for. The process becomes a child subreaper, so these cannot
//! share one with other tests.

#![allow(clippy::expect_used, clippy::unwrap_used)] // All of it is test code.

mod support;

use meepo_core::{code::Code, id::RunId, limits::CgroupLimits, run::RunState};
use meepo_worker::process::{
    Awaited, Cgroups, KillPlan, KillReason, Leftover, Leftovers, Runner, RunnerOptions, is_alive,
    spawn_awaited, start_time, take_in_orphans,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{collections::HashSet, path::Path, time::Duration};
use support::{DEADLINE, end, run, sh};
use tokio_util::sync::CancellationToken;

fn main() {
    support::main(&[
        ("a_timeout_ends_daemons_too", |rt| rt.block_on(daemons())),
        ("a_daemon_without_environment_is_ended_by_its_control_group", |rt| {
            rt.block_on(hidden_daemon())
        }),
        ("descendants_that_left_the_group_get_polite_signals", |rt| rt.block_on(polite())),
        ("what_is_left_of_an_earlier_life_is_found", |rt| rt.block_on(leftovers())),
        ("orphans_are_reaped_and_no_status_is_stolen", |rt| rt.block_on(reaping())),
    ]);
}

fn runner(cgroups: Option<std::sync::Arc<Cgroups>>) -> Runner {
    Runner::new(RunnerOptions { cgroups, ..Default::default() }).unwrap()
}

/// A process that is killed when a test fails.
struct Guard(u32, u64);

impl Guard {
    /// The process that wrote its pid into `file`.
    async fn from(file: &Path) -> Self {
        let mut found = None;
        until("a pid is written", || {
            let pid = std::fs::read_to_string(file).ok().and_then(|t| t.trim().parse().ok());
            found = pid.and_then(|pid| Some(Self(pid, start_time(pid)?)));
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    fn alive(&self) -> bool {
        is_alive(self.0, self.1)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.alive() {
            let _ = kill(Pid::from_raw(self.0 as i32), Signal::SIGKILL);
        }
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A script that makes a daemon of a shell that ignores polite signals, in a session of
/// its own, its pipes closed, its parent gone; it writes its pid to `file`.
fn daemon(file: &Path, env: &str) -> String {
    let file = file.display();
    format!(
        "(setsid {env} sh -c 'trap \"\" INT TERM HUP; echo $$ > {file}.new; mv {file}.new {file}; \
         while :; do sleep 1; done' </dev/null >/dev/null 2>&1 &) ; \
         while ! [ -e {file} ]; do sleep 0.01; done; "
    )
}

/// One polite signal: the command takes it, its daemon does not.
fn polite_once() -> KillPlan {
    KillPlan { signals: vec![(Signal::SIGINT, DEADLINE / 2)] }
}

fn orphans() -> CancellationToken {
    let stop = CancellationToken::new();
    tokio::spawn(take_in_orphans(stop.clone()).unwrap());
    stop
}

async fn daemons() {
    let stop = orphans();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let mut c = sh(&format!("{} exec sleep 600", daemon(&file, "")));
    c.timeout = Some(Duration::from_secs(3));
    c.kill = polite_once();
    let other =
        runner(None).spawn(RunId(uuid::Uuid::now_v7()), sh("exec sleep 600")).await.unwrap();
    let running = runner(None).spawn(RunId(uuid::Uuid::now_v7()), c).await.unwrap();
    let daemon = Guard::from(&file).await;
    assert!(daemon.alive());
    let (e, ..) = end(running).await;
    assert_eq!((e.code, e.state), (Code::TIMED_OUT, RunState::Timeout));
    assert!(!daemon.alive(), "the end of the run is the end of all of it");
    assert_eq!(e.message.as_deref(), Some("ran longer than 3s"));
    assert!(start_time(other.pid).is_some(), "another run was killed");
    other.control.kill_with(KillReason::Requested, KillPlan::NOW);
    end(other).await;
    stop.cancel();
}

async fn hidden_daemon() {
    let stop = orphans();
    let dir = tempfile::tempdir().unwrap();
    let cgroups = Cgroups::new(None, dir.path());
    for (grouped, found) in [(true, true), (false, false)] {
        let file = dir.path().join(format!("pid-{grouped}"));
        let mut c = sh(&format!("{} exec sleep 600", daemon(&file, "env -i")));
        c.cgroup = grouped.then(CgroupLimits::default);
        c.kill = polite_once();
        let runner = runner(Some(cgroups.clone()));
        let running = runner.spawn(RunId(uuid::Uuid::now_v7()), c).await.unwrap();
        let daemon = Guard::from(&file).await;
        running.control.kill(KillReason::Requested);
        let (e, ..) = end(running).await;
        assert_eq!((e.code, e.state), (Code::KILLED, RunState::Killed));
        // Without a group nothing tells whose it is; see the documentation.
        assert_eq!(daemon.alive(), !found, "grouped: {grouped}");
    }
    stop.cancel();
}

async fn polite() {
    let dir = tempfile::tempdir().unwrap();
    let (file, said) = (dir.path().join("pid"), dir.path().join("said"));
    let script = format!(
        "trap : TERM; setsid env -i sh -c 'trap \"echo bye > {1}.new; mv {1}.new {1}; exit\" TERM; \
         echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 0.01; done' & \
         while ! [ -e {1} ]; do sleep 0.01; done; exit 0",
        file.display(),
        said.display()
    );
    let mut c = sh(&script);
    c.kill = KillPlan { signals: vec![(Signal::SIGTERM, DEADLINE)] };
    let running = runner(None).spawn(RunId(uuid::Uuid::now_v7()), c).await.unwrap();
    let child = Guard::from(&file).await;
    running.control.kill(KillReason::Requested);
    let (e, ..) = end(running).await;
    assert_eq!((e.code, e.exit_code), (Code::KILLED, Some(0)), "{e:?}");
    assert_eq!(std::fs::read_to_string(&said).unwrap(), "bye\n");
    assert!(!child.alive());
}

async fn leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let cgroups = Cgroups::new(None, dir.path());
    let earlier = runner(Some(cgroups.clone()));
    for grouped in [true, false] {
        let run_id = RunId(uuid::Uuid::now_v7());
        let file = dir.path().join(format!("pid-{grouped}"));
        let env = if grouped { "env -i" } else { "" };
        let mut c = sh(&format!("{} exit 0", daemon(&file, env)));
        c.cgroup = grouped.then(CgroupLimits::default);
        let running = earlier.spawn(run_id, c).await.unwrap();
        let process = start_time(running.pid).map(|start| (running.pid, start));
        end(running).await;
        let daemon = Guard::from(&file).await;
        assert!(daemon.alive(), "an end of its own accord leaves it alone");
        let leftovers = Leftovers::new(cgroups.clone());
        let unknown = leftovers.end(RunId(uuid::Uuid::now_v7()), Some((daemon.0, 1))).await;
        assert_eq!(unknown, Leftover { found: 0, left: vec![] }, "a bare pid is not trusted");
        let gone = leftovers.end(run_id, process).await;
        assert!(gone.found >= 1 && gone.left.is_empty(), "{gone:?}");
        assert!(!daemon.alive());
    }
    cgroups.clear(&HashSet::new());
}

/// A child that has ended and that nobody has waited for yet. It ends long before it is
/// known that somebody will: the reaper gets all the time to make the mistake.
fn ended_child(code: i32) -> (std::process::Child, Awaited) {
    let started = spawn_awaited(|| {
        let mut command = std::process::Command::new("sh");
        let child = command.args(["-c", &format!("exit {code}")]).spawn()?;
        let id = child.id();
        while start_time(id).is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(500));
        Ok((child, id))
    });
    started.unwrap()
}

async fn reaping() {
    let stop = orphans();
    let (mut ended, _awaited) = tokio::task::spawn_blocking(|| ended_child(5)).await.unwrap();
    let runner = runner(None);
    let dir = tempfile::tempdir().unwrap();
    // Ends at once and in great number, each with an orphan that ends as well.
    let runs: Vec<_> = (0..200)
        .map(|n| {
            let runner = runner.clone();
            let file = dir.path().join(n.to_string());
            let script =
                format!("(sh -c 'echo $$ > {}; exit 1' &) ; exit {}", file.display(), n % 7);
            tokio::spawn(async move { (n, run(&runner, sh(&script)).await.0) })
        })
        .collect();
    for run in runs {
        let (n, e) = run.await.unwrap();
        assert_eq!((e.exit_code, e.state == RunState::Lost), (Some(n % 7), false), "{e:?}");
    }
    // A zombie is still there in /proc; one that was reaped is not.
    for n in 0..200 {
        let file = dir.path().join(n.to_string());
        let mut pid = String::new();
        until("the orphan has written its pid", || {
            pid = std::fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
            !pid.is_empty()
        })
        .await;
        let stat = format!("/proc/{pid}/stat");
        let of_ours = |t: String| t.contains(&format!(") Z {} ", std::process::id()));
        until("the orphan is reaped", || !std::fs::read_to_string(&stat).is_ok_and(of_ours)).await;
    }
    assert_eq!(ended.wait().unwrap().code(), Some(5), "its status was taken away");
    stop.cancel();
}
