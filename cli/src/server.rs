//! `meepo server`: etcd, a master, a worker and a log store in one process.
//!
//! The parts talk to each other as they would on different machines, over etcd and
//! gRPC on loopback: what works here works in a fleet.

use crate::{
    args::ServerArgs,
    commands::{apply, documents},
    error::{CliError, CliResult, exit},
    etcd_child::{EtcdChild, EtcdOptions},
};
use anyhow::Context;
use meepo_coord::EtcdAccess;
use meepo_core::{id::Name, tree::JobDocument};
use meepo_logstore::Retention;
use meepo_master::{Master, auth::AuthSettings};
use meepo_runtime::{
    files, tasks,
    telemetry::{self, LogFormat, trace},
};
use meepo_worker::Worker;
use std::{collections::BTreeMap, io::Write, time::Duration};
use tracing::{info, warn};

/// How long the start may take before the banner says that something is missing.
const READY: Duration = Duration::from_secs(30);
/// Leases are short: there is nobody to take over, and a restart should not wait.
const LEASE_TTL: Duration = Duration::from_secs(5);

/// Runs until it is told to stop.
pub(crate) fn run(args: ServerArgs) -> CliResult<u8> {
    let internal = |e: anyhow::Error| CliError::new(exit::FAILED, format!("{e:#}"));
    check_addresses(&args)?;
    let jobs = load_jobs(&args)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| internal(e.into()))?
        .block_on(serve(args, jobs))
        .map_err(internal)
}

/// Refuses to listen where others could run commands here, unless that is wanted.
fn check_addresses(args: &ServerArgs) -> CliResult<()> {
    for (flag, address) in
        [("--http", args.http), ("--grpc", args.grpc), ("--metrics", args.metrics)]
    {
        if !address.ip().is_loopback() && !args.allow_insecure_listen {
            let problem =
                format!("{address} can be reached from other hosts, and nothing is encrypted here");
            let expected = "a loopback address, or --allow-insecure-listen \
                            (MEEPO_ALLOW_INSECURE_LISTEN=true) on a network where everybody may";
            return Err(CliError::usage(flag, problem, expected));
        }
    }
    Ok(())
}

/// Who is asked what.
fn auth(args: &ServerArgs) -> AuthSettings {
    let beyond = [args.http, args.grpc].iter().any(|a| !a.ip().is_loopback());
    let on = args.auth.unwrap_or(beyond && !args.allow_insecure_listen);
    AuthSettings { on, ..AuthSettings::default() }
}

/// Reads the definitions before anything is started, so that a typing error in one is
/// an error and not a line in a log.
fn load_jobs(args: &ServerArgs) -> CliResult<Vec<JobDocument>> {
    let Some(dir) = &args.jobs else { return Ok(Vec::new()) };
    let (documents, mut errors) = documents::load(std::slice::from_ref(dir));
    let (definitions, invalid) = apply::validate(documents);
    errors.extend(invalid);
    match errors.into_iter().next() {
        Some(e) => Err(e),
        None => Ok(definitions.into_iter().map(|d| d.job).collect()),
    }
}

async fn serve(args: ServerArgs, jobs: Vec<JobDocument>) -> anyhow::Result<u8> {
    let collector = args.otlp_endpoint.clone().map(|endpoint| trace::Collector {
        endpoint,
        service: "meepo-server",
        instance: args.http.to_string(),
    });
    let _traces = telemetry::init(LogFormat::Text, collector.as_ref())?;
    let termination = tasks::termination();
    tokio::pin!(termination);
    // For this user only: it holds commands and what they wrote.
    files::own_dir(&args.data_dir)
        .with_context(|| format!("cannot use {} as --data-dir", args.data_dir.display()))?;
    let etcd = match args.etcd.is_empty() {
        true => {
            let starting = EtcdChild::start(EtcdOptions::new(&args.data_dir, args.etcd_port));
            tokio::select! {
                started = starting => Some(started?),
                signal = &mut termination => {
                    info!(signal = signal?, "asked to end");
                    return Ok(exit::OK);
                }
            }
        }
        false => None,
    };
    let outcome = with_etcd(&args, jobs, etcd.as_ref(), termination).await;
    if let Some(etcd) = etcd {
        etcd.stop().await;
    }
    outcome
}

