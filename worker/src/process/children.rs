//! The children of this process: those that somebody waits for, and the orphans it
//! takes in.
//!
//! As a child subreaper (prctl(2)) the worker becomes the parent of what its runs leave
//! behind, so that nothing they start gets out of its sight. Such orphans are children
//! nobody waits for, and would stay zombies: they are reaped here. What is waited for
//! elsewhere must be started through [`spawn_awaited`], in the whole process, or its exit
//! status may be taken away.

use nix::{
    errno::Errno,
    sys::{
        prctl,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// What is known of the children of this process.
#[derive(Debug, Default)]
struct Children {
    /// Those that somebody waits for, and how often: a number may be another child's before
    /// who waited for the first has let go of it.
    awaited: HashMap<u32, usize>,
    /// Starts that are under way, numbered in their order.
    starting: BTreeSet<u64>,
    /// Number of the next start.
    next: u64,
}

static CHILDREN: LazyLock<Mutex<Children>> = LazyLock::new(Mutex::default);

/// Between a child's end and the look for orphans: many ends share one look.
const GATHER: Duration = Duration::from_millis(200);
/// Between looks while it is not known of some whether they are orphans.
const LATER: Duration = Duration::from_secs(1);

/// A child that somebody waits for, until this is dropped: after the waiting.
#[derive(Debug)]
pub struct Awaited(u32);

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut children = children();
        if let Some(times) = children.awaited.get_mut(&self.0) {
            *times -= 1;
            if *times == 0 {
                children.awaited.remove(&self.0);
            }
        }
    }
}

fn children() -> MutexGuard<'static, Children> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A start that is under way, by its number.
struct Starting(u64);

impl Starting {
    fn new() -> Self {
        let mut children = children();
        let number = children.next;
        children.next += 1;
        children.starting.insert(number);
        Self(number)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        children().starting.remove(&self.0);
    }
}

/// Starts a child whose exit status will be asked for; `start` does it and answers it
/// with its process id. Errors: those of `start`.
pub fn spawn_awaited<T>(start: impl FnOnce() -> io::Result<(T, u32)>) -> io::Result<(T, Awaited)> {
    // Until the child is known.
    let _starting = Starting::new();
    let (child, pid) = start()?;
    *children().awaited.entry(pid).or_default() += 1;
    Ok((child, Awaited(pid)))
}

/// Makes this process the parent of what its descendants leave behind; the future
/// reaps that until `stop`. Must be called within a tokio runtime.
///
/// # Errors
/// The kernel does not tell this process' children, or no signals.
pub fn take_in_orphans(
    stop: CancellationToken,
) -> io::Result<impl Future<Output = anyhow::Result<()>> + Send> {
    let mut ended = signal(SignalKind::child())?;
    // Without these files, which a kernel may lack, zombies would stay.
    std::fs::read_to_string("/proc/thread-self/children")?;
    prctl::set_child_subreaper(true)?;
    Ok(async move {
        let mut suspects = HashMap::new();
        loop {
            // Reading /proc may block.
            suspects = match tokio::task::spawn_blocking(move || reap(&suspects)).await? {
                Ok(suspects) => suspects,
                Err(e) => {
                    warn!(error = %e, "cannot look for orphans that have ended");
                    HashMap::new()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ended.recv() => {}
                () = tokio::time::sleep(LATER), if !suspects.is_empty() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(GATHER) => {}
            }
        }
    })
}

/// Reaps every orphan that has ended. Answers those that may be orphans or children whose
/// start is under way, with the number that the next start had when they were first seen;
/// `suspects` is the last such answer. A start may take long, and is not waited for.
fn reap(suspects: &HashMap<u32, u64>) -> io::Result<HashMap<u32, u64>> {
    // The first child that has ended, whoever waits for it. Mostly there is none.
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    if matches!(waitid(Id::All, peek), Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)) {
        return Ok(HashMap::new());
    }
    let has_ended = |pid: &u32| match id(*pid) {
        Some(id) => !matches!(waitid(id, peek), Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)),
        None => false,
    };
    let ended: Vec<u32> = own_children()?.into_iter().filter(has_ended).collect();
    let children = children();
    let oldest = children.starting.first().copied().unwrap_or(children.next);
    let mut unsure = HashMap::new();
    for pid in ended.into_iter().filter(|pid| !children.awaited.contains_key(pid)) {
        // It was there before that start.
        let seen = suspects.get(&pid).copied().unwrap_or(children.next);
        if oldest < seen {
            unsure.insert(pid, seen);
        } else if let Some(id) = id(pid) {
            let how = waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
            debug!(pid, ?how, "an orphan has ended");
        }
    }
    Ok(unsure)
}

fn id(pid: u32) -> Option<Id<'static>> {
    i32::try_from(pid).ok().filter(|p| *p > 1).map(|p| Id::Pid(Pid::from_raw(p)))
}

/// All children of this process, also those that have ended and are not reaped; see
/// proc_pid_task(5). An orphan is there as the child of one of the threads.
fn own_children() -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for thread in std::fs::read_dir("/proc/self/task")? {
        match std::fs::read_to_string(thread?.path().join("children")) {
            Ok(list) => found.extend(list.split_whitespace().filter_map(|p| p.parse::<u32>().ok())),
            // A thread that has ended meanwhile hands its children to another; they are
            // found at the next look.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_two_wait_for_is_awaited_until_both_have_let_go() {
        // No process has a number like that.
        let pid = u32::MAX;
        let awaited = || children().awaited.contains_key(&pid);
        let (_, first) = spawn_awaited(|| Ok(((), pid))).unwrap();
        let (_, second) = spawn_awaited(|| Ok(((), pid))).unwrap();
        drop(first);
        assert!(awaited());
        drop(second);
        assert!(!awaited());
    }

    #[test]
    fn a_start_that_takes_long_delays_no_other_and_no_look() {
        let (begun, is_begun) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let slow = std::thread::spawn(move || {
            spawn_awaited(|| {
                begun.send(()).unwrap();
                may_go_on.recv().unwrap();
                Ok(((), u32::MAX - 1))
            })
        });
        is_begun.recv().unwrap();
        spawn_awaited(|| Ok(((), u32::MAX - 2))).unwrap();
        assert!(!children().starting.is_empty());
        go_on.send(()).unwrap();
        slow.join().unwrap().unwrap();
    }
}
