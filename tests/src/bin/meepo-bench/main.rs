//! `meepo-bench`: measures this machine and meepo on it in one run, side by side.
//!
//! What meepo does to a command is compared with what the machine can do at all: each
//! round measures every path once, the next one in the opposite order, so that whatever
//! else the machine does meanwhile hits all of them alike. Figures move from machine to
//! machine and from minute to minute; ratios of one run much less.
//!
//! It starts its own etcd, master and worker on free loopback ports with their data in
//! a temporary folder, and leaves nothing behind. See `docs/benchmarks.md`.

mod entries;
mod fleet;
mod follow;
mod growth;
mod http;
mod idle;
mod jobs;
mod logs;
mod machine;
mod output;
mod plot;
mod raw;
mod report;
mod schedule;
mod stats;
mod sustained;
mod sync;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use meepo_tests::Cluster;
use report::{Memory, Report};
use stats::{Round, Series};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// The command every path runs.
const COMMAND: &str = "/bin/true";

/// Measures this machine and meepo on it, side by side.
#[derive(Debug, Parser)]
#[command(name = "meepo-bench")]
struct Args {
    /// Rounds; each measures everything once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds given to each path in each round.
    #[arg(long, default_value_t = 0.8)]
    seconds: f64,
    /// Runs in a burst.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1000))]
    burst: u32,
    /// Seconds for which idle processes are watched.
    #[arg(long, default_value_t = 10.0)]
    idle: f64,
    /// Jobs loaded when memory is measured for the second time.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    jobs: u32,
    /// Leave memory and idle CPU time out.
    #[arg(long)]
    no_memory: bool,
    /// Runs due at once when it is measured what a worker sustains.
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(100..=9000))]
    due: u32,
    /// Jobs of the busy schedule.
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    scheduled: u32,
    /// Cron entries in one worker.
    #[arg(long, default_value_t = 1_000_000)]
    entries: u32,
    /// Simulated workers of the fleet.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    workers: u32,
    /// Measure these parts only; may be given several times.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Where to draw plots of growth.
    #[arg(long, value_name = "DIR", default_value = "docs/plots")]
    plots: PathBuf,
    /// Where to write everything as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Args {
    fn span(seconds: f64, flag: &str) -> Result<Duration> {
        let fits = (0.05..=600.0).contains(&seconds);
        ensure!(fits, "--{flag} {seconds}: give a number of seconds from 0.05 to 600");
        Ok(Duration::from_secs_f64(seconds))
    }
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Idle processes.
    Memory,
    /// One command or job after the other, and bursts.
    Rounds,
    /// Runs of `executor: http` and plain requests only, of the rounds.
    Requests,
    /// What a worker sustains.
    Sustained,
    /// A busy schedule.
    Schedule,
    /// A million cron entries in one worker.
    Entries,
    /// Masters and etcd with thousands of simulated workers.
    Fleet,
    /// Output on its way to the spool and to MongoDB.
    Logs,
    /// How late those who follow a run see a line.
    Follow,
    /// How cost grows with workers, jobs and commands at the same time, with plots: takes a
    /// quarter of an hour, and is measured only if named.
    Growth,
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// One thing that is measured in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Path {
    Raw,
    RawAll,
    Http,
    Exec,
    Exec8,
    Put,
    Sync,
    Job,
    Burst,
    Requests,
    Cat,
    Flood,
    FloodTail,
}

impl Path {
    const ALL: [Self; 13] = [
        Self::Raw,
        Self::Exec,
        Self::RawAll,
        Self::Exec8,
        Self::Http,
        Self::Put,
        Self::Job,
        Self::Sync,
        Self::Burst,
        Self::Requests,
        Self::Cat,
        Self::Flood,
        Self::FloodTail,
    ];
}

/// Samples by the name of what was measured.
type Found = BTreeMap<&'static str, Series>;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    // One provider for the process; another call may have come first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::select! {
        done = bench(&args) => done,
        // What was started ends with the future that is dropped here.
        pressed = tokio::signal::ctrl_c() => {
            pressed.context("cannot wait for Ctrl-C")?;
            bail!("interrupted")
        }
    }
}

