//! Signatures run out, are renewed, and their keys change.

use super::{Keys, content, each_second, refused, value};
use crate::fleet::{SOON, apply, clock_past, runs, wait_runs};
use meepo_runtime::signing::Signer;
use meepo_tests::{Cluster, eventually};
use serde_json::{Value, json};

const NODE: &str = "127.0.0.2";

fn instant(value: &Value) -> jiff::Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

/// Waits until the assignment of a job is signed by another signature than `old`.
async fn renewed(cluster: &Cluster, job: &str, old: &Value) -> Value {
    let key = format!("/cron/jobs/{NODE}/{job}");
    eventually(SOON, format!("{job} is signed anew"), async || {
        let now = value(cluster, &key).await["signature"].clone();
        if now["sig"] != old["sig"] { Ok(now) } else { Err(now.to_string()) }
    })
    .await
}

#[tokio::test]
async fn the_leader_renews_in_time_and_a_worker_alone_goes_on() {
    let keys = Keys::new();
    let cluster = keys.cluster().master_arg("--signature-validity").master_arg("6s").start().await;
    let api = cluster.api();
    apply(&api, each_second("a", "true")).await;
    let first = value(&cluster, &format!("/cron/jobs/{NODE}/a")).await["signature"].clone();
    let second = renewed(&cluster, "a", &first).await;
    assert!(instant(&second["issued_at"]) < instant(&first["expires_at"]), "{first} {second}");
    renewed(&cluster, "a", &second).await;
    // Nobody renews any more: what was accepted in its time goes on, also over a restart.
    cluster.master(0).process().kill9();
    let last = value(&cluster, &format!("/cron/jobs/{NODE}/a")).await["signature"].clone();
    clock_past(instant(&last["expires_at"])).await;
    cluster.worker(0).process().kill9();
    cluster.worker(0).process().restart();
    cluster.wait_online(0).await;
    content(&cluster, NODE).await;
    let alone = jiff::Timestamp::now();
    cluster.master(0).process().restart();
    cluster.master(0).wait_ready().await;
    let late = |run: &Value| instant(&run["slot"]) > alone;
    eventually(SOON, "it has run", async || {
        let ran = runs(&api, "job=a&state=success").await;
        if ran.iter().any(late) { Ok(()) } else { Err(format!("{ran:?}")) }
    })
    .await;
    assert!(runs(&api, "job=a&state=failed").await.is_empty());
}

#[tokio::test]
async fn a_worker_may_be_told_to_stop_with_the_signature() {
    let keys = Keys::new();
    let cluster = keys
        .cluster()
        .master_arg("--signature-validity")
        .master_arg("6s")
        .worker_arg("--expired-assignments")
        .worker_arg("stop")
        .start()
        .await;
    let api = cluster.api();
    apply(&api, each_second("a", "true")).await;
    wait_runs(&api, "job=a&state=success", 1).await;
    // The worker hears of nothing any more, as it were cut off.
    cluster.master(0).process().kill9();
    let last = value(&cluster, &format!("/cron/jobs/{NODE}/a")).await["signature"].clone();
    clock_past(instant(&last["expires_at"])).await;
    let alone = jiff::Timestamp::now();
    clock_past(alone + jiff::SignedDuration::from_secs(3)).await;
    cluster.master(0).process().restart();
    cluster.master(0).wait_ready().await;
    let failed = wait_runs(&api, "job=a&state=failed", 1).await;
    assert_eq!(failed[0]["code"], 0x020A, "{failed:?}");
    assert!(failed[0]["message"].as_str().unwrap().contains("it has run out"), "{failed:?}");
    // Signed anew it runs again.
    renewed(&cluster, "a", &last).await;
    let back = jiff::Timestamp::now();
    eventually(SOON, "it runs again", async || {
        let ran = runs(&api, "job=a&state=success").await;
        let late = |run: &Value| instant(&run["slot"]) > back;
        if ran.iter().any(late) { Ok(()) } else { Err(format!("{ran:?}")) }
    })
    .await;
}

