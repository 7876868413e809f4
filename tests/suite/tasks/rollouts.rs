//! Roll-outs: portion after portion, with a canary, stopped by failures and by people, taken
//! up where they stopped, by another master too.

use super::{SOON, act, get, noted, put, wait, wait_noted};
use crate::fleet::quick;
use meepo_tests::{Api, Cluster, eventually};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// Where runs wait, each for its node.
struct Gates(PathBuf);

impl Gates {
    fn new(cluster: &Cluster) -> Self {
        let dir = cluster.dir().join("gates");
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    fn notes(&self) -> PathBuf {
        self.0.join("notes")
    }

    /// Notes its beginning, waits for the gate of its node, and ends with what stands there.
    fn cmd(&self) -> String {
        let dir = self.0.display();
        format!(
            "echo \"$MEEPO_JOB $MEEPO_ATTEMPT $MEEPO_NODE\" >> {dir}/notes; \
             until [ -s {dir}/$MEEPO_NODE ]; do sleep 0.05; done; \
             exit \"$(cat {dir}/$MEEPO_NODE)\""
        )
    }

    fn open(&self, node: usize, status: i32) {
        // Not to be read half written.
        let (half, whole) = (self.0.join("half"), self.0.join(format!("127.0.0.{node}")));
        std::fs::write(&half, status.to_string()).unwrap();
        std::fs::rename(half, whole).unwrap();
    }

    fn begun(&self) -> Vec<String> {
        noted(&self.notes()).into_iter().map(|[_, _, node]| node).collect()
    }
}

/// Waits until the roll-out is in this phase; answers its progress.
async fn phase(api: &Api, id: &str, phase: &str) -> Value {
    eventually(SOON, format!("the roll-out of {id} is {phase}"), async || {
        let (status, task) = api.try_http("GET", &format!("/v1/tasks/{id}"), None).await?;
        let there = status == 200 && task["rollout"]["phase"] == phase;
        if there { Ok(task["rollout"].clone()) } else { Err(format!("{status} {task}")) }
    })
    .await
}

fn states(task: &Value) -> BTreeMap<String, usize> {
    let mut states = BTreeMap::new();
    for part in task["parts"].as_array().unwrap() {
        *states.entry(part["state"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    states
}

#[tokio::test]
async fn a_canary_then_batches_stopped_by_failures_and_resumed() {
    let cluster = quick().workers(6).start().await;
    let (api, gates) = (cluster.api(), Gates::new(&cluster));
    let rollout = json!({"canary": {"size": 1}, "batch": "40%", "max_failures": 2});
    let id = put(&api, json!({"target": "all", "cmd": gates.cmd(), "rollout": rollout})).await;
    wait_noted(&gates.notes(), 1).await;
    let task = get(&api, &id).await;
    assert_eq!(states(&task), [("pending".into(), 5), ("reserved".into(), 1)].into());
    let progress = phase(&api, &id, "running").await;
    assert_eq!((&progress["batch"], &progress["batches"]), (&json!(1), &json!(3)));
    gates.open(2, 0);
    // 40 per cent of six are three.
    wait_noted(&gates.notes(), 4).await;
    gates.open(3, 1);
    gates.open(4, 1);
    let stopped = phase(&api, &id, "stopped").await;
    assert_eq!((&stopped["failed"], &stopped["ended"]), (&json!(2), &json!(3)));
    assert_eq!(stopped["why"], "2 failed, at most 1 may");
    // What has begun goes on; nothing else begins.
    gates.open(5, 0);
    let waited = cluster.cli(&["task", "wait", &id]).await;
    assert_eq!(waited.code, 1, "{waited:?}");
    let page = cluster.cli(&["task", "get", &id]).await;
    let line = "batch 3 of 3, 4 of 6 done, 2 failed; stopped: 2 failed, at most 1 may";
    assert!(page.ok().contains(line), "{page:?}");
    assert_eq!(gates.begun().len(), 4);
    assert_eq!(states(&get(&api, &id).await)["pending"], 2);

    cluster.cli(&["task", "resume", &id]).await.ok();
    wait_noted(&gates.notes(), 6).await;
    gates.open(6, 0);
    gates.open(7, 0);
    let task = wait(&api, &id, "failed").await;
    assert_eq!(states(&task), [("failed".into(), 2), ("success".into(), 4)].into());
    let nodes: BTreeSet<String> = gates.begun().into_iter().collect();
    assert_eq!((nodes.len(), gates.begun().len()), (6, 6), "each once");
}

#[tokio::test]
async fn the_canary_decides_and_a_roll_out_can_be_withdrawn() {
    let cluster = quick().workers(3).start().await;
    let (api, gates) = (cluster.api(), Gates::new(&cluster));
    let all = [
        "task",
        "put",
        "-t",
        "all",
        "--canary",
        "1",
        "--soak",
        "1h",
        "--batch",
        "2",
        "--",
        &gates.cmd(),
    ];
    let out = cluster.cli(&all).await;
    let id = out.ok().trim().to_owned();
    wait_noted(&gates.notes(), 1).await;
    gates.open(2, 1);
    assert_eq!(phase(&api, &id, "stopped").await["why"], "the canary failed");
    // Who goes on all the same waits for the soak first.
    assert_eq!(act(&api, &id, "resume").await.0, 200);
    let pausing = phase(&api, &id, "pausing").await;
    assert!(pausing["until"].is_string(), "{pausing}");
    assert_eq!(act(&api, &id, "pause").await.0, 200);
    phase(&api, &id, "paused").await;
    assert_eq!(act(&api, &id, "cancel").await.0, 200);
    let task = wait(&api, &id, "failed").await;
    assert_eq!(states(&task), [("failed".into(), 1), ("revoked".into(), 2)].into());
    assert_eq!(gates.begun().len(), 1);

    for (bad, field) in [
        (json!({}), "rollout"),
        (json!({"batch": "0%"}), "rollout.batch"),
        (json!({"batch": 1, "pauze": "1s"}), "rollout.pauze"),
        (json!({"canary": {"size": 1, "soak": "31d"}}), "rollout.canary.soak"),
    ] {
        let request = json!({"target": "all", "cmd": "true", "rollout": bad});
        let (status, body) = api.post("/v1/tasks", request).await;
        assert_eq!((status, &body["error"]["field"]), (400, &json!(field)), "{body}");
    }
}

#[tokio::test]
async fn a_pause_between_batches_is_kept() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    let rollout = json!({"batch": 1, "pause": "2s"});
    let id = put(&api, json!({"target": "all", "cmd": "true", "rollout": rollout})).await;
    let task = wait(&api, &id, "success").await;
    let at = |n: usize, field: &str| -> jiff::Timestamp {
        task["parts"][n][field].as_str().unwrap().parse().unwrap()
    };
    let waited = at(1, "ready_at").duration_since(at(0, "since"));
    assert!(waited.as_millis() >= 2_000, "{waited:?}: {task}");
}

#[tokio::test]
async fn a_roll_out_can_be_timed() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(4);
    let request =
        json!({"target": "all", "cmd": "true", "at": at.to_string(), "rollout": {"batch": 1}});
    let id = put(&api, request).await;
    let waiting = phase(&api, &id, "waiting").await;
    assert!(waiting["until"].is_string(), "{waiting}");
    let task = wait(&api, &id, "success").await;
    for part in task["parts"].as_array().unwrap() {
        let ready: jiff::Timestamp = part["ready_at"].as_str().unwrap().parse().unwrap();
        assert!(ready.as_millisecond() >= at.as_millisecond(), "{part}");
    }
}

#[tokio::test]
async fn another_leader_goes_on_with_the_same_batch() {
    let cluster = quick().masters(2).workers(6).start().await;
    let gates = Gates::new(&cluster);
    let leader = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await.json();
    let (leader, other) = match leader["http"] == cluster.master(0).api().base() {
        true => (0, 1),
        false => (1, 0),
    };
    let api = cluster.master(other).api();
    let rollout = json!({"batch": 2, "max_failures": 1});
    let id = put(&api, json!({"target": "all", "cmd": gates.cmd(), "rollout": rollout})).await;
    wait_noted(&gates.notes(), 2).await;
    gates.open(2, 0);
    gates.open(3, 0);
    wait_noted(&gates.notes(), 4).await;
    // In the middle of the second batch: half of it ends while nobody leads.
    cluster.master(leader).process().kill9();
    gates.open(4, 0);
    cluster.master(other).process().wait_log("this master leads", SOON).await;
    let progress = phase(&api, &id, "running").await;
    assert_eq!(progress["batch"], 2, "{progress}");
    assert_eq!(gates.begun().len(), 4, "the batch has not ended");
    gates.open(5, 0);
    wait_noted(&gates.notes(), 6).await;
    gates.open(6, 0);
    gates.open(7, 0);
    let task = wait(&api, &id, "success").await;
    assert_eq!(states(&task), [("success".into(), 6)].into());
    let nodes: BTreeSet<String> = gates.begun().into_iter().collect();
    assert_eq!((nodes.len(), gates.begun().len()), (6, 6), "each once");
}
