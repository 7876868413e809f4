//! Tasks for nodes: a part on each, and what is shown of them.

use super::{
    SOON, act, gated, get, left_in_etcd, noted, put, wait, wait_left, wait_noted, wait_part,
};
use meepo_tests::{Cluster, eventually};
use serde_json::json;
use std::{collections::BTreeSet, fs};

#[tokio::test]
async fn a_task_runs_once_on_each_node_and_moves_to_the_log_store() {
    let cluster = Cluster::builder().workers(3).start().await;
    let api = cluster.api();
    let file = cluster.dir().join("ran");
    let cmd = format!(
        "echo \"$MEEPO_JOB $MEEPO_ATTEMPT $MEEPO_NODE\" >> {}; echo hello from $MEEPO_NODE",
        file.display()
    );
    let id = put(&api, json!({"target": "all", "cmd": cmd, "name": "greet"})).await;
    let task = wait(&api, &id, "success").await;
    let nodes: BTreeSet<&str> =
        task["parts"].as_array().unwrap().iter().map(|p| p["node"].as_str().unwrap()).collect();
    assert_eq!(nodes, BTreeSet::from(["127.0.0.2", "127.0.0.3", "127.0.0.4"]), "{task}");
    let ran = noted(&file);
    let parts: BTreeSet<_> = ran.iter().map(|[part, ..]| part.as_str()).collect();
    let want: Vec<String> = (1..=3).map(|n| format!("{id}.{n}")).collect();
    assert_eq!((ran.len(), parts), (3, want.iter().map(String::as_str).collect()), "{ran:?}");
    wait_left(&cluster).await;
    // The same from the log store: the task, a part, and what the part has written.
    let kept = get(&api, &id).await;
    assert_eq!((kept["state"].as_str(), &kept["name"]), (Some("success"), &json!("greet")));
    assert_eq!(kept["parts"], task["parts"]);
    let part = wait_part(&api, &id, 2, "success").await;
    let run = part["runs"][0]["run_id"].as_str().unwrap();
    let logs = eventually(SOON, "the output is kept", async || {
        let out = cluster.cli(&["logs", run]).await;
        if out.code == 0 && !out.stdout.is_empty() { Ok(out) } else { Err(format!("{out:?}")) }
    })
    .await;
    assert!(logs.stdout.contains("hello from 127.0.0.3"), "{logs:?}");
    let (_, runs) = api.get(&format!("/v1/runs?job={id}.2")).await;
    assert_eq!(
        (runs["runs"][0]["cause"].as_str(), runs["runs"].as_array().unwrap().len()),
        (Some("task"), 1)
    );
    let (status, body) = act(&api, &id, "cancel").await;
    assert_eq!(status, 409, "{body}");
    let (status, body) = api.get(&format!("/v1/tasks/{id}.4")).await;
    assert_eq!(status, 404, "{body}");
}

#[tokio::test]
async fn different_nodes_get_different_commands_and_a_file_says_which() {
    let cluster = Cluster::builder().workers(2).start().await;
    let file = cluster.dir().join("task.yaml");
    let out = cluster.dir().join("out");
    let text = format!(
        "commands:\n- hosts: [127.0.0.2]\n  cmd: echo one > {0}.$MEEPO_NODE\n- target: 127.0.0.3\n  \
         cmd: echo two > {0}.$MEEPO_NODE; exit 7\n",
        out.display()
    );
    fs::write(&file, text).unwrap();
    let done = cluster.cli(&["task", "put", "-f", file.to_str().unwrap(), "--wait"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stdout.contains("127.0.0.2: success"), "{done:?}");
    assert!(done.stdout.contains("127.0.0.3: exit status 7"), "{done:?}");
    for (node, want) in [("127.0.0.2", "one\n"), ("127.0.0.3", "two\n")] {
        assert_eq!(fs::read_to_string(format!("{}.{node}", out.display())).unwrap(), want);
    }
    let list = cluster.cli(&["task", "list"]).await;
    assert!(list.ok().contains("1 of 2 done, 1 failed"), "{list:?}");
}

#[tokio::test]
async fn what_a_task_writes_is_followed_and_its_exit_status_passed_on() {
    let cluster = Cluster::builder().start().await;
    let args =
        ["task", "put", "-t", "all", "--follow", "--", "echo begun; sleep 0.3; echo on; exit 4"];
    let done = cluster.cli(&args).await;
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stdout.contains("begun") && done.stdout.contains("on"), "{done:?}");
    let quick = cluster.cli(&["task", "put", "-t", "all", "--follow", "--", "echo quick"]).await;
    assert!(quick.ok().contains("quick"), "{quick:?}");
}

