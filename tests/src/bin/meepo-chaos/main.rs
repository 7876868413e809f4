//! `meepo-chaos`: faults for a real cluster under work, and a verdict on what came of it.
//!
//! Three etcd members, three masters, five workers and a MongoDB run jobs, tasks and commands
//! while faults drawn from a seed happen to them. Runs leave their own traces; at the end these
//! are held against what meepo has recorded: nothing doubled, nothing lost, nothing left over.
//! The same seed draws the same faults, at the same distances. See `docs/faults.md`.
#![allow(missing_docs, reason = "a program: nobody else uses its parts")]
#![allow(clippy::expect_used, reason = "part of the harness: a panic is the message")]

mod check;
mod collect;
mod evidence;
mod faults;
mod load;
mod net;
mod report;
mod stage;

use anyhow::{Context, Result};
use check::{Disabled, Facts, check};
use clap::Parser;
use evidence::{Evidence, Kind};
use faults::{Draw, Fault};
use jiff::{SignedDuration, Timestamp};
use load::Load;
use meepo_tests::{eventually, millis, secs};
use report::{Happened, Report};
use stage::Stage;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

const MASTERS: usize = 3;
const WORKERS: usize = 5;
/// Longest time to recover from a round of faults.
const RECOVERY: Duration = secs(150);
/// How long after a worker was killed or frozen what it had left may still be there.
const BACK: SignedDuration = SignedDuration::from_secs(20);

/// Faults for a real cluster under work, and a verdict.
#[derive(Debug, Parser)]
#[command(name = "meepo-chaos")]
struct Args {
    /// What the faults are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long new rounds of faults begin: `90s`, `30m`.
    #[arg(long, default_value = "2m", value_parser = duration)]
    duration: Duration,
    /// At least so many faults, whatever the duration.
    #[arg(long, default_value_t = 0)]
    at_least: usize,
    /// These kinds only, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<faults::Kind>,
    /// A page to put the report into, between its two marks.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().map_err(|e| e.to_string())?;
    Duration::try_from(parsed).map_err(|e| e.to_string())
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut stage = Stage::start(MASTERS, WORKERS).await?;
    let report = Chaos::begin(&args, &stage).await.run(&args).await?;
    println!("{}", report.text());
    if let Some(page) = &args.page {
        report.put_into(page)?;
    }
    if report.is_good() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("kept for reading: {}; again: {}", stage.keep().display(), report.replay);
    Ok(ExitCode::FAILURE)
}

/// A run of the program.
struct Chaos<'a> {
    stage: &'a Stage,
    load: Load,
    evidence: Evidence,
    began: Timestamp,
    faults: Vec<Happened>,
    not_made: Vec<String>,
    disabled: Vec<Disabled>,
    rounds: u32,
}

impl<'a> Chaos<'a> {
    async fn begin(args: &Args, stage: &'a Stage) -> Self {
        let load = Load::new(stage);
        load.apply().await;
        let evidence = Evidence::new(&load.evidence());
        eprintln!("seed {}: everything is there", args.seed);
        Self {
            stage,
            load,
            evidence,
            began: Timestamp::now(),
            faults: Vec::new(),
            not_made: Vec::new(),
            disabled: Vec::new(),
            rounds: 0,
        }
    }

    async fn run(mut self, args: &Args) -> Result<Report> {
        let mut draw = Draw::new(args.seed, &args.faults, self.stage);
        let flows = self.load.start(args.seed);
        self.wait_well(self.began).await;
        let end = Instant::now() + args.duration;
        while Instant::now() < end || self.faults.len() < args.at_least {
            self.rounds += 1;
            if !self.round(draw.round()).await? {
                break;
            }
        }
        let ended = Timestamp::now();
        self.load.end();
        flows.join_all().await;
        let facts = self.settle().await?;
        let repeated = facts.1;
        let verdict = check(&facts.0);
        let kinds: Vec<String> = args.faults.iter().filter_map(name_of).collect();
        let only =
            if kinds.is_empty() { String::new() } else { format!(" --faults {}", kinds.join(",")) };
        let minutes = args.duration.as_secs();
        Ok(Report {
            replay: format!("meepo-chaos --seed {} --duration {minutes}s{only}", args.seed),
            began: self.began,
            ended,
            rounds: self.rounds,
            faults: self.faults,
            not_made: self.not_made,
            repeated,
            verdict,
        })
    }

