//! Nodes by target, and their labels.

use super::{
    App,
    extract::{Body, NamePath, Params},
};
use crate::error::ApiResult;
use axum::{Json, extract::State};
use meepo_core::{
    api::{ErrorBody, LabelsRequest, NodeList, NodeView},
    target::Target,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodesParams {
    target: Option<String>,
}

/// All nodes ever seen, or those of a target, with facts of the moment.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes",
    params(("target" = Option<String>, Query, description = "Only the nodes it means")),
    responses((status = 200, body = NodeList), (status = 400, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn list_nodes(
    State(app): State<App>,
    Params(p): Params<NodesParams>,
) -> ApiResult<Json<NodeList>> {
    let target = p.target.map(|t| Target::parse(&t)).transpose()?;
    Ok(Json(app.ops.list_nodes(target.as_ref()).await?))
}

/// Sets labels of a node and takes them away; those not named stay. They win over the
/// labels of the worker's configuration.
#[utoipa::path(patch, path = "/v1/nodes/{id}/labels", tag = "nodes",
    params(("id" = String, Path, description = "The node")), request_body = LabelsRequest,
    responses((status = 200, body = NodeView), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn label_node(
    State(app): State<App>,
    NamePath(id): NamePath,
    body: Body,
) -> ApiResult<Json<NodeView>> {
    let change: LabelsRequest = body.read()?;
    Ok(Json(app.ops.label_node(&id, &change).await?))
}
