//! What faults happen to: three etcd members, masters, workers and a MongoDB, every
//! connection between them through the [`Net`], one worker on a small disk of its own, and
//! every master and worker with a clock that can be set.

use crate::net::Net;
use anyhow::{Context, Result, ensure};
use meepo_tests::{
    Api, Process, Spec, TestDir, TestMongo, binary, eventually, flags, free_port, secs,
};
use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

/// How long a lease lives without its owner.
pub(crate) const LEASE: &str = "4s";
/// The database of the runs.
const DATABASE: &str = "chaos";
const READY: Duration = secs(120);
/// The worker whose data are on a disk of its own.
pub(crate) const ON_DISK: usize = 3;
/// The worker that delivers through the leading master.
pub(crate) const THROUGH_MASTER: usize = 4;

/// The cluster.
pub(crate) struct Stage {
    // Fields are dropped in this order.
    pub(crate) workers: Vec<Worker>,
    pub(crate) masters: Vec<Master>,
    pub(crate) members: Vec<Member>,
    disk: Process,
    pub(crate) mongo: TestMongo,
    pub(crate) net: Net,
    /// Whether clocks can be set: a C compiler was there.
    pub(crate) clocks: bool,
    dir: TestDir,
}

/// An etcd member.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) process: Arc<Process>,
    /// Its client URL, not through the network.
    pub(crate) url: String,
    client: u16,
}

/// A master.
pub(crate) struct Master {
    pub(crate) name: String,
    pub(crate) process: Arc<Process>,
    /// Its HTTP API, not through the network.
    pub(crate) api: Api,
}

/// A worker.
pub(crate) struct Worker {
    pub(crate) name: String,
    pub(crate) process: Arc<Process>,
    pub(crate) node: String,
    pub(crate) metrics: Api,
}