async fn with_etcd(
    args: &ServerArgs,
    jobs: Vec<JobDocument>,
    etcd: Option<&EtcdChild>,
    termination: impl Future<Output = std::io::Result<&'static str>>,
) -> anyhow::Result<u8> {
    let endpoints = match etcd {
        Some(etcd) => vec![etcd.endpoint().to_owned()],
        None => args.etcd.clone(),
    };
    let access = EtcdAccess {
        tls: args.etcd_tls.clone().resolve(&endpoints, None)?,
        user: EtcdAccess::user(args.etcd_user.clone(), args.etcd_password_file.clone())?,
        endpoints,
    };
    let own_store = format!("sqlite:{}", args.data_dir.join("logs.db").display());
    let master = Master::start(meepo_master::Config {
        etcd: access.clone(),
        tls: None,
        ca_key: None,
        http: args.http,
        grpc: args.grpc,
        advertise: None,
        auth: auth(args),
        logs: args.logs.clone().unwrap_or(own_store),
        data_dir: args.data_dir.clone(),
        lease_ttl: LEASE_TTL,
        tasks_limit: meepo_master::DEFAULT_TASKS_LIMIT,
        retention: {
            let mut retention = Retention::default();
            args.retention.iter().for_each(|(class, keep)| retention.set(*class, *keep));
            retention
        },
        secrets_dir: args.data_dir.join("secrets"),
        notify_commands: BTreeMap::new(),
        signing: None,
        log_format: LogFormat::Text,
        otlp_endpoint: None,
    })
    .await?;
    let own_etcd_node = etcd.and_then(|_| Name::new("127.0.0.1").ok());
    // Processes that outlive the worker use it from another working directory.
    let worker_dir = std::path::absolute(args.data_dir.join("worker"))
        .context("the working directory is not known")?;
    let worker = Worker::start(meepo_worker::Config {
        etcd: access,
        tls: None,
        node: args.node.clone().or(own_etcd_node),
        pid_file: worker_dir.join("worker.pid"),
        data_dir: worker_dir,
        // An SQLite file has one writer, the master; a MongoDB is written to directly.
        logs: args.logs.clone().filter(|url| url.starts_with("mongodb")),
        metrics: args.metrics,
        metrics_tls: false,
        lease_ttl: LEASE_TTL,
        heartbeat: meepo_worker::config::DEFAULT_HEARTBEAT,
        max_running: 512,
        task_slots: meepo_worker::default_task_slots(),
        cgroup_root: None,
        secrets_dir: args.data_dir.join("secrets"),
        secrets_command: Vec::new(),
        spool_limit: 1 << 30,
        spool_max_age: meepo_worker::config::DEFAULT_MAX_AGE,
        catchup_rate: meepo_worker::config::DEFAULT_CATCHUP,
        trust: Default::default(),
        log_format: LogFormat::Text,
        otlp_endpoint: None,
        labels: BTreeMap::new(),
    })
    .await;
    let worker = match worker {
        Ok(worker) => worker,
        Err(e) => {
            master.shutdown().await;
            return Err(e);
        }
    };
    let work = async {
        ready(&master, &worker).await;
        let applied = apply_missing(&master, jobs).await;
        banner(args, &master, &worker, etcd, applied);
        std::future::pending::<()>().await;
    };
    let failure = tokio::select! {
        signal = termination => { info!(signal = signal?, "asked to end"); None }
        failure = master.failed() => Some(format!("master: {failure}")),
        failure = worker.failed() => Some(format!("worker: {failure}")),
        () = work => None,
    };
    // The worker first: its last records go through the master.
    worker.shutdown().await;
    master.shutdown().await;
    match failure {
        Some(reason) => anyhow::bail!("ended because of a failure: {reason}"),
        None => Ok(exit::OK),
    }
}

/// Waits until synchronous commands reach the worker.
async fn ready(master: &Master, worker: &Worker) {
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let all = async {
        loop {
            tick.tick().await;
            let known = master.ops.view.read().health.contains_key(&worker.node);
            if known && master.ops.sessions.is_connected(&worker.node) {
                return;
            }
        }
    };
    if tokio::time::timeout(READY, all).await.is_err() {
        warn!("the worker is not connected yet; see the messages above");
    }
}

/// Applies the definitions that do not exist yet; answers how many did not.
async fn apply_missing(master: &Master, jobs: Vec<JobDocument>) -> usize {
    let mut applied = 0;
    for job in jobs {
        let name = job.name.clone();
        let there = master
            .ops
            .get_job(&name)
            .await
            .map(|view| job.tree.is_root() || view.tree.iter().any(|d| d.tree == job.tree));
        let outcome = match there {
            Ok(true) => continue,
            Ok(false) => master.ops.apply(job).await,
            Err(e) if e.0.code == meepo_core::code::Code::NOT_FOUND => master.ops.apply(job).await,
            Err(e) => Err(e),
        };
        match outcome {
            Ok(_) => applied += 1,
            Err(e) => warn!(job = %name, error = %e, "cannot apply the definition"),
        }
    }
    applied
}

fn banner(
    args: &ServerArgs,
    master: &Master,
    worker: &Worker,
    etcd: Option<&EtcdChild>,
    applied: usize,
) {
    let mut text = String::from("\nmeepo is ready.\n\n");
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<10} {value}\n"));
    line("node", worker.node.to_string());
    line("HTTP API", format!("http://{}   (document: /openapi.json)", master.http));
    line("gRPC", format!("{}", master.grpc));
    match etcd {
        Some(etcd) => line(
            "etcd",
            format!(
                "{}   (its log: {})",
                etcd.endpoint(),
                args.data_dir.join("etcd.log").display()
            ),
        ),
        None => line("etcd", args.etcd.join(",")),
    }
    line("data", args.data_dir.display().to_string());
    if applied > 0 {
        line("jobs", format!("{applied} example jobs applied"));
    }
    // The words that work in the terminal next to this one.
    let program = std::env::args().next().unwrap_or_else(|| "meepo".into());
    let master_flag = match master.http.port() == 7600 && master.http.ip().is_loopback() {
        true => String::new(),
        false => format!(" --master http://{}", master.http),
    };
    let meepo = format!("{program}{master_flag}");
    text.push_str("\nIn another terminal:\n\n");
    for (command, what) in [
        ("node list", "who is there"),
        ("run -t all -- uname -a", "a command on every node"),
        ("job list", "what is scheduled"),
        ("runs", "what happened"),
        ("job trigger hello --follow", "run a job now and watch it"),
    ] {
        text.push_str(&format!("  {:<52} # {what}\n", format!("{meepo} {command}")));
    }
    text.push_str("\nCtrl-C stops everything; the data stays.\n\n");
    // A closed terminal is no reason to stop.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}
