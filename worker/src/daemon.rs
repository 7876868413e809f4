//! `start`, `stop` and `status`: the worker as a daemon with a pid file, for hosts
//! without a service manager. Under systemd use `run`.
//!
//! The pid file is locked for as long as the worker lives, so a stale file of a worker
//! that was killed misleads nobody: not the number in it decides but the lock.

use crate::{process::RUN_VARIABLE, worker::LONGEST_SHUTDOWN};
use anyhow::{Context, bail};
use meepo_runtime::files::open_own;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long `start` waits for the worker to take the pid file.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long `stop` waits for it to go: longer than its shutdown may take.
const STOP_PATIENCE: Duration = LONGEST_SHUTDOWN.saturating_add(Duration::from_secs(5));
/// How long a lock or a number in the pid file may take to settle: a worker that was
/// killed may leave its lock for a moment to a process that was just being started.
const SETTLE: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(20);

/// The pid file of a running worker; held until the process ends.
pub struct PidFile {
    _lock: Flock<File>,
}

impl PidFile {
    /// Takes the pid file.
    ///
    /// # Errors
    /// When another worker holds it, or it cannot be written.
    pub fn take(path: &Path) -> anyhow::Result<Self> {
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot create {} for the pid file", dir.display()))?;
        }
        let mut file = open(path)?;
        let deadline = Instant::now() + SETTLE;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    lock.set_len(0)
                        .and_then(|()| lock.rewind())
                        .and_then(|()| writeln!(lock, "{}", std::process::id()))
                        .with_context(|| format!("cannot write {}", path.display()))?;
                    return Ok(Self { _lock: lock });
                }
                Err((unlocked, _)) if Instant::now() < deadline => {
                    file = unlocked;
                    std::thread::sleep(STEP);
                }
                Err((mut file, _)) => {
                    let pid = read_pid(&mut file)?;
                    bail!("a worker runs already with pid {pid} ({})", path.display())
                }
            }
        }
    }
}

/// Opened if it is ours and no link to another file: the directory may be writable for others.
fn open(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644);
    open_own(path, &mut options)
        .with_context(|| format!("cannot open the pid file {}", path.display()))
}

fn read_pid(file: &mut File) -> anyhow::Result<i32> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    // 0 and below name groups of processes, 1 is init: none of them is a worker.
    match text.trim().parse() {
        Ok(pid) if pid > 1 => Ok(pid),
        _ => bail!("the pid file holds {:?}, not the pid of a worker", text.trim()),
    }
}

/// The pid of the worker that holds the file, if one does.
///
/// # Errors
/// When the file is there and cannot be read, or what holds it does not write its pid.
pub fn running(path: &Path) -> anyhow::Result<Option<i32>> {
    let opened = open_own(path, OpenOptions::new().read(true));
    let mut file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    // Between the lock and the pid the file is empty or holds the pid of an earlier
    // worker: only what is read twice counts.
    let deadline = Instant::now() + SETTLE;
    let mut before = None;
    loop {
        file = match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => return Ok(None),
            Err((file, _)) => file,
        };
        match read_pid(&mut file) {
            Ok(pid) if before == Some(pid) => return Ok(Some(pid)),
            Ok(pid) => before = Some(pid),
            Err(e) if Instant::now() >= deadline => {
                return Err(e).with_context(|| path.display().to_string());
            }
            Err(_) => before = None,
        }
        std::thread::sleep(STEP);
    }
}

/// The command that [`start`] gives its worker: `run`, after [`leave_session`].
pub const DAEMON_COMMAND: &str = "__daemon";

/// Makes this process the leader of a session of its own, so that what ends whoever
/// started it does not end it too.
///
/// # Errors
/// It leads a process group.
pub fn leave_session() -> anyhow::Result<()> {
    nix::unistd::setsid().context("cannot lead a session")?;
    Ok(())
}

/// Starts a worker with the same arguments in the background and waits until it holds the
/// pid file. Its log goes to `log`.
///
/// # Errors
/// When a worker runs already or the new one does not come up.
pub fn start(pid_file: &Path, log: &Path, args: &[String]) -> anyhow::Result<i32> {
    if let Some(pid) = running(pid_file)? {
        bail!("a worker runs already with pid {pid} ({})", pid_file.display());
    }
    if let Some(dir) = log.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot create {} for the log", dir.display()))?;
    }
    let file = open_own(log, OpenOptions::new().create(true).append(true).mode(0o640))
        .with_context(|| format!("cannot open the log {}", log.display()))?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(DAEMON_COMMAND)
        .args(args)
        // A job may start a worker, which then is no process of that run.
        .env_remove(RUN_VARIABLE)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("cannot start the worker")?;
    let pid = i32::try_from(child.id())?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // An error is a file that is being written; if it stays, the time runs out.
        if running(pid_file).is_ok_and(|there| there == Some(pid)) {
            return Ok(pid);
        }
        if let Some(status) = child.try_wait()? {
            bail!("the worker ended at once ({status}); its log is {}", log.display());
        }
        std::thread::sleep(STEP);
    }
    bail!("the worker did not come up within {PATIENCE:?}; its log is {}", log.display())
}

/// Asks the worker to end and waits until it has. Answers its pid, or `None` if none
/// ran. With `drain` it first takes nothing new and may let what runs end, for that
/// long; the signal for that is SIGUSR1.
///
/// # Errors
/// When it may not be signalled or does not end in time.
pub fn stop(pid_file: &Path, drain: Option<Duration>) -> anyhow::Result<Option<i32>> {
    let Some(pid) = running(pid_file)? else { return Ok(None) };
    let signal = |signal| {
        kill(Pid::from_raw(pid), signal)
            .with_context(|| format!("cannot signal the worker with pid {pid}"))
    };
    if let Some(patience) = drain {
        signal(Signal::SIGUSR1)?;
        if gone(pid_file, pid, patience)? {
            return Ok(Some(pid));
        }
    }
    signal(Signal::SIGTERM)?;
    if gone(pid_file, pid, STOP_PATIENCE)? {
        return Ok(Some(pid));
    }
    bail!("the worker with pid {pid} did not end within {STOP_PATIENCE:?}")
}

/// Waits until a worker has gone; answers whether it did in time.
fn gone(pid_file: &Path, pid: i32, patience: Duration) -> anyhow::Result<bool> {
    let began = Instant::now();
    while running(pid_file)? == Some(pid) {
        if began.elapsed() >= patience {
            return Ok(false);
        }
        std::thread::sleep(STEP);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pid_of_a_worker_that_holds_the_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker.pid");
        assert_eq!(running(&path).unwrap(), None);
        let held = PidFile::take(&path).unwrap();
        assert_eq!(running(&path).unwrap(), i32::try_from(std::process::id()).ok());
        let refused = PidFile::take(&path).err().unwrap().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        for bad in ["", "1", "0", "-5", "x"] {
            std::fs::write(&path, bad).unwrap();
            assert!(running(&path).is_err(), "{bad:?}");
        }
        drop(held);
        assert_eq!(running(&path).unwrap(), None, "nobody holds it");
    }

    #[test]
    fn a_link_in_the_place_of_the_pid_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("worker.pid"), dir.path().join("other"));
        let _held = PidFile::take(&other).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(running(&path).is_err() && PidFile::take(&path).is_err());
    }
}
