//! How long a line takes from the write of a process to one who follows the run, through the
//! leading master and through another.

use super::stats::{Round, quantile};
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, future::try_join_all};
use meepo_tests::{Api, Cluster, eventually, secs};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Those who follow one run at the same time, half of them at each master.
const MANY: usize = 300;
/// Between two lines.
const PAUSE: &str = "0.05";

/// Two masters and a worker.
pub(crate) struct Follow {
    cluster: Cluster,
    leader: usize,
}

impl Follow {
    pub(crate) async fn new() -> Result<Self> {
        let cluster = Cluster::builder().masters(2).start().await;
        let api = cluster.api();
        // Builtins alone: a process for each line would be what is measured.
        let cmd =
            format!("exec 9<> <(:); while :; do echo $EPOCHREALTIME; read -t {PAUSE} -u 9; done");
        let spec =
            json!({"name": "talker", "cmd": cmd, "executor": "bash", "concurrency": "allow"});
        let (status, body) = api.post("/v1/jobs", spec).await;
        ensure!(status == 201, "{status} {body}");
        let leader =
            cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await.json();
        let leader = usize::from(leader["http"] != cluster.master(0).api().base());
        Ok(Self { cluster, leader })
    }

    /// One follower at each master, and many at both.
    pub(crate) async fn round(&self, span: Duration) -> Result<Vec<(&'static str, Round)>> {
        let leader = self.cluster.master(self.leader).api();
        let other = self.cluster.master(1 - self.leader).api();
        let mut found = Vec::new();
        for (name, apis) in [
            ("follow_leader", vec![leader.clone()]),
            ("follow_other", vec![other.clone()]),
            ("follow_many", [vec![leader; MANY / 2], vec![other; MANY / 2]].concat()),
        ] {
            found.push((name, self.lines(&apis, span).await?));
        }
        Ok(found)
    }

    /// A run that is followed by one at each of `apis` for `span`.
    async fn lines(&self, apis: &[Api], span: Duration) -> Result<Round> {
        let api = self.cluster.api();
        let triggered = eventually(secs(30), "a run is accepted", async || {
            let (status, body) = api.post("/v1/jobs/talker/trigger", json!({})).await;
            if status == 202 { Ok(body) } else { Err(format!("{status} {body}")) }
        })
        .await;
        let run = triggered["runs"][0]["run_id"].as_str().context("no run")?;
        let samples = try_join_all(apis.iter().map(|api| follow(api, run, span))).await?;
        let (status, body) = api.post(&format!("/v1/runs/{run}/kill"), json!({})).await;
        ensure!(status == 202, "{status} {body}");
        let samples: Vec<f64> = samples.concat();
        ensure!(quantile(samples.clone(), 0.5) > 0.0, "no line in {span:?}");
        Ok(Round { rate: samples.len() as f64 / span.as_secs_f64(), samples })
    }
}

/// Milliseconds that each line took.
async fn follow(api: &Api, run: &str, span: Duration) -> Result<Vec<f64>> {
    let path = format!("/v1/runs/{run}/output?follow=true");
    let mut bytes = api.stream(&path).await.error_for_status()?.bytes_stream();
    let (mut rest, mut samples) = (Vec::new(), Vec::new());
    // The first lines were written before anybody followed.
    let warm = tokio::time::Instant::now() + Duration::from_millis(500);
    let end = warm + span;
    while let Ok(Some(part)) = tokio::time::timeout_at(end, bytes.next()).await {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        rest.extend_from_slice(&part?);
        while let Some(at) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=at).collect();
            let event: Value = serde_json::from_slice(&line)?;
            let text = event["text"].as_str().unwrap_or_default();
            if tokio::time::Instant::now() < warm {
                continue;
            }
            for written in text.lines() {
                let written: f64 = written.replace(',', ".").parse()?;
                samples.push((now - written) * 1e3);
            }
        }
    }
    Ok(samples)
}
