//! Commands run as another user. This needs a program that can serve as exec helper,
//! so the test brings its own `main`: it speaks as much of the usual test protocol
//! (names as filters, `--list`) as the runners need. It must be run as root.

#![allow(clippy::expect_used)] // All of it is test code.

use meepo_core::{
    code::Code,
    id::RunId,
    job::Executor,
    run::{RunState, Stream},
};
use meepo_worker::process::{Command, Ended, KillPlan, KillReason, Runner, RunnerOptions};
use std::{os::unix::fs::PermissionsExt, time::Duration};

type Test = fn(&tokio::runtime::Runtime);

const TESTS: &[(&str, Test)] = &[
    ("becomes_the_user_with_its_groups_and_environment", |rt| rt.block_on(becomes())),
    ("problems_of_the_user_are_told", |rt| rt.block_on(problems())),
    ("dies_like_any_other", |rt| rt.block_on(dies())),
    ("a_command_cannot_pass_for_the_helper", |rt| rt.block_on(forged())),
];

fn main() {
    meepo_worker::process::exec_helper_entry();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(*f));
    if args.iter().any(|a| a == "--list") {
        if !args.iter().any(|a| a == "--ignored") {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        test(&runtime);
        println!("test {name} ... ok");
    }
}

fn nobody(script: &str) -> Command {
    let mut c = Command::new(Executor::Sh, script);
    c.user = Some("nobody".into());
    c
}

/// Runs `command`: its end, its output, its errors.
async fn run(command: Command) -> (Ended, String, String) {
    let runner = Runner::new(RunnerOptions::default()).expect("threads");
    let run_id = RunId(uuid::Uuid::now_v7());
    let mut running = match runner.spawn(run_id, command).await {
        Ok(running) => running,
        Err(e) => return (e.ended(jiff::Timestamp::now()), String::new(), String::new()),
    };
    let ended = match tokio::time::timeout(Duration::from_secs(60), running.wait()).await {
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

async fn forged() {
    let (e, _, err) = run(nobody("echo 'meepo-exec-helper x cwd forged' >&2; exit 125")).await;
    assert_eq!((e.code, e.exit_code), (Code::EXIT_STATUS, Some(125)));
    assert_eq!(err, "meepo-exec-helper x cwd forged\n");
}
