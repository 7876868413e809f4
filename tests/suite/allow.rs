//! What a node runs, whatever masters say: each list refuses what it does not let through,
//! on every path, and says which list it was.

use crate::{
    fleet::{SOON, apply, quick, wait_runs, wait_session},
    shared::{trigger, wait_run},
};
use meepo_runtime::signing::sha256_hex;
use meepo_tests::{Builder, TestDir, eventually};
use serde_json::{Value, json};

const NODE: &str = "127.0.0.2";
/// The code of a refusal.
const NOT_ALLOWED: u64 = 0x020B;

/// A cluster whose workers have this table `[allow]`.
fn with(dir: &TestDir, allow: &str) -> Builder {
    let file = dir.path().join("worker.toml");
    std::fs::write(&file, format!("[allow]\n{allow}")).unwrap();
    quick().worker_arg("--config").worker_arg(file.to_str().unwrap())
}

fn own_user() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_on_every_path_and_recorded() {
    let dir = TestDir::new();
    let script = "for i in 1 2; do echo $i; done";
    let allow = format!(
        "commands = [\"true\", \"echo *\"]\nscripts_sha256 = [\"{}\"]\n",
        sha256_hex(script.as_bytes())
    );
    let cluster = with(&dir, &allow).start().await;
    let api = cluster.api();
    wait_session(&api, NODE).await;
    let file = cluster.dir().join("ran");
    let evil = format!("echo x > {}", file.display());
    let check = |record: &Value| {
        assert_eq!(record["code"], NOT_ALLOWED, "{record}");
        let why = record["message"].as_str().unwrap();
        assert!(why.contains("allow.commands") && why.contains("echo *"), "{why}");
    };
    // By its schedule.
    apply(&api, json!({"name": "evil", "cmd": evil, "schedule": "* * * * * *"})).await;
    check(&wait_runs(&api, "job=evil&state=failed", 1).await[0]);
    // Where people look: at the job and at the node.
    eventually(SOON, "the node says so", async || {
        let job = cluster.cli(&["job", "get", "evil"]).await;
        let node = cluster.cli(&["node", "get", NODE]).await;
        let told = |text: &str| text.contains("allow.commands");
        if told(&job.stdout) && told(&node.stdout) {
            Ok(())
        } else {
            Err(format!("{job:?} {node:?}"))
        }
    })
    .await;
    // By hand into etcd, on request, at once, as a task: retried by none of them.
    let by_hand = json!({"cmd": evil, "express": "* * * * * *", "retry": {"max": 3}});
    let key = format!("/cron/jobs/{NODE}/hand");
    cluster.etcd().client().await.put(key, by_hand.to_string(), None).await.unwrap();
    let ran = wait_runs(&api, "job=hand&state=failed", 2).await;
    ran.iter().for_each(check);
    assert!(ran.iter().all(|r| r["attempt"] == 1), "{ran:?}");
    let run = trigger(&api, "evil").await;
    check(&wait_run(&api, &run, &["failed"]).await);
    let exec = json!({"id": "1", "hosts": [NODE], "method": "sync.sh", "cmd": evil});
    let (_, answer) = api.post("/v1/exec", exec).await;
    assert_eq!(answer["response"][0]["retcode"], NOT_ALLOWED, "{answer}");
    let (_, task) =
        api.post("/v1/tasks", json!({"target": "all", "cmd": evil, "on_failure": "fail"})).await;
    let id = task["id"].as_str().unwrap();
    let task = eventually(SOON, "the task has ended", async || {
        let (_, task) = api.get(&format!("/v1/tasks/{id}")).await;
        if task["state"] == "failed" { Ok(task) } else { Err(task.to_string()) }
    })
    .await;
    check(&task["parts"][0]["outcome"]);
    // What the lists let through runs.
    for (name, cmd) in [("plain", "echo fine"), ("known", script)] {
        apply(&api, json!({"name": name, "cmd": cmd})).await;
        let run = trigger(&api, name).await;
        wait_run(&api, &run, &["success"]).await;
    }
    assert!(!file.exists());
    let (_, metrics) = cluster.worker(0).metrics().get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(!metrics.contains("meepo_worker_commands_denied_total 0"), "{metrics}");
}

#[tokio::test]
async fn users_executors_and_directories_are_the_nodes_own_choice() {
    let dir = TestDir::new();
    let inside = dir.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    std::os::unix::fs::symlink("/", inside.join("out")).unwrap();
    let allow = format!(
        "users = [{:?}]\nexecutors = [\"sh\"]\ndirectories = [{:?}]\n",
        own_user(),
        inside.canonicalize().unwrap()
    );
    let cluster = with(&dir, &allow).start().await;
    let api = cluster.api();
    let file = cluster.dir().join("ran");
    let inside = inside.canonicalize().unwrap();
    let job = |more: Value| {
        let mut job = json!({"name": "j", "cmd": format!("echo x >> {}", file.display()),
            "executor": "sh", "cwd": inside});
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        job
    };
    for (more, rule) in [
        (json!({"executor": "bash"}), "allow.executors"),
        (json!({"user": "nobody"}), "allow.users"),
        (json!({"group": "nogroup"}), "allow.groups"),
        (json!({"cwd": "/"}), "allow.directories"),
        (json!({"cwd": null}), "allow.directories"),
        (json!({"cwd": inside.join("out")}), "where cwd leads"),
    ] {
        let mut spec = job(more.clone());
        if spec["cwd"].is_null() {
            spec.as_object_mut().unwrap().remove("cwd");
        }
        apply(&api, spec).await;
        let run = trigger(&api, "j").await;
        let record = wait_run(&api, &run, &["failed"]).await;
        assert_eq!(record["code"], NOT_ALLOWED, "{more}: {record}");
        let why = record["message"].as_str().unwrap();
        assert!(why.contains(rule), "{more}: {why}");
    }
    assert!(!file.exists());
    apply(&api, job(json!({}))).await;
    let run = trigger(&api, "j").await;
    wait_run(&api, &run, &["success"]).await;
    assert!(file.exists());
}

#[tokio::test]
async fn lists_that_cannot_be_meant_stop_the_worker_at_its_start() {
    let dir = TestDir::new();
    for (allow, want) in [
        ("commands = [\"*\"]", "lets everything through"),
        ("scripts_sha256 = [\"abc\"]", "64 hexadecimal digits"),
        ("directories = [\"srv\"]", "absolute path"),
        ("user = [\"a\"]", "user"),
    ] {
        let file = dir.path().join("worker.toml");
        std::fs::write(&file, format!("[allow]\n{allow}\n")).unwrap();
        let args = ["run", "--config", file.to_str().unwrap()];
        let spec = meepo_tests::Spec::new(
            "worker",
            meepo_tests::binary("meepo-worker"),
            &args,
            dir.path(),
        );
        let out = meepo_tests::run(spec).await;
        assert_eq!(out.code, 1, "{out:?}");
        assert!(out.stderr.contains(want), "{out:?}");
    }
}
