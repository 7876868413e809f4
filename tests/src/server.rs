//! The one-process server, `meepo --server`.

use crate::{
    api::{Api, Output, run},
    dirs::{TestDir, binary},
    flags::{self, ServerFlags, loopback},
    ports::free_port,
    process::{Process, Spec},
    wait::{eventually, secs},
};
use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

const READY: Duration = secs(60);
const ATTEMPTS: u32 = 5;
/// What it says once its own worker is connected too, which `/readyz` does not wait for.
const BANNER: &str = "meepo is ready.";

/// A running `meepo --server` with its data in a temporary folder.
#[derive(Debug)]
pub struct Server {
    // Fields are dropped in this order: the process before its files.
    process: Process,
    http: u16,
    grpc: u16,
    etcd: u16,
    data_dir: PathBuf,
    dir: TestDir,
    commands: AtomicU32,
}

impl Server {
    /// Starts it with further arguments (`--jobs DIR`, …) and waits until it is ready.
    pub async fn start(more: &[&str]) -> Self {
        let dir = TestDir::new();
        for attempt in 1..=ATTEMPTS {
            let data_dir = dir.path().join(format!("data-{attempt}"));
            let [http, grpc, etcd, metrics] = std::array::from_fn(|_| free_port());
            let mut args =
                flags::server(&ServerFlags { data_dir: &data_dir, http, grpc, etcd, metrics });
            args.extend(more.iter().map(|&a| a.to_owned()));
            let name = format!("server-{attempt}");
            let mut spec = Spec::new(&name, binary("meepo"), &[], dir.path());
            spec.args = args;
            let process = Process::start(spec);
            if ready(&process, http).await {
                process.wait_log(BANNER, READY).await;
                let commands = AtomicU32::new(0);
                return Self { process, http, grpc, etcd, data_dir, dir, commands };
            }
        }
        panic!("meepo --server lost its ports to other processes {ATTEMPTS} times");
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Where its data are.
    pub fn data_dir(&self) -> &std::path::Path {
        &self.data_dir
    }

    /// Client URL of its etcd child.
    pub fn etcd_url(&self) -> String {
        format!("http://{}", loopback(self.etcd))
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
        assert!(ready(&self.process, self.http).await, "it lost its port when it was restarted");
        self.process.wait_log(BANNER, READY).await;
    }

    /// Runs the real `meepo` command against it.
    pub async fn cli(&self, args: &[&str]) -> Output {
        run(cli(self.dir.path(), &self.commands, self.api().base(), args)).await
    }

    /// Starts the real `meepo` command against it and leaves it running.
    pub fn cli_start(&self, args: &[&str]) -> Process {
        Process::start(cli(self.dir.path(), &self.commands, self.api().base(), args))
    }
}

/// Whether it came up; false when it lost a port. Panics when it does neither in time.
pub(crate) async fn ready(process: &Process, http: u16) -> bool {
    ready_at(process, &Api::new(&format!("http://{}", loopback(http)))).await
}

/// As [`ready`], asked there.
pub(crate) async fn ready_at(process: &Process, api: &Api) -> bool {
    eventually(READY, format!("{} is ready", process.spec().name), async || {
        if !process.is_running() {
            let log = process.log_since_start().to_lowercase();
            assert!(log.contains("in use"), "{} ended while it started", process.spec().name);
            return Ok(false);
        }
        match api.try_http("GET", "/readyz/all", None).await? {
            (200, _) => Ok(true),
            (status, body) => Err(format!("/readyz/all answers {status} {body}")),
        }
    })
    .await
}

/// The command line client as a process to start.
pub(crate) fn cli(dir: &std::path::Path, count: &AtomicU32, master: &str, args: &[&str]) -> Spec {
    let n = count.fetch_add(1, Ordering::Relaxed);
    let mut spec = Spec::new(&format!("meepo-{n}"), binary("meepo"), args, dir);
    spec.env.push(("MEEPO_MASTER".into(), master.into()));
    spec.split_output = true;
    spec
}
