//! Processes of an earlier life of the worker: told apart by pid and start time.

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// When process `pid` was started, in clock ticks since boot as the kernel states it in
/// `/proc/<pid>/stat`; `None` if there is no such process. Together with the pid it
/// names a process for as long as the host is up.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (state, start) = parse_stat(&stat)?;
    // A zombie has ended; it only waits for its parent to take notice.
    (!matches!(state, 'Z' | 'X')).then_some(start)
}

/// State and start time. The second field is the program's name in parentheses and may
/// hold anything, so counting begins after the last `)`.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Whether the process that had `pid` and `start` (see [`start_time`]) still runs.
pub fn is_alive(pid: u32, start: u64) -> bool {
    start_time(pid) == Some(start)
}

/// Sends `signal` to the group led by the process with `pid` and `start`. Answers
/// whether that process was still there. Errors: the signal must not be sent.
pub fn signal_group(pid: u32, start: u64, signal: Signal) -> Result<bool, Errno> {
    if !is_alive(pid, start) {
        return Ok(false);
    }
    send(pid, signal)
}

/// Sends `signal` to group `pid`; answers whether there was anybody in it.
pub(super) fn send(pid: u32, signal: Signal) -> Result<bool, Errno> {
    // 0 would be this process' own group, 1 and what does not fit are no jobs of ours.
    let Some(group) = i32::try_from(pid).ok().filter(|p| *p > 1) else { return Ok(false) };
    match killpg(Pid::from_raw(group), signal) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(e) => Err(e),
    }
}

/// All processes that were started with the variable `name` in their environment, as far
/// as this user may look, with its value. Children have it too, unless they dropped it.
/// This process is left out.
pub fn with_variable(name: &str) -> Vec<(u32, String)> {
    let Ok(proc) = std::fs::read_dir("/proc") else { return Vec::new() };
    let prefix = format!("{name}=");
    let found = proc.flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let environ = std::fs::read(entry.path().join("environ")).ok()?;
        let mut variables = environ.split(|b| *b == 0);
        let value = variables.find_map(|v| v.strip_prefix(prefix.as_bytes()))?;
        let value = String::from_utf8(value.to_vec()).ok()?;
        (pid != std::process::id() && start_time(pid).is_some()).then_some((pid, value))
    });
    found.collect()
}

/// Kills one process, not its group.
pub fn kill_process(pid: u32) -> Result<(), Errno> {
    let Some(pid) = i32::try_from(pid).ok().filter(|p| *p > 1) else { return Ok(()) };
    match nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Err(Errno::ESRCH) | Ok(()) => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
    }

    #[test]
    fn this_process_is_alive_and_nobody_with_another_start_time() {
        let me = std::process::id();
        let start = start_time(me).unwrap();
        assert!(is_alive(me, start));
        assert!(!is_alive(me, start + 1));
        assert_eq!(signal_group(me, start + 1, Signal::SIGKILL), Ok(false));
    }
}
