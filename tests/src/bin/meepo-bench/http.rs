//! Requests as runs: through the engine of a worker, with its journal, spool and records,
//! next to a plain client that makes the same requests.

use super::{
    idle::{TICKS, family_ticks},
    stats::Round,
};
use anyhow::{Result, ensure};
use axum::{Router, routing::get};
use jiff::Timestamp;
use meepo_core::{
    id::{Name, RunId},
    job::{Assignment, Executor},
    run::{Cause, RunState},
};
use meepo_worker::engine::{Engine, Plan};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, task::JoinSet};

/// Requests in flight.
const IN_FLIGHT: usize = 256;

/// A server of one page, and who asks for it.
pub(crate) struct Http {
    url: String,
    client: reqwest::Client,
    engine: Arc<Engine>,
    job: Plan,
}

impl Http {
    /// Starts the server, and an engine with its files in `dir`.
    pub(crate) async fn new(dir: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let app = Router::new().route("/", get(async || "done\n"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mut assignment = Assignment::new(url.clone());
        assignment.executor = Executor::Http;
        let job = Plan {
            run_id: RunId(uuid::Uuid::now_v7()),
            job: Some(Name::new("bench")?),
            assignment: Arc::new(assignment),
            slot: Timestamp::now(),
            cause: Cause::Trigger,
            attempt: 1,
            fence: None,
            permit: None,
        };
        let engine = Engine::alone(Name::new("127.0.0.1")?, dir).await?;
        Ok(Self { url, client: reqwest::Client::new(), engine, job })
    }

    /// Measures both, and what they get done in a second of CPU time, the server's with it.
    pub(crate) async fn both(&self, span: Duration) -> Result<Vec<(&'static str, Round)>> {
        let mut found = Vec::new();
        for (name, of_cpu) in [("request", "request_cpu"), ("request_runs", "request_runs_cpu")] {
            let before = family_ticks(std::process::id())?;
            let round = match name {
                "request" => self.plain(span).await?,
                _ => self.runs(span).await?,
            };
            let ticks = family_ticks(std::process::id())? - before;
            let rate = round.samples.len() as f64 * TICKS / ticks as f64;
            found.push((name, round));
            found.push((of_cpu, Round { samples: vec![1e3 / rate], rate }));
        }
        Ok(found)
    }

    /// What a client without a scheduler does.
    async fn plain(&self, span: Duration) -> Result<Round> {
        let (client, url) = (self.client.clone(), self.url.clone());
        repeat(span, move || {
            let asked = client.get(&url).send();
            async move {
                let body = asked.await?.error_for_status()?.bytes().await?;
                ensure!(&body[..] == b"done\n", "the server answers {body:?}");
                Ok(())
            }
        })
        .await
    }

    /// Each request is a run: durably begun, its answer kept, its end recorded.
    async fn runs(&self, span: Duration) -> Result<Round> {
        let (engine, job) = (self.engine.clone(), self.job.clone());
        repeat(span, move || {
            let (engine, run_id) = (engine.clone(), RunId(uuid::Uuid::now_v7()));
            let plan = Plan { run_id, slot: Timestamp::now(), ..job.clone() };
            async move {
                let begun = engine.begin(&plan).await;
                let record = engine.execute(plan, begun, None, |_| None).await;
                let state = record.as_ref().map(|over| over.record.state);
                ensure!(state == Some(RunState::Success), "a request ended as {record:?}");
                Ok(())
            }
        })
        .await
    }
}

/// Does `once` again and again for `span`, in as many tasks as there are requests in flight.
async fn repeat<F>(span: Duration, once: impl Fn() -> F + Clone + Send + 'static) -> Result<Round>
where
    F: Future<Output = Result<()>> + Send,
{
    let begin = Instant::now();
    let mut lanes = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let once = once.clone();
        lanes.spawn(async move {
            let mut samples = Vec::new();
            while begin.elapsed() < span {
                let start = Instant::now();
                once().await?;
                samples.push(start.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(samples)
        });
    }
    let mut samples = Vec::new();
    while let Some(lane) = lanes.join_next().await {
        samples.extend(lane??);
    }
    Ok(Round { rate: samples.len() as f64 / begin.elapsed().as_secs_f64(), samples })
}
