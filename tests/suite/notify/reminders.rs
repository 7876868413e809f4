//! What is told again, and when: `repeat_after`.

use super::{hooked, job, rule, trigger};
use crate::fleet::{SOON, clock_past, quick, wait_runs};
use jiff::{SignedDuration, Timestamp};
use meepo_tests::eventually;
use serde_json::{Value, json};

/// Long enough for two more failures on a busy machine.
const AFTER: SignedDuration = SignedDuration::from_secs(15);

#[tokio::test]
async fn failures_in_between_are_counted_and_told_with_the_first_after_the_time() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let receiver = hooked(&cluster).await;
    let after = format!("{}s", AFTER.as_secs());
    rule(&api, "all", json!({"on": ["failure"], "repeat_after": after})).await;
    job(&api, "a", "exit 1", json!({})).await;
    let first = trigger(&api, "a").await;
    let told = receiver.wait("failure", 1).await.remove(0);
    let at = Timestamp::now();
    assert_eq!((&told["run_id"], &told["times"]), (&json!(first), &json!(1)), "{told}");
    for n in 2..=3 {
        trigger(&api, "a").await;
        wait_runs(&api, "job=a&state=failed", n).await;
    }
    assert!(Timestamp::now() < at + AFTER, "the machine is too slow for this test");
    clock_past(at + AFTER).await;
    let last = trigger(&api, "a").await;
    let told = receiver.wait("failure", 2).await.remove(1);
    assert_eq!((&told["run_id"], &told["times"]), (&json!(last), &json!(3)), "{told}");
}

#[tokio::test]
async fn what_lasts_is_told_again_by_time_alone_and_by_the_next_leader_too() {
    let cluster = quick().masters(2).start().await;
    let api = cluster.api();
    let receiver = hooked(&cluster).await;
    rule(&api, "silent", json!({"on": ["no_success"], "repeat_after": "1s"})).await;
    rule(&api, "nodes", json!({"on": ["node_lost", "node_back"], "repeat_after": "2s"})).await;
    // Nobody runs it.
    job(&api, "quiet", "true", json!({"expect_success_within": "1s"})).await;
    receiver.wait("no_success", 3).await;
    cluster.worker(0).process().kill9();
    receiver.wait("node_lost", 2).await;
    let leader = crate::pipeline::master::leader(&cluster).await;
    cluster.master(leader).process().kill9();
    let so_far = receiver.wait("node_lost", 2).await.len();
    receiver.wait("node_lost", so_far + 2).await;
    cluster.worker(0).process().restart();
    receiver.wait("node_back", 1).await;
    // And then no more.
    let lost = || {
        let told = receiver.messages();
        told.iter().map(|g| g.events("node_lost").len()).sum::<usize>()
    };
    let ended = lost();
    let back = Timestamp::now();
    clock_past(back + SignedDuration::from_secs(5)).await;
    assert_eq!(lost(), ended);
    let api = cluster.master(1 - leader).api();
    eventually(SOON, "the list is there", async || {
        let (status, list) = api.get("/v1/notify/notifications?limit=200").await;
        let all = list["notifications"].as_array().map_or(0, Vec::len);
        if status == 200 && all > 0 { Ok(()) } else { Err(Value::to_string(&list)) }
    })
    .await;
}
