//! One function per path: read, call [`Ops`](crate::ops::Ops), write.

use super::{
    App,
    extract::{Body, NamePath, Params, RunPath, read},
    stream::{ndjson, view},
};
use crate::{
    audit,
    error::{ApiError, ApiResult},
    ops::ExecItem,
};
use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use meepo_core::{
    api::{
        Action, Applied, DrainRequest, ErrorBody, ExecEvent, ExecHost, ExecRequest, ExecResponse,
        ExecStreamRequest, HostAnswer, NodeView, RunRef, TriggerRequest, Triggered,
    },
    calendar::{self, Schedule},
    code::Code,
    error::Invalid,
    job::{Executor, JobSpec, JobStatus},
    run::RunRecord,
    tree::JobDocument,
};
use meepo_runtime::metrics::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

/// Most slots in one answer.
const MAX_NEXT: usize = 1000;

/// Alive: the process answers.
#[utoipa::path(get, path = "/healthz", tag = "meepo", responses((status = 200)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Metrics in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", tag = "meepo", responses((status = 200)))]
pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    app.ops.count_breakers();
    app.ops.metrics.observe(&app.ops.view, &app.ops.board);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.ops.metrics.exposition.text())
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "meepo", responses((status = 200)))]
pub(super) async fn openapi(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], app.openapi.to_string())
}

/// Creates or replaces the definition named in the body; with a field `tree` at that place in
/// the product tree.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", request_body = JobSpec,
    responses((status = 200, body = Applied), (status = 201, body = Applied),
        (status = 400, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn post_job(State(app): State<App>, body: Body) -> ApiResult<Response> {
    apply(app, body.0).await
}

/// Creates or replaces a definition. The name may stand in the body, but no other.
#[utoipa::path(put, path = "/v1/jobs/{name}", tag = "jobs", request_body = JobSpec,
    params(("name" = String, Path, description = "The job")),
    responses((status = 200, body = Applied), (status = 201, body = Applied),
        (status = 400, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn put_job(
    State(app): State<App>,
    NamePath(name): NamePath,
    body: Body,
) -> ApiResult<Response> {
    let mut value = body.0;
    if let Some(object) = value.as_object_mut() {
        let inside = object.entry("name").or_insert_with(|| Value::String(name.to_string()));
        if *inside != Value::String(name.to_string()) {
            let problem = format!("{inside} is not the name in the path");
            return Err(Invalid::new(
                Code::BAD_NAME,
                "name",
                problem,
                format!("{:?}", name.as_str()),
            )
            .into());
        }
    }
    apply(app, value).await
}

async fn apply(app: App, value: Value) -> ApiResult<Response> {
    // Also what is refused is about something.
    if let Some(name) = value.get("name").and_then(Value::as_str) {
        audit::object("job", name);
    }
    let applied = app.ops.apply(JobDocument::from_user(value)?).await?;
    let status = match applied.action {
        Action::Created => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    Ok((status, Json(applied)).into_response())
}

/// Keeps the job but starts nothing on schedule.
#[utoipa::path(post, path = "/v1/jobs/{name}/pause", tag = "jobs",
    params(("name" = String, Path, description = "The job")),
    responses((status = 200, body = Applied), (status = 404, body = ErrorBody)))]
pub(super) async fn pause_job(
    State(app): State<App>,
    NamePath(name): NamePath,
) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.set_status(&name, JobStatus::Pause).await?))
}

/// Follows the schedule again, from now on.
#[utoipa::path(post, path = "/v1/jobs/{name}/resume", tag = "jobs",
    params(("name" = String, Path, description = "The job")),
    responses((status = 200, body = Applied), (status = 404, body = ErrorBody)))]
pub(super) async fn resume_job(
    State(app): State<App>,
    NamePath(name): NamePath,
) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.set_status(&name, JobStatus::Running).await?))
}

/// Runs a job now, whatever its schedule. 202 means kept: it will run.
#[utoipa::path(post, path = "/v1/jobs/{name}/trigger", tag = "jobs",
    params(("name" = String, Path, description = "The job")),
    request_body = Option<TriggerRequest>,
    responses((status = 202, body = Triggered), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "No node to run it on")))]
