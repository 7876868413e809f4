//! What did not run of jobs that run once in the cluster.

use super::apply;
use crate::fleet::{quick, runs, wait_runs};
use meepo_tests::{eventually, secs};
use serde_json::json;
use std::collections::BTreeSet;

/// A slot that any node ran is no gap; one that nobody ran is one gap, of no node.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_nobody_ran_is_one_gap_of_no_node() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    let job = json!({"name": "solo", "cmd": "true", "schedule": "* * * * * *",
        "placement": "once"});
    apply(&api, job).await;
    let found = wait_runs(&api, "job=solo&state=success", 3).await;
    let first = found.last().unwrap()["slot"].as_str().unwrap().to_owned();
    // The holder goes; the other one takes the slots that come.
    let holder = found[0]["node"].as_str().unwrap().to_owned();
    let holder = (0..2).find(|i| cluster.worker(*i).node() == holder).unwrap();
    let stop = async |i: usize| {
        cluster.worker(i).process().term();
        cluster.worker(i).process().wait_exit(secs(30)).await;
    };
    stop(holder).await;
    let other = cluster.worker(1 - holder).node().to_owned();
    wait_runs(&api, &format!("job=solo&state=success&node={other}"), 3).await;
    stop(1 - holder).await;
    let ran: BTreeSet<String> = runs(&api, "job=solo&state=success")
        .await
        .iter()
        .map(|r| r["slot"].as_str().unwrap().to_owned())
        .collect();
    let last = ran.last().unwrap().clone();
    // A slot counts a minute after its time.
    let path = format!("/v1/jobs/solo/gaps?since={first}");
    let gaps = eventually(secs(150), "slots are missing", async || {
        let (status, gaps) = api.get(&path).await;
        assert_eq!(status, 200, "{gaps}");
        let all = gaps["gaps"].as_array().unwrap();
        let absent = all
            .iter()
            .filter(|g| g["kind"] == "absent" && g["slot"].as_str() > Some(&*last))
            .count();
        if absent >= 3 { Ok(gaps) } else { Err(gaps.to_string()) }
    })
    .await;
    let mut seen = BTreeSet::new();
    for gap in gaps["gaps"].as_array().unwrap() {
        let slot = gap["slot"].as_str().unwrap();
        assert!(!ran.contains(slot), "it ran: {gap}");
        if gap["kind"] == "absent" {
            assert!(gap["node"].is_null(), "{gap}");
            assert!(seen.insert(slot.to_owned()), "told twice: {gap}");
        }
    }
    // Those after `since`.
    assert_eq!(gaps["ran"].as_u64().unwrap(), ran.len() as u64 - 1, "{gaps}");
    let text = cluster.cli(&["job", "gaps", "solo", "--since", &first]).await;
    assert!(text.ok().contains("no record of it"), "{text:?}");
}
