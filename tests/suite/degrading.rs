//! What works without each of the parts: the rows of the table in docs/operations.md. Without
//! etcd, see also `faults` and `no_quorum`.

use crate::fleet::{Evidence, SOON, apply, quick, runs, seconds, wait_runs, wait_session};
use jiff::Timestamp;
use meepo_tests::{Api, Cluster, Logs, eventually};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn every_second(name: &str, cmd: &str) -> Value {
    json!({"name": name, "cmd": cmd, "schedule": "* * * * * *", "concurrency": "allow"})
}

fn once(name: &str, cmd: &str) -> Value {
    let mut spec = every_second(name, cmd);
    spec["placement"] = json!("once");
    spec
}

/// The name of the error of a request that is refused for now.
async fn refused(api: &Api, method: &str, path: &str, body: Option<Value>) -> String {
    let (status, answer) = api.http(method, path, body.as_ref()).await;
    assert_eq!((status, &answer["error"]["retry"]), (503, &json!(true)), "{path}: {answer}");
    answer["error"]["name"].as_str().unwrap().to_owned()
}

async fn exec(api: &Api, cmd: &str) -> Value {
    let body = json!({"id": "x", "hosts": ["127.0.0.2"], "method": "sync.bash", "cmd": cmd});
    let (status, answer) = api.post("/v1/exec", body).await;
    assert_eq!(status, 200, "{answer}");
    answer["response"][0].clone()
}

/// No slot of a job ran twice, and none between the first and the last is missing.
fn whole(ticks: &Evidence) {
    let ran = ticks.distinct(false);
    let (first, last) = (*ran.first().unwrap(), *ran.last().unwrap());
    let missing: Vec<Timestamp> = seconds(first, last).difference(&ran).copied().collect();
    assert_eq!(missing, Vec::<Timestamp>::new());
}

#[tokio::test]
async fn without_etcd_what_runs_once_waits_and_what_runs_on_each_node_goes_on() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let [each, single] = ["each", "single"].map(|name| Evidence::new(cluster.dir(), name));
    apply(&api, every_second("each", &each.cmd())).await;
    apply(&api, once("single", &single.cmd())).await;
    single.wait(2, |_| true).await;
    let run = wait_runs(&api, "job=each&state=success", 1).await[0]["run_id"].clone();
    let etcd = cluster.member(0).process();
    etcd.kill9();
    let gone = Timestamp::now();
    each.wait(4, |m| m.slot > gone).await;
    // A claim that was under way may have come through in the first moment.
    let late = single
        .marks()
        .iter()
        .filter(|m| m.slot > gone + jiff::SignedDuration::from_secs(1))
        .count();
    assert_eq!(late, 0, "a slot was claimed without etcd");
    // The history is there, and the process answers.
    let path = format!("/v1/runs/{}/output", run.as_str().unwrap());
    assert_eq!((api.get(&path).await.0, api.get("/v1/runs").await.0), (200, 200));
    assert_eq!(api.get("/healthz").await.0, 200);
    let body = json!({"id": "x", "hosts": ["127.0.0.2"], "method": "sync.bash", "cmd": "true"});
    let (status, answer) = api.post("/v1/exec", body).await;
    assert_eq!(status, 503, "{answer}");
    etcd.restart();
    cluster.member(0).wait_ready().await;
    let back = Timestamp::now();
    single.wait(2, |m| m.slot > back).await;
    single.distinct(true);
    each.distinct(false);
}