    /// Makes the faults of a round happen, undoes them and waits until everything works
    /// again; false when it does not.
    async fn round(&mut self, faults: Vec<Fault>) -> Result<bool> {
        let stage = self.stage;
        let one = |fault: Fault| async move {
            tokio::time::sleep(fault.after).await;
            let at = Timestamp::now();
            if let Err(e) = fault.begin(stage).await {
                fault.end(stage).await?;
                return anyhow::Ok(Err(format!("{fault}: {e:#}")));
            }
            tokio::time::sleep(fault.hold).await;
            fault.end(stage).await.with_context(|| format!("the end of: {fault}"))?;
            anyhow::Ok(Ok((fault, at, Timestamp::now())))
        };
        let all = futures::future::join_all(faults.into_iter().map(one)).await;
        let last = Timestamp::now();
        let recovered = self.wait_well(last).await;
        let took = Duration::try_from(Timestamp::now().duration_since(last)).unwrap_or_default();
        for happened in all {
            let (fault, at, undone) = match happened? {
                Ok(happened) => happened,
                Err(why) => {
                    eprintln!("not made: {why}");
                    self.not_made.push(why);
                    continue;
                }
            };
            if fault.disables() {
                let worker = stage.workers.iter().find(|w| w.name == fault.of);
                let node = worker.context("a worker")?.node.clone();
                self.disabled.push(Disabled { node, from: at, until: undone + BACK });
            }
            eprintln!(
                "{:4} {at:.0} {fault}: recovered in {:.1} s",
                self.rounds,
                took.as_secs_f64()
            );
            let recovered = recovered.then_some(took);
            self.faults.push(Happened { fault, recovered });
        }
        Ok(recovered)
    }

    /// Waits until everything works: all are there, and a slot after `since` has run on each
    /// node.
    async fn wait_well(&mut self, since: Timestamp) -> bool {
        let end = Instant::now() + RECOVERY;
        loop {
            let why = match self.stage.well().await {
                Ok(()) => self.ticked(since),
                Err(why) => Err(why),
            };
            match why {
                Ok(()) => return true,
                Err(why) if Instant::now() > end => {
                    eprintln!("not recovered after {RECOVERY:?}: {why}");
                    return false;
                }
                Err(_) => tokio::time::sleep(millis(200)).await,
            }
        }
    }

    /// Whether a slot after `since` has run on each node since then.
    fn ticked(&mut self, since: Timestamp) -> Result<(), String> {
        self.evidence.refresh();
        let newest = self.evidence.lines.iter().rev();
        let newest = newest.take_while(|l| l.at > since - SignedDuration::from_secs(60));
        let ticks = newest.filter(|l| l.kind == Kind::Start && l.job == "tick");
        let ran: BTreeSet<&str> =
            ticks.filter(|l| l.at > since && l.slot > since).map(|l| &*l.node).collect();
        let missing = self.stage.workers.iter().find(|w| !ran.contains(&*w.node));
        missing.map_or(Ok(()), |w| Err(format!("no slot has run on {} since", w.node)))
    }

    /// Lets everything come to rest and gathers what is known; also how many requests were
    /// repeated.
    async fn settle(&mut self) -> Result<(Facts, u64)> {
        let until = Timestamp::now();
        // By then a slot that has not run is missed, and recorded.
        let late = until + SignedDuration::from_secs(12);
        eventually(RECOVERY, "a later slot has run on each node", async || self.ticked(late)).await;
        self.load.pause().await;
        let api = &self.stage.masters[0].api;
        eventually(load::REST, "everything has ended and is delivered", async || {
            match (collect::unfinished(api).await?, collect::waiting(self.stage).await?) {
                (0, 0) => Ok(()),
                (tasks, items) => Err(format!("{tasks} tasks, {items} runs and items in spools")),
            }
        })
        .await;
        let handed = self.load.handed();
        let runs = collect::runs(api).await?;
        let tasks = collect::tasks(api, &handed.tasks).await?;
        self.evidence.refresh();
        let facts = Facts {
            rules: load::rules(),
            nodes: self.stage.workers.iter().map(|w| w.node.clone()).collect(),
            until,
            lines: std::mem::take(&mut self.evidence.lines),
            broken: std::mem::take(&mut self.evidence.broken),
            outputs: collect::outputs(api, &runs).await?,
            runs,
            keys: collect::keys(self.stage, &tasks).await?,
            tasks,
            commands: handed.commands,
            disabled: std::mem::take(&mut self.disabled),
            left: load::left_over(&self.load.token),
        };
        Ok((facts, handed.repeated))
    }
}

fn name_of(kind: &faults::Kind) -> Option<String> {
    clap::ValueEnum::to_possible_value(kind).map(|v| v.get_name().to_owned())
}
