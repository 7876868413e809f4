//! What processes cost that have nothing to do.

use anyhow::{Context, Result, anyhow, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use meepo_tests::{Cluster, eventually, secs};
use serde_json::{Value, json};
use std::{fs, time::Duration};

/// Time to settle before the watch begins.
const SETTLE: Duration = Duration::from_secs(2);
/// Ticks per second in `/proc/PID/stat`; the same on every Linux there is.
pub(crate) const TICKS: f64 = 100.0;

/// One process over an interval.
#[derive(Debug, Clone)]
pub(crate) struct Usage {
    pub(crate) process: &'static str,
    /// Resident memory at the end, bytes.
    pub(crate) resident: u64,
    /// The part of it that is not backed by files, bytes.
    pub(crate) anonymous: u64,
    /// Threads at the end.
    pub(crate) threads: u64,
    /// CPU time used, in percent of one CPU.
    pub(crate) cpu: f64,
}

/// The processes of a cluster by name.
pub(crate) fn processes(cluster: &Cluster) -> [(&'static str, u32); 3] {
    [
        ("worker", cluster.worker(0).process().pid()),
        ("master", cluster.master(0).process().pid()),
        ("etcd", cluster.member(0).process().pid()),
    ]
}

/// Watches worker, master and etcd for `span`.
pub(crate) async fn watch(cluster: &Cluster, span: Duration) -> Result<Vec<Usage>> {
    let processes = processes(cluster);
    tokio::time::sleep(SETTLE).await;
    let before = processes.map(|(_, pid)| cpu_ticks(pid));
    tokio::time::sleep(span).await;
    let mut all = Vec::new();
    for ((process, pid), before) in processes.into_iter().zip(before) {
        let ticks = cpu_ticks(pid)?.saturating_sub(before?);
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("the {process} has gone"))?;
        all.push(Usage {
            process,
            resident: field(&status, "VmRSS")? * 1024,
            anonymous: field(&status, "RssAnon")? * 1024,
            threads: field(&status, "Threads")?,
            cpu: ticks as f64 / TICKS / span.as_secs_f64() * 100.0,
        });
    }
    Ok(all)
}

/// Resident memory of a process, bytes.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    Ok(field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS")? * 1024)
}

/// A number in `/proc/PID/status`.
fn field(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no {name} in /proc/PID/status"))
}

/// CPU time of a process, all threads, user and system.
pub(crate) fn cpu_ticks(pid: u32) -> Result<u64> {
    Ok(ticks(pid)?[..2].iter().sum())
}

/// The same with that of its children that have ended.
pub(crate) fn family_ticks(pid: u32) -> Result<u64> {
    Ok(ticks(pid)?.iter().sum())
}

/// User and system time of a process, then of its children that have ended (proc_pid_stat(5)).
fn ticks(pid: u32) -> Result<[u64; 4]> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may hold anything.
    let (_, rest) = text.rsplit_once(')').context("unreadable /proc/PID/stat")?;
    let times = rest.split_whitespace().skip(11).take(4).map(str::parse::<u64>);
    let times: Vec<u64> = times.collect::<Result<_, _>>()?;
    times.try_into().map_err(|_| anyhow!("unreadable /proc/PID/stat"))
}

/// Defines `count` jobs that are not due for months and waits until the worker holds
/// them all.
pub(crate) async fn load_jobs(cluster: &Cluster, count: u32) -> Result<()> {
    let api = cluster.api();
    let apply = async |n: u32| -> Result<()> {
        let schedule = format!("{} {} 29 2 *", n % 60, n / 60 % 24);
        let spec = json!({"name": format!("idle-{n}"), "cmd": "date", "schedule": schedule});
        let answer = api.try_http("POST", "/v1/jobs", Some(&spec)).await;
        let (status, answer) = answer.map_err(|e| anyhow!(e))?;
        ensure!(status == 201, "a job is not accepted: {status} {answer}");
        Ok(())
    };
    stream::iter(0..count).map(apply).buffer_unordered(16).try_collect::<()>().await?;
    wait_jobs(cluster, count).await;
    Ok(())
}

/// Waits until the worker holds `count` jobs.
pub(crate) async fn wait_jobs(cluster: &Cluster, count: u32) {
    let metrics = cluster.worker(0).metrics();
    let wanted = format!("meepo_worker_jobs {count}");
    eventually(secs(60), format!("the worker holds {count} jobs"), async || {
        match metrics.try_http("GET", "/metrics", None).await? {
            (200, Value::String(text)) if text.lines().any(|l| l == wanted) => Ok(()),
            (status, _) => Err(format!("/metrics answers {status} without {wanted:?}")),
        }
    })
    .await;
}
