//! How commands start and how they end by themselves.

use super::*;
use meepo_core::{code::Code, run::RunState};
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn exit_status_and_signal_become_code_and_state() {
    let (e, _) = run(sh("exit 0")).await;
    assert_eq!((e.code, e.state, e.exit_code), (Code::OK, RunState::Success, Some(0)));
    let (e, _) = run(sh("exit 7")).await;
    assert_eq!((e.code, e.state, e.exit_code), (Code::EXIT_STATUS, RunState::Failed, Some(7)));
    let (e, _) = run(sh("kill -TERM $$")).await;
    assert_eq!((e.code, e.state, e.exit_code), (Code::SIGNALED, RunState::Failed, None));
    assert_eq!(e.signal, Some(15));
    assert_eq!(e.message.as_deref(), Some("ended by signal 15 (SIGTERM)"));
}

#[tokio::test]
async fn every_executor_gets_its_arguments() {
    let args = |mut c: Command| {
        c.args = vec!["a b".into(), "$HOME".into()];
        c
    };
    for executor in [Executor::Bash, Executor::Sh] {
        let (_, out) = run(args(Command::new(executor, "echo \"$0|$1|$2\""))).await;
        assert_eq!(out, format!("{executor}|a b|$HOME\n"));
    }
    let (_, out) = run(args(Command::new(Executor::Exec, "echo"))).await;
    assert_eq!(out, "a b $HOME\n");
    let (_, out) =
        run(args(Command::new(Executor::Python, "import sys; print('|'.join(sys.argv[1:]))")))
            .await;
    assert_eq!(out, "a b|$HOME\n");
}

#[tokio::test]
async fn the_environment_is_the_small_default_and_the_jobs_own() {
    let mut c = Command::new(Executor::Exec, "env");
    c.env = [("MEEPO_X", "1"), ("SHELL", "/bin/false")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    let (_, out) = run(c).await;
    let mut names: Vec<_> =
        out.lines().filter_map(|l| l.split('=').next()).filter(|n| *n != "LANG").collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["HOME", "LOGNAME", "MEEPO_RUN_ID", "MEEPO_X", "PATH", "SHELL", "USER"],
        "{out}"
    );
    assert!(out.contains("SHELL=/bin/false\n") && out.contains("MEEPO_X=1\n"));
    assert!(out.contains(&format!("PATH={}\n", env::DEFAULT_PATH)));
}

#[tokio::test]
async fn programs_are_found_in_the_jobs_own_path_and_relative_to_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tool");
    std::fs::write(&file, "#!/bin/sh\necho tool in $PWD\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    let real = dir.path().canonicalize().unwrap();
    let mut c = Command::new(Executor::Exec, "tool");
    c.env.insert("PATH".into(), format!("/nowhere:{}", dir.path().display()));
    c.cwd = Some("/usr".into());
    assert_eq!(run(c).await.1, "tool in /usr\n");
    let mut c = Command::new(Executor::Exec, "./tool");
    c.cwd = Some(real.clone());
    assert_eq!(run(c).await.1, format!("tool in {}\n", real.display()));
    assert_eq!(run(sh("pwd")).await.1, "/\n");
}

