//! Which nodes hold a job, and what becomes of it when they go.

use crate::fleet::{Evidence, SOON, apply, quick};
use meepo_tests::{Api, Cluster, eventually};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The nodes that hold a job, as the API shows them.
pub(crate) async fn holders(api: &Api, job: &str) -> BTreeSet<String> {
    let (status, view) = api.get(&format!("/v1/jobs/{job}")).await;
    assert_eq!(status, 200, "{view}");
    let nodes = view["nodes"].as_array().unwrap().iter();
    nodes.map(|n| n["node"].as_str().unwrap().to_owned()).collect()
}

/// Waits until the nodes that hold a job are as `wanted`.
pub(crate) async fn wait_holders(
    api: &Api,
    job: &str,
    wanted: impl Fn(&BTreeSet<String>) -> bool,
) -> BTreeSet<String> {
    eventually(SOON, format!("the right nodes hold {job}"), async || {
        let found = holders(api, job).await;
        if wanted(&found) { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

fn worker_of(cluster: &Cluster, node: &str) -> usize {
    (0..4).find(|i| cluster.worker(*i).node() == node).unwrap()
}

#[tokio::test]
async fn any_of_the_nodes_run_a_job_and_one_that_goes_is_replaced() {
    let cluster = quick().workers(4).start().await;
    let api = cluster.api();
    let ran = Evidence::new(cluster.dir(), "ran");
    let job = |n: u32| {
        json!({"name": "two", "cmd": ran.cmd(), "schedule": "* * * * * *",
            "placement": format!("any({n})")})
    };
    apply(&api, job(2)).await;
    let first = wait_holders(&api, "two", |h| h.len() == 2).await;
    let slots = |marks: &[crate::fleet::Mark], slot| -> BTreeSet<String> {
        marks.iter().filter(|m| m.slot == slot).map(|m| m.node.clone()).collect()
    };
    // Each slot runs on both, and nowhere else.
    let marks = ran.wait(8, |_| true).await;
    let slot = marks[3].slot;
    assert_eq!(slots(&marks, slot), first);

    // One that restarts at once keeps it.
    let (gone, stays) = (first.first().unwrap().clone(), first.last().unwrap().clone());
    let worker = worker_of(&cluster, &gone);
    cluster.worker(worker).process().kill9();
    cluster.worker(worker).process().restart();
    cluster.wait_online(worker).await;
    assert_eq!(holders(&api, "two").await, first);

    // One that is gone is replaced; when it is back, it is not needed.
    cluster.worker(worker).process().kill9();
    let second = wait_holders(&api, "two", |h| h.len() == 2 && !h.contains(&gone)).await;
    assert!(second.contains(&stays), "{second:?}");
    let new = second.iter().find(|n| **n != stays).unwrap();
    cluster.worker(worker).process().restart();
    cluster.wait_online(worker).await;
    // The leader has seen it: a job for every node is there.
    apply(&api, json!({"name": "every", "cmd": "true"})).await;
    wait_holders(&api, "every", |h| h.len() == 4).await;
    assert_eq!(holders(&api, "two").await, second);

    // One that is drained is replaced, too.
    let (status, body) = api.post(&format!("/v1/nodes/{stays}/drain"), json!({})).await;
    assert_eq!(status, 200, "{body}");
    let third = wait_holders(&api, "two", |h| h.len() == 2 && !h.contains(&stays)).await;
    assert!(third.contains(new), "{third:?}");
    let before = ran.marks().len();
    let marks = ran.wait(before + 6, |_| true).await;
    let last = marks.iter().map(|m| m.slot).max().unwrap();
    let slot = marks.iter().map(|m| m.slot).filter(|s| *s < last).max().unwrap();
    assert_eq!(slots(&marks, slot), third);
    // No node has run a slot twice.
    let once: BTreeSet<_> = marks.iter().map(|m| (m.slot, m.node.clone())).collect();
    assert_eq!(once.len(), marks.len());

    apply(&api, job(3)).await;
    let more = wait_holders(&api, "two", |h| h.len() == 3).await;
    assert!(more.is_superset(&third), "{more:?}");
    let (status, body) =
        api.post("/v1/jobs", json!({"name": "x", "cmd": "y", "placement": "any(0)"})).await;
    assert_eq!((status, &body["error"]["field"]), (400, &Value::from("placement")), "{body}");
}
