//! Hundreds of workers, simulated: each of them is reached, and each gives an answer.

use crate::fleet::{SOON, apply};
use meepo_core::code::Code;
use meepo_tests::{
    Cluster, eventually,
    sim::{Count, Fleet},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How many stay and how many go.
const STAY: usize = 250;
const GO: usize = 50;

/// A command to all of them: how many answered what.
async fn command(cluster: &Cluster, hosts: &[&str]) -> BTreeMap<String, usize> {
    let body = json!({"id": "1", "hosts": hosts, "method": "sync.bash", "cmd": "true"});
    let (status, answer) = cluster.api().post("/v1/exec", body).await;
    assert_eq!(status, 200, "{answer}");
    let answers = answer["response"].as_array().unwrap();
    let order: Vec<&str> = answers.iter().map(|a| a["host"].as_str().unwrap()).collect();
    assert_eq!(order, hosts, "one answer each, in the order asked");
    let mut found = BTreeMap::new();
    for answer in answers {
        *found.entry(answer["message"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_one_of_hundreds_of_nodes_answers_those_that_have_gone_too() {
    let cluster = Cluster::builder().workers(0).start().await;
    let etcd = cluster.etcd().urls();
    let stay = Fleet::start(&etcd, 0..STAY).await.unwrap();
    let go = Fleet::start(&etcd, STAY..STAY + GO).await.unwrap();
    for (fleet, n) in [(&stay, STAY), (&go, GO)] {
        for count in [Count::Registered, Count::Sessions] {
            fleet.counts().reach(count, n as u64, SOON).await.unwrap();
        }
    }
    let hosts: Vec<String> = stay.nodes().iter().chain(go.nodes()).map(|n| n.to_string()).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let all = BTreeMap::from([("success".to_owned(), STAY + GO)]);
    eventually(SOON, "all answer", async || {
        let found = command(&cluster, &hosts).await;
        if found == all { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;

    apply(&cluster.api(), json!({"name": "everywhere", "cmd": "true", "schedule": "0 0 29 2 *"}))
        .await;
    stay.counts().reach(Count::Assigned, STAY as u64, SOON).await.unwrap();
    go.counts().reach(Count::Assigned, GO as u64, SOON).await.unwrap();

    go.end().await;
    let answered = stay.counts().get(Count::Commands);
    let some = BTreeMap::from([
        ("success".to_owned(), STAY),
        (Code::HOST_OFFLINE.meaning().to_owned(), GO),
    ]);
    eventually(SOON, "those that have gone are told apart", async || {
        let found = command(&cluster, &hosts).await;
        if found == some { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert!(stay.counts().get(Count::Commands) >= answered + STAY as u64);
    let (_, nodes) = cluster.api().get("/v1/nodes").await;
    let nodes = nodes["nodes"].as_array().unwrap_or_else(|| panic!("{nodes}"));
    let offline = nodes.iter().filter(|n| n["online"] == Value::Bool(false)).count();
    assert_eq!((nodes.len(), offline), (STAY + GO, GO));
    // The job stays with those that may come back.
    let client = cluster.etcd().client().await;
    let options = etcd_client::GetOptions::new().with_prefix().with_count_only();
    let held = client.kv_client().get("/cron/jobs/", Some(options)).await.unwrap().count();
    assert_eq!(held, (STAY + GO) as i64);
    stay.end().await;
}
