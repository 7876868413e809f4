//! Connections to the HTTP API: how many, how large a head, and how long a client may take.

use crate::auth::AuthSettings;
use axum::{Router, extract::ConnectInfo};
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use meepo_runtime::tls::{Io, Peer};
use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::{Instant, Sleep},
};
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::debug;

/// Largest head of a request, in bytes: a bearer token may be 16 KiB.
pub(super) const MAX_HEAD: usize = 64 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 100;
/// A client that takes nothing of its answer for so long is cut off.
const STUCK: Duration = Duration::from_secs(60);

/// Serves connections until no more come and those that are there have ended.
pub(super) async fn serve(
    mut ready: mpsc::Receiver<(Io, Peer)>,
    router: Router,
    settings: &AuthSettings,
    stop: CancellationToken,
) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(settings.client_timeout)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    let places = Arc::new(Places::new(settings.max_connections));
    let graceful = GracefulShutdown::new();
    loop {
        let connection = tokio::select! {
            () = stop.cancelled() => break,
            connection = ready.recv() => connection,
        };
        let Some((io, peer)) = connection else { break };
        // Closed at once: whoever waits for a place would keep others from being looked at.
        let Some(place) = places.take(peer.address.ip()) else {
            debug!(address = %peer.address, "too many connections, one is closed");
            continue;
        };
        let (router, info) = (router.clone(), ConnectInfo(peer));
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(info.clone());
            let mut router = router.clone();
            async move { router.call(request).await }
        });
        let io = TokioIo::new(Patient { io, stuck: None });
        let connection = graceful.watch(builder.serve_connection(io, service));
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                debug!(%error, "a connection broke");
            }
        });
    }
    drop(ready);
    graceful.shutdown().await;
}

/// Connections that there may be: in all, and from one address that is not this machine's. One
/// client alone cannot take all of them.
struct Places {
    most: usize,
    taken: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

impl Places {
    fn new(most: usize) -> Self {
        Self { most, taken: Mutex::default() }
    }

    fn take(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let client = client.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.1.get(&client).copied().unwrap_or_default();
        let share = if client.is_loopback() { self.most } else { (self.most / 4).max(1) };
        if taken.0 >= self.most || own >= share {
            return None;
        }
        taken.0 += 1;
        taken.1.insert(client, own + 1);
        Some(Place { places: self.clone(), client })
    }
}

/// The place of one connection.
struct Place {
    places: Arc<Places>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 = taken.0.saturating_sub(1);
        let left = taken.1.get(&self.client).map_or(0, |n| n.saturating_sub(1));
        match left {
            0 => drop(taken.1.remove(&self.client)),
            n => drop(taken.1.insert(self.client, n)),
        }
    }
}

/// A connection that is given up when the other side takes nothing for too long.
struct Patient {
    io: Io,
    /// Runs while something waits to be taken.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// What came of an attempt to write, or the end of patience.
    fn waited<T>(
        &mut self,
        cx: &mut Context<'_>,
        wrote: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.stuck = None;
            return wrote;
        }
        let sleep = || Box::pin(tokio::time::sleep_until(Instant::now() + STUCK));
        if self.stuck.get_or_insert_with(sleep).as_mut().poll(cx).is_ready() {
            let e = io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing");
            return Poll::Ready(Err(e));
        }
        Poll::Pending
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write(cx, buf);
        self.waited(cx, wrote)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.waited(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.waited(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_all_places_and_they_come_back() {
        let places = Arc::new(Places::new(8));
        let [far, other, here] =
            ["203.0.113.1", "203.0.113.2", "127.0.0.1"].map(|a| a.parse().unwrap());
        let held: Vec<_> = (0..4).filter_map(|_| places.take(far)).collect();
        assert_eq!(held.len(), 2);
        let own: Vec<_> = (0..9).filter_map(|_| places.take(here)).collect();
        assert_eq!(own.len(), 6);
        assert!(places.take(other).is_none());
        drop((held, own));
        assert_eq!(places.taken.lock().unwrap().1.len(), 0);
        assert!(places.take(other).is_some());
    }
}
