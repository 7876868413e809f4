//! What a worker says against what etcd and the log store say: each kind with its remedy.

use crate::fleet::{SOON, apply, quick, wait_runs, wait_session};
use meepo_coord::{Etcd as Coord, keys, records::encode};
use meepo_core::{
    id::{Name, RunId},
    mismatch::TABLE,
};
use meepo_proto::internal::{
    self as pb, master_frame::Frame as Order, worker_frame::Frame, workers_client::WorkersClient,
};
use meepo_tests::{Cluster, eventually, millis, workspace_root};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};

/// How often a remedy was applied, as the leader counts it.
async fn count(cluster: &Cluster, kind: &str) -> u64 {
    let (_, text) = cluster.api().get("/metrics").await;
    let name = format!(r#"meepo_master_reconciled_total{{kind="{kind}"}} "#);
    let line = text.as_str().unwrap().lines().find_map(|l| l.strip_prefix(name.as_str()));
    line.map_or(0, |n| n.parse().unwrap())
}

async fn wait_count(cluster: &Cluster, kind: &str, n: u64) {
    eventually(SOON, format!("{kind} was dealt with"), async || {
        let found = count(cluster, kind).await;
        if found >= n { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
}

async fn coord(cluster: &Cluster) -> Coord {
    Coord::connect(&[cluster.etcd().urls()]).await.unwrap()
}

async fn workers(cluster: &Cluster) -> WorkersClient<Channel> {
    let coord = coord(cluster).await;
    let leader = coord.get(keys::LEADER).await.unwrap().unwrap();
    let record: Value = serde_json::from_slice(&leader.value).unwrap();
    let url = record["grpc"].as_str().unwrap().to_owned();
    WorkersClient::connect(url).await.unwrap()
}

fn hello(node: &str, instance: &str) -> pb::WorkerFrame {
    let (node, instance) = (node.to_owned(), instance.to_owned());
    let hello = pb::Hello { node, instance, version: "1".into() };
    pb::WorkerFrame { frame: Some(Frame::Hello(hello)) }
}

#[test]
fn the_table_in_the_guide_is_that_of_the_code() {
    let guide = std::fs::read_to_string(workspace_root().join("docs/operations.md")).unwrap();
    for (_, name, when, remedy) in TABLE {
        let row = format!("| `{name}` | {when} | {remedy} |");
        assert!(guide.contains(&row), "docs/operations.md lacks\n{row}");
    }
}

#[tokio::test]
async fn a_worker_with_stale_assignments_reads_them_anew() {
    let cluster = quick().worker_arg("--heartbeat").worker_arg("1s").start().await;
    let coord = coord(&cluster).await;
    // One that says that it holds something, which nobody gave it.
    let health = json!({"status": "Online", "version": "1", "instance": "fake"});
    coord.put("/agent/health/fake", encode(&health), None).await.unwrap();
    let mut client = workers(&cluster).await;
    let (out, rx) = mpsc::channel(16);
    out.send(hello("fake", "fake")).await.unwrap();
    let mut orders = client.session(ReceiverStream::new(rx)).await.unwrap().into_inner();
    let beating = async {
        loop {
            let beat = pb::Heartbeat {
                digest: "1-000000000000000a".into(),
                revision: 1,
                ..Default::default()
            };
            let frame = pb::WorkerFrame { frame: Some(Frame::Heartbeat(beat)) };
            out.send(frame).await.unwrap();
            tokio::time::sleep(millis(500)).await;
        }
    };
    let asked = async {
        loop {
            let order = orders.message().await.unwrap().expect("the session stands");
            if matches!(order.frame, Some(Order::Compare(_))) {
                return;
            }
        }
    };
    tokio::select! {
        () = beating => {}
        asked = tokio::time::timeout(SOON, asked) => asked.expect("asked in time"),
    }
    wait_count(&cluster, "stale_assignments", 1).await;
    // The real worker, which holds what etcd has, was left alone.
    apply(&cluster.api(), json!({"name": "a", "cmd": "true", "target": "127.0.0.2"})).await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    assert!(!cluster.worker(0).process().log().contains("asks to read all assignments anew"));
}

#[tokio::test]
async fn a_run_its_worker_does_not_know_is_lost_and_one_it_knows_is_not() {
    let cluster = quick().worker_arg("--heartbeat").worker_arg("1s").start().await;
    let api = cluster.api();
    apply(&api, json!({"name": "long", "cmd": "sleep 600", "target": "127.0.0.2"})).await;
    assert_eq!(api.post("/v1/jobs/long/trigger", json!({})).await.0, 202);
    let known = wait_runs(&api, "job=long&state=running", 1).await;
    // A record as a worker leaves it that lost its journal.
    let run = RunId(uuid::Uuid::now_v7());
    let mut record = known[0].clone();
    record["run_id"] = json!(run.to_string());
    record["slot"] = json!("2026-01-01T00:00:00Z");
    record["started_at"] = json!("2026-01-01T00:00:00Z");
    let item = pb::Item { item: Some(pb::item::Item::Run(encode(&record).into())) };
    let request = pb::DeliverRequest { node: "127.0.0.2".into(), items: vec![item] };
    workers(&cluster).await.deliver(request).await.unwrap();
    let lost = wait_runs(&api, "job=long&state=lost", 1).await;
    assert_eq!(lost[0]["run_id"], run.to_string());
    assert!(lost[0]["message"].as_str().unwrap().contains("does not know it"), "{lost:?}");
    wait_count(&cluster, "unknown_run", 1).await;
    // The other one is older than three lease times by now, and named by its worker.
    let running = wait_runs(&api, "job=long&state=running", 1).await;
    assert_eq!(running[0]["run_id"], known[0]["run_id"]);
}

#[tokio::test]
async fn a_run_of_which_the_log_store_has_nothing_is_asked_for() {
    let cluster = quick().worker_arg("--heartbeat").worker_arg("1s").start().await;
    let (api, master) = (cluster.api(), cluster.master(0));
    apply(&api, json!({"name": "long", "cmd": "sleep 600", "target": "127.0.0.2"})).await;
    assert_eq!(api.post("/v1/jobs/long/trigger", json!({})).await.0, 202);
    let known = wait_runs(&api, "job=long&state=running", 1).await;
    // The log store comes back from a time before.
    master.process().kill9();
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(cluster.dir().join(format!("logs.db{end}")));
    }
    master.process().restart();
    master.wait_ready().await;
    let again = wait_runs(&api, "job=long&state=running", 1).await;
    for field in ["run_id", "node", "slot", "attempt", "cause", "pid", "cmd"] {
        assert_eq!(again[0][field], known[0][field], "{field}");
    }
    wait_count(&cluster, "unlisted_run", 1).await;
    // It is asked for once.
    assert_eq!(count(&cluster, "unlisted_run").await, 1);
    let id = known[0]["run_id"].as_str().unwrap();
    assert_eq!(api.post(&format!("/v1/runs/{id}/kill"), json!({})).await.0, 202);
    wait_runs(&api, "job=long&state=killed", 1).await;
}

#[tokio::test]
async fn a_second_worker_gets_no_session() {
    let cluster = quick().start().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    let (out, rx) = mpsc::channel(16);
    out.send(hello("127.0.0.2", "another")).await.unwrap();
    let refused = workers(&cluster).await.session(ReceiverStream::new(rx)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(count(&cluster, "two_sessions").await, 1);
    wait_session(&cluster.api(), "127.0.0.2").await;
}

#[tokio::test]
async fn requests_for_a_node_that_was_forgotten_go_with_it() {
    let cluster = quick().start().await;
    let coord = coord(&cluster).await;
    let run = RunId(uuid::Uuid::now_v7());
    let key = |node: &str| keys::trigger(&Name::new(node).unwrap(), run);
    let away = json!({"registered_at": "2026-01-01T00:00:00Z", "version": "1"});
    coord.put("/meepo/nodes/away", encode(&away), None).await.unwrap();
    for node in ["away", "gone"] {
        coord.put(&key(node), b"{}".to_vec(), None).await.unwrap();
    }
    wait_count(&cluster, "orphan_order", 1).await;
    assert!(coord.get(&key("gone")).await.unwrap().is_none());
    // One that is only away finds its request when it is back.
    assert!(coord.get(&key("away")).await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_told_of_spent_jobs_goes_with_their_assignment_also_of_nodes_that_stay_away() {
    let cluster = quick().workers(2).start().await;
    let (api, coord) = (cluster.api(), coord(&cluster).await);
    let job = |name: &str| {
        let every = "* * * * * *";
        json!({"name": name, "cmd": "true", "schedule": every, "max_runs": 1})
    };
    apply(&api, job("deleted")).await;
    apply(&api, job("stays")).await;
    let there = async |key: &str| coord.get(key).await.unwrap().is_some();
    let wait = async |what: &str, key: &str, wanted: bool| {
        eventually(SOON, format!("{what}: {key}"), async || {
            if there(key).await == wanted { Ok(()) } else { Err(format!("there: {}", !wanted)) }
        })
        .await;
    };
    for key in [
        "/meepo/spent/127.0.0.2/deleted",
        "/meepo/spent/127.0.0.2/stays",
        "/meepo/spent/127.0.0.3/deleted",
        "/meepo/spent/127.0.0.3/stays",
    ] {
        wait("the runs are used up", key, true).await;
    }
    cluster.worker(0).process().kill9();
    wait("the node is away", "/agent/health/127.0.0.2", false).await;
    // The job goes.
    assert_eq!(api.http("DELETE", "/v1/jobs/deleted", None).await.0, 200);
    wait("what was told of it goes", "/meepo/spent/127.0.0.2/deleted", false).await;
    wait_count(&cluster, "orphan_spent", 1).await;
    wait("its worker does so itself", "/meepo/spent/127.0.0.3/deleted", false).await;
    // One that is only away keeps the job, which is over there.
    assert!(there("/meepo/spent/127.0.0.2/stays").await);
    // The node goes.
    coord.delete("/meepo/nodes/127.0.0.2").await.unwrap();
    wait("what was told of its jobs goes", "/meepo/spent/127.0.0.2/stays", false).await;
    wait_count(&cluster, "orphan_spent", 2).await;
    assert!(there("/meepo/spent/127.0.0.3/stays").await);
}