#[tokio::test]
async fn input_is_given_and_is_empty_by_default() {
    let (e, out) = run(sh("cat; readlink /proc/self/fd/0")).await;
    assert_eq!((e.code, out.as_str()), (Code::OK, "/dev/null\n"));
    let big = "x".repeat(300_000);
    let mut c = sh("wc -c");
    c.stdin = Some(big.clone());
    assert_eq!(run(c).await.1.trim(), "300000");
    // Who does not read all of it does no harm.
    let mut c = sh("exec <&-; sleep 0.05; echo done");
    c.stdin = Some(big);
    let (e, out) = run(c).await;
    assert_eq!((e.code, out.as_str()), (Code::OK, "done\n"));
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "x").unwrap();
    let orphan = dir.path().join("orphan");
    std::fs::write(&orphan, "#!/no/such/interpreter\n").unwrap();
    let binary = dir.path().join("binary");
    std::fs::write(&binary, [0, 1, 2, 3]).unwrap();
    for f in [&orphan, &binary] {
        std::fs::set_permissions(f, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let exec = |p: &std::path::Path| Command::new(Executor::Exec, p.to_str().unwrap());
    let with = |f: &dyn Fn(&mut Command)| {
        let mut c = sh("true");
        f(&mut c);
        c
    };
    let mut in_path = Command::new(Executor::Exec, "plain");
    in_path.env.insert("PATH".into(), dir.path().to_str().unwrap().into());
    use StartProblem as P;
    let cases = [
        (Command::new(Executor::Exec, "no-such-program"), P::NotFound, "not found in PATH"),
        (Command::new(Executor::Exec, "/no/such/program"), P::NotFound, "not found"),
        (exec(&plain), P::PermissionDenied, "not executable"),
        (in_path, P::PermissionDenied, "not executable"),
        (exec(dir.path()), P::PermissionDenied, "is a directory"),
        (exec(&orphan), P::NotFound, "interpreter"),
        (exec(&binary), P::Other, "#!"),
        (with(&|c| c.user = Some("no-such-user".into())), P::NoSuchUser, "no-such-user"),
        (with(&|c| c.cwd = Some("/no/dir".into())), P::WorkingDirectory, "/no/dir does not exist"),
        (with(&|c| c.cwd = Some(plain.clone())), P::WorkingDirectory, "is not a directory"),
        (with(&|c| c.args = vec!["x".repeat(200_000)]), P::Other, "larger than the system"),
    ];
    for (command, problem, part) in cases {
        let e = try_start(command.clone()).await.err().unwrap_or_else(|| panic!("{command:?}"));
        assert_eq!(e.problem, problem, "{e}");
        assert!(e.message.contains(part), "{e}");
        let ended = e.ended(jiff::Timestamp::now());
        assert_eq!((ended.code, ended.state), (Code::CANNOT_START, RunState::Failed));
    }
}

#[tokio::test]
async fn the_workers_own_user_by_name_needs_no_helper() {
    let own = env::Account::own();
    let mut c = sh("echo $USER; pwd");
    c.user = Some(own.name.clone());
    let runner = Runner::new(RunnerOptions { helper: "/no/helper".into(), ..Default::default() });
    let mut running = runner.unwrap().spawn(run_id(), c).await.unwrap();
    assert_eq!(running.wait().await.code, Code::OK);
    let out = text(&running.output, Stream::Stdout).await;
    assert_eq!(out, format!("{}\n{}\n", own.name, env::default_cwd(Some(&own.home)).display()));
}

#[tokio::test]
async fn what_is_left_in_the_background_neither_hangs_the_run_nor_dies_with_it() {
    let begun = Instant::now();
    let mut running = start(sh("sleep 50 & echo $!")).await;
    let ended = running.end().await;
    assert_eq!((ended.code, ended.exit_code), (Code::OK, Some(0)));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let pid: u32 = text(&running.output, Stream::Stdout).await.trim().parse().unwrap();
    let alive = start_time(pid).is_some();
    let _ = tree::signal_group(running.pid, Signal::SIGKILL);
    assert!(alive, "the background process was killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_at_once() {
    let runner = runner();
    let runs: Vec<_> = (0..100)
        .map(|n| {
            let runner = runner.clone();
            tokio::spawn(async move {
                let command = sh(&format!("echo {n}; exit {}", n % 3));
                let mut running = runner.spawn(run_id(), command).await.unwrap();
                let ended = running.wait().await;
                (n, ended.exit_code, text(&running.output, Stream::Stdout).await)
            })
        })
        .collect();
    for run in runs {
        let (n, code, out) = timeout(DEADLINE, run).await.unwrap().unwrap();
        assert_eq!((code, out), (Some(n % 3), format!("{n}\n")));
    }
}
