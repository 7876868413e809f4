//! `GET /v1/runs/{id}/output`: a page of what a run wrote, or all of it as it comes, one JSON
//! object a line or as server-sent events.

use super::{
    App,
    extract::{Params, RunPath, read},
    stream::{bytes, ndjson, view},
};
use crate::{
    error::{ApiError, ApiResult},
    ops::FollowItem,
};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use meepo_core::{
    api::{ErrorBody, FollowEvent, OutputPage},
    code::Code,
    error::Invalid,
};
use serde::Deserialize;

/// Chunks in one page of output unless asked otherwise.
const PAGE: usize = 1000;
/// How long a browser waits before it comes back.
const RETRY_MILLIS: u32 = 500;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputParams {
    #[serde(default, deserialize_with = "read::number")]
    after: Option<u64>,
    #[serde(default, deserialize_with = "read::number")]
    limit: Option<usize>,
    #[serde(default, deserialize_with = "read::flag")]
    follow: Option<bool>,
}

/// What a run wrote; with `follow=true` also what it is yet to write, as one
/// `FollowEvent` a line, or as server-sent events for who accepts `text/event-stream`. The id
/// of an event is the position of its piece: who has lost the stream goes on after it.
#[utoipa::path(get, path = "/v1/runs/{id}/output", tag = "runs",
    params(("id" = String, Path, description = "The run"),
        ("after" = Option<u64>, Query, description = "Only what comes after this position"),
        ("limit" = Option<usize>, Query, description = "Pieces; default 1000, at most 10000"),
        ("follow" = Option<bool>, Query, description = "Stream until the run ends"),
        ("Last-Event-ID" = Option<String>, Header, description = "As `after`; this one counts")),
    responses((status = 200, body = OutputPage),
        (status = 200, body = FollowEvent, content_type = "application/x-ndjson"),
        (status = 200, body = FollowEvent, content_type = "text/event-stream"),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn output(
    State(app): State<App>,
    RunPath(id): RunPath,
    headers: HeaderMap,
    Params(p): Params<OutputParams>,
) -> ApiResult<Response> {
    // The header is of the browser's own making and newer than what stands in the address.
    let after = match headers.get("last-event-id").filter(|v| !v.is_empty()) {
        Some(value) => {
            let text = value.to_str().unwrap_or("?");
            let bad = |_| {
                let (problem, expected) =
                    (format!("{text:?} is no position"), "the id of an event");
                ApiError::from(Invalid::new(Code::BAD_VALUE, "Last-Event-ID", problem, expected))
            };
            Some(text.parse().map_err(bad)?)
        }
        None => p.after,
    };
    if p.follow == Some(true) {
        let items = app.ops.follow(id, after).await?;
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !accept.contains("text/event-stream") {
            return Ok(ndjson(items, event, app.stop));
        }
        let mut first = true;
        let text = move |item| {
            let retry = match std::mem::take(&mut first) {
                true => format!("retry: {RETRY_MILLIS}\n\n"),
                false => String::new(),
            };
            Some((retry + &block(item)).into())
        };
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-store"),
            // nginx would gather events otherwise.
            (header::HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        return Ok((headers, bytes(items, text, app.stop)).into_response());
    }
    let limit = p.limit.unwrap_or(PAGE);
    let (chunks, complete) = app.ops.output(id, after, limit).await?;
    let next_after = chunks.last().map(|c| c.seq);
    let chunks = chunks.into_iter().map(view).collect();
    Ok(Json(OutputPage { chunks, next_after, complete }).into_response())
}

fn event(item: FollowItem) -> FollowEvent {
    match item {
        FollowItem::Output(chunk) => FollowEvent::Output(view(chunk)),
        FollowItem::End(record) => FollowEvent::End(record),
        FollowItem::Error(e) => FollowEvent::Error(e.0),
    }
}

/// An item as a block of lines. JSON has no line ends of its own.
fn block(item: FollowItem) -> String {
    let (id, name) = match &item {
        FollowItem::Output(chunk) => (format!("id: {}\n", chunk.seq), "output"),
        FollowItem::End(_) => (String::new(), "end"),
        FollowItem::Error(_) => (String::new(), "error"),
    };
    let data = serde_json::to_string(&event(item)).unwrap_or_default();
    format!("{id}event: {name}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::{
        id::RunId,
        run::{OutputChunk, Stream},
    };

    #[test]
    fn blocks_have_the_position_as_their_id() {
        let chunk = OutputChunk {
            run_id: RunId(Default::default()),
            seq: 7,
            stream: Stream::Stderr,
            at: jiff::Timestamp::UNIX_EPOCH,
            data: b"a\nb\n".to_vec(),
        };
        let text = block(FollowItem::Output(chunk));
        assert!(text.starts_with("id: 7\nevent: output\ndata: {\"type\":\"output\""), "{text}");
        assert!(text.contains("a\\nb\\n") && text.ends_with("}\n\n"), "{text}");
        let text = block(FollowItem::Error(ApiError::new(Code::NO_LEADER, "x")));
        assert!(text.starts_with("event: error\ndata: {"), "{text}");
    }
}
