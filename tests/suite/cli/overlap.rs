//! What happens when a run of a job would start while another is active.

use crate::shared::{apply, gated, open, server, trigger, wait_run, wait_runs};
use meepo_tests::{Api, TestDir};
use serde_json::{Value, json};
use std::path::Path;

async fn apply_gated(api: &Api, name: &str, policy: &str, gate: &Path) {
    let cmd = gated(gate, "in", "out");
    apply(api, json!({"name": name, "cmd": cmd, "concurrency": policy, "timeout": "60s"})).await;
}

fn instant(v: &Value) -> jiff::Timestamp {
    v.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn forbid_records_what_was_skipped() {
    let (server, dir) = (server().await, TestDir::new());
    let (api, gate) = (server.api(), dir.path().join("gate"));
    apply_gated(&api, "o-forbid", "forbid", &gate).await;
    let first = trigger(&api, "o-forbid").await;
    wait_run(&api, &first, &["running"]).await;
    let second = trigger(&api, "o-forbid").await;
    let skipped = wait_run(&api, &second, &["skipped"]).await;
    assert_eq!(skipped["code"], 0x0205);
    assert_eq!((&skipped["pid"], &skipped["started_at"]), (&Value::Null, &Value::Null));
    open(&gate);
    wait_run(&api, &first, &["success"]).await;
    // The same for slots of a schedule; forbid is the default.
    let gate = dir.path().join("second");
    let spec =
        json!({"name": "o-slots", "cmd": gated(&gate, "in", "out"), "schedule": "* * * * * *"});
    apply(&api, spec).await;
    let skipped = wait_runs(&api, "o-slots", "skipped", 1).await;
    assert_eq!((&skipped[0]["cause"], &skipped[0]["code"]), (&"schedule".into(), &0x0205.into()));
    assert_eq!(wait_runs(&api, "o-slots", "running", 1).await.len(), 1);
    open(&gate);
    wait_runs(&api, "o-slots", "success", 1).await;
    api.http("DELETE", "/v1/jobs/o-slots", None).await;
}

#[tokio::test]
async fn allow_runs_both() {
    let (server, dir) = (server().await, TestDir::new());
    let (api, gate) = (server.api(), dir.path().join("gate"));
    apply_gated(&api, "o-allow", "allow", &gate).await;
    let runs = [trigger(&api, "o-allow").await, trigger(&api, "o-allow").await];
    for run in &runs {
        wait_run(&api, run, &["running"]).await;
    }
    assert_eq!(wait_runs(&api, "o-allow", "running", 2).await.len(), 2);
    open(&gate);
    for run in &runs {
        wait_run(&api, run, &["success"]).await;
    }
}

#[tokio::test]
async fn queue_lets_one_wait() {
    let (server, dir) = (server().await, TestDir::new());
    let (api, gate) = (server.api(), dir.path().join("gate"));
    apply_gated(&api, "o-queue", "queue", &gate).await;
    let first = trigger(&api, "o-queue").await;
    wait_run(&api, &first, &["running"]).await;
    let others = [trigger(&api, "o-queue").await, trigger(&api, "o-queue").await];
    // Of two that would wait one is one too many.
    let skipped = wait_runs(&api, "o-queue", "skipped", 1).await;
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0]["code"], 0x0205);
    let waiting = others.iter().find(|r| skipped[0]["run_id"] != **r).unwrap();
    assert_eq!(wait_runs(&api, "o-queue", "running", 1).await.len(), 1, "one at a time");
    open(&gate);
    let first = wait_run(&api, &first, &["success"]).await;
    let second = wait_run(&api, waiting, &["success"]).await;
    assert!(instant(&second["started_at"]) >= instant(&first["ended_at"]), "{first} {second}");
}

#[tokio::test]
async fn replace_kills_the_earlier_run() {
    let (server, dir) = (server().await, TestDir::new());
    let (api, gate) = (server.api(), dir.path().join("gate"));
    apply_gated(&api, "o-replace", "replace", &gate).await;
    let first = trigger(&api, "o-replace").await;
    wait_run(&api, &first, &["running"]).await;
    let second = trigger(&api, "o-replace").await;
    let first = wait_run(&api, &first, &["killed"]).await;
    assert_eq!(first["code"], 0x0104, "{first}");
    wait_run(&api, &second, &["running"]).await;
    open(&gate);
    let second = wait_run(&api, &second, &["success"]).await;
    assert!(instant(&second["started_at"]) >= instant(&first["ended_at"]), "{first} {second}");
}
