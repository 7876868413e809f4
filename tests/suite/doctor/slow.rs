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
async fn a_log_store_that_is_slow_or_away_is_told_and_what_waits_for_it() {
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
    // What waits counts as late after a minute.
    let words = ["results wait in its spool", "the oldest from"];
    wait_finding_for(secs(180), &cluster, "warn", "node/127.0.0.2", &words).await;
    mongo.resume();
    eventually(secs(120), "nothing waits any more", async || {
        let out = doctor(&cluster, &["-o", "json"]).await;
        let waits = ["wait in its spool", "circuit breaker"];
        let left = waits.iter().any(|w| out.stdout.contains(w));
        if left { Err(out.stdout) } else { Ok(()) }
    })
    .await;
}
