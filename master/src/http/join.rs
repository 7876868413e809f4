//! Nodes that join.

use super::{
    App,
    extract::{Body, NamePath},
};
use crate::{error::ApiResult, peer};
use axum::{
    Json,
    extract::State,
    http::{Extensions, StatusCode},
    response::{IntoResponse, Response},
};
use meepo_core::{
    api::{Applied, ErrorBody},
    join::{
        CreateJoinToken, JoinRequest, JoinTokenList, NewJoinToken, RenewRequest, SignedCertificate,
    },
};

/// Makes a token with which a node may join, once. It is shown this once.
#[utoipa::path(post, path = "/v1/join-tokens", tag = "nodes", request_body = CreateJoinToken,
    responses((status = 201, body = NewJoinToken), (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn create_join_token(State(app): State<App>, body: Body) -> ApiResult<Response> {
    let token = app.ops.create_join_token(&body.read()?).await?;
    Ok((StatusCode::CREATED, Json(token)).into_response())
}

/// Join tokens that are neither spent nor expired.
#[utoipa::path(get, path = "/v1/join-tokens", tag = "nodes",
    responses((status = 200, body = JoinTokenList), (status = 503, body = ErrorBody)))]
pub(super) async fn list_join_tokens(State(app): State<App>) -> ApiResult<Json<JoinTokenList>> {
    Ok(Json(app.ops.list_join_tokens().await?))
}

/// Takes a join token back.
#[utoipa::path(delete, path = "/v1/join-tokens/{id}", tag = "nodes",
    params(("id" = String, Path, description = "The token's id")),
    responses((status = 200, body = Applied), (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn revoke_join_token(
    State(app): State<App>,
    NamePath(id): NamePath,
) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.revoke_join_token(&id).await?))
}

/// Signs the certificate of a node that joins. The token is the proof, and is spent.
#[utoipa::path(post, path = "/v1/join", tag = "nodes", request_body = JoinRequest,
    responses((status = 200, body = SignedCertificate), (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn join(State(app): State<App>, body: Body) -> ApiResult<Json<SignedCertificate>> {
    let request: JoinRequest = body.read()?;
    Ok(Json(app.ops.join(&request).await?))
}

/// Signs a certificate for the node that shows one that is still valid.
#[utoipa::path(post, path = "/v1/renew", tag = "nodes", request_body = RenewRequest,
    responses((status = 200, body = SignedCertificate), (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody)))]
pub(super) async fn renew(
    State(app): State<App>,
    extensions: Extensions,
    body: Body,
) -> ApiResult<Json<SignedCertificate>> {
    let request: RenewRequest = body.read()?;
    Ok(Json(app.ops.renew(peer::of(&extensions), &request).await?))
}
