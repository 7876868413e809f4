//! What is wrong with etcd, the log store's schema, nodes and parts of tasks.

use super::{wait_finding, wait_well};
use crate::fleet::{SOON, quick, wait_session};
use jiff::{SignedDuration, Timestamp};
use meepo_proto::internal::{self as pb, worker_frame::Frame, workers_client::WorkersClient};
use meepo_tests::{Api, Cluster, eventually};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test]
async fn an_etcd_without_room_is_told() {
    let quota = ["--quota-backend-bytes", "16777216"];
    let cluster = quota.iter().fold(quick(), |b, arg| b.etcd_arg(arg)).start().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    wait_well(&cluster).await;
    let etcd = cluster.etcd().client().await;
    let mut kv = etcd.kv_client();
    let full = async {
        for n in 0.. {
            if kv.put(format!("/filler/{n}"), vec![b'x'; 1 << 20], None).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, full).await.unwrap();
    let (code, remedy) =
        wait_finding(&cluster, "error", "etcd", &["its database is full (alarm NOSPACE)"]).await;
    assert!(code == 2 && remedy.contains("etcdctl alarm disarm"), "{remedy}");
    // What the remedy says, helps.
    cluster.etcd().ctl(&["del", "--prefix", "/filler/"]).await.ok();
    let status = cluster.etcd().ctl(&["endpoint", "status", "-w", "json"]).await.json();
    let revision = status[0]["Status"]["header"]["revision"].to_string();
    cluster.etcd().ctl(&["compact", &revision]).await.ok();
    cluster.etcd().ctl(&["defrag"]).await.ok();
    cluster.etcd().ctl(&["alarm", "disarm"]).await.ok();
    wait_well(&cluster).await;
}

#[tokio::test]
async fn a_schema_that_is_not_up_to_date_is_told() {
    let cluster = quick().start().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    wait_well(&cluster).await;
    let file = rusqlite::Connection::open(cluster.dir().join("logs.db")).unwrap();
    let newest = "number = (SELECT max(number) FROM meepo_migrations)";
    // As a master finds it that is newer than the one which made it.
    file.execute(&format!("DELETE FROM meepo_migrations WHERE {newest}"), []).unwrap();
    let (code, remedy) =
        wait_finding(&cluster, "error", "log store", &["its schema is not up to date"]).await;
    assert!(code == 2 && remedy.starts_with("meepo-master migrate"), "{remedy}");
}

/// A session of a worker that is none, whose clock and version are what the test wants.
struct Fake {
    frames: mpsc::Sender<pb::WorkerFrame>,
    node: &'static str,
}

impl Fake {
    async fn start(cluster: &Cluster, node: &'static str, version: &str) -> Self {
        let health = json!({"status": "Online", "version": version, "instance": "fake"});
        let key = format!("/agent/health/{node}");
        cluster.etcd().ctl(&["put", &key, &health.to_string()]).await.ok();
        let (frames, rx) = mpsc::channel(8);
        let hello =
            pb::Hello { node: node.into(), instance: "fake".into(), version: version.into() };
        frames.send(pb::WorkerFrame { frame: Some(Frame::Hello(hello)) }).await.unwrap();
        let mut client = WorkersClient::connect(cluster.master(0).grpc_url()).await.unwrap();
        let orders = client.session(ReceiverStream::new(rx)).await.unwrap();
        tokio::spawn(async move {
            let mut orders = orders.into_inner();
            while let Ok(Some(_)) = orders.message().await {}
        });
        Self { frames, node }
    }

    /// A beat of a clock that is ahead by so much.
    async fn beat(&self, ahead: SignedDuration) {
        let at_ms = (Timestamp::now() + ahead).as_millisecond();
        let beat = pb::Heartbeat { at_ms, ..Default::default() };
        self.frames.send(pb::WorkerFrame { frame: Some(Frame::Heartbeat(beat)) }).await.unwrap();
    }
}

#[tokio::test]
async fn clocks_and_versions_that_differ_are_told() {
    let cluster = quick().start().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    wait_well(&cluster).await;
    let fake = Fake::start(&cluster, "10.9.9.9", "0.0.1").await;
    let node = format!("node/{}", fake.node);
    fake.beat(SignedDuration::ZERO).await;
    wait_finding(&cluster, "warn", &node, &["version 0.0.1"]).await;
    fake.beat(SignedDuration::from_secs(-5)).await;
    let (_, remedy) = wait_finding(&cluster, "warn", &node, &["its clock is", "s behind"]).await;
    assert!(remedy.contains("chrony"), "{remedy}");
    fake.beat(SignedDuration::from_mins(10)).await;
    let (code, _) = wait_finding(&cluster, "error", &node, &["its clock is", "s ahead"]).await;
    assert_eq!(code, 2);
    // The page of the node says the same.
    let page = cluster.cli(&["node", "get", fake.node]).await;
    assert!(page.ok().contains("s ahead of the master's"), "{page:?}");
}

/// The only part of a task, as etcd has it, with what `change` makes of it.
async fn rewrite(cluster: &Cluster, task: &str, change: impl Fn(&mut Value)) {
    let key = format!("/meepo/parts/{task}/1");
    let mut part = cluster.etcd().ctl(&["get", &key, "--print-value-only"]).await.json();
    change(&mut part);
    cluster.etcd().ctl(&["put", &key, &part.to_string()]).await.ok();
}

async fn put_task(api: &Api, request: Value, state: &str) -> String {
    let (status, task) = api.post("/v1/tasks", request).await;
    assert_eq!(status, 201, "{task}");
    let id = task["id"].as_str().unwrap().to_owned();
    eventually(SOON, format!("it is {state}"), async || {
        let (_, task) = api.get(&format!("/v1/tasks/{id}")).await;
        let part = &task["parts"][0];
        let begun = state != "reserved" || part["begun_at"].is_string();
        if part["state"] == state && begun { Ok(()) } else { Err(task.to_string()) }
    })
    .await;
    id
}

#[tokio::test]
async fn parts_that_wait_for_long_are_told() {
    let cluster = quick().start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    wait_well(&cluster).await;
    let ago = (Timestamp::now() - SignedDuration::from_mins(20)).to_string();
    let waits = json!({"queue": "q", "target": "group=none", "cmd": "true"});
    let waits = put_task(&api, waits, "ready").await;
    rewrite(&cluster, &waits, |part| part["since"] = json!(ago)).await;
    let words = ["1 of its parts wait for a suitable worker", "20 min ago"];
    let (code, remedy) = wait_finding(&cluster, "warn", &format!("task/{waits}"), &words).await;
    assert!(code == 1 && remedy.contains("task_slots"), "{remedy}");
}

#[tokio::test]
async fn parts_that_should_have_ended_are_told() {
    let cluster = quick().start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    wait_well(&cluster).await;
    let ago = (Timestamp::now() - SignedDuration::from_mins(10)).to_string();
    let late = put_task(&api, json!({"target": "all", "cmd": "sleep 600"}), "reserved").await;
    // A part that this version cannot read: the leader leaves the task alone.
    let strange = format!("/meepo/parts/{late}/2");
    cluster.etcd().ctl(&["put", &strange, r#"{"state": "levitating"}"#]).await.ok();
    let leaves = eventually(SOON, "the master has seen it", async || {
        let log = cluster.master(0).process().log();
        let seen = log.contains("a part of a task cannot be read");
        if seen { Ok(()) } else { Err("not yet".to_owned()) }
    });
    leaves.await;
    rewrite(&cluster, &late, |part| part["deadline"] = json!(ago)).await;
    let words = ["1 of its parts should have ended and were not taken back"];
    let (code, _) = wait_finding(&cluster, "error", &format!("task/{late}"), &words).await;
    assert_eq!(code, 2);
}
