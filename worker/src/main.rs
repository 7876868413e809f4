//! `meepo-worker`: one on each host.

use anyhow::Context;
use clap::{Parser, Subcommand};
use meepo_core::duration::HumanDuration;
use meepo_runtime::{
    files, tasks,
    telemetry::{self, trace},
};
use meepo_worker::{
    Settings, Worker, config,
    daemon::{self, PidFile},
    health::VERSION,
    join::{self, JoinOptions, RenewOptions},
    process::exec_helper_entry,
};
use std::{path::PathBuf, process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// How long a thread for blocking work stays that has none.
const IDLE_THREAD: Duration = Duration::from_secs(2);

#[derive(Parser)]
#[command(name = "meepo-worker", version, about = "Runs the jobs of one host")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run in the foreground (for systemd).
    Run(Options),
    /// What `start` starts: `run` in a session of its own.
    #[command(name = daemon::DAEMON_COMMAND, hide = true)]
    Daemon(Options),
    /// Start in the background.
    Start(Options),
    /// End the worker that was started, and wait until it has ended.
    Stop(StopOptions),
    /// Say whether a worker runs. Exit code 0 if so, 3 if not.
    Status(Options),
    /// Become a node: have a certificate signed by a master, for a token.
    Join(JoinOptions),
    /// Have the certificate of this node signed anew, before it expires.
    Renew {
        /// By whom.
        #[command(flatten)]
        renew: RenewOptions,
        /// Where the certificate is.
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Print the version.
    Version,
}

#[derive(clap::Args)]
struct Options {
    /// Settings file. [default: /etc/meepo/worker.toml, which may be missing]
    #[arg(long, env = "MEEPO_WORKER_CONFIG")]
    config: Option<PathBuf>,
    /// Where `start` sends the log. [default: worker.log in the data directory]
    #[arg(long)]
    log_file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args)]
struct StopOptions {
    /// Let what runs end by itself, at most for this time; nothing new starts meanwhile.
    #[arg(long, value_name = "DURATION")]
    drain: Option<HumanDuration>,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    exec_helper_entry();
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let resolve = |o: Options| -> anyhow::Result<(config::Config, Option<PathBuf>)> {
        Ok((o.settings.resolve(o.config.as_deref())?, o.log_file))
    };
    match command {
        Command::Run(options) => serve(resolve(options)?.0)?,
        Command::Daemon(options) => {
            daemon::leave_session()?;
            serve(resolve(options)?.0)?;
        }
        Command::Start(options) => {
            let (config, log) = resolve(options)?;
            own_dir(&config)?;
            let log = log.unwrap_or_else(|| config.data_dir.join("worker.log"));
            // Everything after `start`, word for word.
            let args: Vec<String> = std::env::args().skip(2).collect();
            let pid = daemon::start(&config.pid_file, &log, &args)?;
            println!("meepo-worker started with pid {pid}; log: {}", log.display());
        }
        Command::Stop(StopOptions { drain, options }) => {
            let pid_file = resolve(options)?.0.pid_file;
            match daemon::stop(&pid_file, drain.map(|d| d.0))? {
                Some(pid) => println!("meepo-worker with pid {pid} has ended"),
                None => println!("meepo-worker does not run"),
            }
        }
        Command::Status(options) => {
            return Ok(match daemon::running(&resolve(options)?.0.pid_file)? {
                Some(pid) => {
                    println!("meepo-worker runs with pid {pid}");
                    ExitCode::SUCCESS
                }
                None => {
                    println!("meepo-worker does not run");
                    // LSB: "program is not running".
                    ExitCode::from(3)
                }
            });
        }
        Command::Join(options) => print!("{}", once(join::join(options))?),
        Command::Renew { renew, options } => {
            let tls = resolve(*options)?.0.tls;
            let tls = tls.context("there is no certificate; expected [tls] in the settings")?;
            print!("{}", once(join::renew(&tls, &renew))?);
        }
        Command::Version => println!("meepo-worker {VERSION}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Does something that ends by itself.
fn once<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// The data directory, for this user only, before anything is put into it.
fn own_dir(config: &config::Config) -> anyhow::Result<()> {
    let dir = &config.data_dir;
    files::own_dir(dir).with_context(|| format!("cannot use {} as data_dir", dir.display()))
}

fn serve(config: config::Config) -> anyhow::Result<()> {
    own_dir(&config)?;
    let _pid_file = PidFile::take(&config.pid_file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Threads for files are needed now and then, and each keeps a stack.
        .thread_keep_alive(IDLE_THREAD)
        .build()?;
    let collector = config.otlp_endpoint.clone().map(|endpoint| trace::Collector {
        endpoint,
        service: "meepo-worker",
        instance: config.node.as_ref().map(ToString::to_string).unwrap_or_default(),
    });
    runtime.block_on(async {
        let _traces = telemetry::init(config.log_format, collector.as_ref())?;
        let termination = tasks::termination();
        // From here on: its default action would end the worker.
        let mut drain = signal(SignalKind::user_defined1())?;
        // On the heap, as the stack of this thread would keep what it has once used.
        let worker = Box::pin(Worker::start(config)).await?;
        let draining = async {
            if drain.recv().await.is_none() {
                return std::future::pending().await;
            }
            tracing::info!("asked to end once nothing runs any more");
            worker.drain();
            worker.drained().await;
        };
        let failure = tokio::select! {
            signal = termination => { tracing::info!(signal = signal?, "asked to end"); None }
            () = draining => None,
            failure = worker.failed() => Some(failure),
        };
        worker.shutdown().await;
        match failure {
            Some(reason) => anyhow::bail!("ended because of a failure: {reason}"),
            None => Ok(()),
        }
    })
}
