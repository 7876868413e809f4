//! Writes `/meepo/spent/<ip>/<job_id>`: the jobs of this node that have used up their
//! `max_runs`, so that masters do not announce slots that will not run.
//!
//! The worker's own count decides; the keys only tell of it. They have no lease: a job
//! whose worker is away is over all the same.

use meepo_coord::{
    CoordError, Etcd,
    etcd::MAX_TXN_OPS,
    keys,
    records::{SpentRecord, decode, encode},
};
use meepo_core::id::{Name, NodeId};
use meepo_runtime::backoff::Backoff;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Where it is handed in which jobs are spent. Holds the latest of each job, so that
/// handing in never waits.
#[derive(Debug, Default)]
pub struct Board {
    news: Mutex<News>,
    posted: Notify,
}

#[derive(Debug, Default)]
struct News {
    /// Every spent job with its runs: keys of others go.
    all: Option<BTreeMap<Name, u32>>,
    /// Changes since then: the runs of a spent job; none for one that is not any more.
    changed: BTreeMap<Name, Option<u32>>,
}

impl Board {
    /// These are all the jobs that are spent, with their runs.
    pub fn all(&self, jobs: BTreeMap<Name, u32>) {
        *self.lock() = News { all: Some(jobs), changed: BTreeMap::new() };
        self.posted.notify_one();
    }

    /// A job is spent after so many runs, or is not any more.
    pub fn post(&self, job: Name, runs: Option<u32>) {
        self.lock().changed.insert(job, runs);
        self.posted.notify_one();
    }

    fn take(&self) -> News {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, News> {
        // Nothing is left half done while it is held.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what is handed in until `stop` is cancelled.
///
/// # Errors
/// None.
pub async fn write(
    etcd: Etcd,
    node: NodeId,
    board: Arc<Board>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut todo = News::default();
    let mut backoff = Backoff::new(Duration::from_secs(30));
    loop {
        let retry = todo.all.is_some() || !todo.changed.is_empty();
        let wait = if retry { backoff.next_wait() } else { Duration::MAX };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait), if retry => {}
            () = board.posted.notified(), if !retry => {}
        }
        todo.take_in(board.take());
        let flushed = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            flushed = todo.flush(&etcd, &node) => flushed,
        };
        match flushed {
            Ok(()) => backoff.reset(),
            Err(e) => debug!(error = %e, "cannot write which jobs are spent, will try again"),
        }
    }
}

impl News {
    fn take_in(&mut self, newer: Self) {
        match newer.all {
            Some(_) => *self = newer,
            None => self.changed.extend(newer.changed),
        }
    }

    /// Writes everything. Stops at the first failure; what is not written stays.
    async fn flush(&mut self, etcd: &Etcd, node: &NodeId) -> Result<(), CoordError> {
        if let Some(all) = &self.all {
            let (entries, _) = etcd.list(&keys::spent_of(node), None).await?;
            let there = entries.iter().filter_map(|e| {
                let (_, job) = keys::node_and_job(&e.key, keys::SPENT)?;
                Some((job, decode::<SpentRecord>(&e.value).ok().map(|r| r.runs)))
            });
            self.changed = differences(all, there.collect(), std::mem::take(&mut self.changed));
            self.all = None;
        }
        let gone = self.changed.iter().filter(|(_, runs)| runs.is_none());
        for job in gone.map(|(job, _)| job.clone()).collect::<Vec<_>>() {
            etcd.delete(&keys::spent(node, &job)).await?;
            self.changed.remove(&job);
        }
        while !self.changed.is_empty() {
            let some: Vec<Name> = self.changed.keys().take(MAX_TXN_OPS).cloned().collect();
            let record = |job: &Name| {
                let runs = (*self.changed.get(job)?)?;
                let value = encode(&SpentRecord { runs, extra: BTreeMap::new() });
                Some((keys::spent(node, job), value))
            };
            // No lease.
            etcd.put_all("spent jobs", some.iter().filter_map(record), 0).await?;
            for job in &some {
                self.changed.remove(job);
            }
        }
        Ok(())
    }
}

/// What has to be written so that `there` agrees with `all` and what `changed` since.
fn differences(
    all: &BTreeMap<Name, u32>,
    there: BTreeMap<Name, Option<u32>>,
    changed: BTreeMap<Name, Option<u32>>,
) -> BTreeMap<Name, Option<u32>> {
    let missing = all.iter().filter(|(job, runs)| there.get(*job) != Some(&Some(**runs)));
    let mut todo: BTreeMap<_, _> = missing.map(|(job, runs)| (job.clone(), Some(*runs))).collect();
    todo.extend(there.into_keys().filter(|job| !all.contains_key(job)).map(|job| (job, None)));
    todo.extend(changed);
    todo
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<V: Clone>(of: &[(&str, V)]) -> BTreeMap<Name, V> {
        of.iter().map(|(name, v)| (Name::new(name).unwrap(), v.clone())).collect()
    }

    #[test]
    fn only_what_differs_is_written() {
        let all = map(&[("same", 1), ("more", 2), ("new", 3)]);
        let there = map(&[("same", Some(1)), ("more", Some(1)), ("gone", Some(1)), ("bad", None)]);
        let changed = map(&[("new", None), ("later", Some(4))]);
        let todo = map(&[
            ("more", Some(2)),
            ("gone", None),
            ("bad", None),
            ("new", None),
            ("later", Some(4)),
        ]);
        assert_eq!(differences(&all, there, changed), todo);
    }

    #[test]
    fn news_of_everything_take_the_place_of_what_was_before() {
        let board = Board::default();
        let a = Name::new("a").unwrap();
        board.post(a.clone(), Some(1));
        board.all(map(&[("b", 2)]));
        board.post(a.clone(), None);
        let mut todo = News { all: None, changed: map(&[("old", Some(1))]) };
        todo.take_in(board.take());
        assert_eq!(
            (todo.all.clone().unwrap(), todo.changed.clone()),
            (map(&[("b", 2)]), map(&[("a", None)]))
        );
        board.post(a, Some(3));
        todo.take_in(board.take());
        assert_eq!((todo.all.is_some(), todo.changed), (true, map(&[("a", Some(3))])));
    }
}