#[tokio::test]
async fn without_the_log_store_work_goes_on_and_only_history_is_refused() {
    let cluster = quick().logs(Logs::OwnMongo).start().await;
    let (api, mongo) = (cluster.api(), cluster.mongo());
    wait_session(&api, "127.0.0.2").await;
    apply(&api, json!({"name": "old", "cmd": "echo old"})).await;
    mongo.kill();
    // Changes and triggers.
    let file = cluster.dir().join("triggered");
    apply(&api, json!({"name": "new", "cmd": format!("echo done > {}", file.display())})).await;
    let (status, triggered) = api.post("/v1/jobs/new/trigger", json!({})).await;
    assert_eq!(status, 202, "{triggered}");
    eventually(SOON, "the request is run", async || {
        std::fs::read_to_string(&file).map(drop).map_err(|e| e.to_string())
    })
    .await;
    // Commands, with their output, and streams of them.
    assert_eq!(exec(&api, "echo here").await["data"], "here\n");
    wait_session(&api, "127.0.0.2").await;
    // Lists come without last runs.
    let (status, list) = api.get("/v1/jobs").await;
    assert_eq!((status, list["jobs"].as_array().unwrap().len()), (200, 2), "{list}");
    assert!(list["jobs"].as_array().unwrap().iter().all(|j| j["last_run"].is_null()), "{list}");
    assert_eq!(api.get("/v1/nodes").await.0, 200);
    // History does not.
    let id = triggered["runs"][0]["run_id"].as_str().unwrap();
    assert_eq!(refused(&api, "GET", "/v1/runs", None).await, "log_store");
    assert_eq!(refused(&api, "GET", &format!("/v1/runs/{id}"), None).await, "log_store");
    assert_eq!(api.get("/readyz").await.0, 200);
    assert_eq!(api.get("/readyz/logs").await.0, 503);
    mongo.restart().await;
    eventually(SOON, "history is there again", async || match api.get("/v1/runs").await {
        (200, _) => Ok(()),
        (status, answer) => Err(format!("{status} {answer}")),
    })
    .await;
    let found = wait_runs(&api, "job=new&state=success", 1).await;
    assert_eq!(found[0]["run_id"], id);
}

#[tokio::test]
async fn without_a_leader_the_others_serve_all_but_what_needs_the_sessions() {
    // Long enough for all that is asked in between.
    let cluster =
        Cluster::builder().masters(2).master_arg("--lease-ttl").master_arg("20s").start().await;
    let out = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await;
    let leader = usize::from(out.json()["http"] == cluster.master(1).api().base());
    let api = cluster.master(1 - leader).api();
    wait_session(&api, "127.0.0.2").await;
    let ticks = Evidence::new(cluster.dir(), "ticks");
    apply(&api, every_second("ticks", &ticks.cmd())).await;
    apply(&api, json!({"name": "long", "cmd": "echo begun; sleep 600"})).await;
    ticks.wait(1, |_| true).await;
    let (_, long) = api.post("/v1/jobs/long/trigger", json!({})).await;
    let long = long["runs"][0]["run_id"].as_str().unwrap().to_owned();
    wait_runs(&api, "job=long&state=running", 1).await;
    cluster.master(leader).process().kill9();
    let gone = Timestamp::now();

    // Commands and live output need the leader.
    let body = json!({"id": "x", "hosts": ["127.0.0.2"], "method": "sync.bash", "cmd": "true"});
    assert_eq!(refused(&api, "POST", "/v1/exec", Some(body)).await, "no_leader");
    let follow = format!("/v1/runs/{long}/output?follow=true");
    assert_eq!(refused(&api, "GET", &follow, None).await, "no_leader");
    // Reads, changes and triggers do not.
    assert_eq!(api.get("/v1/jobs/ticks").await.0, 200);
    assert_eq!(api.get("/v1/nodes").await.0, 200);
    assert_eq!(api.get("/v1/runs").await.0, 200);
    let file = cluster.dir().join("between");
    apply(&api, json!({"name": "between", "cmd": format!("echo kept > {}", file.display())})).await;
    assert_eq!(api.post("/v1/jobs/between/trigger", json!({})).await.0, 202);
    // A worker takes its requests from etcd; its records wait for the next leader.
    eventually(SOON, "the request is run", async || {
        std::fs::read_to_string(&file).map(drop).map_err(|e| e.to_string())
    })
    .await;
    // Placement waits.
    let (_, job) = api.get("/v1/jobs/between").await;
    assert_eq!(job["nodes"], json!([]), "{job}");
    ticks.wait(3, |m| m.slot > gone).await;

    eventually(SOON, "the other leads, and places what was accepted", async || {
        let (_, job) = api.get("/v1/jobs/between").await;
        if job["nodes"][0]["node"] == "127.0.0.2" { Ok(()) } else { Err(job.to_string()) }
    })
    .await;
    wait_session(&api, "127.0.0.2").await;
    whole(&ticks);
    // Records waited, with pauses that grow.
    let tries = cluster.worker(0).process().log().matches("cannot deliver records").count();
    assert!(tries < 40, "{tries} tries in twenty seconds");
    api.post(&format!("/v1/runs/{long}/kill"), json!({})).await;
}

