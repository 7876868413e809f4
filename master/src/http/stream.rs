//! Answers that come bit by bit, most of them as one JSON object a line.

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
    rx: mpsc::Receiver<T>,
    event: impl Fn(T) -> E + Send + 'static,
    stop: CancellationToken,
) -> Response
where
    T: Send + 'static,
    E: Serialize + Send + 'static,
{
    let line = move |item| {
        let mut line = serde_json::to_vec(&event(item)).ok()?;
        line.push(b'\n');
        Some(line.into())
    };
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would gather lines otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, bytes(rx, line, stop)).into_response()
}

/// A body of what comes from `rx`, until that ends, `write` answers nothing, or the master
/// shuts down.
pub(super) fn bytes<T: Send + 'static>(
    mut rx: mpsc::Receiver<T>,
    mut write: impl FnMut(T) -> Option<Bytes> + Send + 'static,
    stop: CancellationToken,
) -> Body {
    Body::from_stream(async_stream(async move |out: mpsc::Sender<Bytes>| {
        loop {
            let item = tokio::select! {
                () = stop.cancelled() => return,
                () = out.closed() => return,
                item = rx.recv() => item,
            };
            let Some(bytes) = item.and_then(&mut write) else { return };
            if out.send(bytes).await.is_err() {
                return;
            }
        }
    }))
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
