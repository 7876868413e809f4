//! The network between the processes of a stage: every connection goes through a proxy on the
//! loopback that knows who is at either end, so that any two can be cut off from each other.
//!
//! Who connects is found by the socket: the proxy asks the kernel which process owns the
//! other end. A link that is cut delivers nothing and closes nothing, as a network that drops
//! packets; what was sent arrives when it is whole again.

use anyhow::{Context, Result};
use meepo_tests::Process;
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};

/// What becomes of bytes on their way from one party to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// They wait until the link is whole.
    Cut,
    /// They come so much later.
    Slow(Duration),
    /// The connection is closed, and so is every new one.
    Closed,
}

type Links = BTreeMap<(String, String), Link>;
/// Who is called what.
type Parties = Vec<(String, Arc<Process>)>;

/// Waits until connections between the two are to be closed.
async fn closed(links: &mut watch::Receiver<Links>, key: &(String, String)) {
    if links.wait_for(|l| l.get(key) == Some(&Link::Closed)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The network of a stage.
#[derive(Debug, Clone)]
pub(crate) struct Net {
    links: watch::Sender<Links>,
    parties: Arc<Mutex<Parties>>,
}

impl Net {
    /// A network in which everything arrives.
    pub(crate) fn new() -> Self {
        Self { links: watch::Sender::default(), parties: Arc::default() }
    }

    /// Connections of `process` are those of `name`, also after it was started anew.
    pub(crate) fn enter(&self, name: &str, process: Arc<Process>) {
        self.parties().push((name.to_owned(), process));
    }

    /// Sets what happens to bytes from one party to another; `None`: they arrive.
    pub(crate) fn set(&self, from: &str, to: &str, link: Option<Link>) {
        let key = (from.to_owned(), to.to_owned());
        self.links.send_modify(|links| match link {
            Some(link) => drop(links.insert(key, link)),
            None => drop(links.remove(&key)),
        });
    }

    /// Passes connections to `listen` on to `target`, which is the party `to`, for as long as
    /// the runtime lives.
    ///
    /// # Errors
    /// When nothing can listen there.
    pub(crate) async fn proxy(
        &self,
        listen: SocketAddr,
        target: SocketAddr,
        to: &str,
    ) -> Result<()> {
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
        let (net, to) = (self.clone(), to.to_owned());
        tokio::spawn(async move {
            while let Ok((client, peer)) = listener.accept().await {
                let (net, to) = (net.clone(), to.clone());
                tokio::spawn(async move { net.carry(client, peer, target, &to).await });
            }
        });
        Ok(())
    }

    async fn carry(&self, client: TcpStream, peer: SocketAddr, target: SocketAddr, to: &str) {
        let net = self.clone();
        let from = tokio::task::spawn_blocking(move || net.owner(peer)).await.ok().flatten();
        // Somebody who is no party, the harness for instance, is never cut off.
        let from = from.unwrap_or_default();
        if self.open(&from, to, Instant::now()).await.is_none() {
            return;
        }
        let Ok(server) = TcpStream::connect(target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        let there = self.pump(&mut from_client, &mut to_server, &from, to);
        let back = self.pump(&mut from_server, &mut to_client, to, &from);
        tokio::pin!(there, back);
        // A side that has said all it has to say may still listen; one that broke may not.
        tokio::select! {
            whole = &mut there => if whole { back.await; },
            whole = &mut back => if whole { there.await; },
        }
    }

    /// Carries bytes until there are no more; false when the connection is to be closed.
    async fn pump(
        &self,
        source: &mut (impl AsyncReadExt + Unpin),
        sink: &mut (impl AsyncWriteExt + Unpin),
        from: &str,
        to: &str,
    ) -> bool {
        let mut buffer = vec![0; 64 << 10];
        let mut links = self.links.subscribe();
        let key = (from.to_owned(), to.to_owned());
        loop {
            let read = tokio::select! {
                read = source.read(&mut buffer) => read,
                () = closed(&mut links, &key) => return false,
            };
            let Ok(n) = read else { return false };
            if self.open(from, to, Instant::now()).await.is_none() {
                return false;
            }
            if n == 0 {
                return sink.shutdown().await.is_ok();
            }
            if sink.write_all(&buffer[..n]).await.is_err() {
                return false;
            }
        }
    }

    /// Waits until what was sent at `sent` may arrive; `None` when it never will.
    async fn open(&self, from: &str, to: &str, sent: Instant) -> Option<()> {
        let mut links = self.links.subscribe();
        let key = (from.to_owned(), to.to_owned());
        loop {
            let link = links.borrow_and_update().get(&key).copied();
            match link {
                None => return Some(()),
                Some(Link::Closed) => return None,
                Some(Link::Cut) => links.changed().await.ok()?,
                Some(Link::Slow(by)) => {
                    tokio::time::sleep_until(sent + by).await;
                    return Some(());
                }
            }
        }
    }

    /// The party that has the socket bound to `address`.
    fn owner(&self, address: SocketAddr) -> Option<String> {
        let SocketAddr::V4(v4) = address else { return None };
        let ip = u32::from_ne_bytes(v4.ip().octets());
        let wanted = format!("{ip:08X}:{:04X}", v4.port());
        let table = fs::read_to_string("/proc/net/tcp").ok()?;
        let inode = table.lines().skip(1).find_map(|line| {
            let mut words = line.split_whitespace();
            (words.nth(1)? == wanted).then(|| words.nth(7).map(str::to_owned))?
        })?;
        let link = format!("socket:[{inode}]");
        let parties = self.parties().clone();
        let owns = |pid: u32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| to.as_os_str() == &*link)
        };
        parties.into_iter().find(|(_, process)| owns(process.pid())).map(|(name, _)| name)
    }

    fn parties(&self) -> std::sync::MutexGuard<'_, Parties> {
        self.parties.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
