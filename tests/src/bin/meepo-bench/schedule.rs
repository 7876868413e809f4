//! A busy schedule on one machine: thousands of jobs every few seconds, with etcd,
//! master, worker and log store on the same CPUs as the processes they start.

use super::{COMMAND, idle, stats::quantile};
use anyhow::{Context, Result, anyhow, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use meepo_core::run::RunState;
use meepo_logstore::RunQuery;
use meepo_tests::{Cluster, eventually, secs};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Seconds between two slots of a job.
const EVERY: i64 = 5;
/// Between two requests to the API.
const PAUSE: Duration = Duration::from_millis(10);
/// What the API is asked, in turn.
const ASKED: [&str; 4] =
    ["/v1/nodes", "/v1/jobs/every-7", "/v1/runs?limit=20", "/v1/runs?job=every-7"];

/// What was found.
pub(crate) struct Schedule {
    jobs: u32,
    /// Slots watched, each once for every job.
    slots: u32,
    /// Runs expected that have no record of success, by what became of them.
    missing: BTreeMap<String, u64>,
    /// From slot to start of the process, milliseconds.
    late: Vec<f64>,
    /// Milliseconds of requests to the API meanwhile, by path.
    api: BTreeMap<&'static str, Vec<f64>>,
    /// CPU time in percent of one CPU, by process.
    cpu: Vec<(&'static str, f64)>,
}

/// Runs `jobs` jobs for `span`.
pub(crate) async fn measure(jobs: u32, span: Duration) -> Result<Schedule> {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let apply = async |n: u32| -> Result<()> {
        let spec = json!({
            "name": format!("every-{n}"), "cmd": COMMAND, "executor": "exec",
            "schedule": format!("@every {EVERY}s"),
        });
        let answer = api.try_http("POST", "/v1/jobs", Some(&spec)).await;
        let (status, answer) = answer.map_err(|e| anyhow!(e))?;
        ensure!(status == 201, "a job is not accepted: {status} {answer}");
        Ok(())
    };
    stream::iter(0..jobs).map(apply).buffer_unordered(16).try_collect::<()>().await?;
    idle::wait_jobs(&cluster, jobs).await;
    eprintln!("schedule: {jobs} jobs are loaded");
    // The first whole slots from now on, and as many as fit.
    let second = Timestamp::now().as_second();
    let first = Timestamp::from_second(second + 2 * EVERY - second % EVERY)?;
    let slots = u32::try_from((span.as_secs() as i64 / EVERY).max(1))?;
    let end = first + SignedDuration::from_secs(EVERY * i64::from(slots));
    let until = |t: Timestamp| t.duration_since(Timestamp::now()).unsigned_abs();
    tokio::time::sleep(until(first)).await;
    let processes = idle::processes(&cluster);
    let before = processes.map(|(_, pid)| idle::cpu_ticks(pid));
    let api = probe(&cluster, until(end)).await?;
    let mut cpu = Vec::new();
    for ((process, pid), before) in processes.into_iter().zip(before) {
        let ticks = idle::cpu_ticks(pid)? - before?;
        cpu.push((process, ticks as f64 / (EVERY * i64::from(slots)) as f64));
    }
    let store = meepo_logstore::open(cluster.logs()).await?;
    let wanted = u64::from(jobs) * u64::from(slots);
    // The last ones may be on their way.
    let (by, late) = eventually(secs(30), "all runs are in the log store", async || {
        let (mut by, mut late) = (BTreeMap::<String, u64>::new(), Vec::new());
        let range = (Some(first), Some(end));
        let mut query = RunQuery { since: range.0, until: range.1, ..RunQuery::default() };
        query.limit = Some(1000);
        loop {
            let page = store.list_runs(&query).await.map_err(|e| e.to_string())?;
            for run in page.runs {
                *by.entry(run.state.to_string()).or_default() += 1;
                let started = run.started_at.filter(|_| run.state == RunState::Success);
                late.extend(started.map(|t| t.duration_since(run.slot).as_secs_f64() * 1e3));
            }
            query.cursor = page.next;
            if query.cursor.is_none() {
                break;
            }
        }
        match by.values().sum::<u64>() {
            n if n >= wanted && !by.contains_key("running") => Ok((by, late)),
            n => Err(format!("{n} of {wanted}: {by:?}")),
        }
    })
    .await;
    ensure!(late.len() as u64 <= wanted, "more runs than slots");
    let missing = by.into_iter().filter(|(state, _)| state != "success").collect();
    Ok(Schedule { jobs, slots, missing, late, api, cpu })
}

/// Asks this and that of the API, one after the other.
async fn probe(cluster: &Cluster, span: Duration) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    let (api, begin, mut samples) = (cluster.api(), Instant::now(), BTreeMap::new());
    for path in ASKED.into_iter().cycle() {
        if begin.elapsed() >= span {
            break;
        }
        let start = Instant::now();
        let answer = api.try_http("GET", path, None).await;
        let (status, answer) = answer.map_err(|e| anyhow!(e)).context("the API is away")?;
        ensure!(status == 200, "{path} answers {status} {answer}");
        let samples: &mut Vec<f64> = samples.entry(path).or_default();
        samples.push(start.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(samples)
}

impl Schedule {
    /// As lines of a table.
    pub(crate) fn table(&self) -> String {
        let late = |q| quantile(self.late.clone(), q);
        let mut out = format!(
            "\n{} jobs every {EVERY} s, {} slots each: {} runs, {:.0} a second\n",
            self.jobs,
            self.slots,
            self.late.len(),
            f64::from(self.jobs) / EVERY as f64,
        );
        out.push_str(&format!("  not run, by state: {:?}\n", self.missing));
        out.push_str(&format!(
            "  start after the slot: p50 {:.0} ms, p99 {:.0} ms, last {:.0} ms\n",
            late(0.5),
            late(0.99),
            late(1.0)
        ));
        let all = ("all requests", self.api.values().flatten().copied().collect());
        let by_path = self.api.iter().map(|(path, samples)| (*path, samples.clone()));
        for (what, samples) in std::iter::once::<(&str, Vec<f64>)>(all).chain(by_path) {
            let [p50, p99, worst] = [0.5, 0.99, 1.0].map(|q| quantile(samples.clone(), q));
            out.push_str(&format!(
                "  API: p50 {p50:>6.1} ms, p99 {p99:>6.1} ms, worst {worst:>6.1} ms: {what} ({})\n",
                samples.len()
            ));
        }
        for (process, cpu) in &self.cpu {
            out.push_str(&format!("  CPU time of the {process}: {cpu:.0}% of one\n"));
        }
        out
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let late = |q| quantile(self.late.clone(), q);
        let all: Vec<f64> = self.api.values().flatten().copied().collect();
        let api = |q| quantile(all.clone(), q);
        json!({
            "jobs": self.jobs,
            "every_seconds": EVERY,
            "runs": self.late.len(),
            "not_run": self.missing,
            "late_ms": {"p50": late(0.5), "p99": late(0.99), "last": late(1.0)},
            "api_ms": {"p50": api(0.5), "p99": api(0.99), "worst": api(1.0)},
            "cpu_percent": self.cpu.iter().copied().collect::<BTreeMap<_, _>>(),
        })
    }
}
