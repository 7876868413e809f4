//! Answers that come bit by bit, one JSON object a line.

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use meepo_core::{api::OutputView, run::OutputChunk};
use serde::Serialize;
use std::convert::Infallible;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A chunk as the API shows it.
pub(super) fn view(chunk: OutputChunk) -> OutputView {
    OutputView::new(chunk, |bytes| STANDARD.encode(bytes))
}

/// Streams what comes from `rx`, turned into lines by `event`, until it ends or the
/// master shuts down.
pub(super) fn ndjson<T, E>(
    mut rx: mpsc::Receiver<T>,
    event: impl Fn(T) -> E + Send + 'static,
    stop: CancellationToken,
) -> Response
where
    T: Send + 'static,
    E: Serialize + Send + 'static,
{
    let lines = async_stream(async move |out: mpsc::Sender<Bytes>| {
        loop {
            let item = tokio::select! {
                () = stop.cancelled() => return,
                () = out.closed() => return,
                item = rx.recv() => item,
            };
            let Some(item) = item else { return };
            let Ok(mut line) = serde_json::to_vec(&event(item)) else { return };
            line.push(b'\n');
            if out.send(line.into()).await.is_err() {
                return;
            }
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would gather lines otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(lines)).into_response()
}

fn async_stream<F>(
    fill: impl FnOnce(mpsc::Sender<Bytes>) -> F,
) -> impl futures::Stream<Item = Result<Bytes, Infallible>>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (tx, rx) = mpsc::channel(16);
    tokio::spawn(fill(tx));
    futures::StreamExt::map(tokio_stream::wrappers::ReceiverStream::new(rx), Ok)
}
