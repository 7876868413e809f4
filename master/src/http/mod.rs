//! The HTTP API: REST under `/v1`, plus health, metrics and the OpenAPI document.

mod access;
mod audit;
mod browser;
mod doctor;
mod events;
mod extract;
mod handlers;
mod history;
mod jobs;
mod join;
mod listen;
mod nodes;
mod notify;
mod openapi;
mod output;
mod ready;
mod stream;
mod tasks;

pub use openapi::document;

use crate::{
    audit::Asked,
    auth::{Admitted, Asking, Refused},
    error::ApiError,
    metrics::Request as RequestLabels,
    ops::Ops,
    spans,
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, patch, post, put},
};
use meepo_core::code::Code;
use meepo_runtime::tls::{Acceptor, incoming};
use std::{sync::Arc, time::Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

/// Largest body of a request, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// What handlers share.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) ops: Ops,
    pub(crate) stop: CancellationToken,
    pub(crate) openapi: Arc<str>,
    /// The name this master goes by, if it has one.
    pub(crate) advertise: Option<Arc<str>>,
}

/// Serves until `stop` is cancelled. Requests for names other than `advertise` are
/// refused, see the module on browsers.
pub async fn serve(
    listener: TcpListener,
    acceptor: Acceptor,
    ops: Ops,
    advertise: Option<String>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let openapi = document().to_pretty_json()?.into();
    let advertise = advertise.map(Into::into);
    let app = App { ops, stop: stop.clone(), openapi, advertise };
    let settings = app.ops.auth.settings().clone();
    let ready = incoming(listener, acceptor, stop.clone());
    listen::serve(ready, router(app), &settings, stop).await;
    Ok(())
}

fn router(app: App) -> Router {
    use handlers as h;
    let channel = get(notify::get_channel).put(notify::put_channel).delete(notify::delete_channel);
    let rule = get(notify::get_rule).put(notify::put_rule).delete(notify::delete_rule);
    Router::new()
        .route("/healthz", get(h::healthz))
        .route("/readyz", get(ready::readyz))
        .route("/readyz/{part}", get(ready::readyz_part))
        .route("/metrics", get(h::metrics))
        .route("/openapi.json", get(h::openapi))
        .route("/v1/login", post(access::login))
        .route("/v1/logout", post(access::logout))
        .route("/v1/whoami", get(access::whoami))
        .route("/v1/users", get(access::list_users))
        .route("/v1/users/{name}", put(access::put_user).delete(access::delete_user))
        .route("/v1/users/{name}/password", put(access::set_password))
        .route("/v1/tokens", get(access::list_tokens).post(access::create_token))
        .route("/v1/tokens/{id}", delete(access::revoke_token))
        .route("/v1/roles", get(access::list_roles))
        .route("/v1/roles/{name}", put(access::put_role).delete(access::delete_role))
        .route("/v1/jobs", get(jobs::list_jobs).post(h::post_job))
        .route("/v1/jobs/{name}", get(jobs::get_job).put(h::put_job).delete(jobs::delete_job))
        .route("/v1/jobs/{name}/explain", get(jobs::explain_job))
        .route("/v1/jobs/{name}/pause", post(h::pause_job))
        .route("/v1/jobs/{name}/resume", post(h::resume_job))
        .route("/v1/jobs/{name}/trigger", post(h::trigger_job))
        .route("/v1/jobs/{name}/next", get(h::next_slots))
        .route("/v1/jobs/{name}/stats", get(history::job_stats))
        .route("/v1/jobs/{name}/gaps", get(history::job_gaps))
        .route("/v1/runs", get(history::list_runs))
        .route("/v1/runs/search", get(history::search_runs))
        .route("/v1/runs/{id}", get(h::get_run))
        .route("/v1/runs/{id}/output", get(output::output))
        .route("/v1/runs/{id}/kill", post(h::kill_run))
        .route("/v1/nodes", get(nodes::list_nodes))
        .route("/v1/nodes/{id}", get(h::get_node))
        .route("/v1/nodes/{id}/labels", patch(nodes::label_node))
        .route("/v1/nodes/{id}/drain", post(h::drain_node).delete(h::undrain_node))
        .route("/v1/join", post(join::join))
        .route("/v1/renew", post(join::renew))
        .route("/v1/join-tokens", get(join::list_join_tokens).post(join::create_join_token))
        .route("/v1/join-tokens/{id}", delete(join::revoke_join_token))
        .route("/v1/exec", post(h::exec))
        .route("/v1/exec/stream", post(h::exec_stream))
        .route("/v1/tasks", get(tasks::list_tasks).post(tasks::put_task))
        .route("/v1/tasks/{id}", get(tasks::get_task))
        .route("/v1/tasks/{id}/events", get(tasks::task_events))
        .route("/v1/tasks/{id}/{verb}", post(tasks::act_on_task))
        .route("/v1/doctor", get(doctor::doctor))
        .route("/v1/audit", get(audit::list_audit))
        .route("/v1/notify/channels", get(notify::list_channels))
        .route("/v1/notify/channels/{name}", channel)
        .route("/v1/notify/channels/{name}/test", post(notify::test_channel))
        .route("/v1/notify/rules", get(notify::list_rules))
        .route("/v1/notify/rules/{name}", rule)
        .route("/v1/notify/notifications", get(notify::list_notifications))
        .route("/v1/cron/next", get(h::cron_next))
        .route("/v1/events", get(events::events))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        // One for all: each further one multiplies what a connection takes, as it keeps
        // copies of everything below it.
        .layer(middleware::from_fn_with_state(app.clone(), around))
        .with_state(app)
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::new(Code::NOT_FOUND, format!("no path {}; see /openapi.json", request.uri().path()))
}

