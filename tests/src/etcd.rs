//! Real etcd members.

use crate::{
    api::{Api, Output, run},
    flags::loopback,
    pki::{Pair, Pki},
    ports::free_port,
    process::{Process, Spec},
    wait::{eventually, secs},
};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use std::{
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
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
    tls: Option<Tls>,
    dir: PathBuf,
    commands: AtomicU32,
    /// As whom the harness talks to it, once it asks.
    user: OnceLock<(String, String)>,
}

/// What an etcd that is encrypted is asked with.
#[derive(Debug, Clone)]
struct Tls {
    ca: PathBuf,
    root: Pair,
}

impl Tls {
    fn ctl(&self) -> Vec<String> {
        [("--cacert", &self.ca), ("--cert", &self.root.cert), ("--key", &self.root.key)]
            .into_iter()
            .flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()])
            .collect()
    }

    fn api(&self, url: &str) -> Api {
        Api::encrypted(url, &self.ca, Some(&self.root))
    }
}

/// One etcd member.
#[derive(Debug)]
pub struct Member {
    process: Process,
    url: String,
    tls: Option<Tls>,
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
        let api = match &self.tls {
            Some(tls) => tls.api(&self.url),
            None => Api::new(&self.url),
        };
        match api.try_http("GET", "/health", None).await? {
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
        Self::launch(count, dir, None, &[]).await
    }

    /// The same, with more arguments of every member.
    pub async fn start_with(count: usize, dir: &Path, args: &[String]) -> Self {
        Self::launch(count, dir, None, args).await
    }

    /// As [`Self::start`], but clients must speak TLS and show a certificate; peers do as
    /// well. Asked with a certificate of the user `root`, who exists only once somebody has
    /// made him.
    pub async fn start_tls(count: usize, dir: &Path, pki: &Pki) -> Self {
        let server = pki.server("etcd");
        let tls = Tls { ca: pki.ca(), root: pki.user("root") };
        Self::launch(count, dir, Some((tls, server)), &[]).await
    }

    async fn launch(count: usize, dir: &Path, tls: Option<(Tls, Pair)>, args: &[String]) -> Self {
        for attempt in 1..=ATTEMPTS {
            let dir = dir.join(format!("etcd-{attempt}"));
            std::fs::create_dir_all(&dir).expect("a folder for etcd");
            let (commands, user) = (AtomicU32::new(0), OnceLock::new());
            let members = members(count, &dir, tls.as_ref(), args);
            let tls = tls.as_ref().map(|(tls, _)| tls.clone());
            let etcd = Self { members, tls, dir, commands, user };
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

    /// From now on the harness is this user there, with this password.
    pub fn log_in(&self, user: &str, password: &str) {
        self.user.set((user.to_owned(), password.to_owned())).expect("it logs in once");
    }

    /// A connected client of all members.
    pub async fn client(&self) -> Client {
        let user = self.user.get().map(|(user, password)| (user.as_str(), password.as_str()));
        self.client_as(user).await
    }

    /// A client that is somebody else there.
    pub async fn client_as(&self, user: Option<(&str, &str)>) -> Client {
        let urls: Vec<&str> = self.members.iter().map(Member::url).collect();
        let mut options =
            ConnectOptions::new().with_connect_timeout(secs(5)).with_timeout(secs(10));
        if let Some(tls) = &self.tls {
            let read = |path: &Path| std::fs::read(path).expect("a file of the test");
            let identity = Identity::from_pem(read(&tls.root.cert), read(&tls.root.key));
            let ca = Certificate::from_pem(read(&tls.ca));
            options = options.with_tls(TlsOptions::new().ca_certificate(ca).identity(identity));
        }
        if let Some((user, password)) = user {
            options = options.with_user(user, password);
        }
        Client::connect(urls, Some(options)).await.expect("etcd just started")
    }

    /// Runs the real `etcdctl` against all members.
    pub async fn ctl(&self, args: &[&str]) -> Output {
        let n = self.commands.fetch_add(1, Ordering::Relaxed);
        let urls = self.urls();
        let mut all = vec!["--endpoints", &urls];
        let files: Vec<String> = self.tls.iter().flat_map(Tls::ctl).collect();
        all.extend(files.iter().map(String::as_str));
        all.extend(args);
        let mut spec = Spec::new(&format!("etcdctl-{n}"), "etcdctl", &all, &self.dir);
        spec.env.push(("ETCDCTL_API".into(), "3".into()));
        run(spec).await
    }
}

fn members(count: usize, dir: &Path, tls: Option<&(Tls, Pair)>, more: &[String]) -> Vec<Member> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let program = std::env::var_os("MEEPO_TEST_ETCD").unwrap_or_else(|| "etcd".into());
    let plan: Vec<(String, String, String)> = (0..count)
        .map(|i| {
            let [client, peer] =
                [free_port(), free_port()].map(|p| format!("{scheme}://{}", loopback(p)));
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
        if let Some((tls, server)) = tls {
            for (flag, value) in [
                ("--cert-file", server.cert.display().to_string()),
                ("--key-file", server.key.display().to_string()),
                ("--trusted-ca-file", tls.ca.display().to_string()),
                ("--client-cert-auth", "true".to_owned()),
                ("--peer-cert-file", server.cert.display().to_string()),
                ("--peer-key-file", server.key.display().to_string()),
                ("--peer-trusted-ca-file", tls.ca.display().to_string()),
                ("--peer-client-cert-auth", "true".to_owned()),
            ] {
                spec.args.push(format!("{flag}={value}"));
            }
        }
        // Its own words are many; what matters is a warning.
        spec.env.push(("ETCD_LOG_LEVEL".into(), "warn".into()));
        let tls = tls.map(|(tls, _)| tls.clone());
        Member { process: Process::start(spec), url: client, tls }
    };
    plan.into_iter().map(start).collect()
}
