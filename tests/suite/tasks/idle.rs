//! Who gets the next part of a queue, and what is said of parts that nobody can take.

use super::{SOON, gated, put, runs_by_part, wait, wait_noted, wait_part};
use crate::fleet::quick;
use meepo_tests::{Api, Cluster, eventually};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs};

/// Starts a worker again with so many slots, and waits until the leader knows.
async fn slots(cluster: &Cluster, worker: usize, slots: u32) {
    let process = cluster.worker(worker).process();
    process.restart_with(&[("MEEPO_TASK_SLOTS", &slots.to_string())]);
    process.wait_log("registered", SOON).await;
    let key = format!("/agent/health/{}", cluster.worker(worker).node());
    eventually(SOON, format!("{key} tells of {slots} slots"), async || {
        let out = cluster.etcd().ctl(&["get", &key, "--print-value-only"]).await;
        let there = out.stdout.contains(&format!(r#""task_slots":{slots}"#));
        if there { Ok(()) } else { Err(out.stdout) }
    })
    .await;
}

#[tokio::test]
async fn each_part_goes_to_the_most_idle_of_the_suitable_workers() {
    let cluster = quick().workers(4).start().await;
    let api = cluster.api();
    // The last one would always be the most idle, and is not suitable.
    let all: BTreeMap<&str, u32> =
        [("127.0.0.2", 4), ("127.0.0.3", 2), ("127.0.0.4", 1), ("127.0.0.5", 50)].into();
    for (worker, n) in all.values().enumerate() {
        slots(&cluster, worker, *n).await;
    }
    let (file, gate) = (cluster.dir().join("ran"), cluster.dir().join("gate"));
    let request = json!({"queue": "q", "target": "not 127.0.0.5", "cmd": gated(&file, &gate)});
    let mut taken: BTreeMap<String, u32> = BTreeMap::new();
    let mut ids = Vec::new();
    for n in 1..=7 {
        let id = put(&api, request.clone()).await;
        let part = wait_part(&api, &id, 1, "reserved").await;
        wait_noted(&file, n).await;
        let node = part["node"].as_str().unwrap().to_owned();
        // Shares of free slots as they were, in twelfths so that they are whole.
        let free = |id: &str| 12 * (all[id] - taken.get(id).copied().unwrap_or(0)) / all[id];
        let suitable = all.keys().filter(|id| **id != "127.0.0.5");
        let most = suitable.map(|id| free(id)).max().unwrap();
        assert_eq!(free(&node), most, "part {n} went to {node}, taken were {taken:?}");
        *taken.entry(node).or_default() += 1;
        ids.push(id);
    }
    let want: BTreeMap<String, u32> =
        all.iter().take(3).map(|(id, n)| ((*id).to_owned(), *n)).collect();
    assert_eq!(taken, want, "one for each free slot");
    // No slot is left for more, and the word about it is right.
    let more = put(&api, request).await;
    let why = waits(&api, &more, "3 with all slots taken").await;
    assert!(why.starts_with("3 nodes match its target not 127.0.0.5"), "{why}");
    assert_eq!(wait_noted(&file, 7).await.len(), 7);
    fs::write(&gate, "").unwrap();
    for id in ids.iter().chain([&more]) {
        let done = wait(&api, id, "success").await;
        assert_eq!(done["parts"][0]["waits"], Value::Null, "{done}");
    }
    let runs = runs_by_part(&file);
    assert!(runs.len() == 8 && runs.values().all(|n| *n == 1), "{runs:?}");
}

/// Waits until the first part of a task says why it waits, with these words.
async fn waits(api: &Api, id: &str, words: &str) -> String {
    eventually(SOON, format!("task {id} waits: {words}"), async || {
        let (status, task) = api.get(&format!("/v1/tasks/{id}")).await;
        let why = task["parts"][0]["waits"].as_str().unwrap_or_default();
        let there = status == 200 && why.contains(words);
        if there { Ok(why.to_owned()) } else { Err(task.to_string()) }
    })
    .await
}

#[tokio::test]
async fn a_part_that_nobody_can_take_says_what_it_needs() {
    let cluster = quick().masters(2).workers(2).start().await;
    // Also the master that does not lead knows.
    let apis = [cluster.master(0).api(), cluster.master(1).api()];
    let none = put(&apis[0], json!({"queue": "q", "target": "group=none", "cmd": "true"})).await;
    cluster.worker(1).process().term();
    let away = put(&apis[0], json!({"hosts": ["127.0.0.3"], "cmd": "true"})).await;
    cluster.cli(&["node", "drain", "127.0.0.2", "--wait"]).await.ok();
    let queued = put(&apis[0], json!({"queue": "q", "cmd": "true"})).await;
    for api in &apis {
        waits(api, &none, "no node matches its target group=none").await;
        waits(api, &away, "node 127.0.0.3 is offline; needs its worker to be started").await;
        waits(api, &queued, "none can take it: 1 offline, 1 drained; needs one that is").await;
    }
    let page = cluster.cli(&["task", "get", &queued]).await;
    assert!(page.ok().contains("part 1 waits: 2 nodes match its target all"), "{page:?}");
    // And when it has what it needs, it runs and waits no more.
    cluster.cli(&["node", "undrain", "127.0.0.2"]).await.ok();
    cluster.worker(1).process().restart();
    for id in [&away, &queued] {
        let done = wait(&apis[1], id, "success").await;
        assert_eq!(done["parts"][0]["waits"], Value::Null, "{done}");
    }
    let page = cluster.cli(&["task", "get", &queued]).await;
    assert!(!page.ok().contains("waits"), "{page:?}");
    assert_eq!(super::act(&apis[0], &none, "cancel").await.0, 200);
}
