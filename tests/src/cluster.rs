//! A whole meepo: etcd, masters and workers as separate processes.

use crate::{
    api::{Api, Output, run},
    dirs::{TestDir, binary},
    etcd::{Etcd, Member},
    flags::{self, MasterFlags, WorkerFlags, loopback},
    ports::free_port,
    process::{Process, Spec},
    server,
    wait::{eventually, secs},
};
use std::{path::Path, sync::atomic::AtomicU32, time::Duration};

const READY: Duration = secs(60);
const ATTEMPTS: u32 = 5;

/// Where runs and output are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Logs {
    /// An SQLite file of the cluster's own, shared by its masters.
    #[default]
    Sqlite,
    /// A store somebody else provides, e.g. `mongodb://127.0.0.1:27017/name`.
    Uri(String),
}

/// What a [`Cluster`] consists of.
#[derive(Debug, Clone)]
pub struct Builder {
    etcd: usize,
    masters: usize,
    workers: usize,
    logs: Logs,
    labels: Vec<(usize, String)>,
    master_args: Vec<String>,
    worker_args: Vec<String>,
}

impl Builder {
    /// Number of etcd members, 1 or 3. Default 1.
    pub fn etcd(mut self, n: usize) -> Self {
        self.etcd = n;
        self
    }

    /// Number of masters. Default 1.
    pub fn masters(mut self, n: usize) -> Self {
        self.masters = n;
        self
    }

    /// Number of workers, `127.0.0.2` and up. Default 1.
    pub fn workers(mut self, n: usize) -> Self {
        self.workers = n;
        self
    }

    /// Where runs and output are kept.
    pub fn logs(mut self, logs: Logs) -> Self {
        self.logs = logs;
        self
    }

    /// A label (`key=value`) of the worker number `worker`.
    pub fn label(mut self, worker: usize, label: &str) -> Self {
        self.labels.push((worker, label.to_owned()));
        self
    }

    /// One more argument of every master.
    pub fn master_arg(mut self, arg: &str) -> Self {
        self.master_args.push(arg.to_owned());
        self
    }

    /// One more argument of every worker.
    pub fn worker_arg(mut self, arg: &str) -> Self {
        self.worker_args.push(arg.to_owned());
        self
    }

    /// Starts it all and waits until every part is ready.
    pub async fn start(self) -> Cluster {
        let dir = TestDir::new();
        let etcd = Etcd::start(self.etcd, dir.path()).await;
        let count = self.workers;
        let masters = self.masters;
        let mut cluster = Cluster {
            workers: Vec::new(),
            masters: Vec::new(),
            etcd,
            dir,
            commands: AtomicU32::new(0),
            plan: self,
        };
        for _ in 0..masters {
            cluster.add_master().await;
        }
        for _ in 0..count {
            cluster.add_worker().await;
        }
        cluster
    }
}

/// Running etcd members, masters and workers; all killed when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    // Fields are dropped in this order: whoever depends on another goes before it.
    workers: Vec<Worker>,
    masters: Vec<Master>,
    etcd: Etcd,
    dir: TestDir,
    commands: AtomicU32,
    plan: Builder,
}

/// A running `meepo-master`.
#[derive(Debug)]
pub struct Master {
    process: Process,
    http: u16,
    grpc: u16,
}

/// A running `meepo-worker`.
#[derive(Debug)]
pub struct Worker {
    process: Process,
    node: String,
    metrics: u16,
}

impl Cluster {
    /// One etcd member, one master, one worker, SQLite: change what the test needs.
    pub fn builder() -> Builder {
        Builder {
            etcd: 1,
            masters: 1,
            workers: 1,
            logs: Logs::default(),
            labels: Vec::new(),
            master_args: Vec::new(),
            worker_args: Vec::new(),
        }
    }

    /// The etcd it stands on.
    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// The etcd member number `i`.
    pub fn member(&self, i: usize) -> &Member {
        &self.etcd.members()[i]
    }

    /// The master number `i`.
    pub fn master(&self, i: usize) -> &Master {
        &self.masters[i]
    }

    /// The worker number `i`; its node id is `127.0.0.<i + 2>`.
    pub fn worker(&self, i: usize) -> &Worker {
        &self.workers[i]
    }

    /// The HTTP API of the first master.
    pub fn api(&self) -> Api {
        self.masters[0].api()
    }

    /// The folder with everything this cluster writes.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs the real `meepo` command against the first master, to its end.
    pub async fn cli(&self, args: &[&str]) -> Output {
        run(self.cli_spec(args)).await
    }

