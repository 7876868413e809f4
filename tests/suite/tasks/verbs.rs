//! What people do to tasks and parts, by REST and on the command line.

use super::{SOON, act, gated, get, noted, put, wait, wait_noted, wait_part};
use meepo_tests::{Cluster, eventually, secs};
use serde_json::json;
use std::fs;

#[tokio::test]
async fn what_is_cancelled_never_runs_and_what_is_stopped_ends() {
    let cluster = Cluster::builder().worker_arg("--task-slots").worker_arg("1").start().await;
    let api = cluster.api();
    let (file, gate) = (cluster.dir().join("ran"), cluster.dir().join("gate"));
    let cmd = gated(&file, &gate);
    let items: Vec<_> = (0..3).map(|_| json!({"cmd": cmd})).collect();
    let first = put(&api, json!({"queue": "q", "commands": items})).await;
    let running = &wait_noted(&file, 1).await[0][0];
    let out = cluster.cli(&["task", "cancel", &first]).await;
    assert!(out.ok().contains("2 parts"), "{out:?}");
    assert!(out.stdout.contains("`stop` ends it"), "{out:?}");
    // One part alone: it runs, so it cannot be cancelled.
    let (status, body) = act(&api, running, "cancel").await;
    assert_eq!(status, 409, "{body}");
    let task = get(&api, &first).await;
    assert_eq!(task["control"], "cancelled");
    let replacement = put(&api, json!({"queue": "q", "cmd": cmd})).await;
    assert_eq!(act(&api, &first, "stop").await.0, 200);
    let ended = wait(&api, &first, "failed").await;
    assert_eq!((&ended["counts"]["revoked"], &ended["counts"]["failed"]), (&json!(2), &json!(1)));
    wait_noted(&file, 2).await;
    fs::write(&gate, "").unwrap();
    wait(&api, &replacement, "success").await;
    let ran: Vec<_> = noted(&file).into_iter().map(|[part, ..]| part).collect();
    assert_eq!(ran, [running.clone(), format!("{replacement}.1")]);
}

#[tokio::test]
async fn a_part_is_cancelled_by_its_id_before_it_begins() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let file = cluster.dir().join("ran");
    let cmd = format!("echo \"$MEEPO_JOB 1 x\" >> {}", file.display());
    let items = json!([{"cmd": cmd}, {"cmd": cmd}]);
    let id = put(&api, json!({"queue": "q", "commands": items, "delay": "2s"})).await;
    let (status, body) = act(&api, &format!("{id}.2"), "cancel").await;
    assert_eq!((status, &body["changed"]), (200, &json!(1)), "{body}");
    let task = wait(&api, &id, "revoked").await;
    let states: Vec<_> = task["parts"].as_array().unwrap().iter().map(|p| &p["state"]).collect();
    assert_eq!(states, ["success", "revoked"]);
    assert_eq!(noted(&file).len(), 1);
}

#[tokio::test]
async fn released_and_buried_parts_are_ended_first() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let (file, gate) = (cluster.dir().join("ran"), cluster.dir().join("gate"));
    let id = put(&api, json!({"queue": "q", "cmd": gated(&file, &gate)})).await;
    wait_part(&api, &id, 1, "reserved").await;
    wait_noted(&file, 1).await;
    let out = cluster.cli(&["task", "release", &id, "--delay", "1h"]).await;
    assert!(out.ok().contains("once the worker has ended it"), "{out:?}");
    assert_eq!(wait_part(&api, &id, 1, "delayed").await["attempt"], 1);
    assert!(cluster.cli(&["task", "kick", &id]).await.ok().contains("kicked: 1 part"));
    wait_noted(&file, 2).await;
    assert_eq!(act(&api, &format!("{id}.1"), "bury").await.0, 200);
    let buried = wait(&api, &id, "buried").await;
    assert_eq!(buried["parts"][0]["attempt"], 2);
    let page = cluster.cli(&["task", "get", &id]).await;
    assert!(page.ok().contains("buried"), "{page:?}");
    fs::write(&gate, "").unwrap();
    assert_eq!(act(&api, &id, "kick").await.0, 200);
    wait(&api, &id, "success").await;
    let attempts: Vec<_> = noted(&file).into_iter().map(|[_, attempt, _]| attempt).collect();
    assert_eq!(attempts, ["1", "2", "3"]);
}

#[tokio::test]
async fn a_task_that_is_deleted_ends_at_once_and_one_that_is_held_waits() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let id = put(&api, json!({"queue": "q", "cmd": "sleep 600", "retry": {"max": 5}})).await;
    wait_part(&api, &id, 1, "reserved").await;
    assert_eq!(act(&api, &id, "delete").await.0, 200);
    wait(&api, &id, "failed").await;
    let file = cluster.dir().join("ran");
    let cmd = format!("echo \"$MEEPO_JOB 1 x\" >> {}", file.display());
    let held = put(&api, json!({"queue": "q", "cmd": cmd, "delay": "1s"})).await;
    assert_eq!(act(&api, &held, "pause").await.0, 200);
    assert_eq!(act(&api, &format!("{held}.1"), "pause").await.0, 409);
    wait_part(&api, &held, 1, "ready").await;
    assert_eq!(get(&api, &held).await["state"], "paused");
    assert!(noted(&file).is_empty());
    assert_eq!(act(&api, &held, "resume").await.0, 200);
    wait(&api, &held, "success").await;
    let (status, body) = act(&api, &held, "resume").await;
    assert_eq!(status, 409, "{body}");
}

#[tokio::test]
async fn events_tell_a_task_from_its_start_to_its_end() {
    let cluster = Cluster::builder().masters(2).start().await;
    let (file, gate) = (cluster.dir().join("ran"), cluster.dir().join("gate"));
    let id = put(&cluster.api(), json!({"queue": "q", "cmd": gated(&file, &gate)})).await;
    // At either master, whoever leads.
    let streams = [0, 1].map(|i| {
        let (api, path) = (cluster.master(i).api(), format!("/v1/tasks/{id}/events"));
        tokio::spawn(async move { api.stream(&path).await.text().await.unwrap() })
    });
    wait_part(&cluster.api(), &id, 1, "reserved").await;
    fs::write(&gate, "").unwrap();
    for stream in streams {
        let text = tokio::time::timeout(secs(60), stream).await.unwrap().unwrap();
        let events: Vec<serde_json::Value> =
            text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(events[0]["type"], "start", "{text}");
        let last = events.last().unwrap();
        assert_eq!((&last["type"], &last["state"]), (&json!("end"), &json!("success")), "{text}");
        let success = |e: &&serde_json::Value| e["type"] == "part" && e["state"] == "success";
        assert_eq!(events.iter().filter(success).count(), 1, "{text}");
    }
    let done = eventually(SOON, "over", async || {
        let (status, _) = cluster.api().get(&format!("/v1/tasks/{id}")).await;
        if status == 200 { Ok(()) } else { Err(status.to_string()) }
    });
    done.await;
    let text = cluster.api().stream(&format!("/v1/tasks/{id}/events")).await.text().await.unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
}
