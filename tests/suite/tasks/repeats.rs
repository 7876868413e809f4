//! Tasks that are done over and over.

use super::{SOON, act, noted, put, wait};
use crate::fleet::quick;
use meepo_tests::{Cluster, eventually};
use serde_json::json;
use std::path::PathBuf;

fn note(cluster: &Cluster) -> (PathBuf, String) {
    let file = cluster.dir().join("rounds");
    let cmd = format!("echo \"$MEEPO_JOB $MEEPO_ATTEMPT $MEEPO_NODE\" >> {}", file.display());
    (file, cmd)
}

#[tokio::test]
async fn so_many_rounds_on_each_node_each_a_run_of_its_own() {
    let cluster = quick().workers(2).start().await;
    let (file, cmd) = note(&cluster);
    let args = ["task", "put", "-t", "all", "--repeat", "3", "--wait", "-o", "json", "--", &cmd];
    let out = cluster.cli(&args).await;
    assert_eq!(out.code, 0, "{out:?}");
    let mut notes = noted(&file);
    notes.sort();
    let attempts: Vec<&str> = notes.iter().map(|[_, attempt, _]| attempt.as_str()).collect();
    assert_eq!(attempts, ["1", "2", "3", "1", "2", "3"], "{notes:?}");
    let id = notes[0][0].split_once('.').unwrap().0;
    let task = wait(&cluster.api(), id, "success").await;
    let part = &task["parts"][0];
    assert_eq!((&part["rounds"], part["runs"].as_array().unwrap().len()), (&json!(3), 3), "{part}");
}

#[tokio::test]
async fn every_so_often_until_it_is_withdrawn_whoever_leads() {
    let cluster = quick().masters(2).start().await;
    let (file, cmd) = note(&cluster);
    let api = cluster.master(0).api();
    let id = put(&api, json!({"queue": "q", "cmd": cmd, "repeat": {"every": "1s"}})).await;
    let rounds = async |n: usize| {
        eventually(SOON, format!("{n} rounds"), async || {
            let done = noted(&file).len();
            if done >= n { Ok(()) } else { Err(done.to_string()) }
        })
        .await;
    };
    rounds(3).await;
    // Another leader goes on.
    let out = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await;
    let leader = usize::from(out.json()["http"] == cluster.master(1).api().base());
    cluster.master(leader).process().kill9();
    let api = cluster.master(1 - leader).api();
    rounds(noted(&file).len() + 3).await;
    assert_eq!(act(&api, &id, "cancel").await.0, 200);
    let task = wait(&api, &id, "revoked").await;
    let done = task["parts"][0]["rounds"].as_u64().unwrap();
    let notes = noted(&file);
    assert_eq!(notes.len() as u64, done, "no round is counted twice: {task}");
    let mut attempts: Vec<u64> = notes.iter().map(|[_, n, _]| n.parse().unwrap()).collect();
    attempts.dedup();
    assert_eq!(attempts, (1..=done).collect::<Vec<_>>(), "and none run twice");
}
