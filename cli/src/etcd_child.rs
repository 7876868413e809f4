//! An etcd of our own: a child process on a directory, kept alive while we live.
//!
//! | what happens | what we do |
//! |---|---|
//! | the terminal sends Ctrl-C to everybody | etcd is in its own process group: we stop it last |
//! | we are killed with SIGKILL | the kernel sends etcd SIGTERM (`setpriv --pdeathsig`, where there is one) |
//! | an etcd was left over all the same | the next start on the directory finds its pid file and stops it |
//! | another server uses the directory | it holds the lock file: an error |
//! | the port is taken | an error that names who holds it |
//! | etcd dies | it is started again, with back-off |
//!
//! The death signal is sent when the *thread* that started the child ends, so one
//! thread of its own starts etcd, watches it and lives as long as [`EtcdChild`].

mod leftover;
mod port;
mod process;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, anyhow, bail};
use meepo_runtime::files::private_dir;
use process::Launch;
use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long etcd may take to answer after it was started.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long etcd may take to end before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Pauses between restarts: doubled up to the second while it keeps dying.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// An etcd that lived so long did not die of how it was started.
const STABLE: Duration = Duration::from_secs(60);

/// How to start an etcd.
#[derive(Debug, Clone)]
pub(crate) struct EtcdOptions {
    /// Our data directory: etcd's is `etcd` in it, its log `etcd.log`.
    pub(crate) data_dir: PathBuf,
    /// Client port on 127.0.0.1; 0 takes a free one.
    pub(crate) port: u16,
    /// The program.
    pub(crate) program: PathBuf,
}

impl EtcdOptions {
    /// The `etcd` of the `PATH` on `data_dir`.
    pub(crate) fn new(data_dir: &Path, port: u16) -> Self {
        Self { data_dir: data_dir.to_owned(), port, program: "etcd".into() }
    }
}

/// A running etcd. Dropping it stops etcd in the background; [`EtcdChild::stop`]
/// waits for that.
pub(crate) struct EtcdChild {
    endpoint: String,
    stop: DropGuard,
    stopped: oneshot::Receiver<()>,
}

impl EtcdChild {
    /// Starts etcd and waits until it answers. Dropping the future stops it again.
    ///
    /// Errors say what is in the way and which setting changes it; trying again
    /// without changing anything rarely helps.
    pub(crate) async fn start(options: EtcdOptions) -> Result<Self> {
        let (ready_tx, ready) = oneshot::channel();
        let (stopped_tx, stopped) = oneshot::channel();
        let token = CancellationToken::new();
        let stop = token.clone().drop_guard();
        std::thread::Builder::new()
            .name("etcd-child".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => runtime.block_on(live(options, ready_tx, &token)),
                    Err(e) => drop(ready_tx.send(Err(e.into()))),
                }
                // Nobody waits for it after a drop.
                let _ = stopped_tx.send(());
            })
            .context("cannot start the thread that watches etcd")?;
        let endpoint = ready.await.context("the thread that starts etcd ended")??;
        Ok(Self { endpoint, stop, stopped })
    }

    /// The URL for clients.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Stops etcd: SIGTERM, and SIGKILL if it takes too long. Returns when it is gone.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        // An error means that the thread is gone, and etcd with it.
        let _ = self.stopped.await;
    }
}

/// Starts etcd, says how that went, and keeps it alive until `stop`.
async fn live(
    options: EtcdOptions,
    ready: oneshot::Sender<Result<String>>,
    stop: &CancellationToken,
) {
    let prepared = tokio::task::spawn_blocking(move || prepare(&options)).await;
    let (launch, _lock) = match prepared.map_err(Into::into).and_then(|r| r) {
        Ok(prepared) => prepared,
        Err(e) => return drop(ready.send(Err(e))),
    };
    let mut etcd = match launch.start(stop).await {
        Ok(etcd) => etcd,
        Err(e) => return drop(ready.send(Err(e))),
    };
    if ready.send(Ok(launch.endpoint())).is_err() {
        return launch.stop(etcd).await;
    }
    let mut pause = RESTART_PAUSE.0;
    loop {
        let since = Instant::now();
        let ended = tokio::select! {
            ended = etcd.child.wait() => ended,
            () = stop.cancelled() => return launch.stop(etcd).await,
        };
        let how = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
        if since.elapsed() >= STABLE {
            pause = RESTART_PAUSE.0;
        }
        tracing::error!(log = %launch.log().display(), ?pause, "etcd ended ({how}); starting it again");
        etcd = loop {
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return launch.forget();
            }
            pause = (pause * 2).min(RESTART_PAUSE.1);
            match launch.start(stop).await {
                Ok(etcd) => break etcd,
                Err(_) if stop.is_cancelled() => return launch.forget(),
                Err(e) => tracing::error!(?pause, "etcd does not start: {e:#}; trying again"),
            }
        };
        tracing::info!("etcd is back");
    }
}

/// Everything that must be right before etcd is started. The file holds the lock on
/// the directory.
fn prepare(options: &EtcdOptions) -> Result<(Launch, File)> {
    let program = find_program(&options.program).ok_or_else(|| {
        anyhow!(
            "there is no program {:?} on the PATH; expected etcd (`apt install etcd-server`), \
             or the URL of a running one with --etcd",
            options.program.display().to_string()
        )
    })?;
    let dir = &options.data_dir;
    // Only we can read it, as etcd wants it.
    private_dir(dir)
        .and_then(|()| dir.canonicalize())
        .and_then(|dir| private_dir(&dir.join("etcd")).map(|()| dir))
        .with_context(|| {
            format!(
                "cannot make the data directory {}; expected one that can be written (--data-dir)",
                dir.display()
            )
        })
        .and_then(|dir| {
            let lock = leftover::lock(&dir)?;
            leftover::end(&dir)?;
            let port = free_port(options.port)?;
            Ok((Launch::new(program, dir, port), lock))
        })
}

fn free_port(port: u16) -> Result<u16> {
    match std::net::TcpListener::bind(("127.0.0.1", port)) {
        Ok(listener) => Ok(listener.local_addr()?.port()),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            let holder = port::holder(port);
            let join = if holder.as_ref().is_some_and(|h| h.name == "etcd") {
                format!(", or use that etcd with --etcd http://127.0.0.1:{port}")
            } else {
                ", or the URL of a running etcd with --etcd".to_owned()
            };
            let by = holder.map_or_else(String::new, |h| format!(" by {h}"));
            bail!(
                "port {port} of 127.0.0.1 is taken{by}; expected a free port for etcd: \
                 choose another with --etcd-port (MEEPO_ETCD_PORT){join}"
            )
        }
        Err(e) => Err(e).with_context(|| {
            format!("cannot listen on port {port} of 127.0.0.1; choose another with --etcd-port (MEEPO_ETCD_PORT)")
        }),
    }
}

/// The program as the shell would find it.
fn find_program(program: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runnable = |p: &PathBuf| {
        p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return Some(program.to_owned()).filter(runnable);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(runnable)
}