fn at(net: u8, host: usize, port: u16) -> SocketAddr {
    let host = u8::try_from(host + 1).unwrap_or(u8::MAX);
    SocketAddr::from((Ipv4Addr::new(127, 1, net, host), port))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Stage {
    /// Starts everything and waits until every worker is registered.
    ///
    /// # Errors
    /// When the network or the disk cannot be made.
    pub(crate) async fn start(masters: usize, workers: usize) -> Result<Self> {
        let (dir, net) = (TestDir::new(), Net::new());
        let mongo = TestMongo::start_own().await;
        let direct = mongo.uri(DATABASE);
        let port =
            direct.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
        let port: u16 = port.context("a port in MongoDB's URL")?;
        let through = at(3, 0, port);
        net.proxy(through, local(port), "mongo").await?;
        let logs = format!("mongodb://{through}/{DATABASE}");
        let shim = build_clock(dir.path());
        let disk = small_disk(dir.path()).await;
        let members = Self::start_etcd(dir.path(), &net).await?;
        let mut stage = Self {
            workers: Vec::new(),
            masters: Vec::new(),
            members,
            disk,
            mongo,
            net,
            clocks: shim.is_some(),
            dir,
        };
        stage.start_masters(masters, &logs, shim.as_deref()).await?;
        stage.start_workers(workers, &logs, shim.as_deref())?;
        stage.wait_ready().await;
        Ok(stage)
    }

    async fn start_etcd(dir: &Path, net: &Net) -> Result<Vec<Member>> {
        let program = std::env::var_os("MEEPO_TEST_ETCD").unwrap_or_else(|| "etcd".into());
        let ports: Vec<[u16; 2]> = (0..3).map(|_| [free_port(), free_port()]).collect();
        let cluster: Vec<String> = ports
            .iter()
            .enumerate()
            .map(|(i, p)| format!("etcd-{i}=http://{}", at(1, i, p[1])))
            .collect();
        let cluster = cluster.join(",");
        let mut members = Vec::new();
        for (i, [client, peer]) in ports.into_iter().enumerate() {
            let name = format!("etcd-{i}");
            let data = dir.join(format!("{name}.data")).display().to_string();
            let (url, peers) =
                (format!("http://{}", local(client)), format!("http://{}", local(peer)));
            let advertised = format!("http://{}", at(1, i, peer));
            let args = [
                ["--name", &name],
                ["--data-dir", &data],
                ["--listen-client-urls", &url],
                ["--advertise-client-urls", &url],
                ["--listen-peer-urls", &peers],
                ["--initial-advertise-peer-urls", &advertised],
                ["--initial-cluster", &cluster],
                ["--initial-cluster-state", "new"],
                ["--backend-batch-limit", "1000"],
            ];
            let mut spec = Spec::new(&name, &program, &args.concat(), dir);
            spec.env.push(("ETCD_LOG_LEVEL".into(), "warn".into()));
            net.proxy(at(1, i, peer), local(peer), &name).await?;
            net.proxy(at(2, i, client), local(client), &name).await?;
            let process = Arc::new(Process::start(spec));
            net.enter(&name, process.clone());
            members.push(Member { name, process, url, client });
        }
        Ok(members)
    }

    /// etcd as masters and workers reach it.
    fn etcd(&self) -> String {
        let urls =
            self.members.iter().enumerate().map(|(i, m)| format!("http://{}", at(2, i, m.client)));
        urls.collect::<Vec<_>>().join(",")
    }

    async fn start_masters(&mut self, n: usize, logs: &str, shim: Option<&Path>) -> Result<()> {
        for i in 0..n {
            let name = format!("master-{i}");
            let data_dir = self.dir.path().join(format!("{name}.data"));
            let (http, grpc) = (free_port(), free_port());
            let flags =
                flags::MasterFlags { etcd: &self.etcd(), http, grpc, logs, data_dir: &data_dir };
            let mut spec = Spec::new(&name, binary("meepo-master"), &[], self.dir.path());
            spec.args = flags::master(&flags);
            let advertise = at(4, i, grpc).ip().to_string();
            spec.args.extend(["--advertise".to_owned(), advertise]);
            spec.args.extend(["--lease-ttl".to_owned(), LEASE.to_owned()]);
            self.give_clock(&mut spec, shim)?;
            for port in [http, grpc] {
                self.net.proxy(at(4, i, port), local(port), &name).await?;
            }
            let process = Arc::new(Process::start(spec));
            self.net.enter(&name, process.clone());
            let api = Api::new(&format!("http://{}", local(http)));
            self.masters.push(Master { name, process, api });
        }
        Ok(())
    }

    fn start_workers(&mut self, n: usize, logs: &str, shim: Option<&Path>) -> Result<()> {
        for i in 0..n {
            let (name, node) = (format!("worker-{i}"), format!("127.0.0.{}", i + 2));
            let on_disk = i == ON_DISK;
            let data_dir = match on_disk {
                true => self.dir.path().join("disk"),
                false => self.dir.path().join(format!("{name}.data")),
            };
            let metrics = free_port();
            let args = flags::worker(&flags::WorkerFlags {
                etcd: &self.etcd(),
                node: &node,
                data_dir: &data_dir,
                metrics,
                logs: (i != THROUGH_MASTER).then_some(logs),
                labels: &[],
            });
            let program = binary("meepo-worker");
            let mut spec = Spec::new(&name, &program, &[], self.dir.path());
            if on_disk {
                // Its disk is that of the process which has mounted it, whatever becomes of
                // the worker.
                let pid = self.disk.pid().to_string();
                spec.program = "nsenter".into();
                spec.args = ["--target", &pid, "--mount"].map(str::to_owned).to_vec();
                if !nix::unistd::geteuid().is_root() {
                    spec.args.extend(["--user", "--preserve-credentials"].map(str::to_owned));
                }
                spec.args.extend(["--".to_owned(), program.display().to_string()]);
            }
            spec.args.extend(args);
            spec.args.extend(["--lease-ttl", LEASE, "--heartbeat", "2s"].map(str::to_owned));
            self.give_clock(&mut spec, shim)?;
            let process = Arc::new(Process::start(spec));
            self.net.enter(&name, process.clone());
            let metrics = Api::new(&format!("http://{}", local(metrics)));
            self.workers.push(Worker { name, process, node, metrics });
        }
        Ok(())
    }

    fn give_clock(&self, spec: &mut Spec, shim: Option<&Path>) -> Result<()> {
        let Some(shim) = shim else { return Ok(()) };
        let file = self.clock_file(&spec.name);
        fs::write(&file, 0i64.to_ne_bytes())?;
        spec.env.push(("LD_PRELOAD".into(), shim.display().to_string()));
        spec.env.push(("MEEPO_TEST_CLOCK".into(), "1".into()));
        spec.env.push(("CLOCK_OFFSET".into(), file.display().to_string()));
        Ok(())
    }

    fn clock_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.clock"))
    }

    /// Sets the clock of a master or a worker so many seconds off, 0: right.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn set_clock(&self, name: &str, seconds: i64) -> Result<()> {
        let file = fs::OpenOptions::new().write(true).open(self.clock_file(name))?;
        // The same page stays mapped where the clock reads it.
        file.write_all_at(&(seconds * 1_000_000_000).to_ne_bytes(), 0)?;
        Ok(())
    }

    /// Keeps what was written when the stage has ended; answers where.
    pub(crate) fn keep(&mut self) -> PathBuf {
        self.dir.keep();
        self.dir.path().to_owned()
    }

    /// Where everything is written.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The process of that name.
    ///
    /// # Panics
    /// When nobody has it.
    pub(crate) fn process(&self, name: &str) -> &Process {
        let members = self.members.iter().map(|m| (&m.name, &m.process));
        let masters = self.masters.iter().map(|m| (&m.name, &m.process));
        let workers = self.workers.iter().map(|w| (&w.name, &w.process));
        let mut all = members.chain(masters).chain(workers);
        all.find(|(n, _)| *n == name).map(|(_, p)| &**p).expect("a process of this stage")
    }

    /// Everybody who has a name in the network.
    pub(crate) fn parties(&self) -> Vec<String> {
        let members = self.members.iter().map(|m| &m.name);
        let masters = self.masters.iter().map(|m| &m.name);
        let workers = self.workers.iter().map(|w| &w.name);
        let all = members.chain(masters).chain(workers).cloned();
        all.chain(["mongo".to_owned()]).collect()
    }

    /// Fills the small disk until nothing goes in any more, or empties it again.
    ///
    /// # Errors
    /// When the file cannot be made or removed.
    pub(crate) fn fill_disk(&self, full: bool) -> Result<()> {
        let root = PathBuf::from(format!("/proc/{}/root", self.disk.pid()));
        let disk = self.dir.path().join("disk");
        let filler = root.join(disk.strip_prefix("/")?).join("filler");
        if !full {
            return Ok(fs::remove_file(&filler)?);
        }
        let mut file = fs::File::create(&filler)?;
        let refused = std::iter::repeat_with(|| file.write_all(&[1; 4096])).find_map(Result::err);
        let kind = refused.map(|e| e.kind());
        ensure!(kind == Some(std::io::ErrorKind::StorageFull), "the disk says {kind:?}");
        Ok(())
    }

    /// Runs `etcdctl` against one member; answers its output.
    pub(crate) async fn etcdctl(&self, member: usize, args: &[&str]) -> Result<String> {
        let url = &self.members[member].url;
        let mut command = tokio::process::Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", url, "--command-timeout", "10s"]);
        let out = command.args(args).kill_on_drop(true).output().await?;
        let (text, why) =
            (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        ensure!(out.status.success(), "etcdctl {args:?}: {text}{why}");
        Ok(text.into_owned())
    }

    /// Waits until everything is there, for the first time.
    async fn wait_ready(&self) {
        for master in &self.masters {
            eventually(READY, format!("{} is ready", master.name), async || {
                assert!(master.process.is_running(), "{} has ended", master.name);
                match master.api.try_http("GET", "/readyz/all", None).await? {
                    (200, _) => Ok(()),
                    (status, body) => Err(format!("{status} {body}")),
                }
            })
            .await;
        }
        eventually(READY, "every worker is connected", || self.well()).await;
    }

    /// Whether every master is ready and every worker online and connected; else what is not.
    pub(crate) async fn well(&self) -> Result<(), String> {
        for master in &self.masters {
            let asked = master.api.try_http("GET", "/readyz/all", None);
            let asked = tokio::time::timeout(secs(5), asked).await;
            match asked.map_err(|_| format!("{} does not answer", master.name))?? {
                (200, _) => {}
                (status, body) => return Err(format!("{}: {status} {body}", master.name)),
            }
        }
        let (status, body) = self.masters[0].api.try_http("GET", "/v1/nodes", None).await?;
        let nodes = body["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        for worker in &self.workers {
            let there = nodes.iter().find(|n| n["id"] == *worker.node);
            let well = there.is_some_and(|n| n["online"] == true && n["connected"] == true);
            if status != 200 || !well {
                return Err(format!("{} is not connected: {status}", worker.name));
            }
        }
        Ok(())
    }
}

/// Compiles the clock that can be set; `None` where there is no compiler.
fn build_clock(dir: &Path) -> Option<PathBuf> {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    fs::write(&source, include_str!("clock.c")).ok()?;
    let mut cc = Command::new("cc");
    let built = cc.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).status();
    built.is_ok_and(|status| status.success()).then_some(library)
}

/// A disk of its own below `dir`, in a mount namespace that goes with the process answered:
/// nothing has to be unmounted.
async fn small_disk(dir: &Path) -> Process {
    let disk = dir.join("disk").display().to_string();
    fs::create_dir_all(&disk).expect("a folder for the disk");
    let mount = "mount -t tmpfs -o size=24m,mode=700 meepo-chaos \"$0\" && echo mounted && \
                 exec sleep infinity";
    let user: &[&str] = match nix::unistd::geteuid().is_root() {
        true => &[],
        // Without root a user namespace gives the right to mount.
        false => &["--user", "--map-root-user"],
    };
    let own = ["--mount", "--propagation", "private", "sh", "-c", mount, &disk];
    let keeper = Process::start(Spec::new("disk", "unshare", &[user, &own].concat(), dir));
    keeper.wait_log("mounted", secs(30)).await;
    keeper
}
