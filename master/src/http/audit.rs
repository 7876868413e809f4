//! The audit, to be read.

use super::{
    App,
    extract::{Params, read},
};
use crate::error::ApiResult;
use axum::{Json, extract::State};
use jiff::Timestamp;
use meepo_core::{
    api::ErrorBody,
    audit::{AuditList, AuditResult},
};
use meepo_logstore::AuditQuery;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditParams {
    #[serde(default, deserialize_with = "read::instant")]
    since: Option<Timestamp>,
    #[serde(default, deserialize_with = "read::instant")]
    until: Option<Timestamp>,
    actor: Option<String>,
    operation: Option<String>,
    object: Option<String>,
    result: Option<AuditResult>,
    #[serde(default, deserialize_with = "read::number")]
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Who did what: requests that were to change something, newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit",
    params(("since" = Option<String>, Query, description = "Only from this instant on"),
        ("until" = Option<String>, Query, description = "Only before this instant"),
        ("actor" = Option<String>, Query, description = "Only of this actor"),
        ("operation" = Option<String>, Query, description = "Only this one, as job.apply; job. means all that begin so"),
        ("object" = Option<String>, Query, description = "Only of this one, as job/backup; job/ means all that begin so"),
        ("result" = Option<String>, Query, description = "Only ok, refused, failed or unknown"),
        ("limit" = Option<u32>, Query, description = "Default 50, at most 1000"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before")),
    responses((status = 200, body = AuditList), (status = 400, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn list_audit(
    State(app): State<App>,
    Params(p): Params<AuditParams>,
) -> ApiResult<Json<AuditList>> {
    let query = AuditQuery {
        since: p.since,
        until: p.until,
        actor: p.actor,
        operation: p.operation,
        object: p.object,
        result: p.result,
        limit: p.limit,
        cursor: p.cursor,
    };
    Ok(Json(app.ops.list_audit(&query).await?))
}
