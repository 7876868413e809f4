//! The leader's part: whenever something changes or is due, plan and write. Takes no input
//! but what is known of tasks and nodes, and every write names the revisions it rests on
//! and the leader's term.

use super::{
    archive::{self, Archive},
    board::Board,
    fleet::Nodes,
    write::{Write, groups, leaders},
};
use crate::{metrics::Metrics, sessions::Sessions, view::View};
use futures::StreamExt;
use jiff::Timestamp;
use meepo_coord::{CoordError, Etcd, election::Leadership};
use meepo_core::task::dispatch::{Fleet, plan};
use meepo_logstore::LogStore;
use meepo_runtime::backoff::Backoff;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Transactions under way at once.
const AT_ONCE: usize = 8;
/// How long changes are gathered before a plan is made, while they keep coming.
const GATHER: Duration = Duration::from_millis(2);
/// … and how long a conflict waits for the watch to show what has changed.
const SETTLE: Duration = Duration::from_millis(20);

/// What the leader needs for tasks.
pub struct Leader {
    /// The connection to etcd.
    pub etcd: Etcd,
    /// Where tasks go that are over.
    pub store: Arc<dyn LogStore>,
    /// What is known of tasks.
    pub board: Board,
    /// What is known of nodes.
    pub view: View,
    /// What workers tell of their hosts.
    pub sessions: Sessions,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// How long a node must have been away before others get what it had.
    pub grace: Duration,
}

/// Dispatches while this master leads, until `stop` is cancelled.
pub async fn run(leader: Leader, stop: CancellationToken) -> anyhow::Result<()> {
    let Leader { etcd, store, board, view, sessions, mut leadership, metrics, grace } = leader;
    let archive = Archive::default();
    let archiving = archive::run(
        archive.clone(),
        etcd.clone(),
        store,
        board.clone(),
        leadership.clone(),
        stop.clone(),
    );
    let dispatching = async {
        let (mut tasks, mut nodes) = (board.changes(), view.changes());
        let mut known = Nodes::new(grace);
        let mut backoff = Backoff::new(Duration::from_secs(5));
        loop {
            let term = leadership.borrow_and_update().mine;
            let complete = tasks.borrow_and_update().complete && nodes.borrow_and_update().complete;
            let mut again = None;
            match term.filter(|_| complete) {
                None => known.forget(),
                Some(term) => {
                    let (fleet, gone_at) = known.look(&view, &sessions, &board);
                    let planned = look(&board, fleet);
                    let due = planned.wake.map(instant);
                    again = [due, gone_at].into_iter().flatten().min();
                    let (groups, finished) = groups(planned.effects);
                    archive.add(finished);
                    if !groups.is_empty() {
                        let outcome = perform(&etcd, &board, term, groups, &metrics).await;
                        let wait = match outcome {
                            Outcome { error: Some(e), .. } => {
                                let wait = backoff.next_wait();
                                warn!(error = %e, ?wait, "cannot write parts of tasks, will try again");
                                Some(wait)
                            }
                            Outcome { conflicts: 1.., .. } => Some(SETTLE),
                            Outcome { .. } => {
                                backoff.reset();
                                None
                            }
                        };
                        if let Some(wait) = wait {
                            tokio::time::sleep(wait).await;
                            again = Some(Instant::now());
                        }
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = tasks.changed() => if changed.is_err() { return },
                changed = nodes.changed() => if changed.is_err() { return },
                changed = leadership.changed() => if changed.is_err() { return },
                () = sleep_until(again) => continue,
            }
            tokio::time::sleep(GATHER).await;
        }
    };
    tokio::join!(archiving, dispatching);
    Ok(())
}

/// Plans over what is known now. Some milliseconds for many thousand parts.
fn look(board: &Board, fleet: &Fleet) -> meepo_core::task::dispatch::Plan {
    tokio::task::block_in_place(|| plan(&board.read(), fleet, Timestamp::now()))
}

fn instant(at: Timestamp) -> Instant {
    // A moment later: the clock must have passed it.
    let wait = at.duration_since(Timestamp::now());
    Instant::now() + Duration::try_from(wait).unwrap_or_default() + Duration::from_millis(1)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What came of a plan.
#[derive(Default)]
struct Outcome {
    /// Writes whose keys had changed meanwhile.
    conflicts: usize,
    /// The last of the errors, if there were any.
    error: Option<CoordError>,
}

async fn perform(
    etcd: &Etcd,
    board: &Board,
    term: i64,
    groups: Vec<Vec<Write>>,
    metrics: &Metrics,
) -> Outcome {
    let mut outcome = Outcome::default();
    let writing = groups.into_iter().map(|group| write(etcd, board, term, group));
    let mut writing = futures::stream::iter(writing).buffer_unordered(AT_ONCE);
    while let Some(done) = writing.next().await {
        metrics.part_writes.inc_by(done.written);
        outcome.conflicts += done.conflicts;
        outcome.error = done.error.or(outcome.error);
    }
    outcome
}

/// What came of a group.
#[derive(Default)]
struct Done {
    written: u64,
    conflicts: usize,
    error: Option<CoordError>,
}

async fn write(etcd: &Etcd, board: &Board, term: i64, group: Vec<Write>) -> Done {
    let n = group.len();
    match etcd.txn("parts of tasks", leaders(term, &group)).await {
        Ok(Some(revision)) => {
            let written = group.into_iter().map(|w| (w.id, w.part)).collect();
            board.written(written, revision);
            Done { written: n as u64, ..Done::default() }
        }
        Err(e) if n == 1 || e.retryable() => Done { error: Some(e), ..Done::default() },
        Ok(None) if n == 1 => {
            debug!(part = %group[0].id, "a part has changed meanwhile");
            Done { conflicts: 1, ..Done::default() }
        }
        // One that has changed or is too large must not take the others with it.
        Ok(None) | Err(_) => {
            let mut done = Done::default();
            for one in group {
                let part = Box::pin(write(etcd, board, term, vec![one])).await;
                done.written += part.written;
                done.conflicts += part.conflicts;
                let away = part.error.as_ref().is_some_and(CoordError::retryable);
                done.error = part.error.or(done.error);
                if away {
                    break;
                }
            }
            done
        }
    }
}
