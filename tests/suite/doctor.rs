//! Things are broken, and the doctor says which, in words.

mod parts;
mod slow;

use crate::fleet::{SOON, apply, quick, wait_runs, wait_session};
use meepo_tests::{Cluster, Logs, Output, eventually, secs};
use serde_json::{Value, json};
use std::time::Duration;

async fn doctor(cluster: &Cluster, more: &[&str]) -> Output {
    let etcd = cluster.etcd().urls();
    // Nothing of the machine that tests run on is to be looked at.
    let own = ["doctor", "--etcd", &etcd, "--metrics", "127.0.0.1:1"];
    cluster.cli(&[&own, more].concat()).await
}

/// Waits until the doctor finds something of this severity about `subject` that holds all of
/// `words`; answers the exit code and the remedy.
async fn wait_finding(
    cluster: &Cluster,
    severity: &str,
    subject: &str,
    words: &[&str],
) -> (i32, String) {
    wait_finding_for(SOON, cluster, severity, subject, words).await
}

async fn wait_finding_for(
    patience: Duration,
    cluster: &Cluster,
    severity: &str,
    subject: &str,
    words: &[&str],
) -> (i32, String) {
    eventually(patience, format!("{severity} {subject} {words:?}"), async || {
        let out = doctor(cluster, &["-o", "json"]).await;
        let d: Value = serde_json::from_str(&out.stdout).map_err(|e| format!("{e}: {out:?}"))?;
        let worst = match d["status"].as_str() {
            Some("ok") => 0,
            Some("warn") => 1,
            _ => 2,
        };
        assert_eq!(out.code, worst, "{d}");
        let fits = |f: &&Value| {
            let message = f["message"].as_str().unwrap();
            f["severity"] == severity
                && f["subject"] == subject
                && words.iter().all(|w| message.contains(w))
        };
        match d["findings"].as_array().unwrap().iter().find(fits) {
            Some(f) => Ok((out.code, f["remedy"].as_str().unwrap_or_default().to_owned())),
            None => Err(d.to_string()),
        }
    })
    .await
}

