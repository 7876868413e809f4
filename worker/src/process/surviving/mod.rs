//! Runs that survive their worker: a process of their own between the worker and the
//! command, the supervisor.
//!
//! ```text
//! worker ──spawn──► supervisor ──► command
//!   │                   │ runs it as a worker would, keeps what it writes and how it ends
//!   │                   ▼
//!   │     <data_dir>/surviving/<run id>/      0700
//!   │         order     what to run; without it nothing starts
//!   │         lock      locked by the supervisor as long as it lives
//!   │         started   pid, its start time, when
//!   │         output    what is kept, piece by piece
//!   │         result    how it ended; written once, after everything else
//!   └──────── sock      everything written so far and what comes; kill orders
//! ```
//!
//! Whoever takes a run over, be it the worker that began it or a later one, does the same:
//! it reads along on the socket, and when that closes it looks at the files. A result is
//! the end. No result and a free lock mean that the supervisor has been killed: then the
//! run is lost, and what is left of it is killed.
//!
//! Nothing starts unknown. The directory is made after the run's durable beginning; the
//! supervisor starts the command only while it holds the lock and the order is there. A
//! worker that finds the lock free, because its last life died before the supervisor had
//! come that far, takes the order away under the lock, and a late supervisor finds none.
//!
//! Supervisor and worker may be of different versions: fields of the files and of kill
//! orders are only ever added.

mod files;
mod follow;
mod supervisor;
#[cfg(test)]
mod tests;

pub(super) use supervisor::{SUPERVISE_ARG, main as supervise};

use super::{
    command::{Command, Ended},
    error::{StartError, StartProblem},
    leftover::{Leftover, Leftovers},
    runner::Running,
};
use crate::secrets::Secrets;
use files::{Files, Order};
use jiff::Timestamp;
use meepo_core::{code::Code, id::RunId, job::Assignment, run::RunState};
use meepo_runtime::backoff::Backoff;
use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::ChildStdin,
    time::Instant,
};
use tracing::warn;

/// How long a supervisor that has just been started may take to start its command, when
/// another worker finds it; a user database that is slow takes its time.
const PATIENCE: Duration = Duration::from_secs(10);

/// The surviving runs of one worker.
#[derive(Debug)]
pub struct Surviving {
    data_dir: PathBuf,
    /// The setting of that name, for the control groups of runs.
    cgroup_root: Option<PathBuf>,
    leftovers: Arc<Leftovers>,
    /// The program that serves as supervisor; see
    /// [`exec_helper_entry`](super::exec_helper_entry).
    program: PathBuf,
}

/// What an earlier life left of a run.
#[derive(Debug)]
pub enum Found {
    /// It does not survive, or its command was never started and never will be.
    Nothing,
    /// It has ended without a process.
    Ended(Ended),
    /// It runs, or has run: its end comes from [`Running::wait`] either way.
    Taken(Arc<Assignment>, Running),
}

impl Surviving {
    /// Those below `data_dir`, which nobody else may use at the same time. `cgroup_root` as
    /// in [`Cgroups::new`](super::Cgroups::new).
    pub fn new(data_dir: &Path, cgroup_root: Option<PathBuf>, leftovers: Arc<Leftovers>) -> Self {
        let program = "/proc/self/exe".into();
        Self { data_dir: data_dir.into(), cgroup_root, leftovers, program }
    }

    fn dir(&self) -> PathBuf {
        self.data_dir.join("surviving")
    }

    fn files(&self, run_id: RunId) -> Files {
        Files::new(run_id, self.dir().join(run_id.to_string()))
    }

    /// Starts `command` as run `run_id`, which has durably begun; see
    /// [`Runner::spawn`](super::Runner::spawn). `assignment` is kept for who takes the run
    /// over.
    ///
    /// # Errors
    /// The end of a run that could not be started.
    pub async fn start(
        &self,
        run_id: RunId,
        assignment: Arc<Assignment>,
        command: Command,
    ) -> Result<Running, Ended> {
        let files = self.files(run_id);
        let failed = |e: &io::Error| {
            let message = format!("cannot start a supervisor in {}: {e}", files.dir().display());
            StartError::new(StartProblem::Resources, message).ended(Timestamp::now())
        };
        let (data_dir, cgroup_root) = (self.data_dir.clone(), self.cgroup_root.clone());
        let secrets = command.secrets.clone();
        let order = Order { run_id, command, assignment, data_dir, cgroup_root };
        let program = self.program.clone();
        let preparing = files.clone();
        let spawned = tokio::task::spawn_blocking(move || {
            preparing.create(&order)?;
            Ok(spawn(&program, &preparing))
        });
        let not_spawned = match spawned.await.map_err(io::Error::from).flatten() {
            Ok(Ok(mut child)) => {
                if let Some(stdin) = child.stdin.take() {
                    hand_over(stdin, &secrets).await;
                }
                if let Some(stdout) = child.stdout.take() {
                    // A line when the command runs or has failed to; the end of the file
                    // when the supervisor has ended. What it says is in the files.
                    let _ = BufReader::new(stdout).read_line(&mut String::new()).await;
                }
                tokio::spawn(async move { child.wait().await });
                None
            }
            // It may be there all the same, out of reach.
            Ok(Err(e)) => Some(e),
            Err(e) => return Err(failed(&e)),
        };
        let e = match self.find_surely(run_id).await {
            Ok(Found::Taken(_, running)) => return Ok(running),
            Ok(Found::Ended(ended)) => return Err(ended),
            Ok(Found::Nothing) => not_spawned
                .unwrap_or_else(|| io::Error::other(format!("it has ended: {}", files.said()))),
            Err(e) => e,
        };
        let mut ended = failed(&e);
        self.abandon(run_id).await;
        if self.end_leftovers(run_id).await.found > 0 {
            ended.state = RunState::Lost;
            ended.code = Code::LOST;
            ended.message = Some(format!("lost right after it had started, and killed: {e}"));
        }
        Err(ended)
    }

