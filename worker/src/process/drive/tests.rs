//! How a run ends: every way a process can end × every reason for a kill.

use super::*;
use crate::process::error::StartProblem;

/// How processes end, in the order of the columns of [`TABLE`].
const ENDS: [&str; 4] = ["exit 0", "exit 3", "signal 15", "no status"];

/// What comes of each: state, code, exit status, signal, and the beginning of the message;
/// `-` stands for none. `!` after a reason: SIGKILL was sent.
const TABLE: [(&str, [&str; 4]); 13] = [
    (
        "",
        [
            "success/ok/0/-/-",
            "failed/exit_status/3/-/-",
            "failed/signaled/-/15/ended by signal 15 (SIGTERM)",
            "lost/lost/-/-/cannot learn how the process ended: gone",
        ],
    ),
    (
        "Timeout",
        [
            "timeout/timed_out/0/-/ran longer than 3s",
            "timeout/timed_out/3/-/ran longer than 3s",
            "timeout/timed_out/-/15/ran longer than 3s",
            "timeout/timed_out/-/-/ran longer than 3s",
        ],
    ),
    (
        "Timeout!",
        [
            "timeout/timed_out/0/-/ran longer than 3s; ended only on SIGKILL",
            "timeout/timed_out/3/-/ran longer than 3s; ended only on SIGKILL",
            "timeout/timed_out/-/15/ran longer than 3s; ended only on SIGKILL",
            "timeout/timed_out/-/-/ran longer than 3s; ended only on SIGKILL",
        ],
    ),
    (
        "Requested",
        [
            "killed/killed/0/-/-",
            "killed/killed/3/-/-",
            "killed/killed/-/15/-",
            "killed/killed/-/-/-",
        ],
    ),
    (
        "Requested!",
        [
            "killed/killed/0/-/ended only on SIGKILL",
            "killed/killed/3/-/ended only on SIGKILL",
            "killed/killed/-/15/ended only on SIGKILL",
            "killed/killed/-/-/ended only on SIGKILL",
        ],
    ),
    (
        "Replaced",
        [
            "killed/replaced/0/-/-",
            "killed/replaced/3/-/-",
            "killed/replaced/-/15/-",
            "killed/replaced/-/-/-",
        ],
    ),
    (
        "Replaced!",
        [
            "killed/replaced/0/-/ended only on SIGKILL",
            "killed/replaced/3/-/ended only on SIGKILL",
            "killed/replaced/-/15/ended only on SIGKILL",
            "killed/replaced/-/-/ended only on SIGKILL",
        ],
    ),
    (
        "Shutdown",
        [
            "killed/shutdown/0/-/-",
            "killed/shutdown/3/-/-",
            "killed/shutdown/-/15/-",
            "killed/shutdown/-/-/-",
        ],
    ),
    (
        "Shutdown!",
        [
            "killed/shutdown/0/-/ended only on SIGKILL",
            "killed/shutdown/3/-/ended only on SIGKILL",
            "killed/shutdown/-/15/ended only on SIGKILL",
            "killed/shutdown/-/-/ended only on SIGKILL",
        ],
    ),
    (
        "LeaseLost",
        [
            "killed/etcd/0/-/LEASE",
            "killed/etcd/3/-/LEASE",
            "killed/etcd/-/15/LEASE",
            "killed/etcd/-/-/LEASE",
        ],
    ),
    (
        "LeaseLost!",
        [
            "killed/etcd/0/-/LEASE; ended only on SIGKILL",
            "killed/etcd/3/-/LEASE; ended only on SIGKILL",
            "killed/etcd/-/15/LEASE; ended only on SIGKILL",
            "killed/etcd/-/-/LEASE; ended only on SIGKILL",
        ],
    ),
    (
        "Drained",
        [
            "killed/drained/0/-/killed at the deadline of the node's drain",
            "killed/drained/3/-/killed at the deadline of the node's drain",
            "killed/drained/-/15/killed at the deadline of the node's drain",
            "killed/drained/-/-/killed at the deadline of the node's drain",
        ],
    ),
    (
        "Drained!",
        [
            "killed/drained/0/-/killed at the deadline of the node's drain; ended only on SIGKILL",
            "killed/drained/3/-/killed at the deadline of the node's drain; ended only on SIGKILL",
            "killed/drained/-/15/killed at the deadline of the node's drain; ended only on SIGKILL",
            "killed/drained/-/-/killed at the deadline of the node's drain; ended only on SIGKILL",
        ],
    ),
];

