//! A look at all processes of the host, as `/proc` shows them.

use nix::errno::Errno;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    sync::{
        Mutex,
        oneshot::{self, error::TryRecvError},
    },
    time::{Instant, timeout},
};

/// How long a look may take. Reading the environment of a process waits for that process'
/// memory map, which a file system that does not answer may hold for hours.
const PATIENCE: Duration = Duration::from_secs(2);

/// The variable that tells which run a process belongs to. Every run has it, and what it
/// starts inherits it.
pub(crate) const RUN_VARIABLE: &str = "MEEPO_RUN_ID";

/// The place of the start time among the fields after the name in `/proc/<pid>/stat`.
const START: usize = 19;

/// One process that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) group: u32,
    pub(super) session: u32,
    /// See [`start_time`].
    pub(super) start: u64,
    /// Value of [`RUN_VARIABLE`] in the environment it was started with, where it may be
    /// read.
    pub(super) run: Option<String>,
}

/// When process `pid` was started, in clock ticks since boot as the kernel states it in
/// `/proc/<pid>/stat`; `None` if there is no such process. Together with the pid it
/// names a process for as long as the host is up.
pub fn start_time(pid: u32) -> Option<u64> {
    Process::read(pid).ok().flatten().map(|p| p.start)
}

/// Whether the process that had `pid` and `start` (see [`start_time`]) still runs.
pub fn is_alive(pid: u32, start: u64) -> bool {
    start_time(pid) == Some(start)
}

impl Process {
    /// Without its environment. `None` if it has ended or may not be looked at; a zombie
    /// has ended, and only waits for its parent to take notice.
    pub(super) fn read(pid: u32) -> io::Result<Option<Self>> {
        // The program's name need not be UTF-8.
        let stat = readable(std::fs::read(format!("/proc/{pid}/stat")))?;
        Ok(stat.and_then(|stat| Self::parse(pid, &String::from_utf8_lossy(&stat))))
    }

    /// When `pid` was started, also if it has ended and nobody has waited for it.
    pub(super) fn started(pid: u32) -> Option<u64> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_ascii_whitespace().nth(START)?.parse().ok()
    }

    /// The second field is the program's name in parentheses and may hold anything, so
    /// counting begins after the last `)`; see proc_pid_stat(5).
    fn parse(pid: u32, stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |n: usize| fields.get(n)?.parse::<u32>().ok();
        let (parent, group, session) = (number(1)?, number(2)?, number(3)?);
        let start = fields.get(START)?.parse().ok()?;
        let running = match *fields.first()? {
            // The first thread has ended, others may go on.
            "Z" => number(17)? > 1,
            state => state != "X",
        };
        running.then_some(Self { pid, parent, group, session, start, run: None })
    }

    /// Reads the run from the environment.
    fn with_run(mut self) -> io::Result<Self> {
        if let Some(environ) = readable(std::fs::read(format!("/proc/{}/environ", self.pid)))? {
            let prefix = format!("{RUN_VARIABLE}=");
            self.run = environ
                .split(|b| *b == 0)
                .find_map(|v| v.strip_prefix(prefix.as_bytes()))
                .and_then(|v| String::from_utf8(v.to_vec()).ok());
        }
        Ok(self)
    }
}

/// What a file of a process holds; `None` if the process has ended or is not to be read.
/// Errors: this process lacks something, such as file descriptors.
fn readable(read: io::Result<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    const LACKS: [i32; 3] = [Errno::EMFILE as i32, Errno::ENFILE as i32, Errno::ENOMEM as i32];
    match read {
        Ok(data) => Ok(Some(data)),
        Err(e) if e.raw_os_error().is_some_and(|e| LACKS.contains(&e)) => Err(e),
        Err(_) => Ok(None),
    }
}

/// All processes but this one. The environment is read of those started at `since` or
/// later; a process is never older than the run it belongs to.
fn processes(since: u64) -> io::Result<Vec<Process>> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        if let Some(p) = Some(pid).filter(|pid| *pid != own).map_or(Ok(None), Process::read)? {
            found.push(if p.start >= since { p.with_run()? } else { p });
        }
    }
    Ok(found)
}

/// Looks at all processes; looks asked for at the same time are one.
#[derive(Debug)]
pub(super) struct Scanner {
    since: u64,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    /// The latest look, and when it was begun.
    look: Option<(Instant, Arc<[Process]>)>,
    /// A look that took too long and may still be under way.
    late: Option<Look>,
}

/// What comes of a look.
type Look = oneshot::Receiver<io::Result<Vec<Process>>>;

impl Scanner {
    /// For processes that were started at `since` or later.
    pub(super) fn new(since: u64) -> Arc<Self> {
        Arc::new(Self { since, last: Mutex::default() })
    }

