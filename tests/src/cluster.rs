//! A running meepo: etcd, masters and workers as separate processes.

use crate::{
    api::{Api, Output, run},
    builder::Builder,
    dirs::{TestDir, binary},
    etcd::{Etcd, Member},
    flags::{self, MasterFlags, WorkerFlags, loopback},
    pki::Pki,
    ports::free_port,
    process::{Process, Spec},
    server,
    wait::{eventually, secs},
};
use meepo_logstore::testing::TestMongo;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

const READY: Duration = secs(60);
const ATTEMPTS: u32 = 5;

/// Running etcd members, masters and workers; all killed when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    // Fields are dropped in this order: whoever depends on another goes before it.
    pub(crate) workers: Vec<Worker>,
    pub(crate) masters: Vec<Master>,
    pub(crate) etcd: Etcd,
    pub(crate) mongo: Option<Arc<TestMongo>>,
    pub(crate) logs: String,
    pub(crate) pki: Option<Pki>,
    pub(crate) dir: TestDir,
    pub(crate) commands: AtomicU32,
    pub(crate) plan: Builder,
}

/// A running `meepo-master`.
#[derive(Debug)]
pub struct Master {
    process: Process,
    http: u16,
    grpc: u16,
    /// The authority of its certificate, if it has one.
    ca: Option<PathBuf>,
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
        Builder::default()
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

    /// How many masters there are.
    pub fn masters(&self) -> usize {
        self.masters.len()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The HTTP API of the first master.
    pub fn api(&self) -> Api {
        self.masters[0].api()
    }

    /// Its MongoDB server; panics where the logs are kept elsewhere.
    pub fn mongo(&self) -> &TestMongo {
        self.mongo.as_deref().expect("a cluster built with Logs::Mongo or Logs::OwnMongo")
    }

    /// Its authority; panics where it was built without [`Builder::tls`].
    pub fn pki(&self) -> &Pki {
        self.pki.as_ref().expect("a cluster built with tls()")
    }

    /// The URL of its log store.
    pub fn logs(&self) -> &str {
        &self.logs
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

    /// The `meepo` command against the first master, to be changed and started.
    pub fn cli_spec(&self, args: &[&str]) -> Spec {
        let mut spec = server::cli(self.dir.path(), &self.commands, self.api().base(), args);
        if let Some(pki) = &self.pki {
            spec.env.push(("MEEPO_CA".into(), pki.ca().display().to_string()));
        }
        spec
    }

    /// The same, but whoever is started from now on gets these arguments, too.
    pub fn with_args(mut self, args: &[&str]) -> Self {
        self.plan.master_args.extend(args.iter().map(|&a| a.to_owned()));
        self.plan.worker_args.extend(args.iter().map(|&a| a.to_owned()));
        self
    }

    /// Starts one more master and waits until it is ready.
    pub async fn add_master(&mut self) -> &Master {
        let i = self.masters.len();
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
                logs: &self.logs,
                data_dir: &data_dir,
            });
            if let Some(pki) = &self.pki {
                spec.args.extend(pki.master(&format!("m{i}")).flags(&pki.ca()));
            }
            spec.args.extend(self.plan.master_args.iter().cloned());
            let process = Process::start(spec);
            let ca = self.pki.as_ref().map(Pki::ca);
            let master = Master { process, http, grpc, ca };
            if server::ready_at(&master.process, &master.api()).await {
                self.masters.push(master);
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
                // Workers do not share files with masters.
                logs: (self.logs.starts_with("mongodb://") && !self.plan.through_master)
                    .then_some(&self.logs),
                labels: &labels,
            });
            if let Some(pki) = &self.pki {
                spec.args.extend(pki.node(&node).flags(&pki.ca()));
            }
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
        match &self.ca {
            Some(ca) => Api::encrypted(&format!("https://{}", loopback(self.http)), ca, None),
            None => Api::new(&format!("http://{}", loopback(self.http))),
        }
    }

    /// URL of its gRPC API.
    pub fn grpc_url(&self) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", loopback(self.grpc))
    }

    /// Waits until it is ready, after a restart of its process.
    pub async fn wait_ready(&self) {
        let up = server::ready_at(&self.process, &self.api()).await;
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
