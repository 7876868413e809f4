//! Masters that die while tasks flow: what was accepted is run, once.

use super::{SOON, runs_by_part};
use crate::failover::leading_member;
use meepo_tests::{Api, Builder, Cluster, Process, eventually, secs};
use serde_json::json;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinHandle;

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

/// Which of the masters leads.
async fn leader(cluster: &Cluster, masters: usize) -> Option<usize> {
    let out = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await;
    let text = out.stdout;
    (0..masters).find(|i| text.contains(cluster.master(*i).api().base()))
}

async fn wait_leader(cluster: &Cluster, masters: usize) -> usize {
    eventually(SOON, "a master leads", async || {
        leader(cluster, masters).await.ok_or_else(|| "none".to_owned())
    })
    .await
}

/// Kills what leads, with the members of etcd given, waits until another leads, and starts
/// the old one again.
async fn change_leader(cluster: &Cluster, masters: usize, members: &[usize]) {
    let old = wait_leader(cluster, masters).await;
    for member in members {
        cluster.member(*member).process().kill9();
    }
    cluster.master(old).process().kill9();
    eventually(SOON, "another master leads", async || match leader(cluster, masters).await {
        Some(new) if new != old => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    cluster.master(old).process().restart();
    cluster.master(old).wait_ready().await;
}

/// Tasks that flow into a cluster.
struct Flow {
    file: PathBuf,
    handed: Arc<Handed>,
    masters: Vec<Api>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Flow {
    fn start(cluster: &Cluster, masters: usize) -> Self {
        let file = cluster.dir().join("ran");
        let cmd = format!("echo \"$MEEPO_JOB $MEEPO_ATTEMPT $MEEPO_NODE\" >> {}", file.display());
        let handed = Arc::new(Handed::default());
        let masters: Vec<Api> = (0..masters).map(|i| cluster.master(i).api()).collect();
        let client = |who| tokio::spawn(hand_in(who, masters.clone(), cmd.clone(), handed.clone()));
        let clients = (0..4).map(client).collect();
        Self { file, handed, masters, clients }
    }

    /// Waits until some more have been handed in.
    async fn flows(&self) {
        let before = self.handed.submitted.load(Ordering::Relaxed);
        eventually(SOON, "tasks flow", async || {
            let now = self.handed.submitted.load(Ordering::Relaxed);
            if now > before + 50 { Ok(()) } else { Err(format!("{now}")) }
        })
        .await;
    }

    /// Ends it, waits until every task is over, and holds what was accepted against what ran.
    /// Answers how many parts ran more than once, each attempt of them once.
    async fn end(self) -> usize {
        self.handed.stop.store(true, Ordering::Relaxed);
        let mut accepted = BTreeSet::new();
        for client in self.clients {
            accepted.extend(client.await.unwrap());
        }
        let mut open: BTreeSet<String> = accepted.clone();
        eventually(secs(120), "every task is over", async || {
            let some: Vec<String> = open.iter().take(100).cloned().collect();
            for id in some {
                let path = format!("/v1/tasks/{id}");
                let (status, body) = self.masters[0].try_http("GET", &path, None).await?;
                if status != 200 || body["state"] != "success" {
                    return Err(format!("{} left; {id}: {status} {body}", open.len()));
                }
                open.remove(&id);
            }
            if open.is_empty() { Ok(()) } else { Err(format!("{} left", open.len())) }
        })
        .await;
        let runs = runs_by_part(&self.file);
        let parts: BTreeSet<String> = accepted.iter().map(|id| format!("{id}.1")).collect();
        let lost: Vec<_> = parts.iter().filter(|p| !runs.contains_key(*p)).collect();
        let unknown: Vec<_> = runs.keys().filter(|p| !parts.contains(*p)).collect();
        let (mut twice, mut attempts) = (Vec::new(), BTreeSet::new());
        for [part, attempt, _] in super::noted(&self.file) {
            if !attempts.insert((part.clone(), attempt.clone())) {
                twice.push((part, attempt));
            }
        }
        let again = runs.values().filter(|n| **n > 1).count();
        println!(
            "submitted {}, accepted {}, run {}, given to another after a loss and run again \
             {again}, run twice {}, lost {}",
            self.handed.submitted.load(Ordering::Relaxed),
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
        again
    }
}

fn with_lease(ttl: &str) -> Builder {
    let both = |b: Builder, arg: &str| b.master_arg(arg).worker_arg(arg);
    ["--lease-ttl", ttl].into_iter().fold(Cluster::builder(), both)
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_while_leaders_and_workers_die() {
    let cluster = with_lease("2s").masters(2).workers(3).start().await;
    let flow = Flow::start(&cluster, 2);
    for _ in 0..2 {
        flow.flows().await;
        change_leader(&cluster, 2, &[]).await;
    }
    // A worker that dies may have begun some: these run again, and only these.
    let worker: &Process = cluster.worker(1).process();
    worker.kill9();
    worker.restart();
    cluster.wait_online(1).await;
    let again = flow.end().await;
    // Only what the dead worker had may have run again: no more than its slots and a few on the
    // way to it.
    assert!(again <= 20, "{again}");
}

#[tokio::test]
async fn a_leader_and_a_member_of_etcd_die_at_once_while_tasks_flow() {
    // As long as etcd takes to choose a new leader, and some more: no worker loses its lease.
    let cluster = with_lease("6s").etcd(3).masters(3).workers(2).start().await;
    let flow = Flow::start(&cluster, 3);
    for _ in 0..2 {
        flow.flows().await;
        let member = leading_member(&cluster).await;
        change_leader(&cluster, 3, &[member]).await;
        flow.flows().await;
        cluster.member(member).process().restart();
        cluster.member(member).wait_ready().await;
    }
    // No worker died, so nothing had a reason to run again.
    assert_eq!(flow.end().await, 0);
}