async fn wait_well(cluster: &Cluster) {
    eventually(SOON, "all is well", async || {
        let out = doctor(cluster, &[]).await;
        if out.code == 0 { Ok(()) } else { Err(format!("{out:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_fleet_that_is_well_is_said_to_be() {
    let cluster = quick().masters(2).start().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    apply(&cluster.api(), json!({"name": "fine", "cmd": "true", "schedule": "* * * * * *"})).await;
    wait_runs(&cluster.api(), "job=fine&state=success", 1).await;
    // On a busy machine etcd may be slow for a moment.
    let text = eventually(SOON, "all is well", async || {
        let out = doctor(&cluster, &["--all"]).await;
        if out.code == 0 { Ok(out.stdout) } else { Err(format!("{out:?}")) }
    })
    .await;
    for words in [
        "etcd: 1 member answer",
        "leader: ",
        "log store: it answers in",
        "node/127.0.0.2: it is online and holds 1 job",
        "jobs: 1 of them, all placed",
        "tasks: 0 unfinished",
        "all is well",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // Whichever master is asked.
    for i in 0..2 {
        eventually(SOON, "all is well at each master", async || {
            let (status, d) = cluster.master(i).api().get("/v1/doctor").await;
            assert_eq!((status, &d["by"]), (200, &json!(cluster.master(i).api().base())), "{d}");
            if d["status"] == "ok" { Ok(()) } else { Err(d.to_string()) }
        })
        .await;
    }
}

#[tokio::test]
async fn an_etcd_that_is_gone_is_named_by_the_master_and_from_here() {
    let cluster = quick().etcd(3).start().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    wait_well(&cluster).await;
    // One of three: it works, and the next one counts.
    cluster.member(2).process().kill9();
    let (code, remedy) =
        wait_finding(&cluster, "error", "etcd", &["does not answer", "2 of 3 do, and 0 more"])
            .await;
    assert!(code == 2 && remedy.contains("start it again"), "{remedy}");
    cluster.member(1).process().kill9();
    let (_, remedy) = wait_finding(&cluster, "error", "etcd", &["no quorum"]).await;
    assert!(remedy.contains("more than half"), "{remedy}");
    // Without a master there is still something to be seen.
    cluster.member(1).process().restart();
    cluster.member(2).process().restart();
    wait_well(&cluster).await;
    cluster.master(0).process().kill9();
    wait_finding(&cluster, "error", "master", &["cannot reach the master"]).await;
    wait_finding(&cluster, "ok", "etcd", &["3 members answer"]).await;
    wait_finding(&cluster, "error", "leader", &["no master leads"]).await;
}

#[tokio::test]
async fn a_log_store_that_is_gone_shows_in_the_master_the_node_and_the_audit() {
    let cluster = quick().logs(Logs::OwnMongo).start().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    wait_well(&cluster).await;
    cluster.mongo().pause();
    apply(&cluster.api(), json!({"name": "ticks", "cmd": "true", "schedule": "* * * * * *"})).await;
    let (code, remedy) = wait_finding(&cluster, "error", "log store", &[]).await;
    assert!(code == 2 && remedy.contains("spools"), "{remedy}");
    wait_finding(&cluster, "warn", "master", &["bytes of the audit wait"]).await;
    cluster.mongo().resume();
    wait_well(&cluster).await;
}

#[tokio::test]
async fn a_spool_that_is_full_is_told() {
    let cluster = quick()
        .logs(Logs::OwnMongo)
        .worker_arg("--spool-limit")
        .worker_arg("1048576")
        .start()
        .await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    cluster.mongo().pause();
    let noise = "head -c 60000 /dev/urandom | base64";
    let spec =
        json!({"name": "loud", "cmd": noise, "schedule": "* * * * * *", "concurrency": "allow"});
    apply(&api, spec).await;
    let words = ["spool: it holds", "output is dropped and counted"];
    let (code, remedy) = wait_finding(&cluster, "error", "node/127.0.0.2", &words).await;
    assert!(code == 2 && remedy.contains("spool_limit"), "{remedy}");
    // The page of the node says the same.
    let page = cluster.cli(&["node", "get", "127.0.0.2"]).await;
    assert!(page.ok().contains("what is wrong:") && page.ok().contains(words[1]), "{page:?}");
}

#[tokio::test]
async fn nodes_that_are_gone_drained_or_hold_nonsense_are_named() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    wait_session(&api, "127.0.0.3").await;
    wait_well(&cluster).await;
    // What somebody put there by hand.
    let bad = r#"{"cmd":"date","express":"61 * * * *","status":"running","executor":"bash"}"#;
    cluster.etcd().ctl(&["put", "/cron/jobs/127.0.0.2/bad", bad]).await.ok();
    let (code, remedy) =
        wait_finding(&cluster, "warn", "node/127.0.0.2", &["/cron/jobs/127.0.0.2/bad"]).await;
    assert!(code == 1 && remedy.contains("etcdctl"), "{remedy}");
    cluster.etcd().ctl(&["del", "/cron/jobs/127.0.0.2/bad"]).await.ok();
    wait_well(&cluster).await;

    cluster.cli(&["node", "drain", "127.0.0.2", "--wait"]).await.ok();
    let (_, remedy) =
        wait_finding(&cluster, "warn", "node/127.0.0.2", &["takes nothing new and runs nothing"])
            .await;
    assert_eq!(remedy, "when the work on it is done: meepo node undrain 127.0.0.2");
    cluster.cli(&["node", "undrain", "127.0.0.2"]).await.ok();
    wait_well(&cluster).await;

    let before = jiff::Timestamp::now();
    apply(
        &api,
        json!({"name": "there", "cmd": "true", "schedule": "0 3 * * *", "target": "127.0.0.3"}),
    )
    .await;
    cluster.worker(1).process().kill9();
    wait_finding(
        &cluster,
        "error",
        "node/127.0.0.3",
        &["it is offline since", "does not renew its lease"],
    )
    .await;
    wait_finding(&cluster, "error", "job/there", &["none of the nodes that hold it (1) is online"])
        .await;
    let node = cluster.cli(&["node", "get", "127.0.0.3", "-o", "json"]).await.json();
    let since: jiff::Timestamp = node["offline_since"].as_str().unwrap().parse().unwrap();
    assert!(since > before, "{node}");
    let page = cluster.cli(&["node", "get", "127.0.0.3"]).await;
    assert!(page.ok().contains("error it is offline since"), "{page:?}");
}

#[tokio::test]
async fn jobs_and_tasks_that_get_nowhere_are_named() {
    let cluster = quick().start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    apply(
        &api,
        json!({"name": "nowhere", "cmd": "true", "schedule": "0 3 * * *", "target": "group=none"}),
    )
    .await;
    apply(&api, json!({"name": "broken", "cmd": "echo oh; exit 3", "schedule": "* * * * * *"}))
        .await;
    let task = json!({"target": "all", "cmd": "false", "on_failure": "bury"});
    let (status, task) = api.post("/v1/tasks", task).await;
    assert_eq!(status, 201, "{task}");
    let (code, remedy) =
        wait_finding(&cluster, "error", "job/nowhere", &["no node holds it", "group=none"]).await;
    assert_eq!((code, remedy.as_str()), (2, "meepo job explain nowhere"));
    let words = ["has never succeeded", "failed (exit status 3)"];
    let (_, remedy) = wait_finding(&cluster, "warn", "job/broken", &words).await;
    assert!(remedy.starts_with("meepo logs "), "{remedy}");
    let subject = format!("task/{}", task["id"].as_str().unwrap());
    let (_, remedy) =
        wait_finding(&cluster, "warn", &subject, &["1 of its parts are buried"]).await;
    assert!(remedy.contains("meepo task kick"), "{remedy}");
}

#[tokio::test]
async fn a_fleet_without_a_leader_is_told_apart_from_one_without_masters() {
    let cluster = quick().masters(2).start().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    // The leader stops in its tracks; its lease ends only after two seconds.
    let lead = async |i: usize| {
        let (_, page) = cluster.master(i).api().get("/metrics").await;
        page.as_str().unwrap().contains("meepo_master_leading 1")
    };
    let leader = usize::from(!lead(0).await);
    assert!(lead(leader).await);
    let other = cluster.master(1 - leader).api();
    cluster.master(leader).process().stop();
    eventually(
        secs(30),
        "the other one says that it does not answer, or leads itself",
        async || {
            let (_, d) = other.get("/v1/doctor").await;
            let of_leader =
                d["findings"].as_array().unwrap().iter().find(|f| f["subject"] == "leader");
            let message = of_leader.unwrap()["message"].as_str().unwrap().to_owned();
            let said = ["cannot be asked", "no master leads", "this master leads"];
            if said.iter().any(|s| message.contains(s)) { Ok(()) } else { Err(message) }
        },
    )
    .await;
    cluster.master(leader).process().cont();
}
