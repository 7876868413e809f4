//! The harness tested by itself: what it says it kills is dead, what it says it keeps
//! is kept.

use meepo_tests::{
    Etcd, Process, Spec, TestDir, eventually, free_port, millis, run, secs, shared_mongo,
};
use mongodb::bson::doc;
use std::{path::Path, process::Command};

/// Whether a process with this id is there and not a zombie.
fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(") ")?.1.starts_with('Z')))
        .is_some_and(|zombie| !zombie)
}

async fn wait_gone(pid: u32) {
    eventually(secs(10), "the process is gone", async || {
        if alive(pid) { Err(format!("{pid} is alive")) } else { Ok(()) }
    })
    .await;
}

fn shell(name: &str, script: &str, dir: &Path) -> Spec {
    Spec::new(name, "sh", &["-c", script], dir)
}

/// The number a process logged as `pid=<number>`.
async fn logged_pid(process: &Process) -> u32 {
    let line = process.wait_log("pid=", secs(10)).await;
    line.trim_start_matches("pid=").parse().unwrap()
}

#[tokio::test]
async fn one_etcd_member_keeps_its_data_over_a_crash() {
    let dir = TestDir::new();
    let etcd = Etcd::start(1, dir.path()).await;
    let member = &etcd.members()[0];
    let mut client = etcd.client().await;
    client.put("/k", "v", None).await.unwrap();
    let before = member.process().pid();
    member.process().kill9();
    assert!(!member.process().is_running());
    assert!(member.healthy().await.is_err());
    member.process().restart();
    member.wait_ready().await;
    assert_ne!(member.process().pid(), before);
    assert_eq!(etcd.ctl(&["get", "/k", "--print-value-only"]).await.ok(), "v\n");
}

#[tokio::test]
async fn three_etcd_members_serve_without_one() {
    let dir = TestDir::new();
    let etcd = Etcd::start(3, dir.path()).await;
    let mut client = etcd.client().await;
    client.put("/k", "1", None).await.unwrap();
    etcd.members()[0].process().kill9();
    eventually(secs(20), "two of three accept a put", async || {
        client.put("/k", "2", None).await.map(drop).map_err(|e| e.to_string())
    })
    .await;
    etcd.members()[0].process().restart();
    etcd.members()[0].wait_ready().await;
    // Asked of the member that was away only.
    let url = etcd.members()[0].url().to_owned();
    let mut back = etcd_client::Client::connect([url], None).await.unwrap();
    let found = back.get("/k", None).await.unwrap();
    assert_eq!(found.kvs()[0].value(), b"2");
}

#[tokio::test]
async fn a_dropped_process_takes_its_group_along() {
    let dir = TestDir::new();
    let process = Process::start(shell("group", "sleep 600 & echo pid=$!; wait", dir.path()));
    let (parent, child) = (process.pid(), logged_pid(&process).await);
    assert!(alive(parent) && alive(child));
    drop(process);
    wait_gone(parent).await;
    wait_gone(child).await;
}

#[tokio::test]
async fn a_crash_leaves_children_until_the_handle_is_dropped() {
    let dir = TestDir::new();
    // The child is in a session of its own, as jobs may be.
    let script = "setsid sh -c 'echo pid=$$; exec sleep 600' & wait";
    let process = Process::start(shell("crash", script, dir.path()));
    let child = logged_pid(&process).await;
    process.kill9();
    assert!(!process.is_running());
    assert!(alive(child), "a crash of the parent must not reach the child");
    drop(process);
    wait_gone(child).await;
}

#[tokio::test]
async fn a_panic_cleans_up_too() {
    let (tell, hear) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(shell("panic", "echo pid=$$; exec sleep 600", dir.path()));
        tell.send(process.pid()).unwrap();
        panic!("on purpose");
    });
    assert!(thread.join().is_err());
    wait_gone(hear.recv().unwrap()).await;
}

