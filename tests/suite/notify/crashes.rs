//! Whoever dies between what happened and its message: it comes, with one id.

use super::{Receiver, hooked, job, put, rule, trigger};
use crate::{
    failover::wait_leader,
    fleet::{SOON, apply, quick, wait_runs},
};
use meepo_tests::{eventually, secs};
use serde_json::json;
use std::collections::BTreeSet;

#[tokio::test]
async fn a_leader_that_dies_before_it_sends_leaves_the_message_to_the_next() {
    let cluster = quick().masters(3).start().await;
    let (first, term) = wait_leader(&cluster, 0).await;
    let api = cluster.master((first + 1) % 3).api();
    let receiver = hooked(&cluster).await;
    // Long enough for the leader to die meanwhile.
    rule(&api, "all", json!({"on": ["failure"], "group_wait": "4s"})).await;
    job(&api, "a", "exit 1", json!({})).await;
    let run = trigger(&api, "a").await;
    let id = eventually(SOON, "the failure waits for others", async || {
        let out =
            cluster.etcd().ctl(&["get", "/meepo/notify/groups/all/a", "--print-value-only"]).await;
        let group: serde_json::Value =
            serde_json::from_str(out.stdout.trim()).map_err(|e| e.to_string())?;
        Ok(group["id"].as_str().unwrap().to_owned())
    })
    .await;
    cluster.master(first).process().kill9();
    let told = receiver.wait("failure", 1).await;
    assert_eq!(told[0]["run_id"], run);
    let got = receiver.messages();
    assert_eq!(got[0].id, format!("{id}-hook"));
    wait_leader(&cluster, term).await;
    // One that the receiver never confirms is sent by the next leader, with the same id.
    receiver.answer(&[500; 1000]);
    job(&api, "b", "exit 1", json!({})).await;
    trigger(&api, "b").await;
    let tried = eventually(SOON, "it was tried", async || {
        let tries = receiver.got();
        tries.iter().find(|g| g.id != got[0].id).map(|g| g.id.clone()).ok_or("not yet".to_owned())
    })
    .await;
    cluster.master(first).process().restart();
    cluster.master(first).wait_ready().await;
    let (second, _) = wait_leader(&cluster, term).await;
    cluster.master(second).process().kill9();
    receiver.answer_ok();
    let api = cluster.master(first).api();
    super::wait_list(&api, "both delivered", |list| {
        let all = list["notifications"].as_array().unwrap();
        all.len() == 2 && all.iter().all(|m| m["state"] == "delivered")
    })
    .await;
    let ids: BTreeSet<String> = receiver.got().into_iter().map(|g| g.id).collect();
    assert_eq!(ids, BTreeSet::from([got[0].id.clone(), tried]));
}

#[tokio::test]
async fn a_failure_without_etcd_is_told_though_the_worker_dies_too() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let receiver = Receiver::start().await;
    put(&api, "channels/hook", json!({"webhook": {"url": receiver.url()}})).await;
    let (begun, fail) = (cluster.dir().join("begun"), cluster.dir().join("fail"));
    let cmd = format!("test -e {} && {{ echo x >> {}; exit 9; }}", fail.display(), begun.display());
    let cmd = format!("{cmd}; exit 0");
    let spec = json!({"name": "tick", "cmd": cmd, "schedule": "* * * * * *",
        "notify": {"on": ["failure"], "to": ["hook"]}});
    apply(&api, spec).await;
    wait_runs(&api, "job=tick&state=success", 1).await;
    let lines = || std::fs::read_to_string(&begun).unwrap_or_default().lines().count();
    cluster.member(0).process().stop();
    std::fs::write(&fail, "").unwrap();
    eventually(SOON, "it has failed twice", async || {
        if lines() >= 2 { Ok(()) } else { Err(lines().to_string()) }
    })
    .await;
    cluster.worker(0).process().kill9();
    std::fs::remove_file(&fail).unwrap();
    cluster.member(0).process().cont();
    cluster.worker(0).process().restart();
    cluster.wait_online(0).await;
    let told = receiver.wait("failure", 1).await;
    assert_eq!((told[0]["exit_code"].as_i64(), told[0]["job"].as_str()), (Some(9), Some("tick")));
    // Nothing of it is left but what is bounded.
    eventually(secs(60), "one value a job is left", async || {
        let keys =
            cluster.etcd().ctl(&["get", "--prefix", "--keys-only", "/meepo/outcomes/"]).await;
        let keys: Vec<&str> = keys.stdout.split_whitespace().collect();
        if keys == ["/meepo/outcomes/127.0.0.2/tick"] { Ok(()) } else { Err(format!("{keys:?}")) }
    })
    .await;
}