    /// All processes but this one, as they are now; without what their environments say
    /// while reading those takes too long.
    ///
    /// # Errors
    /// They cannot be read now, or not in time.
    pub(super) async fn look(&self) -> io::Result<Arc<[Process]>> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((begun, found)) = &last.look
            && *begun >= asked
        {
            return Ok(found.clone());
        }
        let mut begun = Instant::now();
        let mut found = None;
        // One look that is stuck is enough: each has a thread.
        let over = |late: &mut Look| !matches!(late.try_recv(), Err(TryRecvError::Empty));
        if last.late.as_mut().is_none_or(over) {
            found = in_time(&mut last.late, self.since).await;
            if found.is_none() {
                tracing::warn!(
                    "the environment of a process cannot be read in {PATIENCE:?}; until it can, \
                     daemons that runs leave behind may not be found"
                );
            }
        }
        let found = match found {
            Some(found) => found,
            None => {
                begun = Instant::now();
                // No process is that young.
                let late = in_time(&mut None, u64::MAX).await;
                late.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
            }
        };
        let found: Arc<[Process]> = found?.into();
        last.look = Some((begun, found.clone()));
        Ok(found)
    }
}

/// [`processes`], unless it takes too long: then it is left to `late`. On a thread of its
/// own: the end of the runtime would wait for one of the runtime's.
async fn in_time(late: &mut Option<Look>, since: u64) -> Option<io::Result<Vec<Process>>> {
    let (tell, mut look) = oneshot::channel();
    let looking = move || drop(tell.send(processes(since)));
    if let Err(e) = std::thread::Builder::new().name("procfs".into()).spawn(looking) {
        return Some(Err(e));
    }
    match timeout(PATIENCE, &mut look).await {
        Ok(found) => Some(found.map_err(io::Error::other).flatten()),
        Err(_) => {
            *late = Some(look);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let stat = |state: char, threads: u32| {
            format!(
                "7 (a) b (c)) {state} 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 {threads} 0 4242 1"
            )
        };
        let p = Process::parse(7, &stat('S', 1)).unwrap();
        assert_eq!((p.pid, p.parent, p.group, p.session, p.start), (7, 1, 2, 3, 4242));
        assert_eq!(Process::parse(7, &stat('Z', 1)), None);
        assert_eq!(Process::parse(7, &stat('Z', 2)), Some(p), "another thread goes on");
    }

    #[test]
    fn only_what_this_process_lacks_is_an_error() {
        let error = |e: Errno| readable(Err(e.into()));
        assert!(error(Errno::EMFILE).is_err() && error(Errno::ENOMEM).is_err());
        for gone in [Errno::ENOENT, Errno::ESRCH, Errno::EACCES, Errno::EPERM] {
            assert_eq!(error(gone).unwrap(), None);
        }
    }

    #[test]
    fn a_name_that_is_no_utf8_hides_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(OsStr::from_bytes(b"sl\xff\xfe"));
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program).arg("600").spawn().unwrap();
        let found = Process::read(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_look_that_is_stuck_is_gone_without() {
        let scanner = Scanner::new(0);
        let mut command = tokio::process::Command::new("sleep");
        let child = command.arg("600").env(RUN_VARIABLE, "r").kill_on_drop(true).spawn().unwrap();
        let (stuck, look) = oneshot::channel();
        scanner.last.lock().await.late = Some(look);
        let found = scanner.look().await.unwrap();
        let ours = found.iter().find(|p| Some(p.pid) == child.id()).unwrap();
        assert_eq!(ours.run, None);
        stuck.send(Ok(Vec::new())).unwrap();
        let found = scanner.look().await.unwrap();
        assert!(found.iter().any(|p| Some(p.pid) == child.id() && p.run.as_deref() == Some("r")));
    }

    #[test]
    fn this_process_is_alive_and_nobody_with_another_start_time() {
        let me = std::process::id();
        let start = start_time(me).unwrap();
        assert!(is_alive(me, start));
        assert!(!is_alive(me, start + 1));
    }

    #[tokio::test]
    async fn looks_asked_for_at_the_same_time_are_one() {
        let scanner = Scanner::new(0);
        let (a, b) = tokio::join!(scanner.look(), scanner.look());
        let (a, b, c) = (a.unwrap(), b.unwrap(), scanner.look().await.unwrap());
        assert!(a.iter().any(|p| p.pid == 1));
        // The second waited for the first, which was begun after it had asked.
        assert!(Arc::ptr_eq(&a, &b) || !Arc::ptr_eq(&b, &c));
        assert!(!Arc::ptr_eq(&a, &c), "a later look is a new one");
    }
}
