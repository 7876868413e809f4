//! Runs whose node is lost: repeated elsewhere exactly once, whoever dies meanwhile.

mod retries;

use crate::fleet::{SOON, apply, quick, runs, wait_runs};
use jiff::{SignedDuration, Timestamp};
use meepo_tests::{Cluster, eventually};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A job that runs once in its life and until the gate is there; each beginning is a line.
struct Job {
    begun: PathBuf,
    gate: PathBuf,
}

impl Job {
    async fn start(cluster: &Cluster) -> Self {
        let dir = cluster.dir();
        let job = Self { begun: dir.join("begun"), gate: dir.join("gate") };
        let cmd = format!(
            "echo $MEEPO_NODE $MEEPO_ATTEMPT $MEEPO_FENCE $MEEPO_SLOT >> {}; until [ -e {} ]; do sleep 0.1; done",
            job.begun.display(),
            job.gate.display()
        );
        let spec = json!({"name": "long", "cmd": cmd, "schedule": "* * * * * *", "max_runs": 1,
            "placement": "once", "on_node_loss": "rerun"});
        apply(&cluster.api(), spec).await;
        job.wait(1).await;
        job
    }

    /// Node, attempt, fence and slot of each beginning.
    fn begun(&self) -> Vec<(String, u32, i64, String)> {
        let text = std::fs::read_to_string(&self.begun).unwrap_or_default();
        let line = |line: &str| {
            let [node, attempt, fence, slot] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line:?}")
            };
            let (attempt, fence) = (attempt.parse().unwrap(), fence.parse().unwrap());
            (node.to_owned(), attempt, fence, slot.to_owned())
        };
        text.lines().map(line).collect()
    }

    async fn wait(&self, n: usize) -> Vec<(String, u32, i64, String)> {
        eventually(SOON, format!("{n} beginnings"), async || {
            let begun = self.begun();
            if begun.len() >= n { Ok(begun) } else { Err(format!("{begun:?}")) }
        })
        .await
    }
}

fn worker_of(cluster: &Cluster, node: &str) -> usize {
    (0..3).find(|i| cluster.worker(*i).node() == node).unwrap()
}

async fn wait_no_keys(cluster: &Cluster) {
    eventually(SOON, "no run is to be repeated any more", async || {
        let out = cluster.etcd().ctl(&["get", "--prefix", "/meepo/rerun/"]).await;
        if out.stdout.trim().is_empty() { Ok(()) } else { Err(out.stdout) }
    })
    .await;
}

#[tokio::test]
async fn a_run_whose_node_dies_is_repeated_once_though_the_leader_dies_too() {
    let cluster = quick().workers(3).masters(2).start().await;
    let leader = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await.json();
    let leader = (0..2).find(|i| leader["http"] == cluster.master(*i).api().base()).unwrap();
    let api = cluster.master(1 - leader).api();
    let job = Job::start(&cluster).await;
    let (first, _, fence, slot) = job.begun()[0].clone();
    wait_runs(&api, "job=long&state=running", 1).await;
    cluster.worker(worker_of(&cluster, &first)).process().kill9();
    cluster.master(leader).process().kill9();
    let begun = job.wait(2).await;
    let again = &begun[1];
    assert_ne!(again.0, first);
    assert_eq!((again.1, &again.3), (2, &slot), "{begun:?}");
    assert!(again.2 > fence, "{begun:?}");
    wait_runs(&api, "job=long&state=lost", 1).await;
    // The dead come back: nobody runs it a third time.
    cluster.worker(worker_of(&cluster, &first)).process().restart();
    cluster.wait_online(worker_of(&cluster, &first)).await;
    cluster.master(leader).process().restart();
    cluster.master(leader).wait_ready().await;
    std::fs::write(&job.gate, "").unwrap();
    let done = wait_runs(&api, "job=long&state=success", 1).await;
    assert_eq!((&done[0]["attempt"], &done[0]["node"]), (&json!(2), &Value::from(again.0.clone())));
    wait_no_keys(&cluster).await;
    assert_eq!(job.begun().len(), 2);
    assert_eq!(runs(&api, "job=long").await.len(), 2);
}

#[tokio::test]
async fn a_run_that_died_with_its_worker_is_repeated_and_what_ends_leaves_nothing() {
    let cluster = quick().workers(3).start().await;
    let api = cluster.api();
    let job = Job::start(&cluster).await;
    let first = job.begun()[0].0.clone();
    let worker = worker_of(&cluster, &first);
    cluster.worker(worker).process().kill9();
    cluster.worker(worker).process().restart();
    let begun = job.wait(2).await;
    assert_eq!(begun[1].1, 2, "{begun:?}");
    std::fs::write(&job.gate, "").unwrap();
    wait_runs(&api, "job=long&state=success", 1).await;
    wait_no_keys(&cluster).await;
    assert_eq!(job.begun().len(), 2);

    // A run that ends leaves no key behind.
    let (status, _) = api.http("DELETE", "/v1/jobs/long", None).await;
    assert_eq!(status, 200);
    let end = json!({"name": "brief", "cmd": "true", "schedule": "* * * * * *",
        "placement": "once", "on_node_loss": "rerun", "max_runs": 3});
    apply(&api, end).await;
    wait_runs(&api, "job=brief&state=success", 3).await;
    wait_no_keys(&cluster).await;
    for (bad, field) in [
        (json!({"placement": "each"}), "on_node_loss"),
        (json!({"placement": "once", "retry": {"max": 1, "on": ["lost"]}}), "on_node_loss"),
    ] {
        let mut spec = bad;
        spec["name"] = "x".into();
        spec["cmd"] = "true".into();
        spec["on_node_loss"] = "rerun".into();
        let (status, body) = api.post("/v1/jobs", spec).await;
        assert_eq!((status, body["error"]["field"].as_str()), (400, Some(field)), "{body}");
    }
}

