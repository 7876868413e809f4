//! What answers, and takes long; what waits, and what could not be kept.

use super::{doctor, wait_finding, wait_finding_for, wait_well};
use crate::fleet::{SOON, apply, quick, wait_session};
use meepo_tests::{Cluster, Logs, eventually, millis, secs};
use serde_json::{Value, json};

/// Asks the doctor while `stop` holds something up for `hold`, until it says that in `words`.
async fn held_up(
    cluster: &Cluster,
    (subject, words): (&str, &str),
    hold: std::time::Duration,
    stop: impl Fn(bool),
) {
    eventually(SOON, format!("{subject}: {words}"), async || {
        stop(true);
        let (out, ()) = tokio::join!(doctor(cluster, &["-o", "json"]), async {
            tokio::time::sleep(hold).await;
            stop(false);
        });
        let d: Value = serde_json::from_str(&out.stdout).map_err(|e| format!("{e}: {out:?}"))?;
        let fits = |f: &Value| {
            f["subject"] == subject
                && f["severity"] != "ok"
                && f["message"].as_str().unwrap().contains(words)
        };
        let found = d["findings"].as_array().unwrap().iter().any(fits);
        if found { Ok(()) } else { Err(d.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn an_etcd_that_is_slow_is_told() {
    let cluster = quick().start().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    wait_well(&cluster).await;
    let etcd = cluster.member(0).process();
    let stop = |yes| if yes { etcd.stop() } else { etcd.cont() };
    held_up(&cluster, ("etcd", "a read confirmed by a quorum takes"), millis(700), stop).await;
    wait_well(&cluster).await;
}

#[tokio::test]
async fn a_log_store_that_is_slow_or_away_is_told_and_what_the_audit_loses() {
    let cluster = quick().logs(Logs::OwnMongo).start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    wait_well(&cluster).await;
    let mongo = cluster.mongo();
    let stop = |yes| if yes { mongo.pause() } else { mongo.resume() };
    held_up(&cluster, ("log store", "ms to answer"), millis(2_000), stop).await;
    wait_well(&cluster).await;
    // The audit has nowhere else to go.
    for attempt in 1..=5 {
        let file = cluster.dir().join(format!("master-0-{attempt}.data/audit.jsonl"));
        std::fs::create_dir_all(file).unwrap();
    }
    mongo.pause();
    apply(&api, json!({"name": "ticks", "cmd": "true", "schedule": "* * * * * *"})).await;
    let (code, remedy) = wait_finding(
        &cluster,
        "error",
        "master",
        &["records of the audit are in this master's log"],
    )
    .await;
    assert!(code == 2 && remedy.contains("target `audit`"), "{remedy}");
    let words = ["its circuit breaker before the log store is open"];
    let (_, remedy) = wait_finding(&cluster, "warn", "master", &words).await;
    assert!(remedy.contains("closes by itself"), "{remedy}");
    mongo.resume();
}

/// What is behind counts as late after a minute.
#[tokio::test]
async fn results_that_come_late_are_told() {
    let rate = ["--catchup-rate", "1"];
    let build = quick().logs(Logs::OwnMongo);
    let cluster = rate.iter().fold(build, |b, arg| b.worker_arg(arg)).start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    wait_well(&cluster).await;
    apply(&api, json!({"name": "brief", "cmd": "echo x", "concurrency": "allow"})).await;
    cluster.mongo().pause();
    for _ in 0..150 {
        let (status, body) = api.post("/v1/jobs/brief/trigger", json!({})).await;
        assert_eq!(status, 202, "{body}");
    }
    eventually(SOON, "the results are in the spool", async || {
        let (_, page) = cluster.worker(0).metrics().get("/metrics").await;
        let line = page
            .as_str()
            .unwrap()
            .lines()
            .find_map(|l| l.strip_prefix("meepo_worker_spool_items ").map(str::to_owned));
        let items: u64 = line.unwrap_or_default().parse().unwrap_or(0);
        if items >= 150 { Ok(()) } else { Err(items.to_string()) }
    })
    .await;
    // A backlog, of which one a second is delivered.
    cluster.worker(0).process().restart();
    cluster.wait_online(0).await;
    cluster.mongo().resume();
    let words = ["results wait in its spool", "the oldest from"];
    wait_finding_for(secs(180), &cluster, "warn", "node/127.0.0.2", &words).await;
}
