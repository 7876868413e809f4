//! What there is to tell besides failures.

use super::{hooked, job, rule, trigger};
use crate::fleet::{apply, quick, wait_runs};
use meepo_tests::{eventually, secs};
use serde_json::json;

#[tokio::test]
async fn a_node_that_is_gone_and_its_lost_runs_are_told_and_its_return() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    let receiver = hooked(&cluster).await;
    rule(&api, "nodes", json!({"on": ["node_lost", "node_back"]})).await;
    rule(&api, "runs", json!({"on": ["failure"], "target": "127.0.0.3"})).await;
    job(&api, "long", "sleep 600", json!({"target": "127.0.0.3"})).await;
    let run = trigger(&api, "long").await;
    wait_runs(&api, "job=long&state=running", 1).await;
    cluster.worker(1).process().kill9();
    let lost = receiver.wait("node_lost", 1).await.remove(0);
    assert_eq!(lost["node"], "127.0.0.3");
    let failed = receiver.wait("failure", 1).await.remove(0);
    assert_eq!(
        (failed["run_id"].as_str(), failed["state"].as_str()),
        (Some(run.as_str()), Some("lost"))
    );
    cluster.worker(1).process().restart();
    cluster.wait_online(1).await;
    let back = receiver.wait("node_back", 1).await.remove(0);
    assert!(back["node"] == "127.0.0.3" && back["since"].is_string(), "{back}");
    // The worker tells of the same run once more; people are not told once more.
    let key = "/meepo/outcomes/127.0.0.3/long";
    eventually(secs(60), "the worker has told of it", async || {
        let out = cluster.etcd().ctl(&["get", key]).await;
        if out.stdout.contains(&run) { Ok(()) } else { Err(out.stdout) }
    })
    .await;
    job(&api, "mark", "exit 1", json!({"target": "127.0.0.3"})).await;
    trigger(&api, "mark").await;
    let failures = receiver.wait("failure", 2).await;
    assert_eq!((failures.len(), &failures[1]["job"]), (2, &json!("mark")), "{failures:?}");
}

#[tokio::test]
async fn a_run_that_takes_long_and_one_that_was_missed_are_told() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let receiver = hooked(&cluster).await;
    let notify = json!({"to": ["hook"]});
    let gate = cluster.dir().join("gate");
    let cmd = format!("until [ -e {} ]; do sleep 0.1; done", gate.display());
    job(&api, "slow", &cmd, json!({"warn_after": "1s", "notify": notify})).await;
    job(&api, "late", "true", json!({"notify": notify})).await;
    let run = trigger(&api, "slow").await;
    let long = receiver.wait("long", 1).await.remove(0);
    assert_eq!(
        (long["run_id"].as_str(), long["state"].as_str()),
        (Some(run.as_str()), Some("running"))
    );
    std::fs::write(&gate, "").unwrap();
    wait_runs(&api, "job=slow&state=success", 1).await;
    // Asked for while the worker is away, and not in time when it is back.
    cluster.worker(0).process().kill9();
    let (status, body) = api.post("/v1/jobs/late/trigger", json!({"ttl": "1s"})).await;
    assert_eq!(status, 202, "{body}");
    tokio::time::sleep(secs(2)).await;
    cluster.worker(0).process().restart();
    let missed = receiver.wait("missed", 1).await.remove(0);
    assert_eq!(missed["run_id"], body["runs"][0]["run_id"]);
    assert_eq!(receiver.wait("long", 1).await.len(), 1);
}

#[tokio::test]
async fn silence_is_told_also_of_a_job_that_never_ran_and_its_end() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let receiver = hooked(&cluster).await;
    let flag = cluster.dir().join("well");
    let cmd = format!("test -e {}", flag.display());
    let spec = json!({"name": "beat", "cmd": cmd, "expect_success_within": "3s",
        "notify": {"on": ["no_success", "recovery"], "to": ["hook"]}});
    apply(&api, spec).await;
    let paused = json!({"name": "paused", "cmd": "true", "expect_success_within": "1s",
        "status": "pause", "notify": {"to": ["hook"]}});
    apply(&api, paused).await;
    let silent = receiver.wait("no_success", 1).await.remove(0);
    assert_eq!(
        (silent["job"].as_str(), silent["node"].as_str()),
        (Some("beat"), Some("127.0.0.2"))
    );
    assert!(silent["message"].as_str().unwrap().contains("no success within 3s"), "{silent}");
    // A failure does not end it, a success does.
    trigger(&api, "beat").await;
    wait_runs(&api, "job=beat&state=failed", 1).await;
    std::fs::write(&flag, "").unwrap();
    trigger(&api, "beat").await;
    let well = receiver.wait("recovery", 1).await.remove(0);
    assert_eq!(well["job"], "beat");
    // And silent again.
    receiver.wait("no_success", 2).await;
    assert_eq!(receiver.wait("recovery", 1).await.len(), 1);
    assert!(receiver.messages().iter().all(|g| !g.body.contains("paused")));
}

#[tokio::test]
async fn tasks_that_fail_or_are_buried_are_told() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let receiver = hooked(&cluster).await;
    rule(&api, "tasks", json!({"on": ["task_failed", "task_buried"]})).await;
    let put = async |more: serde_json::Value| {
        let mut task = json!({"hosts": ["127.0.0.2"], "cmd": "exit 1"});
        task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, body) = api.post("/v1/tasks", task).await;
        assert_eq!(status, 201, "{body}");
        body["id"].as_str().unwrap().to_owned()
    };
    let failed = put(json!({})).await;
    let told = receiver.wait("task_failed", 1).await.remove(0);
    assert_eq!(
        (told["task"].as_str(), told["message"].as_str()),
        (Some(failed.as_str()), Some("1 of 1 parts failed"))
    );
    let fine = put(json!({"cmd": "true"})).await;
    let buried = put(json!({"cmd": "sleep 600"})).await;
    eventually(secs(60), "it runs", async || {
        let (_, task) = api.get(&format!("/v1/tasks/{buried}")).await;
        if task["counts"]["reserved"] == 1 { Ok(()) } else { Err(task.to_string()) }
    })
    .await;
    let (status, body) = api.post(&format!("/v1/tasks/{buried}/bury"), json!({})).await;
    assert_eq!(status, 200, "{body}");
    let told = receiver.wait("task_buried", 1).await.remove(0);
    assert_eq!(told["task"], buried.as_str());
    assert!(receiver.messages().iter().all(|g| !g.body.contains(&fine)));
}
