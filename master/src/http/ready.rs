//! Whether this master can do its work, part by part.

use super::App;
use crate::error::{ApiError, ApiResult};
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use meepo_coord::keys;
use meepo_core::code::Code;

/// What a master stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Etcd,
    Logs,
    Leader,
}

impl Part {
    const ALL: [Self; 3] = [Self::Etcd, Self::Logs, Self::Leader];

    /// What is missing of it, if something is.
    async fn missing(self, app: &App) -> Option<&'static str> {
        match self {
            Self::Etcd if !app.ops.view.changes().borrow().complete => {
                Some("etcd has not been read yet")
            }
            Self::Etcd => {
                let found = app.ops.etcd.get(keys::LEADER).await;
                found.err().map(|e| {
                    tracing::debug!(error = %e, "not ready");
                    "etcd cannot be reached"
                })
            }
            Self::Logs => app.ops.store.ping().await.err().map(|e| {
                tracing::debug!(error = %e, "not ready");
                "the log store cannot be reached"
            }),
            Self::Leader => {
                let none = app.ops.leadership.borrow().leader.is_none();
                none.then_some("no master leads")
            }
        }
    }
}

/// Ready to take requests: etcd is there. The log store and a leader may be missing, and
/// are named then: most requests can be served without them, and if load balancers took
/// every master away nobody could be asked at all.
#[utoipa::path(get, path = "/readyz", tag = "meepo",
    responses((status = 200), (status = 503, description = "What is missing, a line each")))]
pub(super) async fn readyz(State(app): State<App>) -> Response {
    let [etcd, logs, leader] = Part::ALL.map(|part| part.missing(&app));
    let (etcd, logs, leader) = tokio::join!(etcd, logs, leader);
    let lines: Vec<&str> = [etcd, logs, leader].into_iter().flatten().collect();
    match (etcd, lines.is_empty()) {
        (None, true) => "ready\n".into_response(),
        (None, false) => format!("ready\n{}\n", lines.join("\n")).into_response(),
        (Some(_), _) => not_ready(&lines),
    }
}

/// Whether one part is there: `etcd`, `logs`, `leader`, or `all` of them.
#[utoipa::path(get, path = "/readyz/{part}", tag = "meepo",
    params(("part" = String, Path, description = "etcd, logs, leader, or all")),
    responses((status = 200), (status = 404),
        (status = 503, description = "What is missing, a line each")))]
pub(super) async fn readyz_part(
    State(app): State<App>,
    Path(part): Path<String>,
) -> ApiResult<Response> {
    let parts: &[Part] = match part.as_str() {
        "etcd" => &[Part::Etcd],
        "logs" => &[Part::Logs],
        "leader" => &[Part::Leader],
        "all" => &Part::ALL,
        _ => {
            let message = format!("no part {part}; there are etcd, logs, leader and all");
            return Err(ApiError::new(Code::NOT_FOUND, message));
        }
    };
    let missing = futures::future::join_all(parts.iter().map(|part| part.missing(&app))).await;
    let lines: Vec<&str> = missing.into_iter().flatten().collect();
    Ok(if lines.is_empty() { "ready\n".into_response() } else { not_ready(&lines) })
}

fn not_ready(lines: &[&str]) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n").into_response()
}
