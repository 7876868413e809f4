//! Writes `/cron/cronid/jobs/<ip>/<task_id>`: what each job runs now, under the
//! worker's lease, and how its last run ended, for some minutes.
//!
//! The key is for people and for the leader's eyes; it decides nothing. A single state
//! is written at once; under load they are gathered, so that a job that runs often costs
//! etcd little, and many go into one transaction. With etcd away the latest state of each
//! job waits here, so memory is bounded by the number of jobs.

use meepo_coord::{CoordError, Etcd, etcd::MAX_TXN_OPS, keys, lease::LeaseState, records::encode};
use meepo_core::{
    api::CronId,
    id::{Name, NodeId},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How long the end of a run can be read at least.
const KEPT: Duration = Duration::from_secs(300);
/// Between two rounds of writes, at least.
const GATHER: Duration = Duration::from_millis(250);
/// How long a failed write waits before the next.
const RETRY: Duration = Duration::from_secs(1);

/// Where states are handed in: holds the latest of each job, so that handing in never
/// waits, however long etcd does not answer.
#[derive(Debug, Default)]
pub struct Board {
    latest: Mutex<HashMap<Name, CronId>>,
    posted: Notify,
}

impl Board {
    /// Hands in the state of a job; an earlier one that is not written yet is replaced.
    pub fn post(&self, job: Name, id: CronId) {
        // Nothing is left half done while the lock is held.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).insert(job, id);
        self.posted.notify_one();
    }

    fn take(&self) -> HashMap<Name, CronId> {
        std::mem::take(&mut *self.latest.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Writes what is posted until `stop` is cancelled.
pub async fn write(
    etcd: Etcd,
    node: NodeId,
    mut lease: watch::Receiver<LeaseState>,
    board: Arc<Board>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut running: HashMap<Name, CronId> = HashMap::new();
    let mut pending: HashMap<Name, CronId> = HashMap::new();
    let mut writer = Writer { etcd, node, ended_lease: None };
    let mut bound_to = None;
    let mut next = Instant::now();
    loop {
        // Without a lease there is nothing to try: its return wakes this task.
        let may_write = lease.borrow().id().is_some() && !pending.is_empty();
        let gathering = Instant::now() < next;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep_until(next), if gathering || may_write => {}
            changed = lease.changed() => if changed.is_err() { return Ok(()) },
            () = board.posted.notified(), if !gathering => {}
        }
        for (job, id) in board.take() {
            if id.state.is_final() {
                running.remove(&job);
            } else {
                running.insert(job.clone(), id.clone());
            }
            pending.insert(job, id);
        }
        let Some(id) = lease.borrow_and_update().id() else { continue };
        if bound_to != Some(id) {
            // What was bound to the old lease is gone.
            bound_to = Some(id);
            for (job, cronid) in &running {
                pending.entry(job.clone()).or_insert_with(|| cronid.clone());
            }
        }
        if next <= Instant::now() && !pending.is_empty() {
            let flushed = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                flushed = writer.flush(id, &mut pending) => flushed,
            };
            next = Instant::now() + GATHER;
            if let Err(e) = flushed {
                debug!(error = %e, "cannot write what runs, will try again");
                next = Instant::now() + RETRY;
            }
        }
    }
}

struct Writer {
    etcd: Etcd,
    node: NodeId,
    /// The lease of ended runs and when to take a new one.
    ended_lease: Option<(i64, Instant)>,
}

impl Writer {
    /// Writes everything pending. Stops at the first failure; what is not written stays.
    async fn flush(
        &mut self,
        lease: i64,
        pending: &mut HashMap<Name, CronId>,
    ) -> Result<(), CoordError> {
        for ended in [false, true] {
            loop {
                let wanted = pending.iter().filter(|(_, id)| id.state.is_final() == ended);
                let some: Vec<Name> =
                    wanted.map(|(job, _)| job.clone()).take(MAX_TXN_OPS).collect();
                if some.is_empty() {
                    break;
                }
                let lease = if ended { self.ended_lease().await? } else { lease };
                let entries = some.iter().filter_map(|job| {
                    Some((keys::cronid(&self.node, job), encode(pending.get(job)?)))
                });
                self.etcd.put_all("states of jobs", entries, lease).await?;
                for job in &some {
                    pending.remove(job);
                }
            }
        }
        Ok(())
    }

    /// One lease for all that ended within a while: leases are dear when written often.
    async fn ended_lease(&mut self) -> Result<i64, CoordError> {
        if let Some((id, until)) = self.ended_lease
            && Instant::now() < until
        {
            return Ok(id);
        }
        let id = self.etcd.grant(KEPT * 2).await?;
        self.ended_lease = Some((id, Instant::now() + KEPT));
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use meepo_core::{id::RunId, run::RunState};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn state(state: RunState) -> CronId {
        CronId {
            cronid: RunId(uuid::Uuid::nil()),
            state,
            slot: Timestamp::UNIX_EPOCH,
            started_at: None,
            ended_at: None,
            code: None,
        }
    }

    #[test]
    fn a_board_holds_the_latest_state_of_each_job() {
        let board = Board::default();
        let (a, b) = (Name::new("a").unwrap(), Name::new("b").unwrap());
        board.post(a.clone(), state(RunState::Running));
        board.post(a.clone(), state(RunState::Success));
        board.post(b, state(RunState::Running));
        let all = board.take();
        assert_eq!((all.len(), all[&a].state), (2, RunState::Success));
        assert!(board.take().is_empty());
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn without_a_lease_the_writer_sleeps() {
        let etcd = Etcd::connect(&["http://127.0.0.1:1".into()]).await.unwrap();
        let (_lease, held) = watch::channel(LeaseState::None);
        let board = Arc::new(Board::default());
        board.post(Name::new("a").unwrap(), state(RunState::Running));
        let node = Name::new("n").unwrap();
        let mut writing = Box::pin(write(etcd, node, held, board, CancellationToken::new()));
        // A writer that spins uses up its turn and wakes itself for the next one.
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        let polled = writing.as_mut().poll(&mut std::task::Context::from_waker(&waker));
        assert!(polled.is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
    }
}