    /// Starts the real `meepo` command against the first master and leaves it running.
    pub fn cli_start(&self, args: &[&str]) -> Process {
        Process::start(self.cli_spec(args))
    }

    fn cli_spec(&self, args: &[&str]) -> Spec {
        server::cli(self.dir.path(), &self.commands, self.api().base(), args)
    }

    /// Starts one more master and waits until it is ready.
    pub async fn add_master(&mut self) -> &Master {
        let i = self.masters.len();
        let logs = match &self.plan.logs {
            Logs::Sqlite => format!("sqlite://{}", self.dir.path().join("logs.db").display()),
            Logs::Uri(uri) => uri.clone(),
        };
        for attempt in 1..=ATTEMPTS {
            let name = format!("master-{i}-{attempt}");
            let data_dir = self.dir.path().join(format!("{name}.data"));
            let [http, grpc] = std::array::from_fn(|_| free_port());
            let etcd = self.etcd.urls();
            let mut spec = Spec::new(&name, binary("meepo-master"), &[], self.dir.path());
            spec.args = flags::master(&MasterFlags {
                etcd: &etcd,
                http,
                grpc,
                logs: &logs,
                data_dir: &data_dir,
            });
            spec.args.extend(self.plan.master_args.iter().cloned());
            let process = Process::start(spec);
            if server::ready(&process, http).await {
                self.masters.push(Master { process, http, grpc });
                return &self.masters[i];
            }
        }
        panic!("a master lost its ports to other processes {ATTEMPTS} times");
    }

    /// Starts one more worker and waits until its health record is in etcd.
    pub async fn add_worker(&mut self) -> &Worker {
        let i = self.workers.len();
        let node = format!("127.0.0.{}", i + 2);
        let labels: Vec<String> =
            self.plan.labels.iter().filter(|(n, _)| *n == i).map(|(_, l)| l.clone()).collect();
        for attempt in 1..=ATTEMPTS {
            let name = format!("worker-{i}-{attempt}");
            let data_dir = self.dir.path().join(format!("{name}.data"));
            let metrics = free_port();
            let etcd = self.etcd.urls();
            let mut spec = Spec::new(&name, binary("meepo-worker"), &[], self.dir.path());
            spec.args = flags::worker(&WorkerFlags {
                etcd: &etcd,
                node: &node,
                data_dir: &data_dir,
                metrics,
                logs: match &self.plan.logs {
                    Logs::Uri(uri) if uri.starts_with("mongodb://") => Some(uri),
                    _ => None,
                },
                labels: &labels,
            });
            spec.args.extend(self.plan.worker_args.iter().cloned());
            let worker = Worker { process: Process::start(spec), node: node.clone(), metrics };
            if self.online(&worker).await {
                self.workers.push(worker);
                return &self.workers[i];
            }
        }
        panic!("a worker lost its port to other processes {ATTEMPTS} times");
    }

    /// Waits until the worker number `i` is registered, after a restart.
    pub async fn wait_online(&self, i: usize) {
        assert!(self.online(&self.workers[i]).await, "it lost its port when it was restarted");
    }

    /// Waits for the health record; false when the worker lost its port.
    async fn online(&self, worker: &Worker) -> bool {
        let client = self.etcd.client().await;
        let key = format!("/agent/health/{}", worker.node);
        eventually(READY, format!("{key} is there"), async || {
            if !worker.process.is_running() {
                let log = worker.process.log_since_start().to_lowercase();
                assert!(
                    log.contains("in use"),
                    "the worker {} ended while it started",
                    worker.node
                );
                return Ok(false);
            }
            let found = client.clone().get(key.as_str(), None).await.map_err(|e| e.to_string())?;
            if found.count() == 1 { Ok(true) } else { Err("no such key yet".to_owned()) }
        })
        .await
    }
}

impl Master {
    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its HTTP API.
    pub fn api(&self) -> Api {
        Api::new(&format!("http://{}", loopback(self.http)))
    }

    /// URL of its gRPC API.
    pub fn grpc_url(&self) -> String {
        format!("http://{}", loopback(self.grpc))
    }

    /// Waits until it is ready, after a restart of its process.
    pub async fn wait_ready(&self) {
        let up = server::ready(&self.process, self.http).await;
        assert!(up, "it lost its port when it was restarted");
    }
}

impl Worker {
    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its node id.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its metrics endpoint.
    pub fn metrics(&self) -> Api {
        Api::new(&format!("http://{}", loopback(self.metrics)))
    }
}
