//! Who leads: the master whose record stands at [`keys::LEADER`], bound to its lease.
//!
//! The term is the key's `create_revision`: it grows with every change of leader and
//! is the same for everybody who looks.

use crate::{
    etcd::{Cas, Entry, Etcd},
    keys,
    lease::LeaseState,
    records::{LeaderRecord, decode, encode},
    watch::{Batch, Change, Options, watch},
};
use meepo_runtime::backoff::Backoff;
use std::time::Duration;
use tokio::{
    sync::{mpsc, watch as state},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Who leads, as far as this process knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The leader with its term.
    pub leader: Option<(LeaderRecord, i64)>,
    /// This process leads with this term, for certain.
    pub mine: Option<i64>,
    /// … until then on its monotonic clock, which goes on while a process is stopped.
    /// Nobody is woken when a renewal only moves it. `None`: as long as `mine` says.
    pub until: Option<Instant>,
}

impl Leadership {
    /// The term with which this process leads at this very moment. A process that was
    /// stopped for a while learns here that its time is over, before anything has woken
    /// it to say so.
    pub fn term(&self) -> Option<i64> {
        self.mine.filter(|_| self.until.is_none_or(|until| Instant::now() < until))
    }
}

/// Follows who leads, without standing for election.
pub async fn observe(etcd: Etcd, out: state::Sender<Leadership>, stop: CancellationToken) {
    let (tx, mut rx) = mpsc::channel(16);
    let watching = watch(etcd, vec![keys::LEADER.into()], Options::default(), tx, stop);
    let telling = async {
        while let Some(batch) = rx.recv().await {
            let leader = match apply(batch, 0) {
                Some(leader) => leader,
                None => continue,
            };
            let state = Leadership { leader, mine: None, until: None };
            // A full comparison that finds nothing new must not disturb anybody.
            out.send_if_modified(|old| {
                let changed = *old != state;
                *old = state;
                changed
            });
        }
    };
    tokio::join!(watching, telling);
}

/// Stands for election with `me` as long as `lease` is held; follows who leads.
/// Steps down before the lease can have ended.
pub async fn campaign(
    etcd: Etcd,
    me: LeaderRecord,
    mut lease: state::Receiver<LeaseState>,
    out: state::Sender<Leadership>,
    stop: CancellationToken,
) {
    let (tx, mut rx) = mpsc::channel(16);
    let watching = watch(etcd.clone(), vec![keys::LEADER.into()], Options::default(), tx, stop);
    let standing = async {
        let mut there: Option<Option<(LeaderRecord, i64)>> = None;
        // The lease that the record of this process is bound to. A record left behind
        // by an earlier lease may vanish at any time: it gives no leadership.
        let mut bound = None;
        // Revision of the last write of this process: the watch tells of it later.
        let mut written = 0;
        let mut backoff = Backoff::new(Duration::from_secs(2));
        let mut retry_at: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let held = *lease.borrow_and_update();
            let until = match held {
                LeaseState::Held { until, .. } => until,
                LeaseState::None => now,
            };
            let ours = match &there {
                Some(Some((l, term))) if l.id == me.id => Some(*term),
                _ => None,
            };
            let mine = ours.filter(|_| held.id().is_some() && held.id() == bound);
            // A record of our own under a lease that is over: nobody leads.
            let leader = there.clone().flatten().filter(|_| ours.is_none() || mine.is_some());
            let state = Leadership { leader, mine, until: mine.map(|_| until) };
            out.send_if_modified(|old| {
                if old.mine != state.mine {
                    match state.mine {
                        Some(term) => info!(term, "this master leads"),
                        None => info!("this master does not lead any more"),
                    }
                }
                let changed = (&old.leader, old.mine) != (&state.leader, state.mine);
                *old = state;
                changed
            });
            let due = retry_at.is_none_or(|at| at <= now);
            if let (Some(old), None, Some(_), true) = (ours, mine, held.id(), due) {
                retry_at = None;
                // Written once, so its revision is that of its creation: the term.
                match etcd.put_if(keys::LEADER, None, old, None).await {
                    Ok(Cas::Done(revision)) => {
                        written = revision;
                        there = Some(None);
                    }
                    Ok(Cas::Conflict(other)) => there = Some(other.and_then(read)),
                    Err(e) => {
                        let wait = backoff.next_wait();
                        warn!(error = %e, ?wait, "cannot take back an old leadership, will try again");
                        retry_at = Some(Instant::now() + wait);
                        continue;
                    }
                }
            }
            if let (Some(None), Some(id), true) = (&there, held.id(), due) {
                retry_at = None;
                match etcd.put_if(keys::LEADER, Some(encode(&me)), 0, Some(id)).await {
                    Ok(Cas::Done(term)) => {
                        backoff.reset();
                        bound = Some(id);
                        written = term;
                        there = Some(Some((me.clone(), term)));
                        continue;
                    }
                    Ok(Cas::Conflict(other)) => {
                        there = Some(other.and_then(read));
                        continue;
                    }
                    Err(e) => {
                        let wait = backoff.next_wait();
                        warn!(error = %e, ?wait, "cannot stand for election, will try again");
                        retry_at = Some(Instant::now() + wait);
                    }
                }
            }
            // Wakes to step down in time, and to try again.
            let wake = match (mine, retry_at) {
                (Some(_), _) => Some(until),
                (None, at) => at,
            };
            tokio::select! {
                batch = rx.recv() => match batch {
                    Some(batch) => if let Some(leader) = apply(batch, written) {
                        there = Some(leader);
                    },
                    None => return,
                },
                changed = lease.changed() => if changed.is_err() { return },
                () = sleep_until(wake) => {}
            }
        }
    };
    tokio::join!(watching, standing);
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Who leads after `batch`; `None` if it says nothing about that, or nothing that is
/// newer than the revision `known`.
fn apply(batch: Batch, known: i64) -> Option<Option<(LeaderRecord, i64)>> {
    match batch {
        Batch::Reset { revision, .. } if revision < known => None,
        Batch::Reset { entries, .. } => {
            Some(entries.into_iter().find(|e| e.key == keys::LEADER).and_then(read))
        }
        Batch::Changes(changes) => {
            let last = changes.into_iter().rfind(|c| match c {
                Change::Put(e) => e.key == keys::LEADER && e.mod_revision > known,
                Change::Delete { key, revision, .. } => key == keys::LEADER && *revision > known,
            })?;
            Some(match last {
                Change::Put(entry) => read(entry),
                Change::Delete { .. } => None,
            })
        }
    }
}

fn read(entry: Entry) -> Option<(LeaderRecord, i64)> {
    match decode(&entry.value) {
        Ok(record) => Some((record, entry.create_revision)),
        Err(e) => {
            warn!(key = entry.key, error = %e, "unreadable leader record");
            // Somebody holds the key: nobody else can lead until it is gone.
            let record = LeaderRecord {
                id: String::new(),
                http: String::new(),
                grpc: String::new(),
                extra: Default::default(),
            };
            Some((record, entry.create_revision))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leadership_ends_by_the_clock_also_while_nobody_says_so() {
        let now = Instant::now();
        let of = |mine, until| Leadership { leader: None, mine, until }.term();
        let later = now + Duration::from_secs(60);
        assert_eq!(of(Some(7), Some(later)), Some(7));
        assert_eq!(of(Some(7), Some(now)), None);
        assert_eq!(of(Some(7), None), Some(7));
        assert_eq!(of(None, Some(later)), None);
    }
}
