//! `start`, `stop` and `status`: the worker as a daemon with a pid file, for hosts
//! without a service manager. Under systemd use `run`.
//!
//! The pid file is locked for as long as the worker lives, so a stale file of a worker
//! that was killed misleads nobody: not the number in it decides but the lock.

use anyhow::{Context, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long `start` waits for the worker to take the pid file, and `stop` for it to go.
const PATIENCE: Duration = Duration::from_secs(20);
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
        let file = open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                lock.rewind()?;
                writeln!(lock, "{}", std::process::id())?;
                Ok(Self { _lock: lock })
            }
            Err((file, _)) => {
                bail!("a worker runs already with pid {} ({})", read_pid(file)?, path.display())
            }
        }
    }
}

/// Opened without following a link at the last place: the directory may be writable
/// for others.
fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(path)
        .with_context(|| format!("cannot open the pid file {}", path.display()))
}

fn read_pid(mut file: File) -> anyhow::Result<i32> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    text.trim().parse().with_context(|| format!("the pid file holds {:?}, not a pid", text.trim()))
}

/// The pid of the worker that holds the file, if one does.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn running(path: &Path) -> anyhow::Result<Option<i32>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err((file, _)) => read_pid(file).map(Some),
    }
}

/// Starts `run` with the same arguments in the background and waits until it holds the
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
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(log)
        .with_context(|| format!("cannot open the log {}", log.display()))?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("run")
        .args(args)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .context("cannot start the worker")?;
    let pid = i32::try_from(child.id())?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if running(pid_file)? == Some(pid) {
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
/// ran.
///
/// # Errors
/// When it may not be signalled or does not end in time.
pub fn stop(pid_file: &Path) -> anyhow::Result<Option<i32>> {
    let Some(pid) = running(pid_file)? else { return Ok(None) };
    kill(Pid::from_raw(pid), Signal::SIGTERM)
        .with_context(|| format!("cannot signal the worker with pid {pid}"))?;
    let deadline = Instant::now() + PATIENCE;
    while running(pid_file)? == Some(pid) {
        if Instant::now() >= deadline {
            bail!("the worker with pid {pid} did not end within {PATIENCE:?}");
        }
        std::thread::sleep(STEP);
    }
    Ok(Some(pid))
}
