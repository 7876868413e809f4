//! Jobs run on demand: through etcd to the worker, their records to the log store.

use super::{COMMAND, stats::Round};
use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use meepo_tests::{Api, Cluster};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The job's name.
const JOB: &str = "bench";
/// Triggers in flight during a burst.
const IN_FLIGHT: usize = 16;
/// Longest time until a run is in the log store.
const PATIENCE: Duration = Duration::from_secs(30);

/// A job that is run on demand.
pub(crate) struct Jobs {
    api: Api,
    burst: u32,
}

/// A trigger that was accepted.
pub(crate) struct Sent {
    pub(crate) run: String,
    at: Timestamp,
    accepted: f64,
}

impl Jobs {
    /// Defines the job.
    pub(crate) async fn new(cluster: &Cluster, burst: u32) -> Result<Self> {
        let jobs = Self { api: cluster.api(), burst };
        // Runs of a burst overlap, which is what a burst is for.
        let spec = json!({"name": JOB, "cmd": COMMAND, "executor": "exec", "concurrency": "allow"});
        jobs.define(&spec).await?;
        Ok(jobs)
    }

    /// Defines another job.
    pub(crate) async fn define(&self, spec: &Value) -> Result<()> {
        let (status, answer) = self.http("POST", "/v1/jobs", Some(spec)).await?;
        ensure!(status == 201, "the job is not accepted: {status} {answer}");
        Ok(())
    }

    /// Each run is waited for until its record is in the log store.
    pub(crate) async fn one_at_a_time(&self, span: Duration) -> Result<Vec<(&'static str, Round)>> {
        let begin = Instant::now();
        let (mut accepted, mut started, mut stored) = (Vec::new(), Vec::new(), Vec::new());
        while begin.elapsed() < span {
            let start = Instant::now();
            let sent = self.trigger(JOB).await?;
            let record = self.record(&sent.run, Duration::from_millis(1)).await?;
            stored.push(start.elapsed().as_secs_f64() * 1e3);
            started.push(delay(&record, "started_at", sent.at)?);
            accepted.push(sent.accepted);
        }
        let rate = stored.len() as f64 / begin.elapsed().as_secs_f64();
        let round = |samples| Round { samples, rate };
        Ok(vec![
            ("job_accepted", round(accepted)),
            ("job_started", round(started)),
            ("job_stored", round(stored)),
        ])
    }

    /// As many as the burst has, as fast as they are accepted; waits for all records.
    pub(crate) async fn burst(&self) -> Result<Vec<(&'static str, Round)>> {
        let first = Timestamp::now();
        let begin = Instant::now();
        let sent: Vec<Sent> = stream::iter(0..self.burst)
            .map(|_| self.trigger(JOB))
            .buffer_unordered(IN_FLIGHT)
            .try_collect()
            .await?;
        let accepted_in = begin.elapsed().as_secs_f64();
        let records = self.all(first).await?;
        let stored_in = begin.elapsed().as_secs_f64();
        let (mut started, mut ended) = (Vec::new(), Vec::new());
        for Sent { run, at, .. } in &sent {
            let record = records.iter().find(|r| r["run_id"] == run.as_str());
            let record = record.with_context(|| format!("no record of the run {run}"))?;
            started.push(delay(record, "started_at", *at)?);
            ended.push(delay(record, "ended_at", first)?);
        }
        let ended_in = ended.iter().copied().fold(0.0, f64::max) / 1e3;
        let accepted = sent.iter().map(|s| s.accepted).collect();
        let n = f64::from(self.burst);
        Ok(vec![
            ("burst_accepted", Round { samples: accepted, rate: n / accepted_in }),
            ("burst_started", Round { samples: started, rate: n / ended_in }),
            // Only the whole is of interest: when nothing is missing any more.
            ("burst_stored", Round { samples: vec![stored_in * 1e3], rate: n / stored_in }),
        ])
    }

    /// Asks for a run of a job.
    pub(crate) async fn trigger(&self, job: &str) -> Result<Sent> {
        let (at, start) = (Timestamp::now(), Instant::now());
        let path = format!("/v1/jobs/{job}/trigger");
        let (status, answer) = self.http("POST", &path, Some(&json!({}))).await?;
        ensure!(status == 202, "{path} answers {status} {answer}");
        let run = answer["runs"][0]["run_id"].as_str().context("no run in the answer")?;
        Ok(Sent { run: run.to_owned(), at, accepted: start.elapsed().as_secs_f64() * 1e3 })
    }

    /// Waits for the final record of a run, looking for it each `step`.
    pub(crate) async fn record(&self, run: &str, step: Duration) -> Result<Value> {
        let (begin, path) = (Instant::now(), format!("/v1/runs/{run}"));
        while begin.elapsed() < PATIENCE {
            let (status, record) = self.http("GET", &path, None).await?;
            if status == 200 && record["state"] == "success" {
                return Ok(record);
            }
            let under_way = status == 404 || record["state"] == "running";
            ensure!(under_way, "{path} answers {status} {record}");
            tokio::time::sleep(step).await;
        }
        bail!("the run {run} was not in the log store after {PATIENCE:?}")
    }

    /// Waits for the final records of a burst.
    async fn all(&self, since: Timestamp) -> Result<Vec<Value>> {
        // Slots are kept in milliseconds.
        let since = since.strftime("%Y-%m-%dT%H:%M:%S.%3fZ");
        let path = format!("/v1/runs?job={JOB}&state=success&since={since}&limit=1000");
        let begin = Instant::now();
        let mut seen = 0;
        while begin.elapsed() < PATIENCE {
            let (status, mut answer) = self.http("GET", &path, None).await?;
            let runs = answer["runs"].as_array_mut().map(std::mem::take);
            let runs = runs.with_context(|| format!("{path} answers {status} {answer}"))?;
            if runs.len() >= self.burst as usize {
                return Ok(runs);
            }
            seen = runs.len();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("{seen} of {} runs were in the log store after {PATIENCE:?}", self.burst)
    }

    async fn http(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        self.api.try_http(method, path, body).await.map_err(|e| anyhow!(e))
    }
}

/// Milliseconds from `from` to a time in a record. Records cut times to milliseconds,
/// so what they say is half of one too early on average, which is added here.
fn delay(record: &Value, field: &str, from: Timestamp) -> Result<f64> {
    let text = record[field].as_str().with_context(|| format!("{field} is missing: {record}"))?;
    let at: Timestamp = text.parse()?;
    Ok(at.duration_since(from).as_secs_f64() * 1e3 + 0.5)
}