async fn bench(args: &Args) -> Result<()> {
    let span = Args::span(args.seconds, "seconds")?;
    let idle = Args::span(args.idle, "idle")?;
    let before = machine::load();
    if before > 0.5 {
        eprintln!("the load of this machine is {before:.2}: trust the ratios, not the figures");
    }
    let memory = if args.no_memory || !args.wants(Part::Memory) {
        Vec::new()
    } else {
        eprintln!("memory and idle CPU time: {:.0} s", 2.0 * idle.as_secs_f64());
        memory(idle, args.jobs).await?
    };
    let mut found = Found::new();
    if args.wants(Part::Rounds) {
        eprintln!("{} rounds of about {:.0} s", args.rounds, 14.0 * span.as_secs_f64());
        found = rounds(args, span).await?;
    }
    // Part of the rounds, and fast by itself.
    if args.only.contains(&Part::Requests) && !args.wants(Part::Rounds) {
        found = requests(args.rounds, span).await?;
    }
    if args.wants(Part::Logs) {
        let logs = logs::LogLines::new().await;
        // The first is not what is asked for.
        for n in 0..=args.rounds {
            keep(&mut found, logs.round().await?, n);
        }
    }
    if args.wants(Part::Follow) {
        let follow = follow::Follow::new().await?;
        for n in 0..=args.rounds {
            keep(&mut found, follow.round(span.max(Duration::from_secs(2))).await?, n);
        }
    }
    let sustained = match args.wants(Part::Sustained) {
        true => sustained::measure(args.rounds, args.due).await?,
        false => Vec::new(),
    };
    let schedule = match args.wants(Part::Schedule) {
        true => Some(schedule::measure(args.scheduled, Duration::from_secs(30)).await?),
        false => None,
    };
    let entries = match args.wants(Part::Entries) {
        true => Some(entries::measure(args.entries, Duration::from_secs(20)).await?),
        false => None,
    };
    let fleet = match args.wants(Part::Fleet) {
        true => Some(fleet::measure(args.workers, args.rounds, idle).await?),
        false => None,
    };
    if args.only.contains(&Part::Growth) {
        let growth = growth::measure(args.workers, args.entries, span, idle).await?;
        growth.draw(&args.plots)?;
        print!("{}", growth.table());
    }
    let load = (before, machine::load());
    let report = Report { found, memory, sustained, schedule, entries, fleet, load, args };
    print!("{}", report.table());
    if let Some(file) = &args.json {
        std::fs::write(file, format!("{:#}\n", report.json()))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Keeps what round `n` yielded, unless it was to warm up.
fn keep(found: &mut Found, yielded: Vec<(&'static str, Round)>, n: u32) {
    for (name, round) in yielded.into_iter().filter(|_| n > 0) {
        found.entry(name).or_default().rounds.push(round);
    }
}

/// Idle processes of a cluster of their own, without and with jobs.
async fn memory(idle: Duration, jobs: u32) -> Result<Vec<Memory>> {
    let cluster = Cluster::builder().start().await;
    let fresh = idle::watch(&cluster, idle).await?;
    idle::load_jobs(&cluster, jobs).await?;
    let loaded = idle::watch(&cluster, idle).await?;
    Ok(vec![
        Memory { what: "idle".into(), of: fresh },
        Memory { what: format!("{jobs} jobs"), of: loaded },
    ])
}

async fn rounds(args: &Args, span: Duration) -> Result<Found> {
    let cluster = Cluster::builder().start().await;
    let exec = sync::Exec::new(&cluster).await?;
    let jobs = jobs::Jobs::new(&cluster, args.burst).await?;
    let bench = Bench {
        output: output::Output::new(&cluster, &jobs).await?,
        exec,
        jobs,
        http: http::Http::new(&cluster.dir().join("engine")).await?,
        etcd: cluster.etcd().client().await,
        file: cluster.dir().join("fdatasync"),
        threads: machine::cpus(),
    };
    let mut found = Found::new();
    // Connections, caches and lazy parts: not what is asked for here.
    let warm = Duration::from_millis(100).min(span);
    for path in Path::ALL {
        bench.measure(path, warm).await?;
    }
    for n in 0..args.rounds {
        let mut order = Path::ALL;
        if n % 2 == 1 {
            order.reverse();
        }
        for path in order {
            for (name, round) in bench.measure(path, span).await? {
                found.entry(name).or_default().rounds.push(round);
            }
        }
        eprintln!("round {} of {}", n + 1, args.rounds);
    }
    Ok(found)
}

/// Requests alone, which need no cluster.
async fn requests(rounds: u32, span: Duration) -> Result<Found> {
    let dir = tempfile::tempdir()?;
    let http = http::Http::new(dir.path()).await?;
    let mut found = Found::new();
    for n in 0..=rounds {
        // As in the rounds of everything, the first is not what is asked for.
        for (name, round) in http.both(span).await? {
            if n > 0 {
                found.entry(name).or_default().rounds.push(round);
            }
        }
    }
    Ok(found)
}

struct Bench {
    exec: sync::Exec,
    jobs: jobs::Jobs,
    http: http::Http,
    output: output::Output,
    etcd: etcd_client::Client,
    file: PathBuf,
    threads: usize,
}

impl Bench {
    /// Measures one path once; a path may yield more than one series.
    async fn measure(&self, path: Path, span: Duration) -> Result<Vec<(&'static str, Round)>> {
        Ok(match path {
            Path::Raw => vec![("raw", raw::spawns(1, span).await?)],
            Path::RawAll => vec![("raw_all", raw::spawns(self.threads, span).await?)],
            Path::Http => vec![("http", self.exec.nothing(span).await?)],
            Path::Exec => vec![("exec", self.exec.commands(1, span).await?)],
            Path::Exec8 => vec![("exec_8", self.exec.commands(8, span).await?)],
            Path::Put => vec![("etcd_put", raw::puts(&self.etcd, span).await?)],
            Path::Sync => vec![("fdatasync", raw::syncs(&self.file, span).await?)],
            Path::Job => self.jobs.one_at_a_time(span).await?,
            Path::Burst => self.jobs.burst().await?,
            Path::Requests => self.http.both(span).await?,
            Path::Cat => vec![("cat", self.output.raw(span).await?)],
            Path::Flood => vec![("flood", self.output.job(&self.jobs, "head", span).await?)],
            Path::FloodTail => {
                vec![("flood_tail", self.output.job(&self.jobs, "tail", span).await?)]
            }
        })
    }
}
