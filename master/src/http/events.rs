//! `GET /v1/events`: server-sent events, as browsers and `curl -N` read them (HTML Living
//! Standard §9.2).

use super::{
    App,
    extract::{Params, read},
    stream::bytes,
};
use crate::{
    error::{ApiError, ApiResult},
    events::{Begin, Item},
};
use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use meepo_core::{
    api::ErrorBody,
    error::Invalid,
    event::{Event, EventId, Filter},
};
use serde::Deserialize;
use std::fmt::Write;

/// How long a browser waits before it comes back.
const RETRY_MILLIS: u32 = 2_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventParams {
    kind: Option<String>,
    job: Option<String>,
    node: Option<String>,
    task: Option<String>,
    after: Option<String>,
    #[serde(default, deserialize_with = "read::number")]
    recent: Option<usize>,
    #[serde(default, deserialize_with = "read::flag")]
    follow: Option<bool>,
}

/// What happens, as server-sent events: the data of each is an `Event`. Comments and bare
/// ids come in between when nothing happens.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(("kind" = Option<String>, Query, description = "Only these kinds (job) or events (job.paused), separated by commas"),
        ("job" = Option<String>, Query, description = "Only of these jobs; commas, * and ?"),
        ("node" = Option<String>, Query, description = "Only of these nodes; commas, * and ?"),
        ("task" = Option<String>, Query, description = "Only of these tasks; commas, * and ?"),
        ("after" = Option<String>, Query, description = "Only what comes after this id"),
        ("recent" = Option<usize>, Query, description = "Begin with so many of the last events"),
        ("follow" = Option<bool>, Query, description = "Go on with what happens; default true"),
        ("Last-Event-ID" = Option<String>, Header, description = "As `after`; this one counts")),
    responses((status = 200, body = Event, content_type = "text/event-stream"),
        (status = 400, body = ErrorBody), (status = 429, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn events(
    State(app): State<App>,
    headers: HeaderMap,
    Params(p): Params<EventParams>,
) -> ApiResult<Response> {
    let opt = Option::as_deref;
    let filter = Filter::parse(opt(&p.kind), opt(&p.job), opt(&p.node), opt(&p.task))?;
    // The header is of the browser's own making and newer than what stands in the address.
    let after = match headers.get("last-event-id").filter(|v| !v.is_empty()) {
        Some(value) => {
            let at = |e: Invalid| ApiError::from(e.at("Last-Event-ID"));
            Some(value.to_str().unwrap_or("?").parse().map_err(at)?)
        }
        None => p.after.map(|a| a.parse::<EventId>()).transpose()?,
    };
    let begin = match (after, p.recent) {
        (Some(id), _) => Begin::After(id),
        (None, Some(n)) => Begin::Recent(n),
        (None, None) => Begin::Now,
    };
    let items = app.ops.listen_events(filter, begin, p.follow.unwrap_or(true)).await?;
    let mut first = true;
    let text = move |item| {
        let mut text = String::new();
        if std::mem::take(&mut first) {
            // Writing to a String cannot fail.
            let _ = write!(text, "retry: {RETRY_MILLIS}\n\n");
        }
        block(&mut text, item);
        Some(text.into())
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would gather events otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, bytes(items, text, app.stop)).into_response())
}

/// An item as a block of lines. JSON has no line ends of its own.
fn block(text: &mut String, item: Item) {
    let json = |value: serde_json::Result<String>| value.unwrap_or_default();
    let _ = match item {
        Item::Event(e) => {
            let data = json(serde_json::to_string(&*e));
            write!(text, "id: {}\nevent: {}\ndata: {data}\n\n", e.id, e.what.kind())
        }
        // No event, but the place is remembered.
        Item::At(id) => write!(text, ": nothing new\nid: {id}\n\n"),
        Item::End(e) => {
            let data = json(serde_json::to_string(&ErrorBody { error: e.0 }));
            write!(text, "event: error\ndata: {data}\n\n")
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::{code::Code, event::What};

    #[test]
    fn blocks_are_as_the_standard_has_them() {
        let shown = |item| {
            let mut text = String::new();
            block(&mut text, item);
            text
        };
        let mut event = Event::new(What::JobPaused).state("a\nb");
        event.id = EventId { revision: 7, index: 1 };
        assert_eq!(
            shown(Item::Event(event.into())),
            "id: 7.1\nevent: job\ndata: {\"id\":\"7.1\",\"type\":\"job.paused\",\"state\":\"a\\nb\"}\n\n"
        );
        assert_eq!(shown(Item::At(EventId::through(9))), ": nothing new\nid: 9\n\n");
        let end = shown(Item::End(ApiError::new(Code::BUSY, "too slow")));
        assert!(end.starts_with("event: error\ndata: {\"error\":{\"code\":1027,"), "{end}");
        assert!(end.ends_with("}}\n\n") && !end.contains("id:"), "{end}");
    }
}
