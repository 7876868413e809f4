//! Commands run as another user.

#![allow(clippy::expect_used)] // All of it is test code.

mod support;

use meepo_core::{code::Code, job::Executor, run::RunState};
use meepo_worker::process::{Command, Ended, KillPlan, Runner, RunnerOptions};
use std::{os::unix::fs::PermissionsExt, time::Duration};

fn main() {
    support::main(&[
        ("becomes_the_user_with_its_groups_and_environment", |rt| rt.block_on(becomes())),
        ("problems_of_the_user_are_told", |rt| rt.block_on(problems())),
        ("dies_like_any_other", |rt| rt.block_on(dies())),
        ("libraries_of_the_job_are_not_loaded_as_root", |rt| rt.block_on(preload())),
        ("a_command_cannot_pass_for_the_helper", |rt| rt.block_on(forged())),
    ]);
}

fn nobody(script: &str) -> Command {
    let mut c = support::sh(script);
    c.user = Some("nobody".into());
    c
}

async fn run(command: Command) -> (Ended, String, String) {
    let runner = Runner::new(RunnerOptions::default()).expect("threads");
    support::run(&runner, command).await
}

async fn becomes() {
    let mut c = nobody(
        "id -un; id -ru; id -G; echo $USER $LOGNAME $HOME; pwd; echo $MEEPO_X $1; cat; \
         ps -o pgid= -p $$ | tr -d ' ' | sed \"s/^$$\\$/leads/\"; grep ^SigIgn /proc/$$/status",
    );
    c.env.insert("MEEPO_X".into(), "x y".into());
    c.args = vec!["--".into()];
    c.stdin = Some("given\n".into());
    let (e, out, err) = run(c).await;
    assert_eq!((e.code, err.as_str()), (Code::OK, ""), "{e:?}");
    let lines: Vec<_> = out.lines().collect();
    // The home of nobody does not exist, so the command starts in `/`.
    assert_eq!(
        lines[..8],
        ["nobody", "65534", "65534", "nobody nobody /nonexistent", "/", "x y --", "given", "leads"]
    );
    // Rust programs ignore SIGPIPE (bit 12); the command must not inherit that.
    let ignored = lines[8].split_whitespace().nth(1).expect("a mask");
    let ignored = u64::from_str_radix(ignored, 16).expect("hexadecimal");
    assert_eq!(ignored & (1 << 12), 0, "{out}");
    let (e, ..) = run(nobody("exit 125")).await;
    assert_eq!((e.code, e.exit_code), (Code::EXIT_STATUS, Some(125)));
}

async fn problems() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).expect("chmod");
    let secret = dir.path().join("tool");
    std::fs::write(&secret, "#!/bin/sh\n").expect("write");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o700)).expect("chmod");
    let mut no_entry = nobody("true");
    no_entry.cwd = Some(dir.path().into());
    let mut no_dir = nobody("true");
    no_dir.cwd = Some("/no/dir".into());
    let mut denied = nobody("");
    denied.executor = Executor::Exec;
    denied.cmd = secret.display().to_string();
    let mut missing = denied.clone();
    missing.cmd = "no-such-program".into();
    for (command, part) in [
        (no_entry, "cannot be entered"),
        (no_dir, "does not exist"),
        (denied, "not executable for this user"),
        (missing, "not found in PATH"),
    ] {
        let (e, out, err) = run(command).await;
        assert_eq!((e.code, e.state), (Code::CANNOT_START, RunState::Failed), "{e:?}");
        assert!(e.message.as_ref().is_some_and(|m| m.contains(part)), "{e:?}");
        assert_eq!((e.exit_code, e.output_bytes), (None, 0));
        assert_eq!((out.as_str(), err.as_str()), ("", ""), "nothing of the helper shows");
    }
}

async fn dies() {
    let mut c = nobody("trap '' INT; while :; do sleep 1; done");
    c.timeout = Some(Duration::from_millis(300));
    c.kill = KillPlan::NOW;
    let (e, ..) = run(c).await;
    assert_eq!((e.code, e.signal), (Code::TIMED_OUT, Some(9)));
}

async fn preload() {
    let mut c = nobody("");
    c.executor = Executor::Exec;
    c.cmd = "cat".into();
    c.args = vec!["/proc/self/environ".into()];
    c.env.insert("LD_PRELOAD".into(), "/nonexistent.so".into());
    let (e, out, err) = run(c).await;
    assert_eq!(e.code, Code::OK, "{e:?}");
    assert!(out.contains("LD_PRELOAD=/nonexistent.so\0") && !out.contains("MEEPO_ENV_"), "{out}");
    // The loader complains for each program it starts.
    assert_eq!(err.matches("/nonexistent.so").count(), 1, "{err}");
}

async fn forged() {
    let (e, _, err) = run(nobody("echo 'meepo-exec-helper x cwd forged' >&2; exit 125")).await;
    assert_eq!((e.code, e.exit_code), (Code::EXIT_STATUS, Some(125)));
    assert_eq!(err, "meepo-exec-helper x cwd forged\n");
}
