//! Real etcd members.

use crate::{
    api::{Api, Output, run},
    flags::loopback,
    ports::free_port,
    process::{Process, Spec},
    wait::{eventually, secs},
};
use etcd_client::{Client, ConnectOptions};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// How long members may take until they have a leader.
const READY: Duration = secs(30);
/// How often a start is tried when another process took a port first.
const ATTEMPTS: u32 = 5;

/// An etcd of one or more members.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    dir: PathBuf,
    commands: AtomicU32,
}

/// One etcd member.
#[derive(Debug)]
pub struct Member {
    process: Process,
    url: String,
}

impl Member {
    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its client URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `Ok` when it serves and knows a leader.
    pub async fn healthy(&self) -> Result<(), String> {
        match Api::new(&self.url).try_http("GET", "/health", None).await? {
            (200, health) if health["health"] == "true" => Ok(()),
            (status, body) => Err(format!("{} answers {status} {body}", self.process.spec().name)),
        }
    }

    /// Waits until it serves and knows a leader.
    #[track_caller]
    pub fn wait_ready(&self) -> impl Future<Output = ()> {
        eventually(READY, "the etcd member is healthy", async || {
            assert!(self.process.is_running(), "an etcd member ended while it started");
            self.healthy().await
        })
    }
}

impl Etcd {
    /// Starts `count` members with their data and logs below `dir` and waits until
    /// all are healthy. The program is `etcd`, or what `MEEPO_TEST_ETCD` names.
    pub async fn start(count: usize, dir: &Path) -> Self {
        Self::start_with(count, dir, &[]).await
    }

    /// The same, with more arguments of every member.
    pub async fn start_with(count: usize, dir: &Path, args: &[String]) -> Self {
        for attempt in 1..=ATTEMPTS {
            let dir = dir.join(format!("etcd-{attempt}"));
            std::fs::create_dir_all(&dir).expect("a folder for etcd");
            let members = members(count, &dir, args);
            let etcd = Self { members, dir, commands: AtomicU32::new(0) };
            if etcd.settle().await {
                return etcd;
            }
        }
        panic!("etcd lost its ports to other processes {ATTEMPTS} times");
    }

    /// Waits until all members are healthy; false when one lost its port.
    async fn settle(&self) -> bool {
        eventually(READY, "every etcd member is healthy", async || {
            for member in &self.members {
                if !member.process.is_running() {
                    let log = member.process.log();
                    assert!(log.contains("address already in use"), "etcd ended while it started");
                    return Ok(false);
                }
                member.healthy().await?;
            }
            Ok(true)
        })
        .await
    }

    /// Its members.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The client URLs of all members, joined with commas.
    pub fn urls(&self) -> String {
        let urls: Vec<&str> = self.members.iter().map(Member::url).collect();
        urls.join(",")
    }

    /// A connected client of all members.
    pub async fn client(&self) -> Client {
        let urls: Vec<&str> = self.members.iter().map(Member::url).collect();
        let options = ConnectOptions::new().with_connect_timeout(secs(5)).with_timeout(secs(10));
        Client::connect(urls, Some(options)).await.expect("etcd just started")
    }

    /// Runs the real `etcdctl` against all members.
    pub async fn ctl(&self, args: &[&str]) -> Output {
        let n = self.commands.fetch_add(1, Ordering::Relaxed);
        let urls = self.urls();
        let mut all = vec!["--endpoints", &urls];
        all.extend(args);
        let mut spec = Spec::new(&format!("etcdctl-{n}"), "etcdctl", &all, &self.dir);
        spec.env.push(("ETCDCTL_API".into(), "3".into()));
        run(spec).await
    }
}

fn members(count: usize, dir: &Path, more: &[String]) -> Vec<Member> {
    let program = std::env::var_os("MEEPO_TEST_ETCD").unwrap_or_else(|| "etcd".into());
    let plan: Vec<(String, String, String)> = (0..count)
        .map(|i| {
            let [client, peer] =
                [free_port(), free_port()].map(|p| format!("http://{}", loopback(p)));
            (format!("etcd-{i}"), client, peer)
        })
        .collect();
    let cluster: Vec<String> =
        plan.iter().map(|(name, _, peer)| format!("{name}={peer}")).collect();
    let cluster = cluster.join(",");
    let start = |(name, client, peer): (String, String, String)| {
        let data = dir.join(format!("{name}.data")).display().to_string();
        let args = [
            ["--name", &name],
            ["--data-dir", &data],
            ["--listen-client-urls", &client],
            ["--advertise-client-urls", &client],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
            ["--initial-cluster", &cluster],
            ["--initial-cluster-state", "new"],
            // What the deployment guide asks for; see deploy/systemd.
            ["--backend-batch-limit", "1000"],
        ];
        let all: Vec<&str> =
            args.concat().into_iter().chain(more.iter().map(String::as_str)).collect();
        let mut spec = Spec::new(&name, &program, &all, dir);
        // Its own words are many; what matters is a warning.
        spec.env.push(("ETCD_LOG_LEVEL".into(), "warn".into()));
        Member { process: Process::start(spec), url: client }
    };
    plan.into_iter().map(start).collect()
}
