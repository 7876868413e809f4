//! What a run may use: group, mask, priority, limits, session, control group.

#![allow(clippy::expect_used, clippy::unwrap_used)] // All of it is test code.

mod support;

use meepo_core::{
    code::Code,
    limits::{ByteSize, CgroupLimits},
    run::RunState,
};
use meepo_worker::process::{Cgroups, Runner, RunnerOptions};
use std::{path::Path, sync::Arc};
use support::{run, sh};

fn main() {
    support::main(&[
        ("a_run_gets_what_it_asks_for", |rt| rt.block_on(gets())),
        ("a_user_gets_what_only_root_could_set", |rt| rt.block_on(as_user())),
        ("what_cannot_be_had_is_told", |rt| rt.block_on(refused())),
        ("a_run_enters_its_control_group", |rt| rt.block_on(enters())),
        ("a_limit_this_host_cannot_keep_starts_nothing", |rt| rt.block_on(cannot())),
    ]);
}

fn runner(cgroups: Option<Arc<Cgroups>>) -> Runner {
    Runner::new(RunnerOptions { cgroups, ..Default::default() }).unwrap()
}

async fn gets() {
    let mut c = sh("umask; nice; ulimit -n; ulimit -Hn; ulimit -c; ulimit -t; ulimit -f; \
                    cut -d' ' -f5,6 /proc/$$/stat | sed \"s/$$/own/g\"; id -g; id -u; pwd");
    c.umask = Some("0027".parse().unwrap());
    c.nice = Some(5);
    c.rlimits = serde_json::from_str(
        r#"{"nofile": 77, "core": 0, "cpu": "1m", "fsize": "1M", "memlock": "64K"}"#,
    )
    .unwrap();
    c.session = true;
    c.group = Some("daemon".into());
    let (e, out, err) = run(&runner(None), c).await;
    assert_eq!((e.code, err.as_str()), (Code::OK, ""), "{e:?}");
    // The file size counts in pieces of 512 bytes.
    let expected = ["0027", "5", "77", "77", "0", "60", "2048", "own own", "1", "0", "/"];
    assert_eq!(out.lines().collect::<Vec<_>>(), expected);
    // Without any of this a command leads a group, in the session of the worker.
    let (_, out, _) = run(&runner(None), sh("cut -d' ' -f5 /proc/$$/stat; echo $$")).await;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], lines[1]);
}

async fn as_user() {
    let mut c = sh("id -un; id -gn; nice; ulimit -n; exit 3");
    c.user = Some("nobody".into());
    c.group = Some("daemon".into());
    c.nice = Some(-3);
    c.rlimits = serde_json::from_str(r#"{"nofile": 300}"#).unwrap();
    let (e, out, _) = run(&runner(None), c).await;
    assert_eq!((e.code, e.exit_code), (Code::EXIT_STATUS, Some(3)), "{e:?}");
    assert_eq!(out, "nobody\ndaemon\n-3\n300\n");
}

async fn refused() {
    let limit = |text| {
        let mut c = sh("true");
        c.rlimits = serde_json::from_str(text).unwrap();
        c
    };
    let mut group = sh("true");
    group.group = Some("no-such-group".into());
    for (command, part) in [
        // Beyond fs.nr_open, which not even root may.
        (limit(r#"{"nofile": 99999999999}"#), "cannot set the limit nofile"),
        (group, "no group \"no-such-group\""),
    ] {
        let (e, out, err) = run(&runner(None), command).await;
        assert_eq!((e.code, e.state), (Code::CANNOT_START, RunState::Failed), "{e:?}");
        assert!(e.message.as_ref().unwrap().contains(part), "{e:?}");
        assert_eq!((out.as_str(), err.as_str()), ("", ""));
    }
}

async fn enters() {
    let data_dir = tempfile::tempdir().unwrap();
    let cgroups = Cgroups::new(None, data_dir.path());
    let mut c = sh("grep ^0:: /proc/self/cgroup; id -un");
    c.cgroup = Some(CgroupLimits::default());
    c.user = Some("nobody".into());
    let (e, out, err) = run(&runner(Some(cgroups.clone())), c.clone()).await;
    assert_eq!((e.code, err.as_str()), (Code::OK, ""), "{e:?}");
    let (group, user) = out.trim_end().split_once('\n').unwrap();
    let run_id = group.rsplit('/').next().unwrap();
    assert!(uuid::Uuid::parse_str(run_id).is_ok() && group.contains("/meepo-"), "{group}");
    assert_eq!(user, "nobody");
    // Seen from the mount, which shows the hierarchy or a part of it.
    let gone = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(|m| Path::new(m).join(group.trim_start_matches("0::/")))
        .iter()
        .all(|p| !p.exists());
    assert!(gone, "{group} is left");
}

async fn cannot() {
    // Looks like a group, with controllers, but is none: the files are just files.
    let root = tempfile::tempdir().unwrap();
    let marker = root.path().join("started");
    let limits = CgroupLimits { memory: Some(ByteSize(64 << 20)), ..Default::default() };
    for (controllers, part) in [
        (None, "is no control group of version 2"),
        (Some("hugetlb cpu"), "the controller \"memory\" is not in"),
    ] {
        if let Some(controllers) = controllers {
            std::fs::write(root.path().join("cgroup.controllers"), controllers).unwrap();
        }
        let mut c = sh(&format!("touch {}", marker.display()));
        c.cgroup = Some(limits);
        let cgroups = Cgroups::new(Some(root.path()), root.path());
        let (e, ..) = run(&runner(Some(cgroups)), c).await;
        assert_eq!((e.code, e.state), (Code::CANNOT_START, RunState::Failed));
        let message = e.message.unwrap();
        assert!(message.contains(part) && message.contains(root.path().to_str().unwrap()));
    }
    assert!(!marker.exists());
}
