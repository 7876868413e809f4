//! What the log store and etcd know when everything has come to rest.

use crate::{
    check::{Part, Run, Task},
    load::Put,
    stage::Stage,
};
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use meepo_tests::{Api, secs};
use serde_json::Value;
use std::collections::BTreeMap;

/// Requests at the same time.
const AT_ONCE: usize = 16;
/// Keys that are there only while something is under way.
const BRIEF: [&str; 6] = [
    "/meepo/rerun/",
    "/cron/tasks/",
    "/meepo/tasks/",
    "/meepo/parts/",
    "/cron/trigger/",
    "/cron/kill/",
];

async fn get(api: &Api, path: &str) -> Result<Value> {
    let mut last = String::new();
    for _ in 0..5 {
        match api.try_http("GET", path, None).await {
            Ok((200, body)) => return Ok(body),
            Ok((status, body)) => last = format!("{status} {body}"),
            Err(e) => last = e,
        }
        tokio::time::sleep(secs(1)).await;
    }
    anyhow::bail!("GET {path}: {last}")
}

/// Every record of a run there is.
///
/// # Errors
/// When the API does not give them.
pub(crate) async fn runs(api: &Api) -> Result<Vec<Run>> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = get(api, &format!("/v1/runs?limit=1000{cursor}")).await?;
        for run in page["runs"].as_array().context("a list of runs")? {
            all.push(read_run(run).with_context(|| format!("a run: {run}"))?);
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(all),
        }
    }
}

fn read_run(run: &Value) -> Option<Run> {
    let text = |field: &str| run[field].as_str().map(str::to_owned);
    Some(Run {
        id: text("run_id")?,
        job: text("job"),
        node: text("node")?,
        slot: run["slot"].as_str()?.parse().ok()?,
        attempt: u32::try_from(run["attempt"].as_u64()?).ok()?,
        state: text("state")?,
        code: run["code"].as_u64()?,
        fence: run["fence"].as_i64(),
        dropped: run["dropped_bytes"].as_u64().unwrap_or(0),
        message: text("message"),
    })
}

/// What runs have written, as it is kept.
///
/// # Errors
/// When the API does not give it.
pub(crate) async fn outputs(api: &Api, runs: &[Run]) -> Result<BTreeMap<String, String>> {
    let began = runs.iter().filter(|r| !matches!(r.state.as_str(), "missed" | "skipped"));
    let all = stream::iter(began).map(|run| async move {
        let (mut text, mut after) = (String::new(), String::new());
        loop {
            let page = get(api, &format!("/v1/runs/{}/output?limit=10000{after}", run.id)).await?;
            let chunks = page["chunks"].as_array().context("chunks")?;
            text.extend(chunks.iter().filter_map(|c| c["text"].as_str()));
            if chunks.is_empty() {
                return Ok::<_, anyhow::Error>((run.id.clone(), text));
            }
            after = format!("&after={}", page["next_after"]);
        }
    });
    all.buffer_unordered(AT_ONCE).try_collect().await
}

/// What became of the tasks that were accepted.
///
/// # Errors
/// When the API does not give them.
pub(crate) async fn tasks(api: &Api, put: &[Put]) -> Result<Vec<Task>> {
    let all = stream::iter(put).map(|put| async move {
        let mut task = Task {
            key: put.key.clone(),
            id: put.id.clone(),
            refused: put.refused.is_some(),
            bury: put.bury,
            state: None,
            parts: Vec::new(),
        };
        if let Some(id) = &put.id {
            let (status, body) = api
                .try_http("GET", &format!("/v1/tasks/{id}"), None)
                .await
                .map_err(anyhow::Error::msg)?;
            ensure!(status == 200 || status == 404, "GET /v1/tasks/{id}: {status} {body}");
            task.state = body["state"].as_str().map(str::to_owned);
            let parts = body["parts"].as_array().into_iter().flatten();
            task.parts = parts
                .map(|p| Part {
                    id: p["id"].as_str().unwrap_or_default().to_owned(),
                    state: p["state"].as_str().unwrap_or_default().to_owned(),
                })
                .collect();
        }
        Ok::<_, anyhow::Error>(task)
    });
    all.buffered(AT_ONCE).try_collect().await
}

/// Tasks that are not over, by the state of their parts.
///
/// # Errors
/// When the API does not answer.
pub(crate) async fn unfinished(api: &Api) -> Result<usize, String> {
    let (status, body) =
        api.try_http("GET", "/v1/tasks?limit=1000&state=waiting,running,paused", None).await?;
    match body["tasks"].as_array() {
        Some(tasks) if status == 200 => Ok(tasks.len()),
        _ => Err(format!("{status} {body}")),
    }
}

/// Items that wait in the spools, and runs under way, over all workers.
///
/// # Errors
/// When a worker does not answer.
pub(crate) async fn waiting(stage: &Stage) -> Result<i64, String> {
    let mut sum = 0;
    for worker in &stage.workers {
        let (_, text) = worker.metrics.try_http("GET", "/metrics", None).await?;
        let text = text.as_str().unwrap_or_default();
        for name in ["meepo_worker_spool_items ", "meepo_worker_running "] {
            let line = text.lines().find_map(|l| l.strip_prefix(name));
            let value = line.ok_or_else(|| format!("{} has no {name}", worker.name))?;
            sum += value.parse::<i64>().map_err(|e| e.to_string())?;
        }
    }
    Ok(sum)
}

/// Keys in etcd that should be gone; of tasks that are buried they stay.
///
/// # Errors
/// When etcd does not answer.
pub(crate) async fn keys(stage: &Stage, tasks: &[Task]) -> Result<Vec<String>> {
    let buried: Vec<&str> = tasks
        .iter()
        .filter(|t| t.state.as_deref() == Some("buried"))
        .filter_map(|t| t.id.as_deref())
        .collect();
    let mut found = Vec::new();
    for prefix in BRIEF {
        let text = stage.etcdctl(0, &["get", "--prefix", "--keys-only", prefix]).await?;
        let keys = text.lines().filter(|l| !l.is_empty());
        found.extend(keys.filter(|k| !buried.iter().any(|id| k.contains(id))).map(str::to_owned));
    }
    Ok(found)
}
