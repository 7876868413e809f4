//! Channels and rules of notifications, and what became of messages.

use super::{
    App,
    extract::{Body, NamePath, Params, read},
};
use crate::error::{ApiError, ApiResult};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use meepo_core::{
    api::{Action, Applied, ErrorBody},
    code::Code,
    error::Invalid,
    id::Name,
    notify::{
        Channel, ChannelList, Delivery, MAX_RECENT, NotificationList, Rule, RuleList, Tested,
    },
};
use serde::Deserialize;
use serde_json::Value;

/// The body with the name in the path, which may stand in it, but no other.
fn named(body: Body, name: &Name) -> Result<Value, ApiError> {
    let mut value = body.0;
    if let Some(object) = value.as_object_mut() {
        let inside = object.entry("name").or_insert_with(|| Value::String(name.to_string()));
        if *inside != Value::String(name.to_string()) {
            let problem = format!("{inside} is not the name in the path");
            let expected = format!("{:?}", name.as_str());
            return Err(Invalid::new(Code::BAD_NAME, "name", problem, expected).into());
        }
    }
    Ok(value)
}

fn applied(applied: Applied) -> Response {
    let status = match applied.action {
        Action::Created => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    (status, Json(applied)).into_response()
}

/// All channels, by name.
#[utoipa::path(get, path = "/v1/notify/channels", tag = "notify",
    responses((status = 200, body = ChannelList), (status = 503, body = ErrorBody)))]
pub(super) async fn list_channels(State(app): State<App>) -> ApiResult<Json<ChannelList>> {
    Ok(Json(app.ops.list_channels().await?))
}

/// A channel.
#[utoipa::path(get, path = "/v1/notify/channels/{name}", tag = "notify",
    params(("name" = String, Path, description = "The channel")),
    responses((status = 200, body = Channel), (status = 404, body = ErrorBody)))]
pub(super) async fn get_channel(
    State(app): State<App>,
    NamePath(name): NamePath,
) -> ApiResult<Json<Channel>> {
    Ok(Json(app.ops.get_channel(&name).await?))
}

/// Creates or replaces a channel. Its templates are tried.
#[utoipa::path(put, path = "/v1/notify/channels/{name}", tag = "notify", request_body = Channel,
    params(("name" = String, Path, description = "The channel")),
    responses((status = 200, body = Applied), (status = 201, body = Applied),
        (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn put_channel(
    State(app): State<App>,
    NamePath(name): NamePath,
    body: Body,
) -> ApiResult<Response> {
    let channel = Channel::from_user(named(body, &name)?)?;
    Ok(applied(app.ops.put_channel(channel).await?))
}

/// Deletes a channel that no rule names.
#[utoipa::path(delete, path = "/v1/notify/channels/{name}", tag = "notify",
    params(("name" = String, Path, description = "The channel")),
    responses((status = 200, body = Applied), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub(super) async fn delete_channel(
    State(app): State<App>,
    NamePath(name): NamePath,
) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.delete_channel(&name).await?))
}

/// Sends a message that shows that a channel works, from the master that is asked; answers when
/// the other side has taken it, or why not.
#[utoipa::path(post, path = "/v1/notify/channels/{name}/test", tag = "notify",
    params(("name" = String, Path, description = "The channel")),
    responses((status = 200, body = Tested), (status = 404, body = ErrorBody)))]
pub(super) async fn test_channel(
    State(app): State<App>,
    NamePath(name): NamePath,
) -> ApiResult<Json<Tested>> {
    Ok(Json(app.ops.test_channel(&name).await?))
}

/// All rules, by name.
#[utoipa::path(get, path = "/v1/notify/rules", tag = "notify",
    responses((status = 200, body = RuleList), (status = 503, body = ErrorBody)))]
pub(super) async fn list_rules(State(app): State<App>) -> ApiResult<Json<RuleList>> {
    Ok(Json(app.ops.list_rules().await?))
}

/// A rule.
#[utoipa::path(get, path = "/v1/notify/rules/{name}", tag = "notify",
    params(("name" = String, Path, description = "The rule")),
    responses((status = 200, body = Rule), (status = 404, body = ErrorBody)))]
pub(super) async fn get_rule(
    State(app): State<App>,
    NamePath(name): NamePath,
) -> ApiResult<Json<Rule>> {
    Ok(Json(app.ops.get_rule(&name).await?))
}

/// Creates or replaces a rule. Its channels must exist.
#[utoipa::path(put, path = "/v1/notify/rules/{name}", tag = "notify", request_body = Rule,
    params(("name" = String, Path, description = "The rule")),
    responses((status = 200, body = Applied), (status = 201, body = Applied),
        (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn put_rule(
    State(app): State<App>,
    NamePath(name): NamePath,
    body: Body,
) -> ApiResult<Response> {
    let rule = Rule::from_user(named(body, &name)?)?;
    Ok(applied(app.ops.put_rule(rule).await?))
}

/// Deletes a rule.
#[utoipa::path(delete, path = "/v1/notify/rules/{name}", tag = "notify",
    params(("name" = String, Path, description = "The rule")),
    responses((status = 200, body = Applied), (status = 404, body = ErrorBody)))]
pub(super) async fn delete_rule(
    State(app): State<App>,
    NamePath(name): NamePath,
) -> ApiResult<Json<Applied>> {
    Ok(Json(app.ops.delete_rule(&name).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NotificationParams {
    state: Option<Delivery>,
    #[serde(default, deserialize_with = "read::number")]
    limit: Option<usize>,
}

/// Messages that are not sent yet and the newest of the others, newest first; and what the
/// limits of channels hold back.
#[utoipa::path(get, path = "/v1/notify/notifications", tag = "notify",
    params(("state" = Option<Delivery>, Query, description = "Only those"),
        ("limit" = Option<usize>, Query, description = "At most so many; default 50")),
    responses((status = 200, body = NotificationList), (status = 400, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn list_notifications(
    State(app): State<App>,
    Params(p): Params<NotificationParams>,
) -> ApiResult<Json<NotificationList>> {
    let limit = p.limit.unwrap_or(50).min(MAX_RECENT * 50);
    Ok(Json(app.ops.list_notifications(p.state, limit).await?))
}
