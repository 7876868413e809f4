//! How cost grows: with workers, with jobs in one worker, with commands at the same time.
//! Each is measured at every power of ten, and drawn.

use super::{
    entries, fleet,
    plot::{Line, Plot},
    stats::Round,
    sync::Exec,
};
use anyhow::{Context, Result};
use meepo_tests::Cluster;
use serde_json::Value;
use std::{fmt::Write, path::Path, time::Duration};

const MIB: f64 = (1 << 20) as f64;
/// How often a fleet of each size is measured.
const ROUNDS: u32 = 5;

/// A figure at each size: what it is called, its unit, and the values.
struct Row {
    what: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

/// What grows, and with it what.
struct Family {
    /// Also the name of the plot's file.
    name: &'static str,
    title: &'static str,
    /// What there is more and more of.
    of: &'static str,
    sizes: Vec<u32>,
    rows: Vec<Row>,
}

/// Everything.
pub(crate) struct Growth(Vec<Family>);

/// Powers of ten from `first`, up to and including `last`.
fn powers(first: u32, last: u32) -> Vec<u32> {
    let sizes = std::iter::successors(Some(first), |n| n.checked_mul(10));
    sizes.take_while(|n| *n <= last).collect()
}

fn median(value: &Value) -> f64 {
    let values = value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    super::stats::quantile(values, 0.5)
}

impl Family {
    fn push(&mut self, size: u32, values: &[f64]) {
        self.sizes.push(size);
        for (row, value) in self.rows.iter_mut().zip(values) {
            row.values.push(*value);
        }
    }

    fn new(
        name: &'static str,
        title: &'static str,
        of: &'static str,
        rows: &[[&'static str; 2]],
    ) -> Self {
        let rows = rows.iter().map(|[what, unit]| Row { what, unit, values: Vec::new() });
        Self { name, title, of, sizes: Vec::new(), rows: rows.collect() }
    }

    fn plot(&self) -> Plot {
        let points = |row: &Row| {
            let sizes = self.sizes.iter().map(|n| f64::from(*n));
            sizes.zip(row.values.iter().copied()).collect()
        };
        let line =
            |row: &Row| Line { name: format!("{}, {}", row.what, row.unit), points: points(row) };
        Plot {
            title: self.title.to_owned(),
            x: self.of.to_owned(),
            y: "see the legend".to_owned(),
            lines: self.rows.iter().map(line).collect(),
        }
    }
}

/// Measures up to these sizes. `span` is given to each number of commands at once, `idle` is
/// how long a fleet does nothing.
pub(crate) async fn measure(
    workers: u32,
    entries: u32,
    span: Duration,
    idle: Duration,
) -> Result<Growth> {
    Ok(Growth(vec![
        commands(span).await.context("commands at the same time")?,
        jobs(entries).await.context("jobs in one worker")?,
        fleets(workers, idle).await.context("workers")?,
    ]))
}

async fn fleets(most: u32, idle: Duration) -> Result<Family> {
    let rows = [
        ["memory of the master", "MiB"],
        ["memory of etcd", "MiB"],
        ["all registered", "s"],
        ["last answer to a command", "s"],
        ["a job on all of them", "s"],
    ];
    let mut family =
        Family::new("growth-workers", "A fleet of simulated workers", "workers", &rows);
    for n in powers(10, most) {
        let found = fleet::measure(n, ROUNDS, idle).await?.json();
        let memory = |of: &str| found["memory_bytes"][of][1].as_f64().unwrap_or(f64::NAN) / MIB;
        let registered = found["registered_s"].as_f64().unwrap_or(f64::NAN);
        let placed = f64::from(n) / median(&found["known_per_s"]);
        let command = median(&found["command_s"]);
        family.push(n, &[memory("master"), memory("etcd"), registered, command, placed]);
    }
    Ok(family)
}

async fn jobs(most: u32) -> Result<Family> {
    let rows = [
        ["memory of each job", "bytes"],
        ["all loaded", "s"],
        ["a change", "us"],
        ["lateness, p50", "ms"],
        ["lateness, p99", "ms"],
    ];
    let mut family = Family::new("growth-jobs", "Cron jobs in one worker", "jobs", &rows);
    for n in powers(1_000, most) {
        // Few jobs fire seldom: one a second if there are a thousand.
        let span = Duration::from_secs(if n < 10_000 { 100 } else { 20 });
        let found = entries::measure(n, span).await?.json();
        let of = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let late = &found["lateness"]["scheduler"];
        let figures = [&found["bytes_each"], &found["load_seconds"], &found["change_us"]];
        let [bytes, load, change] = figures.map(of);
        family.push(n, &[bytes, load, change, of(&late["p50_ms"]), of(&late["p99_ms"])]);
    }
    Ok(family)
}

async fn commands(span: Duration) -> Result<Family> {
    let rows = [["rate", "commands/s"], ["time of one, p50", "ms"], ["time of one, p99", "ms"]];
    let title = "Commands at the same time, one worker";
    let mut family = Family::new("growth-commands", title, "commands in flight", &rows);
    let cluster = Cluster::builder().start().await;
    let exec = Exec::new(&cluster).await?;
    for n in powers(1, 1_000) {
        let Round { samples, rate } = exec.commands(n as usize, span).await?;
        let quantile = |q| super::stats::quantile(samples.clone(), q);
        family.push(n, &[rate, quantile(0.5), quantile(0.99)]);
    }
    Ok(family)
}

impl Growth {
    /// As tables that can be put into a page.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        for family in &self.0 {
            write!(out, "\n| {} |", family.of)?;
            family.sizes.iter().try_for_each(|n| write!(out, " {n} |"))?;
            write!(out, "\n|---|{}\n", "--:|".repeat(family.sizes.len()))?;
            for row in &family.rows {
                write!(out, "| {} ({}) |", row.what, row.unit)?;
                row.values.iter().try_for_each(|v| write!(out, " {v:.3} |"))?;
                writeln!(out)?;
            }
            writeln!(out, "\n![{}](plots/{}.svg)", family.title, family.name)?;
        }
        Ok(())
    }

    /// Draws a plot of each into `dir`.
    pub(crate) fn draw(&self, dir: &Path) -> Result<()> {
        let cannot = || format!("cannot write plots to {}", dir.display());
        std::fs::create_dir_all(dir).with_context(cannot)?;
        for family in &self.0 {
            let file = dir.join(format!("{}.svg", family.name));
            std::fs::write(file, family.plot().svg()).with_context(cannot)?;
        }
        Ok(())
    }
}
