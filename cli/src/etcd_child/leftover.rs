//! Who uses the data directory: the lock of the server that does, and the etcd that
//! a killed server left behind.

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a left-over etcd may take to end before it is killed, and to vanish then.
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Takes the directory for this process, for as long as the file is open.
pub(super) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("server.lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = (&file).take(20).read_to_string(&mut pid);
            bail!(
                "the data directory {} is in use by another server (pid {}); \
                 expected one server a directory: stop that one, or choose another with --data-dir",
                dir.display(),
                pid.trim()
            )
        }
        Err(TryLockError::Error(e)) => {
            return Err(e).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    // For the message above only.
    let _ = file.set_len(0).and_then(|()| file.rewind());
    let _ = writeln!(file, "{}", std::process::id());
    Ok(file)
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("etcd.pid")
}

/// Notes that `pid` is our etcd. The start time tells it from a later process with
/// the same pid.
pub(super) fn remember(dir: &Path, pid: u32) {
    let Some(start) = start_time(pid) else { return };
    if let Err(e) = std::fs::write(pid_file(dir), format!("{pid} {start}\n")) {
        tracing::warn!("cannot write {}: {e}", pid_file(dir).display());
    }
}

/// Forgets our etcd: it has ended.
pub(super) fn forget(dir: &Path) {
    // Without it the next start looks for a process that is not there: harmless.
    let _ = std::fs::remove_file(pid_file(dir));
}

/// Ends the etcd that an earlier server left on `dir`, if there is one. Only to be
/// called with the lock held.
pub(super) fn end(dir: &Path) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(pid_file(dir)) else { return Ok(()) };
    let mut words = text.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start))) = (words.next(), words.next()) else {
        forget(dir);
        return Ok(());
    };
    let Ok(pid) = u32::try_from(pid) else { return Ok(()) };
    let alive = || start_time(pid) == Some(start) && is_etcd_on(pid, dir);
    let Ok(raw) = i32::try_from(pid) else { return Ok(()) };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if !alive() {
            forget(dir);
            return Ok(());
        }
        tracing::warn!(pid, "ending the etcd that an earlier server left behind ({signal})");
        match kill(Pid::from_raw(raw), signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => bail!(
                "cannot end the etcd (pid {pid}) that an earlier server left on {}: {e}; \
                 expected to be the user who started it",
                dir.display()
            ),
        }
        let begin = Instant::now();
        while alive() && begin.elapsed() < DEADLINE {
            std::thread::sleep(POLL);
        }
    }
    if alive() {
        bail!("the etcd (pid {pid}) that an earlier server left on {} does not end", dir.display());
    }
    forget(dir);
    Ok(())
}

/// When a process started, in clock ticks since boot; `None` for one that is gone or
/// a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    // `starttime` is field 22; the state was field 3.
    fields.nth(18)?.parse().ok()
}

fn is_etcd_on(pid: u32, dir: &Path) -> bool {
    let wanted = format!("--data-dir={}", dir.join("etcd").display());
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|c| c.split(|b| *b == 0).any(|arg| arg == wanted.as_bytes()))
}