async fn unknown_method(request: Request) -> ApiError {
    let message =
        format!("{} does not take {}; see /openapi.json", request.uri().path(), request.method());
    ApiError::new(Code::METHOD, message)
}

/// What every answer says to browsers: that it is data, for nobody's page, and to be kept by
/// nobody.
const SECURITY: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
];

/// What is recorded, now that it is known who asks. Whoever asks too often would fill the
/// records, too.
pub(crate) fn who(asked: Option<Asked>, admitted: &Result<Admitted, Refused>) -> Option<Asked> {
    let caller = match admitted {
        Ok(admitted) => &admitted.caller,
        Err(refused) if refused.error.0.code == Code::BUSY => return None,
        Err(refused) => &refused.caller,
    };
    asked.map(|asked| match caller {
        Some(caller) => asked.by(caller),
        None => asked,
    })
}

/// What happens to every request: refusals, limits, counters, the audit.
async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    // Anybody can make up methods and paths; labels must stay few.
    let known = ["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD"];
    let method = known.into_iter().find(|m| *m == request.method().as_str()).unwrap_or("other");
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("other", MatchedPath::as_str).to_owned();
    let span = match request.uri().path().starts_with("/v1/") {
        true => spans::request(&format!("{method} {route}"), request.headers()),
        // Probes and scrapes come all the time and tell nothing.
        false => Span::none(),
    };
    let asked = span.in_scope(|| Asked::http(&request));
    let asking = browser::refuse(&app, &request).map(|()| Asking::http(&request));
    let admitted = match asking {
        Ok(asking) => app.ops.auth.admit(asking).await,
        Err(e) => Err(e.into()),
    };
    let asked = who(asked, &admitted);
    let serve = async {
        match admitted {
            Ok(admitted) => {
                let serve = app.ops.limits.serve(request, next, ApiError::into_response);
                app.ops.auth.serve(admitted, serve).await
            }
            Err(refused) => refused.error.into_response(),
        }
    };
    let mut response = app.ops.audit.around(asked, serve).instrument(span.clone()).await;
    for (name, value) in SECURITY {
        // A handler knows better.
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    span.record("status", response.status().as_u16());
    let labels = RequestLabels { method, route, status: response.status().as_u16() };
    app.ops.metrics.http_duration.get_or_create(&labels).observe(begun.elapsed());
    response
}
