//! Jobs as the product tree has them.

use super::{
    App,
    extract::{NamePath, Params, read},
};
use crate::{error::ApiResult, ops::JobFilter};
use axum::{Json, extract::State};
use meepo_core::{
    api::{Applied, ErrorBody, JobList, JobView},
    id::NodeId,
    placement::JobExplanation,
    target::Target,
    tree::TreePath,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TreeParams {
    tree: Option<TreePath>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    name: Option<String>,
    node: Option<NodeId>,
    tree: Option<TreePath>,
    #[serde(default, deserialize_with = "read::number")]
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Jobs, by name: definitions, and what was put into etcd by hand. With `tree` only those
/// that a place in the product tree has or inherits, as they are there.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs",
    params(("name" = Option<String>, Query, description = "Only names that match, as in web-*"),
        ("node" = Option<String>, Query, description = "Only jobs that this node holds"),
        ("tree" = Option<String>, Query, description = "A path such as shop/cart"),
        ("limit" = Option<u32>, Query, description = "Default 100, at most 1000"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before")),
    responses((status = 200, body = JobList), (status = 400, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn list_jobs(
    State(app): State<App>,
    Params(p): Params<ListParams>,
) -> ApiResult<Json<JobList>> {
    let ListParams { name, node, tree, limit, cursor } = p;
    Ok(Json(app.ops.list_jobs(&JobFilter { name, node, tree, limit, cursor }).await?))
}

/// One job: its definition, its nodes, its newest run. With `tree` as it is at a place in the
/// product tree.
#[utoipa::path(get, path = "/v1/jobs/{name}", tag = "jobs",
    params(("name" = String, Path, description = "The job"),
        ("tree" = Option<String>, Query, description = "A path such as shop/cart")),
    responses((status = 200, body = JobView), (status = 404, body = ErrorBody)))]
pub(super) async fn get_job(
    State(app): State<App>,
    NamePath(name): NamePath,
    Params(p): Params<TreeParams>,
) -> ApiResult<Json<JobView>> {
    Ok(Json(match p.tree {
        Some(path) => app.ops.get_job_at(&name, &path).await?,
        None => app.ops.get_job(&name).await?,
    }))
}

/// Deletes a job, or with `tree` only what is defined at a path. Runs that are under way go
/// on to their end.
#[utoipa::path(delete, path = "/v1/jobs/{name}", tag = "jobs",
    params(("name" = String, Path, description = "The job"),
        ("tree" = Option<String>, Query, description = "A path such as shop/cart")),
    responses((status = 200, body = Applied), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub(super) async fn delete_job(
    State(app): State<App>,
    NamePath(name): NamePath,
    Params(p): Params<TreeParams>,
) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.delete_job(&name, &p.tree.unwrap_or_default()).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainParams {
    target: Option<String>,
}

/// Why nodes have a job or have it not, and where each of its fields comes from.
#[utoipa::path(get, path = "/v1/jobs/{name}/explain", tag = "jobs",
    params(("name" = String, Path, description = "The job"),
        ("target" = Option<String>, Query, description = "Which nodes; default all")),
    responses((status = 200, body = JobExplanation), (status = 404, body = ErrorBody)))]
pub(super) async fn explain_job(
    State(app): State<App>,
    NamePath(name): NamePath,
    Params(p): Params<ExplainParams>,
) -> ApiResult<Json<JobExplanation>> {
    let target = Target::parse(p.target.as_deref().unwrap_or("all"))?;
    Ok(Json(app.ops.explain(&name, &target).await?))
}