#[tokio::test]
async fn what_is_not_run_again_is_recorded_with_the_reason() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let rerun = |name: &str| {
        json!({"name": name, "cmd": "echo again", "schedule": "@yearly", "placement": "once",
            "on_node_loss": "rerun"})
    };
    apply(&api, rerun("on")).await;
    let mut off = rerun("off");
    off["disabled"] = json!(true);
    apply(&api, off).await;
    apply(&api, json!({"name": "each", "cmd": "true", "schedule": "@yearly"})).await;
    // Keys as a worker leaves them that is gone for good.
    let now = Timestamp::now();
    let old = now - SignedDuration::from_hours(25);
    let cases = [
        ("on", 3, now, "run again often enough"),
        ("on", 0, old, "more than a day ago"),
        ("off", 0, now, "switched off"),
        ("gone", 0, now, "its job is gone"),
        ("each", 0, now, "several nodes"),
        ("on", 0, now, ""),
    ];
    for (job, reruns, slot, _) in cases {
        let key = format!("/meepo/rerun/lost-node/{}", uuid::Uuid::now_v7());
        let record = json!({"job": job, "slot": slot.to_string(), "attempt": reruns + 1,
            "reruns": reruns, "instance": "dead", "lease_ttl": "1s"});
        cluster.etcd().ctl(&["put", &key, &record.to_string()]).await.ok();
    }
    for (job, reruns, _, why) in cases.iter().filter(|c| !c.3.is_empty()) {
        let query = format!("job={job}&state=missed&node=lost-node");
        eventually(SOON, format!("{job} is given up: {why}"), async || {
            let found = runs(&api, &query).await;
            let says = |r: &&Value| {
                r["message"].as_str().unwrap_or_default().contains(why)
                    && r["attempt"] == reruns + 2
            };
            if found.iter().filter(says).count() == 1 {
                Ok(())
            } else {
                Err(json!(found).to_string())
            }
        })
        .await;
    }
    // The one for which nothing speaks against it.
    let ran = wait_runs(&api, "job=on&state=success", 1).await;
    assert_eq!((&ran[0]["attempt"], &ran[0]["node"]), (&json!(2), &json!("127.0.0.2")));
    wait_no_keys(&cluster).await;
    assert_eq!(runs(&api, "state=missed").await.len(), cases.len() - 1);
}

#[tokio::test]
async fn claimed_slots_that_waited_when_their_worker_died_run_once_each() {
    let cluster = quick().workers(3).start().await;
    let api = cluster.api();
    let (begun, gate) = (cluster.dir().join("begun"), cluster.dir().join("gate"));
    let cmd = format!(
        "echo $MEEPO_NODE $MEEPO_SLOT >> {}; until [ -e {} ]; do sleep 0.1; done",
        begun.display(),
        gate.display()
    );
    let spec = json!({"name": "queued", "cmd": cmd, "schedule": "* * * * * *", "max_runs": 3,
        "concurrency": "queue(5)", "placement": "once", "on_node_loss": "rerun"});
    apply(&api, spec).await;
    let keys = eventually(SOON, "three slots are claimed", async || {
        let out = cluster.etcd().ctl(&["get", "--prefix", "--keys-only", "/meepo/rerun/"]).await;
        let keys: Vec<String> = out.stdout.split_whitespace().map(str::to_owned).collect();
        if keys.len() == 3 { Ok(keys) } else { Err(out.stdout) }
    })
    .await;
    let first = keys[0].split('/').nth(3).unwrap().to_owned();
    assert!(keys.iter().all(|key| key.contains(&format!("/{first}/"))), "{keys:?}");
    eventually(SOON, "the first has begun", async || {
        if begun.exists() { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    // It is back before anybody takes it for dead.
    cluster.worker(worker_of(&cluster, &first)).process().kill9();
    cluster.worker(worker_of(&cluster, &first)).process().restart();
    cluster.wait_online(worker_of(&cluster, &first)).await;
    std::fs::write(&gate, "").unwrap();
    wait_runs(&api, "job=queued&state=success", 3).await;
    wait_no_keys(&cluster).await;
    let done = runs(&api, "job=queued&state=success").await;
    let mut slots: Vec<&str> = done.iter().map(|r| r["slot"].as_str().unwrap()).collect();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!((done.len(), slots.len()), (3, 3), "{done:?}");
    // Only the one that was under way was begun twice.
    assert_eq!(std::fs::read_to_string(&begun).unwrap().lines().count(), 4);
}