    /// As [`find`](Self::find), but tries again what may yet succeed: the run may be under
    /// way, and must not be taken for one that is not.
    async fn find_surely(&self, run_id: RunId) -> io::Result<Found> {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        loop {
            match self.find(run_id).await {
                Err(e) if e.kind() != io::ErrorKind::InvalidData => {
                    warn!(%run_id, error = %e, "cannot look for a surviving run, will try again");
                }
                found => return found,
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Looks for run `run_id` of an earlier life. Errors: the files cannot be read;
    /// [`io::ErrorKind::InvalidData`]: nor ever will be.
    pub async fn find(&self, run_id: RunId) -> io::Result<Found> {
        let files = self.files(run_id);
        if !files.dir().try_exists()? {
            return Ok(Found::Nothing);
        }
        let mut kill_at = Some(Instant::now() + PATIENCE);
        loop {
            let lock = files.try_lock()?;
            // After the lock: who had it may have written these and gone.
            if let (Some(started), Some(assignment)) = (files.started()?, files.assignment()?) {
                drop(lock);
                return Ok(Found::Taken(
                    assignment,
                    follow::follow(files, started, self.leftovers.clone()),
                ));
            }
            if let Some(ended) = files.result()? {
                return Ok(Found::Ended(ended));
            }
            if lock.is_some() {
                files.take_order_away()?;
                return Ok(Found::Nothing);
            }
            if kill_at.is_some_and(|at| at <= Instant::now()) {
                kill_at = None;
                warn!(%run_id, "a supervisor that does not get on is killed");
                files.kill_supervisor();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Removes what is there of a run whose end is durably recorded. Errors are logged:
    /// the next start tries again.
    pub async fn forget(&self, run_id: RunId) {
        let files = self.files(run_id);
        let removed = tokio::task::spawn_blocking(move || files.remove()).await;
        if let Err(e) = removed.map_err(io::Error::from).flatten() {
            warn!(%run_id, error = %e, "cannot remove the directory of a surviving run");
        }
    }

    /// Ends and removes every run that is not one of `open`: its end was recorded, or
    /// nobody knows it. Errors are logged.
    pub async fn sweep(&self, open: &HashSet<RunId>) {
        let entries = std::fs::read_dir(self.dir()).into_iter().flatten().flatten();
        let ids = entries.filter_map(|e| e.file_name().to_str()?.parse::<RunId>().ok());
        for run_id in ids.filter(|id| !open.contains(id)) {
            self.abandon(run_id).await;
            let files = self.files(run_id);
            if !matches!(files.result(), Ok(Some(_))) {
                let Leftover { found, left } = self.end_leftovers(run_id).await;
                warn!(%run_id, found, ?left, "a surviving run that no journal knows was ended");
            }
            self.forget(run_id).await;
        }
    }

    /// Kills the supervisor of a run that cannot be taken over, if there is one.
    pub async fn abandon(&self, run_id: RunId) {
        let (files, begun) = (self.files(run_id), Instant::now());
        while begun.elapsed() < PATIENCE {
            match files.try_lock() {
                Ok(Some(_)) => return,
                Ok(None) => files.kill_supervisor(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return,
                // Short of descriptors, say.
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills what a supervisor that is gone has left of a run.
    async fn end_leftovers(&self, run_id: RunId) -> Leftover {
        let process = self.files(run_id).started().ok().flatten().and_then(|s| s.process());
        self.leftovers.end(run_id, process).await
    }
}

/// Tells the supervisor the secrets of its command, which stand in no file. If it does not
/// listen, it says so by not starting the command.
async fn hand_over(mut stdin: ChildStdin, secrets: &Secrets) {
    if let Ok(text) = serde_json::to_vec(secrets.values()) {
        let _ = stdin.write_all(&text).await;
    }
}

/// Starts the supervisor.
fn spawn(program: &Path, files: &Files) -> io::Result<tokio::process::Child> {
    let mut std = std::process::Command::new(program);
    std.arg(SUPERVISE_ARG).arg(files.dir()).current_dir("/").env_clear();
    // Commands have it from there.
    std.envs(std::env::var_os("LANG").map(|lang| ("LANG", lang)));
    std.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(files.stderr()?);
    tokio::process::Command::from(std).spawn()
}
