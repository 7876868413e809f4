//! A command that writes as fast as it can: to `cat > /dev/null`, and as a job.

use super::{jobs::Jobs, stats::Round};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use meepo_tests::Cluster;
use serde_json::{Value, json};
use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

/// MiB that one command writes.
const FLOOD: u64 = 512;
/// How much more memory the worker may have used at any time, in KiB. A flood that is
/// held anywhere would be a hundred times that.
const MORE_MEMORY: u64 = 8 * 1024;
/// Far apart, as looking takes CPU time from what is measured.
const STEP: Duration = Duration::from_millis(50);

/// Floods of output.
pub(crate) struct Output {
    worker: u32,
    /// Most memory the worker had used before, in KiB.
    before: u64,
}

impl Output {
    /// Defines the jobs.
    pub(crate) async fn new(cluster: &Cluster, jobs: &Jobs) -> Result<Self> {
        for keep in ["head", "tail"] {
            let args = [format!("-c{FLOOD}M"), "/dev/zero".to_owned()];
            let spec = json!({"name": format!("flood-{keep}"), "cmd": "/usr/bin/head", "args": args,
                              "executor": "exec", "output_keep": keep});
            jobs.define(&spec).await?;
        }
        let worker = cluster.worker(0).process().pid();
        Ok(Self { worker, before: peak(worker)? })
    }

    /// Without meepo.
    pub(crate) async fn raw(&self, span: Duration) -> Result<Round> {
        let script = format!("head -c{FLOOD}M /dev/zero | cat > /dev/null");
        tokio::task::spawn_blocking(move || {
            let (begin, mut samples) = (Instant::now(), Vec::new());
            while begin.elapsed() < span {
                let start = Instant::now();
                let status = Command::new("sh").args(["-c", &script]).status()?;
                ensure!(status.success(), "{script}: {status}");
                samples.push(start.elapsed().as_secs_f64() * 1e3);
            }
            Ok(round(samples))
        })
        .await?
    }

    /// As a job that keeps the first or the last 64 KiB: from the start of its process to
    /// its end.
    pub(crate) async fn job(&self, jobs: &Jobs, keep: &str, span: Duration) -> Result<Round> {
        let (begin, mut samples) = (Instant::now(), Vec::new());
        while begin.elapsed() < span {
            let sent = jobs.trigger(&format!("flood-{keep}")).await?;
            let record = jobs.record(&sent.run, STEP).await?;
            ensure!(
                record["output_bytes"] == FLOOD << 20
                    && record["dropped_bytes"] == (FLOOD << 20) - (64 << 10),
                "not everything is counted: {record}"
            );
            let took =
                instant(&record, "ended_at")?.duration_since(instant(&record, "started_at")?);
            samples.push(took.as_secs_f64() * 1e3);
        }
        let more = peak(self.worker)?.saturating_sub(self.before);
        ensure!(more < MORE_MEMORY, "floods of output made the worker grow by {more} KiB");
        Ok(round(samples))
    }
}

/// The rate is in MiB per second, as long as something was written.
fn round(samples: Vec<f64>) -> Round {
    let seconds = samples.iter().sum::<f64>() / 1e3;
    Round { rate: FLOOD as f64 * samples.len() as f64 / seconds, samples }
}

fn instant(record: &Value, field: &str) -> Result<Timestamp> {
    let text = record[field].as_str().with_context(|| format!("no {field} in {record}"))?;
    Ok(text.parse()?)
}

/// The most memory a process has ever had resident, in KiB.
fn peak(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let number = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    number.context("no VmHWM in /proc/PID/status")
}
