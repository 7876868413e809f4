//! Many failures, few messages.

use super::{Receiver, job, put, rule, trigger, wait_list};
use crate::fleet::quick;
use serde_json::json;

const JOBS: usize = 40;

#[tokio::test]
async fn beyond_its_limit_a_channel_is_told_of_the_rest_in_one_message() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let receiver = Receiver::start().await;
    let hook = |limit: &str| json!({"webhook": {"url": receiver.url()}, "limit": limit});
    put(&api, "channels/hook", hook("3/1h")).await;
    rule(&api, "all", json!({"on": ["failure"]})).await;
    for n in 0..JOBS {
        job(&api, &format!("j{n}"), "exit 1", json!({})).await;
    }
    for n in 0..JOBS {
        trigger(&api, &format!("j{n}")).await;
    }
    let held = wait_list(&api, "what is held back", |list| {
        let sent = list["notifications"].as_array().unwrap();
        let sent: u64 = sent.iter().map(|m| m["kinds"]["failure"].as_u64().unwrap()).sum();
        let held = list["throttled"][0]["kinds"]["failure"].as_u64().unwrap_or(0);
        sent + held == JOBS as u64
    })
    .await;
    assert_eq!(receiver.messages().len(), 3, "{held}");
    let messages = held["throttled"][0]["messages"].as_u64().unwrap();
    let table = cluster.cli(&["notify", "list"]).await;
    assert!(
        table.ok().contains(&format!("channel hook holds back {messages} message")),
        "{table:?}"
    );
    let (_, metrics) = api.get("/metrics").await;
    let line = format!("meepo_master_notifications_throttled_total{{channel=\"hook\"}} {messages}");
    assert!(metrics.as_str().unwrap().contains(&line), "{line}: {metrics}");
    // There is room again.
    put(&api, "channels/hook", hook("1000/1s")).await;
    let done = wait_list(&api, "nothing held back", |list| list["throttled"] == json!([])).await;
    let all = done["notifications"].as_array().unwrap();
    let told: u64 = all.iter().map(|m| m["kinds"]["failure"].as_u64().unwrap()).sum();
    assert_eq!((all.len(), told), (4, JOBS as u64), "{done}");
    wait_list(&api, "all delivered", |list| {
        list["notifications"].as_array().unwrap().iter().all(|m| m["state"] == "delivered")
    })
    .await;
    let last = receiver.messages().pop().unwrap().json();
    assert_eq!(last["held"], messages);
    let more = last["count"].as_u64().unwrap() - 20;
    assert_eq!(last["more"], more);
    assert!(last["text"].as_str().unwrap().contains(&format!("and {more} more")), "{last}");
}

#[tokio::test]
async fn what_happens_together_goes_into_one_message() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let receiver = super::hooked(&cluster).await;
    let together = json!({"group_by": "kind", "group_wait": "8s", "on": ["failure"]});
    rule(&api, "all", together).await;
    for n in 0..5 {
        job(&api, &format!("j{n}"), "exit 1", json!({})).await;
    }
    for n in 0..5 {
        trigger(&api, &format!("j{n}")).await;
    }
    receiver.wait("failure", 5).await;
    assert!(receiver.messages().len() <= 2, "{:?}", receiver.messages());
}
