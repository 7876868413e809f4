//! Puts the parts together and takes them down again.

use crate::{
    audit::{self, Audit},
    auth::Auth,
    config::Config,
    events::Events,
    grpc, http,
    limits::Limits,
    lost,
    metrics::Metrics,
    mismatches,
    notify::{self, Notifier, Sender},
    ops::{Feeds, Joining, KeyLease, LeaderLink, Ops},
    reconcile, rerun, resign, retention,
    seal::Seal,
    sessions::Sessions,
    tasks::{Board, Leader, run as dispatch_tasks},
    view::View,
};
use anyhow::Context;
use meepo_coord::{
    Etcd,
    election::{self, Leadership},
    lease::{self, LeaseState},
    records::LeaderRecord,
};
use meepo_logstore::{LogStore, mongo};
use meepo_runtime::{
    OnError, Tasks,
    backoff::Backoff,
    files,
    tls::{Acceptor, Credentials, Protocol},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Longest time the tasks may take to end.
const TASKS_END: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted. Beyond that the kernel drops them, and a
/// client tries again after one second, then three, then seven.
const BACKLOG: u32 = 4096;

/// A master that runs.
pub struct Master {
    /// Where the HTTP API is.
    pub http: SocketAddr,
    /// Where the gRPC server is.
    pub grpc: SocketAddr,
    /// What the API does, for whoever shares the process.
    pub ops: Ops,
    tasks: Tasks,
}

impl Master {
    /// Starts a master. etcd and the log store need not be reachable.
    ///
    /// # Errors
    /// When something local is wrong: the settings, the ports.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let http_listener = bind(config.http, "the HTTP API", "--http (MEEPO_HTTP)")?;
        let grpc_listener = bind(config.grpc, "gRPC", "--grpc (MEEPO_GRPC)")?;
        let (http, grpc) = (http_listener.local_addr()?, grpc_listener.local_addr()?);
        if config.logs.starts_with("sqlite:") {
            let dir = &config.data_dir;
            files::own_dir(dir)
                .with_context(|| format!("cannot use {} as data_dir", dir.display()))?;
        }
        let credentials = config.tls.clone().map(Credentials::load).transpose()?;
        let http_acceptor = Acceptor::new(credentials.clone(), Protocol::Http);
        let grpc_acceptor = Acceptor::new(credentials.clone(), Protocol::Grpc);
        let scheme = if credentials.is_some() { "https" } else { "http" };
        let metrics = Arc::new(Metrics::default());
        let store = meepo_logstore::open_observed(&config.logs, mongo::POOL, metrics.store()).await;
        let store = store.context("logs")?;
        let etcd = Etcd::open(config.etcd.clone()).await?.counted(metrics.etcd());
        let tasks = Tasks::new();
        let stop = tasks.token();
        info!(%http, %grpc, etcd = ?config.etcd.endpoints, "master starts");

        let migrating = migrate(store.clone(), stop.clone());
        tasks.spawn("migrations", OnError::Shutdown, migrating);
        let (lease_tx, lease) = watch::channel(LeaseState::None);
        let keeping = lease::keep(etcd.clone(), config.lease_ttl, lease_tx, stop.clone());
        tasks.spawn("lease", OnError::Shutdown, async {
            keeping.await;
            Ok(())
        });
        let host = |address: SocketAddr| match &config.advertise {
            // An address of IPv6 stands in brackets (RFC 3986 §3.2.2).
            Some(name) if name.contains(':') && !name.starts_with('[') => {
                format!("[{name}]:{}", address.port())
            }
            Some(name) => format!("{name}:{}", address.port()),
            None => address.to_string(),
        };
        let me = LeaderRecord {
            id: uuid::Uuid::now_v7().to_string(),
            http: format!("{scheme}://{}", host(http)),
            grpc: format!("{scheme}://{}", host(grpc)),
            extra: Default::default(),
        };
        // What is seen of signatures there is of other keys than those of definitions.
        let own = Seal::open(config.signing.as_ref())?;
        let auth = Auth::new(config.auth.clone(), etcd.for_requests(), own)?;
        tasks.spawn("auth", OnError::Shutdown, auth.clone().run(etcd.clone(), stop.clone()));
        let (audit, audited) = Audit::new(&me.http, metrics.clone());
        let writing = audit::write(
            audited,
            store.clone(),
            config.data_dir.clone(),
            metrics.clone(),
            stop.clone(),
        );
        tasks.spawn("audit", OnError::Shutdown, writing);
        let (leader_tx, leadership) = watch::channel(Leadership::default());
        let standing = election::campaign(etcd.clone(), me, lease, leader_tx, stop.clone());
        tasks.spawn("election", OnError::Shutdown, async {
            standing.await;
            Ok(())
        });

        let seal = Seal::open(config.signing.as_ref())?;
        let view = View::sealed(seal.clone());
        tasks.spawn("view", OnError::Shutdown, view.clone().keep(etcd.clone(), stop.clone()));
        let board = Board::sealed(seal.clone());
        tasks.spawn(
            "task board",
            OnError::Shutdown,
            board.clone().keep(etcd.clone(), stop.clone()),
        );
        let events = Events::new(etcd.clone(), metrics.clone());
        tasks.spawn("events", OnError::Shutdown, events.clone().keep(stop.clone()));
        let sender = Arc::new(Sender::new(config.secrets_dir, config.notify_commands));
        let ops = Ops {
            etcd: etcd.for_requests(),
            store: store.clone(),
            view: view.clone(),
            board: board.clone(),
            tasks_limit: config.tasks_limit,
            key_lease: KeyLease::default(),
            sessions: Sessions::sealed(seal.clone()),
            feeds: Feeds::default(),
            events,
            sender: sender.clone(),
            leadership: leadership.clone(),
            leader: Arc::new(LeaderLink::new(credentials.clone())),
            joining: Arc::new(Joining {
                credentials,
                ca_key: config.ca_key,
                etcd: config.etcd.endpoints,
            }),
            limits: Limits::new(metrics.clone()),
            auth,
            audit,
            metrics,
        };
        let leader = Leader {
            etcd: etcd.clone(),
            store: store.clone(),
            board,
            view: view.clone(),
            sessions: ops.sessions.clone(),
            leadership: leadership.clone(),
            metrics: ops.metrics.clone(),
            lease_ttl: config.lease_ttl,
        };
        tasks.spawn("tasks", OnError::Shutdown, dispatch_tasks(leader, stop.clone()));
        let notifier = Notifier {
            etcd: etcd.clone(),
            view: view.clone(),
            board: ops.board.clone(),
            leadership: leadership.clone(),
            sender,
            metrics: ops.metrics.clone(),
        };
        tasks.spawn("notifications", OnError::Shutdown, notify::run(notifier, stop.clone()));
        let placing = reconcile::run(
            etcd.clone(),
            view.clone(),
            leadership.clone(),
            ops.metrics.clone(),
            stop.clone(),
        );
        tasks.spawn("placement", OnError::Shutdown, placing);
        let resigning = resign::run(etcd.clone(), seal, leadership.clone(), stop.clone());
        tasks.spawn("signatures of definitions", OnError::Log, resigning);
        let again = rerun::run(
            ops.etcd.clone(),
            store.clone(),
            view.clone(),
            leadership.clone(),
            stop.clone(),
        );
        tasks.spawn("lost runs again", OnError::Shutdown, again);
        let sweeping = retention::run(
            store.clone(),
            config.retention,
            leadership.clone(),
            ops.metrics.clone(),
            stop.clone(),
        );
        tasks.spawn("retention", OnError::Shutdown, sweeping);
        let marking = lost::run(etcd, store, view, leadership.clone(), stop.clone());
        tasks.spawn("lost runs", OnError::Shutdown, marking);
        let comparing = mismatches::run(ops.clone(), config.lease_ttl, stop.clone());
        tasks.spawn("mismatches", OnError::Shutdown, comparing);
        tasks.spawn("leadership", OnError::Shutdown, follow_leadership(ops.clone(), stop.clone()));
        tasks.spawn(
            "http",
            OnError::Shutdown,
            http::serve(
                http_listener,
                http_acceptor,
                ops.clone(),
                config.advertise.clone(),
                stop.clone(),
            ),
        );
        tasks.spawn(
            "grpc",
            OnError::Shutdown,
            grpc::serve(grpc_listener, grpc_acceptor, ops.clone(), stop),
        );
        Ok(Self { http, grpc, ops, tasks })
    }

    /// Waits until a part fails that the master cannot do without; answers which.
    pub async fn failed(&self) -> String {
        self.tasks.token().cancelled().await;
        self.tasks.failure().unwrap_or_else(|| "a task ended".into())
    }

    /// Hands over and goes.
    pub async fn shutdown(self) {
        info!("master shuts down");
        let stuck = self.tasks.shutdown(TASKS_END).await;
        if !stuck.is_empty() {
            warn!(tasks = ?stuck, "tasks did not end in time");
        }
        info!("master has ended");
    }
}

