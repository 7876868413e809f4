//! `meepo-master`: any number of them in front of one etcd.

use anyhow::Context;
use clap::{Parser, Subcommand};
use meepo_master::{Config, Master, Settings};
use meepo_runtime::{
    tasks,
    telemetry::{self, trace},
};
use std::{path::PathBuf, process::ExitCode};

#[derive(Parser)]
#[command(name = "meepo-master", version, about = "Takes jobs and places them on nodes")]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (also without a subcommand).
    Run(Options),
    /// Bring the schema of the log store up to date and print the steps applied.
    Migrate(Options),
    /// Print the version.
    Version,
}

#[derive(clap::Args)]
struct Options {
    /// Settings file. [default: /etc/meepo/master.toml, which may be missing]
    #[arg(long, env = "MEEPO_MASTER_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match cli.command.unwrap_or(Command::Run(cli.options)) {
        Command::Run(options) => runtime.block_on(serve(resolve(options)?)),
        Command::Migrate(options) => runtime.block_on(migrate(resolve(options)?)),
        Command::Version => {
            println!("meepo-master {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
}

fn resolve(options: Options) -> anyhow::Result<Config> {
    options.settings.resolve(options.config.as_deref())
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let collector = config.otlp_endpoint.clone().map(|endpoint| trace::Collector {
        endpoint,
        service: "meepo-master",
        instance: config.advertise.clone().unwrap_or_else(|| config.http.to_string()),
    });
    let _traces = telemetry::init(config.log_format, collector.as_ref())?;
    let termination = tasks::termination();
    let master = Master::start(config).await?;
    let failure = tokio::select! {
        signal = termination => { tracing::info!(signal = signal?, "asked to end"); None }
        failure = master.failed() => Some(failure),
    };
    master.shutdown().await;
    match failure {
        Some(reason) => anyhow::bail!("ended because of a failure: {reason}"),
        None => Ok(()),
    }
}

async fn migrate(config: Config) -> anyhow::Result<()> {
    let store = meepo_logstore::open(&config.logs).await?;
    let applied = store.migrate().await.context("cannot migrate the log store")?;
    if applied.is_empty() {
        println!("nothing to do");
    }
    for step in applied {
        println!("applied {step}");
    }
    Ok(())
}
