//! Spans of requests, for traces and for the fields of JSON logs.

use axum::http::HeaderMap;
use meepo_runtime::telemetry::{self, trace};
use tracing::{Span, field::Empty, info_span};

/// The span of a request called `name`, as `POST /v1/jobs`; in the trace that its header
/// `traceparent` names, if it names one. None where nobody wants it.
pub(crate) fn request(name: &str, headers: &HeaderMap) -> Span {
    if !telemetry::spans() {
        return Span::none();
    }
    let span = info_span!(
        "request",
        otel.name = name,
        otel.kind = "server",
        request = name,
        status = Empty,
        trace_id = Empty
    );
    trace::adopt(&span, headers.get("traceparent").and_then(|v| v.to_str().ok()));
    span
}
