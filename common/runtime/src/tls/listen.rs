//! What listens: connections are accepted, and are encrypted where that is set.

use super::{Credentials, Peer, Protocol, x509};
use jiff::Timestamp;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Longest time until a connection is encrypted. Whoever takes longer means no good.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at the same time; more wait to be accepted.
const HANDSHAKES: usize = 1024;
/// Connections that are ready and wait to be taken.
const READY: usize = 64;
/// The first byte of every connection over TLS: a record of the kind handshake.
const TLS: u8 = 0x16;
/// Longest time that the other side may take to hang up, too.
const HANG_UP: Duration = Duration::from_secs(1);
/// Most that is read of what somebody sends without TLS, in bytes.
const MAX_UNREAD: u64 = 64 << 10;
/// What who speaks HTTP without TLS is told.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n\
    content-length: 51\r\nconnection: close\r\n\r\nthis port speaks TLS; expected a URL with https://\n";

/// Makes of a connection what is to be served on it. Cloning is cheap.
#[derive(Clone)]
pub struct Acceptor {
    tls: Option<(Arc<Credentials>, Protocol)>,
}

impl Acceptor {
    /// Connections of this protocol; not encrypted without `credentials`.
    pub fn new(credentials: Option<Arc<Credentials>>, protocol: Protocol) -> Self {
        Self { tls: credentials.map(|c| (c, protocol)) }
    }

    /// Whether connections are encrypted.
    pub fn encrypts(&self) -> bool {
        self.tls.is_some()
    }

    /// Waits for the handshake, where there is one. To be called in a task of the
    /// connection's own: the other side may be slow.
    ///
    /// # Errors
    /// When there is no handshake in time, or it fails.
    pub async fn accept(&self, tcp: TcpStream, address: SocketAddr) -> io::Result<(Io, Peer)> {
        // Without it the connection works all the same, only slower.
        let _ = tcp.set_nodelay(true);
        let Some((credentials, protocol)) = &self.tls else {
            return Ok((Io::Plain(tcp), Peer::plain(address)));
        };
        let config = credentials.now().server(*protocol);
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no handshake in time");
        let shaking = shake(tcp, config, *protocol);
        let tls = timeout(HANDSHAKE, shaking).await.map_err(|_| late())??;
        let shown = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identity = shown.and_then(|cert| x509::identity(cert));
        let certificate = shown.map(|cert| cert.as_ref().into());
        let peer = Peer { address, identity, certificate, encrypted: true };
        Ok((Io::Tls(Box::new(tls)), peer))
    }
}

async fn shake(
    mut tcp: TcpStream,
    config: Arc<rustls::ServerConfig>,
    protocol: Protocol,
) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if tcp.peek(&mut first).await? == 1 && first[0] != TLS {
        if protocol != Protocol::Grpc {
            // Whoever does not wait for the answer has asked in vain.
            let _ = tcp.write_all(SPEAK_TLS).await;
            hang_up(tcp).await;
        }
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak TLS"));
    }
    match TlsAcceptor::from(config).accept(tcp).into_fallible().await {
        Ok(tls) => Ok(tls),
        Err((e, tcp)) => {
            hang_up(tcp).await;
            Err(e)
        }
    }
}

/// Closes a connection so that the other side gets what was last said to it: closed with
/// something unread, that would be lost.
async fn hang_up(mut tcp: TcpStream) {
    let rest = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(MAX_UNREAD), &mut tokio::io::sink()).await
    };
    // It has been told, whatever becomes of this.
    let _ = timeout(HANG_UP, rest).await;
}

/// Accepts connections, each with its handshake in a task of its own, until `stop` is
/// cancelled or nobody takes them any more.
pub fn incoming(
    listener: TcpListener,
    acceptor: Acceptor,
    stop: CancellationToken,
) -> mpsc::Receiver<(Io, Peer)> {
    let (ready, taken) = mpsc::channel(READY);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            // Never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                () = ready.closed() => return,
                accepted = listener.accept() => accepted,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    pause(&e).await;
                    continue;
                }
            };
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                let _place = place;
                match acceptor.accept(tcp, address).await {
                    Ok(connection) => drop(ready.send(connection).await),
                    Err(e) => refused(address, &e),
                }
            });
        }
    });
    taken
}

/// Notes that a connection came to nothing, and why; of many in one second the first.
pub fn refused(address: SocketAddr, error: &io::Error) {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let now = Timestamp::now().as_second();
    // Scanners and health checks of balancers come all the time.
    match error.kind() {
        io::ErrorKind::InvalidData if LAST.swap(now, Ordering::Relaxed) != now => {
            warn!(%address, %error, "a connection is refused");
        }
        _ => debug!(%address, %error, "a connection came to nothing"),
    }
}

/// Waits after a connection could not be accepted, if that is likely to go on: there may be
/// no file descriptors left.
pub async fn pause(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if ![ConnectionAborted, ConnectionRefused, ConnectionReset].contains(&error.kind()) {
        warn!(%error, "cannot accept a connection");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A connection, encrypted or not.
#[derive(Debug)]
pub enum Io {
    /// Not encrypted.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }
}
