//! Tasks: one function per path.

use super::{
    App,
    extract::{Body, Params, TaskPath, TaskVerbPath, read},
    stream::ndjson,
};
use crate::{error::ApiResult, ops::TaskFilter};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use meepo_core::{
    api::ErrorBody,
    code::Code,
    error::Invalid,
    id::Name,
    task::{
        TaskRequest, TaskState, TaskView,
        answer::{ActRequest, TaskActed, TaskEvent, TaskList},
    },
};
use serde::Deserialize;

/// The header an idempotency key may stand in instead of the body.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Takes a task. 201 means kept by etcd's quorum, every part of it; 200 that an earlier
/// request with the same idempotency key has made it.
#[utoipa::path(post, path = "/v1/tasks", tag = "tasks", request_body = TaskRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "As `key` in the body")),
    responses((status = 201, body = TaskView), (status = 200, body = TaskView),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody, description = "No such host"),
        (status = 409, body = ErrorBody, description = "The key came with another request"),
        (status = 422, body = ErrorBody, description = "The target matches no node"),
        (status = 429, body = ErrorBody, description = "Too many unfinished tasks"),
        (status = 503, body = ErrorBody)))]
pub(super) async fn put_task(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let mut request: TaskRequest = body.read()?;
    if let Some(key) = headers.get(IDEMPOTENCY_KEY) {
        let field = "Idempotency-Key";
        let key = Name::new(key.to_str().unwrap_or("?")).map_err(|e| e.at(field))?;
        if request.key.as_ref().is_some_and(|k| *k != key) {
            let expected = "the same key in both, or in one";
            let problem = "not the `key` of the body";
            return Err(Invalid::new(Code::BAD_VALUE, field, problem, expected).into());
        }
        request.key = Some(key);
    }
    let submitted = app.ops.submit_task(&request).await?;
    let status = if submitted.new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(submitted.task)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskParams {
    queue: Option<Name>,
    state: Option<String>,
    #[serde(default, deserialize_with = "read::number")]
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Tasks, newest first, without their parts.
#[utoipa::path(get, path = "/v1/tasks", tag = "tasks",
    params(("queue" = Option<String>, Query, description = "Only tasks of this queue"),
        ("state" = Option<String>, Query, description = "Only these states, separated by commas"),
        ("limit" = Option<u32>, Query, description = "Default 50, at most 1000"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before")),
    responses((status = 200, body = TaskList), (status = 400, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn list_tasks(
    State(app): State<App>,
    Params(p): Params<TaskParams>,
) -> ApiResult<Json<TaskList>> {
    let states = p.state.as_deref().map(|s| s.split(',').map(str::parse).collect());
    let states: Vec<TaskState> = states.transpose()?.unwrap_or_default();
    let filter = TaskFilter { queue: p.queue, states, limit: p.limit, cursor: p.cursor };
    Ok(Json(app.ops.list_tasks(&filter).await?))
}

/// A task with its parts; of a part's id, with that part alone.
#[utoipa::path(get, path = "/v1/tasks/{id}", tag = "tasks",
    params(("id" = String, Path, description = "The task, or `<task>.<n>`: one part")),
    responses((status = 200, body = TaskView), (status = 404, body = ErrorBody)))]
pub(super) async fn get_task(
    State(app): State<App>,
    TaskPath(what): TaskPath,
) -> ApiResult<Json<TaskView>> {
    Ok(Json(app.ops.get_task(what).await?))
}

/// What happens to a task until all of it has ended or is buried: one `TaskEvent` a line.
#[utoipa::path(get, path = "/v1/tasks/{id}/events", tag = "tasks",
    params(("id" = String, Path, description = "The task, or one part")),
    responses((status = 200, body = TaskEvent, content_type = "application/x-ndjson"),
        (status = 404, body = ErrorBody)))]
pub(super) async fn task_events(
    State(app): State<App>,
    TaskPath(what): TaskPath,
) -> ApiResult<Response> {
    let events = app.ops.follow_task(what).await?;
    Ok(ndjson(events, |event| event, app.stop))
}

/// Does something to a task or to one part: cancel, stop, release, bury, kick, touch,
/// delete; pause and resume of a whole task.
#[utoipa::path(post, path = "/v1/tasks/{id}/{verb}", tag = "tasks",
    params(("id" = String, Path, description = "The task, or one part"),
        ("verb" = String, Path, description = "What to do")),
    request_body = Option<ActRequest>,
    responses((status = 200, body = TaskActed), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "No part can do that"),
        (status = 503, body = ErrorBody)))]
pub(super) async fn act_on_task(
    State(app): State<App>,
    TaskVerbPath(what, verb): TaskVerbPath,
    body: Body,
) -> ApiResult<Json<TaskActed>> {
    let request: ActRequest = body.read()?;
    Ok(Json(app.ops.act_on_task(what, verb, &request).await?))
}
