//! The process itself: its flags, its log, its beginning and its end.

use super::{START_DEADLINE, STOP_DEADLINE, find_program, leftover};
use crate::{client, output::text};
use anyhow::{Context, Result, bail};
use meepo_worker::process::{Awaited, spawn_awaited};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// A log larger than this, in bytes, is put aside at the next start.
const MAX_LOG: u64 = 16 * 1024 * 1024;
/// Pause between looks at whether etcd answers.
const POLL: Duration = Duration::from_millis(50);

/// A running etcd. The worker in this process reaps what nobody waits for.
pub(super) struct Running {
    pub(super) child: Child,
    _awaited: Awaited,
}

/// How etcd is started, again and again.
pub(super) struct Launch {
    program: PathBuf,
    dir: PathBuf,
    port: u16,
    /// `setpriv`, if it can set the death signal.
    setpriv: Option<PathBuf>,
}

impl Launch {
    /// `dir` is our data directory as an absolute path.
    pub(super) fn new(program: PathBuf, dir: PathBuf, port: u16) -> Self {
        Self { program, dir, port, setpriv: death_signal() }
    }

    /// The URL for clients.
    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The file with etcd's log.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("etcd.log")
    }

    /// Starts etcd and waits until it answers, ends, takes too long or `stop`.
    pub(super) async fn start(&self, stop: &CancellationToken) -> Result<Running> {
        let path = self.log();
        let log = open_log(&path)
            .with_context(|| format!("cannot write etcd's log {}", path.display()))?;
        let begin = log.metadata().map_or(0, |m| m.len());
        let mut command = self
            .command(log)
            .with_context(|| format!("cannot write etcd's log {}", path.display()))?;
        let (child, awaited) = spawn_awaited(|| {
            let child = command.spawn()?;
            let pid = child.id().unwrap_or_default();
            Ok((child, pid))
        })
        .with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut etcd = Running { child, _awaited: awaited };
        if let Some(pid) = etcd.child.id() {
            leftover::remember(&self.dir, pid);
        }
        let why = tokio::select! {
            () = self.answers() => return Ok(etcd),
            ended = etcd.child.wait() => {
                self.forget();
                let how = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
                bail!("etcd ended at once ({how}): {}; see {}", last_line(&path, begin), path.display());
            }
            () = stop.cancelled() => "stopped before it answered".to_owned(),
            () = tokio::time::sleep(START_DEADLINE) => format!(
                "etcd does not answer on port {} after {} s: {}; see {}",
                self.port,
                START_DEADLINE.as_secs(),
                last_line(&path, begin),
                path.display()
            ),
        };
        self.stop(etcd).await;
        bail!(why)
    }

    fn command(&self, log: File) -> io::Result<Command> {
        let mut command = match &self.setpriv {
            Some(setpriv) => {
                let mut c = Command::new(setpriv);
                c.args(["--pdeathsig", "TERM"]).arg(&self.program);
                c
            }
            None => Command::new(&self.program),
        };
        // The system chooses the peer port: nobody but this member uses it.
        let (client, peer) = (self.endpoint(), "http://127.0.0.1:0");
        command
            .arg("--name=meepo")
            .arg(format!("--data-dir={}", self.dir.join("etcd").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=meepo={peer}"))
            // etcd 3.4 copies its write buffer for every read: keep that small.
            .arg("--backend-batch-limit=1000")
            // A day of old revisions serves nobody; watchers catch up within an hour.
            .args(["--auto-compaction-mode=periodic", "--auto-compaction-retention=1h"])
            // As from etcd 3.6 on: fewer log entries in memory.
            .arg("--snapshot-count=10000")
            .args(["--logger=zap", "--log-level=warn", "--log-outputs=stderr"]);
        // Flags win over etcd's environment, but only where there is a flag.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"ETCD_") {
                command.env_remove(name);
            }
        }
        if let Some(arch) = unsupported_arch() {
            command.env("ETCD_UNSUPPORTED_ARCH", arch);
        }
        command
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        Ok(command)
    }

    /// Returns when etcd says that it is healthy.
    async fn answers(&self) {
        let Ok(client) = client::local(Duration::from_secs(1)) else {
            // It has a deadline.
            return std::future::pending().await;
        };
        let url = format!("{}/health", self.endpoint());
        loop {
            if let Ok(answer) = client.get(&url).send().await
                && answer.status().is_success()
                && answer.text().await.is_ok_and(|t| t.contains(r#""health":"true""#))
            {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends etcd and forgets it.
    pub(super) async fn stop(&self, mut etcd: Running) {
        if let Some(pid) = etcd.child.id().and_then(|p| i32::try_from(p).ok()) {
            let begin = Instant::now();
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            if tokio::time::timeout(STOP_DEADLINE, etcd.child.wait()).await.is_err() {
                tracing::warn!(
                    "etcd did not end within {} s and is killed",
                    STOP_DEADLINE.as_secs()
                );
                let _ = etcd.child.kill().await;
            }
            tracing::debug!(took = ?begin.elapsed(), "etcd has ended");
        }
        self.forget();
    }

    /// Removes the pid file.
    pub(super) fn forget(&self) {
        leftover::forget(&self.dir);
    }
}

/// `setpriv`, if there is one that knows the option (busybox's does not).
fn death_signal() -> Option<PathBuf> {
    let setpriv = find_program(Path::new("setpriv"))?;
    let works = std::process::Command::new(&setpriv)
        .args(["--pdeathsig", "TERM", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    works.then_some(setpriv)
}

/// What etcd 3.4 wants to be told where it was not tested by its makers.
fn unsupported_arch() -> Option<&'static str> {
    match std::env::consts::ARCH {
        "aarch64" => Some("arm64"),
        "arm" => Some("arm"),
        "riscv64" => Some("riscv64"),
        "x86" => Some("386"),
        _ => None,
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if path.metadata().is_ok_and(|m| m.len() > MAX_LOG) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// The last line of the log after `begin`, short enough for a message.
fn last_line(path: &Path, begin: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(64 * 1024).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    // After a panic the reason stands above the stack trace.
    let line = text
        .lines()
        .rfind(|l| l.contains(r#""level":"fatal""#) || l.contains(r#""level":"panic""#))
        .or_else(|| text.lines().rfind(|l| !l.trim().is_empty()))
        .unwrap_or("it wrote nothing to its log");
    text::shorten(&text::one_line(line), 300)
}
