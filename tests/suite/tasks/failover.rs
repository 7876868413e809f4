//! Masters that die while tasks flow: what was accepted is run, once.

use super::{SOON, runs_by_part};
use meepo_tests::{Api, Cluster, Process, eventually, secs};
use serde_json::json;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// What those who hand in tasks have seen.
#[derive(Default)]
struct Handed {
    submitted: AtomicUsize,
    stop: AtomicBool,
}

/// Hands in tasks at any of the masters, each with a key of its own, until told to stop. What is
/// not answered is asked again with the same key. Answers the ids that were accepted.
async fn hand_in(who: usize, masters: Vec<Api>, cmd: String, handed: Arc<Handed>) -> Vec<String> {
    let mut accepted = Vec::new();
    for n in 0.. {
        if handed.stop.load(Ordering::Relaxed) {
            break;
        }
        handed.submitted.fetch_add(1, Ordering::Relaxed);
        let request =
            json!({"queue": "flow", "cmd": cmd, "key": format!("flow-{who}-{n}"), "ttr": "60s"});
        let mut tries = 0;
        let id = loop {
            let api = &masters[(who + n + tries) % masters.len()];
            tries += 1;
            match api.try_http("POST", "/v1/tasks", Some(&request)).await {
                Ok((200 | 201, body)) => break body["id"].as_str().unwrap().to_owned(),
                Ok((status, body)) if status < 500 && status != 429 => panic!("{status} {body}"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            assert!(tries < 1000, "nobody takes tasks any more");
        };
        accepted.push(id);
    }
    accepted
}

async fn leader(cluster: &Cluster) -> Option<usize> {
    let out = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await;
    let text = out.stdout;
    (0..2).find(|i| text.contains(cluster.master(*i).api().base()))
}

/// Kills what leads, waits until another leads, and starts the old one again.
async fn change_leader(cluster: &Cluster) {
    let old = eventually(SOON, "a master leads", async || {
        leader(cluster).await.ok_or_else(|| "none".to_owned())
    })
    .await;
    cluster.master(old).process().kill9();
    eventually(SOON, "another master leads", async || match leader(cluster).await {
        Some(new) if new != old => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    cluster.master(old).process().restart();
    cluster.master(old).wait_ready().await;
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_while_leaders_and_workers_die() {
    let cluster = Cluster::builder()
        .masters(2)
        .workers(3)
        .master_arg("--lease-ttl")
        .master_arg("2s")
        .worker_arg("--lease-ttl")
        .worker_arg("2s")
        .start()
        .await;
    let file = cluster.dir().join("ran");
    let cmd = format!("echo \"$MEEPO_JOB $MEEPO_ATTEMPT $MEEPO_NODE\" >> {}", file.display());
    let handed = Arc::new(Handed::default());
    let masters: Vec<Api> = (0..2).map(|i| cluster.master(i).api()).collect();
    let clients: Vec<_> = (0..4)
        .map(|who| tokio::spawn(hand_in(who, masters.clone(), cmd.clone(), handed.clone())))
        .collect();
    for _ in 0..2 {
        let before = handed.submitted.load(Ordering::Relaxed);
        eventually(SOON, "tasks flow", async || {
            let now = handed.submitted.load(Ordering::Relaxed);
            if now > before + 50 { Ok(()) } else { Err(format!("{now}")) }
        })
        .await;
        change_leader(&cluster).await;
    }
    // A worker that dies may have begun some: these run again, and only these.
    let worker: &Process = cluster.worker(1).process();
    worker.kill9();
    worker.restart();
    cluster.wait_online(1).await;
    handed.stop.store(true, Ordering::Relaxed);
    let mut accepted = BTreeSet::new();
    for client in clients {
        accepted.extend(client.await.unwrap());
    }
    let mut open: BTreeSet<String> = accepted.clone();
    eventually(secs(120), "every task is over", async || {
        let some: Vec<String> = open.iter().take(100).cloned().collect();
        for id in some {
            let (status, body) =
                masters[0].try_http("GET", &format!("/v1/tasks/{id}"), None).await?;
            if status != 200 || body["state"] != "success" {
                return Err(format!("{} left; {id}: {status} {body}", open.len()));
            }
            open.remove(&id);
        }
        if open.is_empty() { Ok(()) } else { Err(format!("{} left", open.len())) }
    })
    .await;
    let runs = runs_by_part(&file);
    let parts: BTreeSet<String> = accepted.iter().map(|id| format!("{id}.1")).collect();
    let lost: Vec<_> = parts.iter().filter(|p| !runs.contains_key(*p)).collect();
    let unknown: Vec<_> = runs.keys().filter(|p| !parts.contains(*p)).collect();
    let mut twice = Vec::new();
    let mut attempts = BTreeSet::new();
    for [part, attempt, _] in super::noted(&file) {
        if !attempts.insert((part.clone(), attempt.clone())) {
            twice.push((part, attempt));
        }
    }
    let again = runs.values().filter(|n| **n > 1).count();
    println!(
        "submitted {}, accepted {}, parts run {}, run again after their worker died {again}, \
         attempts run twice {}, lost {}",
        handed.submitted.load(Ordering::Relaxed),
        accepted.len(),
        runs.len(),
        twice.len(),
        lost.len()
    );
    assert!(
        lost.is_empty() && twice.is_empty() && unknown.is_empty(),
        "{lost:?} {twice:?} {unknown:?}"
    );
    assert!(accepted.len() > 100, "{}", accepted.len());
    // Only what the dead worker had may have run again: no more than its slots and a few on the
    // way to it.
    assert!(again <= 20, "{again}");
}