fn bind(address: SocketAddr, what: &str, setting: &str) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| {
        format!("cannot listen on {address} for {what}; choose another address with {setting}")
    })
}

/// Brings the log store's schema up to date, trying until the store answers.
async fn migrate(store: Arc<dyn LogStore>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(Duration::from_secs(10));
    loop {
        match store.migrate().await {
            Ok(applied) => {
                if !applied.is_empty() {
                    info!(steps = ?applied, "log store migrated");
                }
                return Ok(());
            }
            Err(e) if e.retryable() => {
                let wait = backoff.next_wait();
                let error = format!("{:#}", anyhow::Error::from(e));
                warn!(error, ?wait, "cannot migrate the log store, will try again");
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
            }
            Err(e) => return Err(e).context("cannot migrate the log store"),
        }
    }
}

/// Ends the workers' sessions when the leadership is lost: they belong to the leader.
async fn follow_leadership(ops: Ops, stop: CancellationToken) -> anyhow::Result<()> {
    let mut leadership = ops.leadership.clone();
    let mut term = None;
    loop {
        let mine = leadership.borrow_and_update().mine;
        if mine != term {
            term = mine;
            ops.sessions.keep_only(mine);
            ops.metrics.leading.set(i64::from(mine.is_some()));
        }
        tokio::select! {
            () = stop.cancelled() => {
                ops.sessions.keep_only(None);
                return Ok(());
            }
            changed = leadership.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}
