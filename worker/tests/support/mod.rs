//! For tests that need a program that can serve as exec helper: they bring their own
//! `main`, which speaks as much of the usual test protocol (names as filters, `--list`)
//! as the runners need. They must be run as root.

use meepo_core::{id::RunId, job::Executor, run::Stream};
use meepo_worker::process::{Command, Ended, KillPlan, KillReason, Runner, Running};
use std::time::Duration;

/// A test: its name and what it does.
pub(crate) type Test = (&'static str, fn(&tokio::runtime::Runtime));

/// Longest time anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The `main` of such a test.
pub(crate) fn main(tests: &[Test]) {
    meepo_worker::process::exec_helper_entry();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(*f));
    if args.iter().any(|a| a == "--list") {
        if !args.iter().any(|a| a == "--ignored") {
            tests.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        test(&runtime);
        println!("test {name} ... ok");
    }
}

/// A script for `sh`.
pub(crate) fn sh(script: &str) -> Command {
    Command::new(Executor::Sh, script)
}

/// Runs `command`: its end, its output, its errors.
pub(crate) async fn run(runner: &Runner, command: Command) -> (Ended, String, String) {
    match runner.spawn(RunId(uuid::Uuid::now_v7()), command).await {
        Ok(running) => end(running).await,
        Err(e) => (e.ended(jiff::Timestamp::now()), String::new(), String::new()),
    }
}

/// Waits for the end: how it ended, its output, its errors.
pub(crate) async fn end(mut running: Running) -> (Ended, String, String) {
    let ended = match tokio::time::timeout(DEADLINE, running.wait()).await {
        Ok(ended) => ended,
        Err(_) => {
            running.control.kill_with(KillReason::Requested, KillPlan::NOW);
            panic!("the run does not end");
        }
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut follower = running.output.follow(0);
    while let Some(batch) = follower.next().await {
        for c in batch {
            let to = if c.stream == Stream::Stdout { &mut out } else { &mut err };
            to.extend_from_slice(&c.data);
        }
    }
    let text = |b| String::from_utf8(b).expect("text");
    (ended, text(out), text(err))
}
