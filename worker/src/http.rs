//! `/metrics` and `/healthz` on the worker's own port.

use crate::{metrics::Metrics, vitals::Vitals};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use jiff::Timestamp;
use meepo_runtime::{
    metrics::CONTENT_TYPE,
    tls::{Acceptor, Io, Peer, incoming},
};
use std::{net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

/// Serves until `stop` is cancelled.
pub async fn serve(
    listener: TcpListener,
    acceptor: Acceptor,
    metrics: Arc<Metrics>,
    vitals: Vitals,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let app = Router::new()
        .route("/metrics", get(text))
        .route("/healthz", get(health))
        .with_state((metrics, vitals));
    let address = listener.local_addr()?;
    let connections = Connections { ready: incoming(listener, acceptor, stop.clone()), address };
    axum::serve(connections, app).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

/// Connections that have been accepted. Where they are encrypted, whoever is at the other end
/// has shown a certificate.
struct Connections {
    ready: mpsc::Receiver<(Io, Peer)>,
    address: SocketAddr,
}

impl axum::serve::Listener for Connections {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some((io, peer)) => (io, peer.address),
            // Nothing is accepted any more: the server is about to end.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(self.address)
    }
}

type Shown = State<(Arc<Metrics>, Vitals)>;

async fn text(State((metrics, vitals)): Shown) -> impl IntoResponse {
    vitals.observe(&metrics, Timestamp::now());
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics.exposition.text())
}

/// Only what a restart may mend is a failure; what else is wrong stands below.
async fn health(State((_, vitals)): Shown) -> (StatusCode, String) {
    let now = Timestamp::now();
    let (status, mut text) = match vitals.progress.trouble(now) {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    };
    for problem in vitals.problems(now).iter().filter(|_| status == StatusCode::OK) {
        text.push_str(&format!("{}: {}\n", problem.subject, problem.reason));
    }
    (status, text)
}