pub(super) async fn trigger_job(
    State(app): State<App>,
    NamePath(name): NamePath,
    body: Body,
) -> ApiResult<Response> {
    let request: TriggerRequest = body.read()?;
    let triggered = app.ops.trigger(&name, &request).await?;
    Ok((StatusCode::ACCEPTED, Json(triggered)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NextParams {
    #[serde(default, deserialize_with = "read::number")]
    n: Option<usize>,
}

/// The next slots of a job.
#[utoipa::path(get, path = "/v1/jobs/{name}/next", tag = "jobs",
    params(("name" = String, Path, description = "The job"),
        ("n" = Option<usize>, Query, description = "How many; default 5, at most 1000")),
    responses((status = 200, body = Vec<String>), (status = 404, body = ErrorBody)))]
pub(super) async fn next_slots(
    State(app): State<App>,
    NamePath(name): NamePath,
    Params(p): Params<NextParams>,
) -> ApiResult<Json<Vec<Timestamp>>> {
    Ok(Json(app.ops.next_slots(&name, p.n.unwrap_or(5).min(MAX_NEXT)).await?))
}

/// One run.
#[utoipa::path(get, path = "/v1/runs/{id}", tag = "runs",
    params(("id" = String, Path, description = "The run")),
    responses((status = 200, body = RunRecord), (status = 404, body = ErrorBody)))]
pub(super) async fn get_run(
    State(app): State<App>,
    RunPath(id): RunPath,
) -> ApiResult<Json<RunRecord>> {
    Ok(Json(app.ops.get_run(id).await?))
}

/// Asks for the end of a run.
#[utoipa::path(post, path = "/v1/runs/{id}/kill", tag = "runs",
    params(("id" = String, Path, description = "The run")),
    responses((status = 202, body = RunRef), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It has ended already")))]
pub(super) async fn kill_run(State(app): State<App>, RunPath(id): RunPath) -> ApiResult<Response> {
    Ok((StatusCode::ACCEPTED, Json(app.ops.kill(id).await?)).into_response())
}

/// One node.
#[utoipa::path(get, path = "/v1/nodes/{id}", tag = "nodes",
    params(("id" = String, Path, description = "The node")),
    responses((status = 200, body = NodeView), (status = 404, body = ErrorBody)))]
pub(super) async fn get_node(
    State(app): State<App>,
    NamePath(id): NamePath,
) -> ApiResult<Json<NodeView>> {
    Ok(Json(app.ops.get_node(&id).await?))
}