const LEASE: &str = "killed because this node had lost its lease in etcd: a job that runs once in \
                     the cluster may be run elsewhere";

/// Each reason once. Who adds one is sent here by the compiler.
fn reasons() -> Vec<KillReason> {
    use KillReason::{Drained, LeaseLost, Replaced, Requested, Shutdown, Timeout};
    let next = |reason| match reason {
        Timeout => Some(Requested),
        Requested => Some(Replaced),
        Replaced => Some(Shutdown),
        Shutdown => Some(LeaseLost),
        LeaseLost => Some(Drained),
        Drained => None,
    };
    std::iter::successors(Some(Timeout), |r| next(*r)).collect()
}

/// A kill on its way to SIGKILL, or beyond.
fn killing(reason: KillReason, forced: bool) -> Killing {
    let plan = KillPlan::default();
    let killing = Killing::new(reason, &plan, 0);
    let next = killing.next.filter(|_| !forced);
    Killing { next, ..killing }
}

fn status(end: &str) -> io::Result<ExitStatus> {
    // The raw status of wait(2): the exit status in the second byte, or a signal.
    let raw = match end {
        "exit 0" => 0,
        "exit 3" => 3 << 8,
        "signal 15" => 15,
        _ => return Err(io::Error::other("gone")),
    };
    Ok(ExitStatus::from_raw(raw))
}

fn told(ended: &Ended) -> String {
    let number = |n: Option<i32>| n.map_or("-".to_owned(), |n| n.to_string());
    let (exit, signal) = (number(ended.exit_code), number(ended.signal));
    let message = ended.message.as_deref().unwrap_or("-").replace(LEASE, "LEASE");
    format!("{}/{}/{exit}/{signal}/{message}", ended.state, ended.code.name())
}

#[tokio::test]
async fn every_end_meets_every_reason() {
    let kills = reasons().into_iter().flat_map(|reason| [(reason, false), (reason, true)]);
    let rows: Vec<_> = std::iter::once(None).chain(kills.map(Some)).collect();
    assert_eq!(rows.len(), TABLE.len());
    let at = Timestamp::UNIX_EPOCH;
    for (row, (name, cells)) in rows.into_iter().zip(TABLE) {
        let forced = |f| if f { "!" } else { "" };
        assert_eq!(row.map_or(String::new(), |(r, f)| format!("{r:?}{}", forced(f))), name);
        let killing = row.map(|(reason, forced)| killing(reason, forced));
        for (end, want) in ENDS.into_iter().zip(cells) {
            let timeout = Some(Duration::from_secs(3));
            let ended = outcome(None, status(end), killing.as_ref(), timeout, at, (7, 2));
            assert_eq!(told(&ended), want, "{end}, {name:?}");
            let rest = (ended.ended_at, ended.output_bytes, ended.dropped_bytes);
            assert_eq!(rest, (at, 7, 2));
            assert!(ended.state.is_final());
            // It never became the command: nothing else counts then.
            let error = StartError::new(StartProblem::NotFound, "no such program");
            let ended = outcome(Some(&error), status(end), killing.as_ref(), timeout, at, (7, 2));
            assert_eq!(told(&ended), "failed/cannot_start/-/-/no such program");
            assert_eq!((ended.ended_at, ended.output_bytes, ended.dropped_bytes), (at, 0, 0));
        }
    }
}
