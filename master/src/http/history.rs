//! Questions about what was: lists of runs, statistics, what did not run, text in output.

use super::{
    App,
    extract::{NamePath, Params, read},
};
use crate::{
    error::{ApiError, ApiResult},
    ops::Ops,
};
use axum::{Json, extract::State};
use jiff::Timestamp;
use meepo_core::{
    api::{ErrorBody, RunList},
    code,
    duration::HumanDuration,
    history::{Gaps, JobStats, SearchPage},
    id::NodeId,
    task::TaskId,
};
use meepo_logstore::RunQuery;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunParams {
    job: Option<String>,
    task: Option<TaskId>,
    node: Option<NodeId>,
    state: Option<String>,
    code: Option<String>,
    cause: Option<String>,
    user: Option<String>,
    #[serde(default, deserialize_with = "read::instant")]
    since: Option<Timestamp>,
    #[serde(default, deserialize_with = "read::instant")]
    until: Option<Timestamp>,
    min_duration: Option<HumanDuration>,
    max_duration: Option<HumanDuration>,
    #[serde(default, deserialize_with = "read::number")]
    limit: Option<u32>,
    cursor: Option<String>,
    q: Option<String>,
}

/// What stands between commas.
fn list<T>(text: Option<&str>, parse: impl Fn(&str) -> ApiResult<T>) -> ApiResult<Vec<T>> {
    text.map(|t| t.split(',').map(parse).collect()).transpose().map(Option::unwrap_or_default)
}

impl RunParams {
    async fn query(self, ops: &Ops) -> ApiResult<RunQuery> {
        let jobs = match &self.job {
            Some(text) => ops.jobs_named(text).await?,
            None => Vec::new(),
        };
        let codes = list(self.code.as_deref(), |c| Ok(code::matching(c)?))?;
        Ok(RunQuery {
            job: None,
            jobs,
            task: self.task,
            node: self.node,
            states: list(self.state.as_deref(), |s| s.parse().map_err(ApiError::from))?,
            codes: codes.into_iter().flatten().collect(),
            cause: self.cause.as_deref().map(str::parse).transpose()?,
            user: self.user,
            since: self.since,
            until: self.until,
            min_took: self.min_duration.map(|d| d.0),
            max_took: self.max_duration.map(|d| d.0),
            limit: self.limit,
            cursor: self.cursor,
        })
    }
}

/// Runs, newest first.
#[utoipa::path(get, path = "/v1/runs", tag = "runs",
    params(("job" = Option<String>, Query, description = "Only runs of these jobs, separated by commas; `*` and `?` stand for any text and any character in the names of jobs that are there"),
        ("task" = Option<String>, Query, description = "Only runs of the parts of this task"),
        ("node" = Option<String>, Query, description = "Only runs on this node"),
        ("state" = Option<String>, Query, description = "Only these states, separated by commas"),
        ("code" = Option<String>, Query, description = "Only these outcomes, separated by commas: numbers, names or types (0x0101, exit_status, run)"),
        ("cause" = Option<String>, Query, description = "Only runs for this reason: schedule, misfire, reboot, trigger, exec, task"),
        ("user" = Option<String>, Query, description = "Only runs as this user, where one was asked for"),
        ("since" = Option<String>, Query, description = "Only slots from this instant on"),
        ("until" = Option<String>, Query, description = "Only slots before this instant"),
        ("min_duration" = Option<String>, Query, description = "Only runs that have ended and took so long or longer"),
        ("max_duration" = Option<String>, Query, description = "Only runs that have ended and took no longer"),
        ("limit" = Option<u32>, Query, description = "Default 50, at most 1000"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before")),
    responses((status = 200, body = RunList), (status = 400, body = ErrorBody)))]
pub(super) async fn list_runs(
    State(app): State<App>,
    Params(p): Params<RunParams>,
) -> ApiResult<Json<RunList>> {
    if p.q.is_some() {
        let expected = "GET /v1/runs/search?q=…";
        return Err(bad("q", "lists are not searched", expected));
    }
    let query = p.query(&app.ops).await?;
    Ok(Json(app.ops.list_runs(&query).await?))
}

/// Runs in whose output a text stands, newest first. Looks at so many runs and bytes at
/// once; `next` goes on from there.
#[utoipa::path(get, path = "/v1/runs/search", tag = "runs",
    params(("q" = String, Query, description = "The text, as it stands; 1 to 1024 bytes"),
        ("job" = Option<String>, Query, description = "This and the other filters: as in GET /v1/runs"),
        ("task" = Option<String>, Query), ("node" = Option<String>, Query),
        ("state" = Option<String>, Query), ("code" = Option<String>, Query),
        ("cause" = Option<String>, Query), ("user" = Option<String>, Query),
        ("since" = Option<String>, Query), ("until" = Option<String>, Query),
        ("min_duration" = Option<String>, Query), ("max_duration" = Option<String>, Query),
        ("limit" = Option<u32>, Query, description = "Runs found; default 50, at most 1000"),
        ("cursor" = Option<String>, Query, description = "`next` of the answer before")),
    responses((status = 200, body = SearchPage), (status = 400, body = ErrorBody)))]
pub(super) async fn search_runs(
    State(app): State<App>,
    Params(mut p): Params<RunParams>,
) -> ApiResult<Json<SearchPage>> {
    let Some(text) = p.q.take() else { return Err(bad("q", "missing", "the text to look for")) };
    let query = p.query(&app.ops).await?;
    Ok(Json(app.ops.search_runs(&query, &text).await?))
}

fn bad(field: &str, problem: &str, expected: &str) -> ApiError {
    use meepo_core::{code::Code, error::Invalid};
    Invalid::new(Code::BAD_VALUE, field, problem, expected).into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpanParams {
    #[serde(default, deserialize_with = "read::instant")]
    since: Option<Timestamp>,
    #[serde(default, deserialize_with = "read::instant")]
    until: Option<Timestamp>,
}

/// How a job did: how many runs ended how, how long they took, day by day.
#[utoipa::path(get, path = "/v1/jobs/{name}/stats", tag = "jobs",
    params(("name" = String, Path, description = "The job; it may be gone"),
        ("since" = Option<String>, Query, description = "Slots from this instant on; default 30 days ago"),
        ("until" = Option<String>, Query, description = "Slots before this instant")),
    responses((status = 200, body = JobStats), (status = 503, body = ErrorBody)))]
pub(super) async fn job_stats(
    State(app): State<App>,
    NamePath(name): NamePath,
    Params(p): Params<SpanParams>,
) -> ApiResult<Json<JobStats>> {
    Ok(Json(app.ops.job_stats(&name, p.since, p.until).await?))
}

/// What should have run and did not: slots that were missed or skipped, and slots that were
/// due by the schedule as it is now and are on no record.
#[utoipa::path(get, path = "/v1/jobs/{name}/gaps", tag = "jobs",
    params(("name" = String, Path, description = "The job"),
        ("since" = Option<String>, Query, description = "Slots after this instant; default a day ago"),
        ("until" = Option<String>, Query, description = "Slots up to this instant; default and at most a minute ago")),
    responses((status = 200, body = Gaps), (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn job_gaps(
    State(app): State<App>,
    NamePath(name): NamePath,
    Params(p): Params<SpanParams>,
) -> ApiResult<Json<Gaps>> {
    Ok(Json(app.ops.job_gaps(&name, p.since, p.until).await?))
}
