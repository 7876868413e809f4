//! Users, tokens and roles.

use super::{
    App,
    extract::{Body, NamePath},
};
use crate::error::ApiResult;
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use meepo_core::{
    api::{Action, Applied, ErrorBody},
    auth::{
        CreateToken, LoginRequest, NewToken, PasswordRequest, PutUser, Role, RoleList, TokenList,
        UserList, WhoAmI,
    },
    code::Code,
    error::Invalid,
};
use serde_json::Value;

fn applied(applied: Applied) -> Response {
    let status = match applied.action {
        Action::Created => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    (status, Json(applied)).into_response()
}

/// Makes a token for who knows the password of a user. The token is shown this once.
#[utoipa::path(post, path = "/v1/login", tag = "access", request_body = LoginRequest,
    responses((status = 201, body = NewToken), (status = 400, body = ErrorBody),
        (status = 401, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub(super) async fn login(State(app): State<App>, body: Body) -> ApiResult<Response> {
    let token = app.ops.auth.login(body.read()?).await?;
    Ok((StatusCode::CREATED, Json(token)).into_response())
}

/// Revokes the token that the request comes with.
#[utoipa::path(post, path = "/v1/logout", tag = "access",
    responses((status = 200, body = Applied), (status = 401, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It comes with none")))]
pub(super) async fn logout(State(app): State<App>) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.auth.logout().await?))
}

/// Who asks, and what it may.
#[utoipa::path(get, path = "/v1/whoami", tag = "access",
    responses((status = 200, body = WhoAmI), (status = 401, body = ErrorBody)))]
pub(super) async fn whoami(State(app): State<App>) -> Json<WhoAmI> {
    Json(app.ops.auth.who_am_i())
}

/// All users.
#[utoipa::path(get, path = "/v1/users", tag = "access",
    responses((status = 200, body = UserList), (status = 503, body = ErrorBody)))]
pub(super) async fn list_users(State(app): State<App>) -> ApiResult<Json<UserList>> {
    Ok(Json(app.ops.auth.list_users().await?))
}

/// Creates or changes a user. The password stays as it is.
#[utoipa::path(put, path = "/v1/users/{name}", tag = "access", request_body = PutUser,
    params(("name" = String, Path, description = "The user")),
    responses((status = 200, body = Applied), (status = 201, body = Applied),
        (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn put_user(
    State(app): State<App>,
    NamePath(name): NamePath,
    body: Body,
) -> ApiResult<Response> {
    Ok(applied(app.ops.auth.put_user(&name, body.read()?).await?))
}

/// Deletes a user and all of its tokens.
#[utoipa::path(delete, path = "/v1/users/{name}", tag = "access",
    params(("name" = String, Path, description = "The user")),
    responses((status = 200, body = Applied), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "Nobody else may everything")))]
pub(super) async fn delete_user(
    State(app): State<App>,
    NamePath(name): NamePath,
) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.auth.delete_user(&name).await?))
}

/// Sets a password, or without one takes it away: one's own with the old one, or that of
/// others. What was logged in with the old one is not any more.
#[utoipa::path(put, path = "/v1/users/{name}/password", tag = "access",
    request_body = PasswordRequest,
    params(("name" = String, Path, description = "The user")),
    responses((status = 200, body = Applied), (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn set_password(
    State(app): State<App>,
    NamePath(name): NamePath,
    body: Body,
) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.auth.set_password(&name, body.read()?).await?))
}

/// Tokens without their secrets: all, or one's own.
#[utoipa::path(get, path = "/v1/tokens", tag = "access",
    responses((status = 200, body = TokenList), (status = 503, body = ErrorBody)))]
pub(super) async fn list_tokens(State(app): State<App>) -> ApiResult<Json<TokenList>> {
    Ok(Json(app.ops.auth.list_tokens().await?))
}

/// Makes a token, for who asks or for another user. It is shown this once.
#[utoipa::path(post, path = "/v1/tokens", tag = "access", request_body = CreateToken,
    responses((status = 201, body = NewToken), (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn create_token(State(app): State<App>, body: Body) -> ApiResult<Response> {
    let token = app.ops.auth.create_token(body.read()?).await?;
    Ok((StatusCode::CREATED, Json(token)).into_response())
}

/// Revokes a token. It is worth nothing from then on, at every master.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "access",
    params(("id" = String, Path, description = "The token's id")),
    responses((status = 200, body = Applied), (status = 404, body = ErrorBody)))]
pub(super) async fn revoke_token(
    State(app): State<App>,
    Path(id): Path<String>,
) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.auth.revoke_token(&id).await?))
}

/// All roles.
#[utoipa::path(get, path = "/v1/roles", tag = "access",
    responses((status = 200, body = RoleList), (status = 503, body = ErrorBody)))]
pub(super) async fn list_roles(State(app): State<App>) -> ApiResult<Json<RoleList>> {
    Ok(Json(app.ops.auth.list_roles().await?))
}

/// Creates or replaces a role.
#[utoipa::path(put, path = "/v1/roles/{name}", tag = "access", request_body = Role,
    params(("name" = String, Path, description = "The role")),
    responses((status = 200, body = Applied), (status = 201, body = Applied),
        (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn put_role(
    State(app): State<App>,
    NamePath(name): NamePath,
    body: Body,
) -> ApiResult<Response> {
    let mut value = body.0;
    if let Some(object) = value.as_object_mut() {
        let inside = object.entry("name").or_insert_with(|| Value::String(name.to_string()));
        if *inside != Value::String(name.to_string()) {
            let problem = format!("{inside} is not the name in the path");
            let expected = format!("{:?}", name.as_str());
            return Err(Invalid::new(Code::BAD_NAME, "name", problem, expected).into());
        }
    }
    Ok(applied(app.ops.auth.put_role(Role::from_user(value)?).await?))
}

/// Deletes a role that nobody has.
#[utoipa::path(delete, path = "/v1/roles/{name}", tag = "access",
    params(("name" = String, Path, description = "The role")),
    responses((status = 200, body = Applied), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub(super) async fn delete_role(
    State(app): State<App>,
    NamePath(name): NamePath,
) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.auth.delete_role(&name).await?))
}
