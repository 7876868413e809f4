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
use meepo_core::task::{
    PartId,
    dispatch::{Fleet, Plan, plan},
};
use meepo_logstore::LogStore;
use meepo_runtime::backoff::Backoff;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Transactions under way at once.
const AT_ONCE: usize = 8;
/// How long changes are gathered before a plan is made, while they keep coming.
const GATHER: Duration = Duration::from_millis(2);
/// … and how long a conflict waits for the watch to show what has changed.
const SETTLE: Duration = Duration::from_millis(20);

/// How long a part that etcd refuses is left alone.
const REFUSED: Duration = Duration::from_secs(60);

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
    /// The time to live of a lease, for workers that do not tell theirs.
    pub lease_ttl: Duration,
}

/// Dispatches while this master leads, until `stop` is cancelled.
pub async fn run(leader: Leader, stop: CancellationToken) -> anyhow::Result<()> {
    let Leader { etcd, store, board, view, sessions, mut leadership, metrics, lease_ttl } = leader;
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
        let mut known = Nodes::new(lease_ttl);
        // Parts that etcd refuses for what they are: they must not hold up the others.
        let mut refused: HashMap<PartId, Instant> = HashMap::new();
        let mut backoff = Backoff::new(Duration::from_secs(5));
        loop {
            let term = leadership.borrow_and_update().mine;
            let seen = *nodes.borrow_and_update();
            let complete = tasks.borrow_and_update().complete && seen.complete;
            known.listen(&view);
            let mut again = None;
            match term.filter(|_| complete) {
                None => {
                    known.forget();
                    refused.clear();
                }
                Some(term) => {
                    let (fleet, gone_at) = known.look(&view, &sessions, &board);
                    let planned = look(&board, fleet);
                    archive.add(planned.finished);
                    refused.retain(|_, until| *until > Instant::now());
                    let due = planned.wake.map(instant);
                    let retry = refused.values().min().copied();
                    again = [due, gone_at, retry].into_iter().flatten().min();
                    let mut effects = planned.effects;
                    effects.retain(|e| !refused.contains_key(&e.id));
                    let groups = groups(effects, (view.seal(), term));
                    if !groups.is_empty() {
                        let outcome = perform(&etcd, &board, term, groups, &metrics).await;
                        for id in &outcome.refused {
                            refused.insert(*id, Instant::now() + REFUSED);
                        }
                        let some_refused = !outcome.refused.is_empty();
                        let wait = match outcome.error {
                            Some(e) => {
                                let wait = backoff.next_wait();
                                warn!(error = %e, ?wait, "cannot write parts of tasks, will try again");
                                Some(wait)
                            }
                            // Planned again without them.
                            _ if outcome.conflicts > 0 || some_refused => Some(SETTLE),
                            _ => {
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
                // Assignments, of which most changes are, do not matter here.
                gone = async { nodes.wait_for(|v| v.nodes != seen.nodes).await.is_err() } => {
                    if gone { return }
                }
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
fn look(board: &Board, fleet: &Fleet) -> Plan {
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

/// What came of a plan, or of one of its groups.
#[derive(Default)]
struct Outcome {
    /// Parts that were written.
    written: u64,
    /// Writes whose keys had changed meanwhile.
    conflicts: usize,
    /// Parts that etcd does not take, whenever it is asked.
    refused: Vec<PartId>,
    /// The last of the other errors, if there were any.
    error: Option<CoordError>,
}

impl Outcome {
    fn and(&mut self, other: Self) {
        self.written += other.written;
        self.conflicts += other.conflicts;
        self.refused.extend(other.refused);
        self.error = other.error.or(self.error.take());
    }
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
        outcome.and(done);
    }
    outcome
}

async fn write(etcd: &Etcd, board: &Board, term: i64, group: Vec<Write>) -> Outcome {
    let n = group.len();
    match etcd.txn("parts of tasks", leaders(term, &group)).await {
        Ok(Some(revision)) => {
            let written = group.into_iter().map(|w| (w.id, w.part)).collect();
            board.written(written, revision);
            Outcome { written: n as u64, ..Outcome::default() }
        }
        Err(e) if e.retryable() => Outcome { error: Some(e), ..Outcome::default() },
        Err(e) if n == 1 => {
            let part = group[0].id;
            warn!(%part, error = %e, again_in = ?REFUSED, "etcd refuses a part of a task");
            Outcome { refused: vec![part], ..Outcome::default() }
        }
        Ok(None) if n == 1 => {
            debug!(part = %group[0].id, "a part has changed meanwhile");
            Outcome { conflicts: 1, ..Outcome::default() }
        }
        // One that has changed or is refused must not take the others with it.
        Ok(None) | Err(_) => {
            let (mut outcome, mut half) = (Outcome::default(), group);
            let other = half.split_off(n / 2);
            for half in [half, other] {
                outcome.and(Box::pin(write(etcd, board, term, half)).await);
                if outcome.error.is_some() {
                    break;
                }
            }
            outcome
        }
    }
}