/// Asks a node to take nothing new; what runs there ends by itself or at the deadline.
/// Kept until taken back, also over restarts. Does not wait.
#[utoipa::path(post, path = "/v1/nodes/{id}/drain", tag = "nodes",
    params(("id" = String, Path, description = "The node")),
    request_body = Option<DrainRequest>,
    responses((status = 200, body = NodeView), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn drain_node(
    State(app): State<App>,
    NamePath(id): NamePath,
    body: Body,
) -> ApiResult<Json<NodeView>> {
    let request: DrainRequest = body.read()?;
    Ok(Json(app.ops.drain_node(&id, &request).await?))
}

/// Lets a node take work again.
#[utoipa::path(delete, path = "/v1/nodes/{id}/drain", tag = "nodes",
    params(("id" = String, Path, description = "The node")),
    responses((status = 200, body = NodeView), (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn undrain_node(
    State(app): State<App>,
    NamePath(id): NamePath,
) -> ApiResult<Json<NodeView>> {
    Ok(Json(app.ops.undrain_node(&id).await?))
}

/// Runs a command on hosts now and answers when all have: one answer per host, in the
/// order asked, unknown and offline ones included.
#[utoipa::path(post, path = "/v1/exec", tag = "exec", request_body = ExecRequest,
    responses((status = 200, body = ExecResponse), (status = 400, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn exec(State(app): State<App>, body: Body) -> ApiResult<Json<ExecResponse>> {
    let request: ExecRequest = body.read()?;
    let executor: Executor = match request.method.strip_prefix("sync.").map(str::parse) {
        Some(Ok(executor)) => executor,
        _ => {
            let problem = format!("unknown method {:?}", request.method);
            let expected = "sync.bash, sync.sh, sync.exec, sync.python or sync.http";
            return Err(Invalid::new(Code::UNKNOWN_EXECUTOR, "method", problem, expected).into());
        }
    };
    if request.hosts.is_empty() {
        let expected = "at least one node id";
        return Err(Invalid::new(Code::BAD_VALUE, "hosts", "empty list", expected).into());
    }
    let what = ExecStreamRequest {
        target: String::new(),
        cmd: request.cmd,
        args: Vec::new(),
        executor,
        timeout: request.timeout,
        env: Default::default(),
        cwd: None,
        user: None,
        probe: None,
    };
    let mut items = app.ops.exec_anywhere(request.hosts.clone(), &what).await?;
    let mut data: HashMap<String, Vec<u8>> = HashMap::new();
    let mut answers: HashMap<String, HostAnswer> = HashMap::new();
    let (mut missing, mut why) = (Code::NO_ANSWER, Code::NO_ANSWER.meaning().to_owned());
    while let Some(item) = items.recv().await {
        match item {
            // There is no probe.
            ExecItem::Start(_) | ExecItem::Probe(..) | ExecItem::Chosen(_) => {}
            ExecItem::Output(host, chunk) => data.entry(host).or_default().extend(chunk.data),
            ExecItem::End(mut answer, run) => {
                if run.is_some() {
                    let bytes = data.remove(&answer.host).unwrap_or_default();
                    answer.data = Some(String::from_utf8_lossy(&bytes).into_owned());
                }
                answers.insert(answer.host.clone(), answer);
            }
            // What some hosts have answered still holds.
            ExecItem::Error(e) => {
                (missing, why) = (e.0.code, e.0.message);
                break;
            }
        }
    }
    let no_answer = |host: &String| HostAnswer {
        host: host.clone(),
        resp: "failed".into(),
        retcode: missing,
        message: why.clone(),
        data: None,
    };
    let response = request
        .hosts
        .iter()
        .map(|host| answers.get(host).cloned().unwrap_or_else(|| no_answer(host)))
        .collect();
    Ok(Json(ExecResponse { id: request.id, response }))
}

/// Runs a command on a target now and answers as it goes: one `ExecEvent` a line.
/// Closing the connection kills what still runs.
#[utoipa::path(post, path = "/v1/exec/stream", tag = "exec", request_body = ExecStreamRequest,
    responses((status = 200, body = ExecEvent, content_type = "application/x-ndjson"),
        (status = 400, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "The target matches no node")))]
pub(super) async fn exec_stream(State(app): State<App>, body: Body) -> ApiResult<Response> {
    let request: ExecStreamRequest = body.read()?;
    let items = app.ops.exec_request(Vec::new(), &request).await?;
    let event = |item| match item {
        ExecItem::Start(hosts) => ExecEvent::Start {
            hosts: hosts.into_iter().map(|h| ExecHost { host: h.host, run_id: h.run_id }).collect(),
        },
        ExecItem::Output(host, chunk) => ExecEvent::Output { host, output: view(chunk) },
        ExecItem::End(answer, run) => ExecEvent::End { answer, run },
        ExecItem::Probe(answer, _) => ExecEvent::Probe(answer),
        ExecItem::Chosen(hosts) => ExecEvent::Chosen { hosts },
        ExecItem::Error(e) => ExecEvent::Error(e.0),
    };
    Ok(ndjson(items, event, app.stop))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CronParams {
    expr: String,
    tz: Option<String>,
    #[serde(default, deserialize_with = "read::instant")]
    from: Option<Timestamp>,
    #[serde(default, deserialize_with = "read::number")]
    n: Option<usize>,
}

/// The next slots of a cron expression.
#[utoipa::path(get, path = "/v1/cron/next", tag = "cron",
    params(("expr" = String, Query, description = "5, 6 or 7 fields, or an @ form"),
        ("tz" = Option<String>, Query, description = "IANA time zone; default UTC"),
        ("from" = Option<String>, Query, description = "After this instant; default now"),
        ("n" = Option<usize>, Query, description = "How many; default 5, at most 1000")),
    responses((status = 200, body = Vec<String>), (status = 400, body = ErrorBody)))]
pub(super) async fn cron_next(Params(p): Params<CronParams>) -> ApiResult<Json<Vec<Timestamp>>> {
    let schedule = Schedule::parse(&p.expr).map_err(|e| ApiError::from(e.at("expr")))?;
    let zone = calendar::time_zone(p.tz.as_deref().unwrap_or("UTC"));
    let zone = zone.map_err(|e| ApiError::from(e.at("tz")))?;
    let from = p.from.unwrap_or_else(Timestamp::now);
    Ok(Json(schedule.iter_after(from, &zone).take(p.n.unwrap_or(5).min(MAX_NEXT)).collect()))
}
