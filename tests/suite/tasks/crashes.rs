//! Workers, masters and etcd that die while tasks are under way.

use super::{SOON, gated, get, noted, put, runs_by_part, wait, wait_left, wait_noted, wait_part};
use meepo_tests::{Cluster, eventually};
use serde_json::json;
use std::{collections::BTreeSet, fs};

/// A queue's part whose worker is killed is run again by another, once; a part of a node
/// waits for it and is run again there.
#[tokio::test]
async fn what_a_worker_dies_with_is_run_again() {
    let cluster = Cluster::builder().workers(2).start().await;
    let api = cluster.api();
    let (file, gate) = (cluster.dir().join("ran"), cluster.dir().join("gate"));
    let cmd = gated(&file, &gate);
    let queued =
        put(&api, json!({"queue": "q", "target": "127.0.0.2 or 127.0.0.3", "cmd": cmd})).await;
    let first = wait_part(&api, &queued, 1, "reserved").await;
    let node = first["node"].as_str().unwrap().to_owned();
    let i = usize::from(node == "127.0.0.3");
    let bound = put(&api, json!({"hosts": [node], "cmd": cmd})).await;
    wait_part(&api, &bound, 1, "reserved").await;
    wait_noted(&file, 2).await;
    cluster.worker(i).process().kill9();
    let again = eventually(SOON, "another worker has it", async || {
        let part = wait_part(&api, &queued, 1, "reserved").await;
        if part["node"] != node.as_str() { Ok(part) } else { Err(part.to_string()) }
    })
    .await;
    assert_eq!(again["attempt"], 2, "{again}");
    assert_eq!(get(&api, &bound).await["parts"][0]["state"], "reserved", "it waits for its node");
    fs::write(&gate, "").unwrap();
    wait(&api, &queued, "success").await;
    cluster.worker(i).process().restart();
    let done = wait(&api, &bound, "success").await;
    assert_eq!(done["parts"][0]["attempt"], 2, "{done}");
    let runs = runs_by_part(&file);
    assert_eq!(runs.values().copied().collect::<Vec<_>>(), [2, 2], "{runs:?}");
    let attempts: BTreeSet<_> = noted(&file).into_iter().map(|[p, a, _]| (p, a)).collect();
    assert_eq!(attempts.len(), 4, "no attempt has run twice: {attempts:?}");
    wait_left(&cluster).await;
}

/// A worker that dies at any place in the life of a run leaves the part to be run again or
/// ended, and no attempt runs twice.
#[tokio::test]
async fn a_worker_may_die_at_any_place() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let worker = cluster.worker(0).process();
    for place in ["decided", "begun", "spawned", "exited", "ended"] {
        let file = cluster.dir().join(format!("ran-{place}"));
        worker.restart_with(&[("MEEPO_FAILPOINT", place)]);
        worker.wait_log("registered", SOON).await;
        let cmd = format!("echo \"$MEEPO_JOB $MEEPO_ATTEMPT x\" >> {}", file.display());
        let id = put(&api, json!({"hosts": ["127.0.0.2"], "cmd": cmd})).await;
        eventually(SOON, format!("the worker has died at {place}"), async || {
            if worker.is_running() { Err("it runs".to_owned()) } else { Ok(()) }
        })
        .await;
        worker.restart();
        let task = wait(&api, &id, "success").await;
        let ran = noted(&file);
        let attempts: BTreeSet<_> = ran.iter().map(|[_, attempt, _]| attempt).collect();
        assert_eq!(attempts.len(), ran.len(), "{place}: an attempt has run twice: {ran:?}");
        // Past its end nothing is run again.
        let want = if place == "ended" { 1..=1 } else { 1..=2 };
        assert!(want.contains(&ran.len()), "{place}: {ran:?} {task}");
    }
}

/// etcd is away while a task ends: the end is told later, also by the next life of the
/// worker, and nothing is run again.
#[tokio::test]
async fn an_end_that_etcd_does_not_hear_is_told_later() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let worker = cluster.worker(0).process();
    for restarts in [false, true] {
        let (file, gate) = (
            cluster.dir().join(format!("ran-{restarts}")),
            cluster.dir().join(format!("gate-{restarts}")),
        );
        let over = cluster.dir().join(format!("over-{restarts}"));
        let cmd = format!("{}; touch {}", gated(&file, &gate), over.display());
        let id = put(&api, json!({"hosts": ["127.0.0.2"], "cmd": cmd})).await;
        wait_part(&api, &id, 1, "reserved").await;
        wait_noted(&file, 1).await;
        cluster.member(0).process().kill9();
        fs::write(&gate, "").unwrap();
        eventually(SOON, "the command has ended", async || {
            if over.exists() { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        if restarts {
            // Its end is in the journal by then; it cannot be in etcd.
            eventually(SOON, "the end is durable", async || {
                let (_, metrics) = cluster.worker(0).metrics().get("/metrics").await;
                let text = metrics.as_str().unwrap_or_default().to_owned();
                let none_runs = text.lines().any(|l| l == "meepo_worker_running 0");
                if none_runs { Ok(()) } else { Err(text) }
            })
            .await;
            worker.kill9();
        }
        cluster.member(0).process().restart();
        if restarts {
            worker.restart();
        }
        let done = wait(&api, &id, "success").await;
        assert_eq!(done["parts"][0]["attempt"], 1, "{done}");
        assert_eq!(noted(&file).len(), 1);
    }
}
