//! What masters make work of: they must not sign what anybody put into etcd.

use super::{Keys, content, each_second, put, value};
use crate::fleet::{SOON, apply, wait_runs, wait_session};
use meepo_tests::{Cluster, eventually};
use serde_json::json;

const NODE: &str = "127.0.0.2";

/// Waits until `meepo job explain` says so of the job.
async fn explained(cluster: &Cluster, job: &str, why: &str) {
    eventually(SOON, format!("it is explained: {why}"), async || {
        let shown = cluster.cli(&["job", "explain", job]).await;
        if shown.stdout.contains(why) { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await;
}

#[tokio::test]
async fn definitions_and_tasks_that_came_by_no_master_are_not_signed() {
    let keys = Keys::new();
    let cluster = keys.cluster().start().await;
    let api = cluster.api();
    wait_session(&api, NODE).await;
    let file = cluster.dir().join("evil");
    let evil = format!("echo ran >> {}", file.display());
    // A definition of somebody else's.
    put(&cluster, "/meepo/jobs/evil", &each_second("evil", &evil)).await;
    explained(&cluster, "evil", "signature: missing").await;
    let (status, body) = api.post("/v1/jobs/evil/trigger", json!({})).await;
    assert_eq!((status, &body["error"]["name"]), (403, &json!("forbidden")), "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("apply it anew"), "{body}");
    // Nor by way of a change that a master would sign: the rest of it stays as it stands.
    let (status, body) = api.post("/v1/jobs/evil/resume", json!({})).await;
    assert_eq!(status, 403, "{body}");
    // One that was accepted, changed in etcd, put back as it was before, deleted and put back.
    apply(&api, each_second("good", "true")).await;
    wait_runs(&api, "job=good&state=success", 1).await;
    let first = value(&cluster, "/meepo/jobs/good").await;
    let mut changed = first.clone();
    changed["cmd"] = evil.clone().into();
    put(&cluster, "/meepo/jobs/good", &changed).await;
    explained(&cluster, "good", "does not fit").await;
    apply(&api, each_second("good", "exit 0")).await;
    let now = value(&cluster, &format!("/cron/jobs/{NODE}/good")).await;
    assert_ne!(now["cmd"], json!(evil));
    eventually(SOON, "the job that was applied anew is placed", async || {
        let now = value(&cluster, &format!("/cron/jobs/{NODE}/good")).await;
        if now["cmd"] == "exit 0" { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    put(&cluster, "/meepo/jobs/good", &first).await;
    explained(&cluster, "good", "was accepted before").await;
    // A task.
    let id = uuid::Uuid::now_v7().to_string();
    let task = json!({
        "id": id, "submitted_at": jiff::Timestamp::now(), "target": "all",
        "commands": [{"cmd": evil}], "parts": [{"node": NODE}],
        "policy": {"priority": 1, "ttr": "1m", "on_failure": "fail"},
    });
    put(&cluster, &format!("/meepo/tasks/{id}"), &task).await;
    // One that is fine is given out after it: so it was looked at.
    let gate = cluster.dir().join("gate");
    let waits = format!("until [ -e {} ]; do sleep 0.05; done", gate.display());
    let (status, fine) = api.post("/v1/tasks", json!({"target": "all", "cmd": waits})).await;
    assert_eq!(status, 201, "{fine}");
    let fine = fine["id"].as_str().unwrap().to_owned();
    let handed_in = value(&cluster, &format!("/meepo/tasks/{fine}")).await;
    std::fs::write(&gate, "").unwrap();
    eventually(SOON, "the task is done", async || {
        let (_, task) = api.get(&format!("/v1/tasks/{fine}")).await;
        if task["state"] == "success" { Ok(()) } else { Err(task.to_string()) }
    })
    .await;
    // Put back when it is over, it is not done again.
    let kept = format!("/meepo/tasks/{fine}");
    let mut client = cluster.etcd().client().await;
    eventually(SOON, "the task has left etcd", async || {
        let found = client.get(kept.as_str(), None).await.map_err(|e| e.to_string())?;
        if found.count() == 0 { Ok(()) } else { Err("it is there".to_owned()) }
    })
    .await;
    let runs_before = crate::fleet::runs(&api, &format!("job={fine}.1")).await.len();
    put(&cluster, &kept, &handed_in).await;
    eventually(SOON, "the master does not believe it", async || {
        let log = cluster.master(0).process().log();
        if log.contains("this value was put back") && log.contains(&kept) {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    assert_eq!(crate::fleet::runs(&api, &format!("job={fine}.1")).await.len(), runs_before);
    let left = cluster.etcd().ctl(&["get", "--prefix", "/cron/tasks/"]).await;
    assert_eq!(left.ok(), "");
    let log = cluster.master(0).process().log();
    assert!(log.contains("a task is not believed") && log.contains(&id), "{log}");
    content(&cluster, NODE).await;
    assert!(!file.exists());
}