#[tokio::test]
async fn without_any_master_workers_go_on_from_etcd_alone() {
    let cluster = quick().masters(2).workers(2).start().await;
    let api = cluster.api();
    let [each, single, by_hand] =
        ["each", "single", "by-hand"].map(|name| Evidence::new(cluster.dir(), name));
    let mut spec = every_second("each", &each.cmd());
    spec["target"] = json!("127.0.0.2");
    apply(&api, spec).await;
    apply(&api, once("single", &single.cmd())).await;
    each.wait(1, |_| true).await;
    single.wait(1, |_| true).await;
    for i in 0..2 {
        cluster.master(i).process().kill9();
    }
    let gone = Timestamp::now();
    assert!(api.try_http("GET", "/v1/jobs", None).await.is_err());
    each.wait(3, |m| m.slot > gone).await;
    single.wait(3, |m| m.slot > gone).await;
    // A job by hand, and one on request.
    let value = json!({"cmd": by_hand.cmd(), "express": "* * * * * *", "task_id": "by-hand",
        "status": "running", "executor": "bash"});
    let put = ["put", "/cron/jobs/127.0.0.3/by-hand", &value.to_string()];
    cluster.etcd().ctl(&put).await.ok();
    by_hand.wait(2, |_| true).await;
    let (run, file) = (uuid::Uuid::now_v7(), cluster.dir().join("asked"));
    let now = Timestamp::now();
    let request = json!({"job": "asked", "requested_at": now.to_string(),
        "expires_at": (now + jiff::SignedDuration::from_secs(60)).to_string(),
        "assignment": {"cmd": format!("echo done > {}", file.display())}});
    let put = ["put", &format!("/cron/trigger/127.0.0.2/{run}"), &request.to_string()];
    cluster.etcd().ctl(&put).await.ok();
    eventually(SOON, "the request is run", async || {
        std::fs::read_to_string(&file).map(drop).map_err(|e| e.to_string())
    })
    .await;

    // The first one back leads, and learns of everything.
    cluster.master(1).process().restart();
    cluster.master(1).wait_ready().await;
    let api = cluster.master(1).api();
    for node in ["127.0.0.2", "127.0.0.3"] {
        wait_session(&api, node).await;
    }
    let upto = *single.distinct(true).last().unwrap();
    let first = *single.distinct(true).first().unwrap();
    eventually(SOON, "every run has arrived", async || {
        let slot = |r: &Value| r["slot"].as_str().unwrap().parse().unwrap();
        let found: BTreeSet<Timestamp> =
            runs(&api, "job=single&state=success").await.iter().map(slot).collect();
        let missing: Vec<_> = seconds(first, upto).difference(&found).copied().collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    })
    .await;
    assert_eq!(wait_runs(&api, "job=asked&state=success", 1).await[0]["run_id"], run.to_string());
    let (status, job) = api.get("/v1/jobs/by-hand").await;
    assert_eq!((status, &job["source"]), (200, &json!("etcd")), "{job}");
    whole(&single);
    each.distinct(false);
}
