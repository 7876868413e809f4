//! Tasks: handed in, given to workers, run once, shown, and changed by people.

mod crashes;
mod failover;
mod given;
mod grpc;
mod idle;
mod nodes;
mod queues;
mod repeats;
mod rollouts;
mod verbs;

use meepo_tests::{Api, Cluster, eventually, secs};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

const SOON: Duration = secs(60);

/// Hands in a task; panics where it is refused. Answers its id.
async fn put(api: &Api, request: Value) -> String {
    let (status, body) = api.post("/v1/tasks", request).await;
    assert_eq!(status, 201, "{body}");
    body["id"].as_str().unwrap().to_owned()
}

/// The task as it stands.
async fn get(api: &Api, id: &str) -> Value {
    let (status, body) = api.get(&format!("/v1/tasks/{id}")).await;
    assert_eq!(status, 200, "{body}");
    body
}

/// Waits until the task is in `state` and answers it.
async fn wait(api: &Api, id: &str, state: &str) -> Value {
    eventually(SOON, format!("task {id} is {state}"), async || {
        let (status, body) = api.try_http("GET", &format!("/v1/tasks/{id}"), None).await?;
        let there = status == 200 && body["state"] == state;
        if there { Ok(body) } else { Err(format!("{status} {body}")) }
    })
    .await
}

/// Waits until part `n` of the task is in `state` and, if reserved, has begun.
async fn wait_part(api: &Api, id: &str, n: u32, state: &str) -> Value {
    eventually(SOON, format!("part {n} of {id} is {state}"), async || {
        let (status, body) = api.try_http("GET", &format!("/v1/tasks/{id}.{n}"), None).await?;
        let part = &body["parts"][0];
        let begun = state != "reserved" || !part["begun_at"].is_null();
        let there = status == 200 && part["state"] == state && begun;
        if there { Ok(part.clone()) } else { Err(format!("{status} {body}")) }
    })
    .await
}

/// Does something to a task or a part; answers the status and the body.
async fn act(api: &Api, id: &str, verb: &str) -> (u16, Value) {
    api.post(&format!("/v1/tasks/{id}/{verb}"), json!({})).await
}

/// A command that notes that it runs in `file` and then waits until `gate` is there.
fn gated(file: &Path, gate: &Path) -> String {
    format!(
        "echo \"$MEEPO_JOB $MEEPO_ATTEMPT $MEEPO_NODE\" >> {}; n=0; \
         until [ -e {} ] || [ $n -gt 1200 ]; do sleep 0.05; n=$((n+1)); done",
        file.display(),
        gate.display()
    )
}

/// What commands have noted, in order: the part, the attempt, the node.
fn noted(file: &Path) -> Vec<[String; 3]> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = |l: &str| -> [String; 3] {
        let words: Vec<String> = l.split(' ').map(str::to_owned).collect();
        words.try_into().unwrap_or_else(|w| panic!("{w:?}"))
    };
    text.lines().map(line).collect()
}

/// How often each part was run.
fn runs_by_part(file: &Path) -> BTreeMap<String, usize> {
    let mut runs = BTreeMap::new();
    for [part, ..] in noted(file) {
        *runs.entry(part).or_default() += 1;
    }
    runs
}

/// Waits until `n` runs are noted.
async fn wait_noted(file: &Path, n: usize) -> Vec<[String; 3]> {
    eventually(SOON, format!("{n} runs in {}", file.display()), async || {
        let noted = noted(file);
        if noted.len() >= n { Ok(noted) } else { Err(format!("{noted:?}")) }
    })
    .await
}

/// Keys of tasks that etcd still holds.
async fn left_in_etcd(cluster: &Cluster) -> Vec<String> {
    let mut keys = Vec::new();
    for prefix in ["/meepo/tasks/", "/meepo/parts/", "/cron/tasks/"] {
        let out = cluster.etcd().ctl(&["get", "--prefix", prefix, "--keys-only"]).await;
        keys.extend(out.ok().lines().filter(|l| !l.is_empty()).map(str::to_owned));
    }
    keys
}

/// Waits until everything has left etcd.
async fn wait_left(cluster: &Cluster) {
    eventually(SOON, "no task is left in etcd", async || {
        let left = left_in_etcd(cluster).await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}