#[tokio::test]
async fn what_has_run_out_before_it_came_is_never_run() {
    let keys = Keys::new();
    let cluster = keys.cluster().master_arg("--signature-validity").master_arg("4s").start().await;
    let api = cluster.api();
    let file = cluster.dir().join("ran");
    let away = cluster.worker(0).process();
    away.term();
    away.wait_exit(SOON).await;
    apply(&api, each_second("a", &format!("echo x >> {}", file.display()))).await;
    let key = format!("/cron/jobs/{NODE}/a");
    value(&cluster, &key).await;
    cluster.master(0).process().kill9();
    let last = value(&cluster, &key).await["signature"].clone();
    clock_past(instant(&last["expires_at"])).await;
    away.restart();
    cluster.wait_online(0).await;
    refused(&cluster, NODE, &key, "it has run out").await;
    assert!(!file.exists());
    cluster.master(0).process().restart();
    content(&cluster, NODE).await;
    eventually(SOON, "it runs", async || {
        if file.exists() { Ok(()) } else { Err("it has not run".to_owned()) }
    })
    .await;
}

#[tokio::test]
async fn a_key_is_replaced_by_another_without_a_gap() {
    let keys = Keys::new();
    let cluster = keys.cluster().start().await;
    let api = cluster.api();
    apply(&api, each_second("a", "true")).await;
    wait_runs(&api, "job=a&state=success", 1).await;
    let old: Signer = keys.signer();
    let first = value(&cluster, &format!("/cron/jobs/{NODE}/a")).await["signature"].clone();
    assert_eq!(first["key"], old.id());
    let shown = cluster.cli(&["signing", "show", keys.public().to_str().unwrap()]).await;
    assert!(shown.ok().contains(old.id()), "{shown:?}");
    let dir = keys.key().parent().unwrap().to_str().unwrap().to_owned();
    cluster.cli(&["signing", "rotate", "--dir", &dir]).await.ok();
    let new = keys.signer();
    assert_ne!(new.id(), old.id());
    // Both are trusted from now on; the master signs with the new one once it is restarted.
    let master = cluster.master(0);
    master.process().term();
    master.process().wait_exit(SOON).await;
    master.process().restart();
    master.wait_ready().await;
    let second = renewed(&cluster, "a", &first).await;
    assert_eq!(second["key"], new.id());
    eventually(SOON, "the definition is signed with the new key", async || {
        let job = value(&cluster, "/meepo/jobs/a").await;
        if job["signature"]["key"] == new.id() { Ok(()) } else { Err(job.to_string()) }
    })
    .await;
    content(&cluster, NODE).await;
    // The old one is given up, and signs nothing any more.
    cluster.cli(&["signing", "rotate", "--finish", "--dir", &dir]).await.ok();
    let before = jiff::Timestamp::now();
    // Files are looked at once a second.
    clock_past(before + jiff::SignedDuration::from_secs(2)).await;
    eventually(SOON, "it goes on", async || {
        let ran = runs(&api, "job=a&state=success").await;
        let late = |run: &Value| instant(&run["slot"]) > before;
        if ran.iter().any(late) { Ok(()) } else { Err(format!("{ran:?}")) }
    })
    .await;
    let key = format!("/cron/jobs/{NODE}/b");
    let node = meepo_core::id::Name::new(NODE).unwrap();
    let job = json!({"cmd": "true", "express": "", "task_id": "b", "status": "running", "executor": "sh"});
    let assignment = meepo_core::job::Assignment::from_etcd(job.to_string().as_bytes()).unwrap();
    use meepo_core::signing::{Covered, Kind, Place, canonical};
    let place = Place { kind: Kind::Assignment, node: Some(&node), key: &key };
    let lives = Some(jiff::SignedDuration::from_hours(1));
    let by = |signer: &Signer| {
        let covered = canonical(&assignment.covered());
        let signature = signer.sign(place, i64::MAX, lives, None, &covered);
        let mut value = job.clone();
        value["signature"] = serde_json::to_value(signature).unwrap();
        value
    };
    super::put(&cluster, &key, &by(&old)).await;
    refused(&cluster, NODE, &key, "not trusted").await;
    super::put(&cluster, &key, &by(&new)).await;
    content(&cluster, NODE).await;
}