#[tokio::test]
async fn a_part_waits_for_its_node_until_its_time_to_live_is_over() {
    let cluster = Cluster::builder().workers(2).start().await;
    let api = cluster.api();
    let away = cluster.worker(1).process();
    away.term();
    away.wait_exit(SOON).await;
    let file = cluster.dir().join("ran");
    let gate = cluster.dir().join("gate");
    fs::write(&gate, "").unwrap();
    let cmd = gated(&file, &gate);
    let waits = put(&api, json!({"hosts": ["127.0.0.3"], "cmd": cmd})).await;
    let drops = put(&api, json!({"hosts": ["127.0.0.3"], "cmd": cmd, "ttl": "1s"})).await;
    let dropped = wait(&api, &drops, "revoked").await;
    assert_eq!(dropped["parts"][0]["outcome"]["code"], 0x0206, "{dropped}");
    assert_eq!(wait_part(&api, &waits, 1, "ready").await["attempt"], 0);
    away.restart();
    wait(&api, &waits, "success").await;
    assert_eq!(noted(&file).len(), 1);
}

#[tokio::test]
async fn requests_that_cannot_be_kept_are_refused_and_leave_nothing() {
    let cluster = Cluster::builder().master_arg("--tasks-limit").master_arg("2").start().await;
    let api = cluster.api();
    for (request, status, field) in [
        (json!({"target": "all"}), 400, "cmd"),
        (json!({"cmd": "x"}), 400, "target"),
        (json!({"target": "all", "cmd": "x", "sched": "x"}), 400, "sched"),
        (json!({"hosts": ["10.9.8.7"], "cmd": "x"}), 404, "hosts"),
        (json!({"target": "group=none", "cmd": "x"}), 422, "target"),
        (json!({"queue": "q", "cmd": "x".repeat(110_000)}), 413, "cmd"),
    ] {
        let (got, body) = api.post("/v1/tasks", request.clone()).await;
        assert_eq!((got, body["error"]["field"].as_str()), (status, Some(field)), "{body}");
    }
    let (status, body) = api.post("/v1/tasks/nonsense/cancel", json!({})).await;
    assert_eq!(status, 400, "{body}");
    assert!(left_in_etcd(&cluster).await.is_empty());
    // No worker serves this one: it stays, and fills the master.
    let held = json!({"queue": "q", "target": "group=none", "cmd": "x"});
    for _ in 0..2 {
        put(&api, held.clone()).await;
    }
    let full = eventually(SOON, "the limit holds", async || {
        let (status, body) = api.post("/v1/tasks", held.clone()).await;
        if status == 429 { Ok(body) } else { Err(format!("{status} {body}")) }
    })
    .await;
    assert!(full["error"]["message"].as_str().unwrap().contains("tasks_limit"), "{full}");
}

#[tokio::test]
async fn a_drained_node_gets_nothing_and_gives_back_what_it_has_not_begun() {
    let cluster =
        Cluster::builder().workers(2).worker_arg("--task-slots").worker_arg("1").start().await;
    let api = cluster.api();
    let (file, gate) = (cluster.dir().join("ran"), cluster.dir().join("gate"));
    let (status, body) = api.post("/v1/nodes/127.0.0.2/drain", json!({})).await;
    assert_eq!(status, 200, "{body}");
    let cmd = gated(&file, &gate);
    let items: Vec<_> = (0..3).map(|_| json!({"cmd": cmd})).collect();
    let id = put(&api, json!({"queue": "q", "commands": items})).await;
    let first = wait_noted(&file, 1).await;
    assert_eq!(first[0][2], "127.0.0.3");
    fs::write(&gate, "").unwrap();
    wait(&api, &id, "success").await;
    assert!(noted(&file).iter().all(|[_, _, node]| node == "127.0.0.3"));
}