/// The victim of the next test: this very test binary, run as a process of its own.
/// Without the variable there is nothing to do, and that is a pass of its own: the
/// test below proves the other case.
#[tokio::test]
async fn hold_a_process_forever() {
    if std::env::var_os("MEEPO_TEST_VICTIM").is_some() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(shell("held", "exec sleep 600", dir.path()));
        eprintln!("pid={}", process.pid());
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn a_killed_test_runner_leaves_nothing() {
    let dir = TestDir::new();
    let me = std::env::current_exe().unwrap();
    let args = ["--exact", "harness::hold_a_process_forever", "--nocapture"];
    let mut spec = Spec::new("runner", me, &args, dir.path());
    spec.env.push(("MEEPO_TEST_VICTIM".into(), "1".into()));
    let runner = Process::start(spec);
    let held = logged_pid(&runner).await;
    assert!(alive(held));
    // Behind the harness's back, so that it cannot remember what to clean up.
    let kill = Command::new("kill").args(["-9", &runner.pid().to_string()]).status().unwrap();
    assert!(kill.success());
    wait_gone(held).await;
}

#[tokio::test]
async fn a_frozen_process_goes_on_where_it_was() {
    let dir = TestDir::new();
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let process = Process::start(shell("frozen", script, dir.path()));
    process.wait_log("up", secs(10)).await;
    process.stop();
    process.term();
    let state = format!("/proc/{}/stat", process.pid());
    eventually(secs(10), "it is stopped", async || {
        let stat = std::fs::read_to_string(&state).unwrap();
        if stat.contains(") T ") { Ok(()) } else { Err(stat) }
    })
    .await;
    assert!(process.is_running() && !process.log().contains("bye"));
    process.cont();
    assert_eq!(process.wait_exit(secs(10)).await.code(), Some(3));
    assert!(process.log().contains("bye"));
}

#[tokio::test]
async fn a_restart_waits_on_the_new_log_only() {
    let dir = TestDir::new();
    let process = Process::start(shell("again", "echo pid=$$; exec sleep 600", dir.path()));
    let first = logged_pid(&process).await;
    process.restart();
    let second = logged_pid(&process).await;
    assert_ne!(first, second);
    assert_eq!(process.log().lines().count(), 2);
    assert_eq!(process.log_since_start().lines().count(), 1);
}

#[tokio::test]
async fn commands_answer_code_and_both_streams() {
    let dir = TestDir::new();
    let output = run(shell("cmd", "echo out; echo err >&2; exit 7", dir.path())).await;
    assert_eq!((output.code, &*output.stdout, &*output.stderr), (7, "out\n", "err\n"));
    assert_eq!(run(shell("sig", "kill -9 $$", dir.path())).await.code, 137);
}

#[tokio::test]
async fn a_condition_that_never_comes_is_reported_with_its_reason() {
    let waiting = tokio::spawn(eventually(millis(100), "pigs fly", async || {
        Err::<(), _>("they have no wings".to_owned())
    }));
    let panic = waiting.await.unwrap_err().into_panic();
    let message = panic.downcast::<String>().unwrap();
    assert!(message.contains("pigs fly") && message.contains("no wings"), "{message}");
    assert!(message.contains(file!()), "the caller's place: {message}");
}

#[tokio::test]
async fn tests_share_a_mongodb_but_no_database() {
    let (one, two) = (shared_mongo().await, shared_mongo().await);
    let uris = [one.fresh_uri(), two.fresh_uri()];
    assert_ne!(uris[0], uris[1]);
    let mut found = Vec::new();
    for (n, uri) in uris.iter().enumerate() {
        let client = mongodb::Client::with_uri_str(uri).await.unwrap();
        let database = client.default_database().expect("the URL names a database");
        let things = database.collection::<mongodb::bson::Document>("things");
        things.insert_one(doc! { "n": n as i64 }).await.unwrap();
        found.push(things.count_documents(doc! {}).await.unwrap());
        database.drop().await.unwrap();
    }
    assert_eq!(found, [1, 1]);
    assert_eq!(one.uri("x"), two.uri("x"), "one server");
}

#[test]
fn ports_are_answered_once() {
    let ports: std::collections::BTreeSet<u16> = (0..50).map(|_| free_port()).collect();
    assert_eq!(ports.len(), 50);
}
