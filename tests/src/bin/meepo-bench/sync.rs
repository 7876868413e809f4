//! Synchronous commands through the whole path, over kept-alive connections.

use super::{COMMAND, stats::Round};
use anyhow::{Result, anyhow, ensure};
use futures::future::try_join_all;
use meepo_tests::{Api, Cluster, eventually, secs};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A client of `POST /v1/exec`.
pub(crate) struct Exec {
    api: Api,
    body: Value,
}

impl Exec {
    /// Waits until the worker takes commands.
    pub(crate) async fn new(cluster: &Cluster) -> Result<Self> {
        let body = json!({
            "id": "bench",
            "hosts": [cluster.worker(0).node()],
            "method": "sync.exec",
            "cmd": COMMAND,
        });
        let exec = Self { api: cluster.api(), body };
        eventually(secs(30), "the worker takes commands", async || {
            exec.command().await.map_err(|e| e.to_string())
        })
        .await;
        Ok(exec)
    }

    async fn command(&self) -> Result<()> {
        let answer = self.api.try_http("POST", "/v1/exec", Some(&self.body)).await;
        let (status, answer) = answer.map_err(|e| anyhow!(e))?;
        let code = &answer["response"][0]["retcode"];
        ensure!(status == 200 && *code == 0, "/v1/exec answers {status} {answer}");
        Ok(())
    }

    /// Commands with `at_once` in flight.
    pub(crate) async fn commands(&self, at_once: usize, span: Duration) -> Result<Round> {
        repeat(at_once, span, async || self.command().await).await
    }

    /// The least a request can take: one that the master answers by itself.
    pub(crate) async fn nothing(&self, span: Duration) -> Result<Round> {
        repeat(1, span, async || {
            let answer = self.api.try_http("GET", "/healthz", None).await;
            let (status, _) = answer.map_err(|e| anyhow!(e))?;
            ensure!(status == 200, "/healthz answers {status}");
            Ok(())
        })
        .await
    }
}

/// Does `once` again and again for `span`, `at_once` times at the same time.
async fn repeat(
    at_once: usize,
    span: Duration,
    once: impl AsyncFn() -> Result<()>,
) -> Result<Round> {
    let begin = Instant::now();
    let lanes = (0..at_once).map(async |_| {
        let mut samples = Vec::new();
        while begin.elapsed() < span {
            let start = Instant::now();
            once().await?;
            samples.push(start.elapsed().as_secs_f64() * 1e3);
        }
        anyhow::Ok(samples)
    });
    let samples = try_join_all(lanes).await?.concat();
    Ok(Round { rate: samples.len() as f64 / begin.elapsed().as_secs_f64(), samples })
}
