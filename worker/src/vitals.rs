//! How the worker is: for its health record, its metrics and `/healthz`.

use crate::{
    metrics::Metrics,
    progress::Progress,
    registry::Registry,
    state::{Refusal, State},
};
use jiff::{SignedDuration, Timestamp};
use meepo_core::node::{Problem, Work};
use std::sync::{Arc, atomic::Ordering};
use tokio::sync::watch;

/// How long the log store may be away before it is worth a problem.
const PATIENCE: SignedDuration = SignedDuration::from_secs(10);
/// How long it is a problem that the spool has dropped something.
const REMEMBER: SignedDuration = SignedDuration::from_hours(1);
/// Slots that are looked at later than this are worth one, in milliseconds.
const LATE_MS: u64 = 10_000;

/// Everything that can be asked how it is. Cloning is cheap.
#[derive(Clone)]
pub struct Vitals {
    /// The scheduler.
    pub progress: Arc<Progress>,
    /// Journal and spool.
    pub state: State,
    /// Runs.
    pub registry: Registry,
    /// Delivery to the log store.
    pub delivery: Arc<Delivery>,
    /// Bytes the spool may hold.
    pub spool_limit: u64,
}

/// Since when the log store takes nothing, and why.
#[derive(Debug, Default)]
pub struct Delivery(watch::Sender<Option<(Timestamp, String)>>);

impl Delivery {
    /// A try to deliver went so. Answers whether that is news.
    pub fn tried(&self, outcome: Result<(), String>) -> bool {
        let mut news = false;
        self.0.send_modify(|failing| {
            news = failing.is_some() == outcome.is_ok();
            *failing = outcome.err().map(|reason| {
                let since = failing.as_ref().map_or_else(Timestamp::now, |(since, _)| *since);
                (since, reason)
            });
        });
        news
    }

    /// Waits until the log store takes nothing.
    pub async fn failed(&self) {
        // The sender is right here.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }

    fn failing(&self) -> Option<(Timestamp, String)> {
        self.0.borrow().clone()
    }
}

impl Vitals {
    /// What is wrong with the worker itself, the gravest first.
    pub fn problems(&self, now: Timestamp) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add = |subject: &str, reason: String| {
            problems.push(Problem { subject: subject.to_owned(), reason });
        };
        let figures = self.progress.figures();
        if let Some(reason) = self.progress.trouble(now) {
            add("scheduler", reason);
        } else if figures.lag_max_ms > LATE_MS {
            let seconds = figures.lag_max_ms / 1000;
            add("scheduler", format!("a slot was looked at {seconds} s late in the last minute"));
        }
        if let Some(Refusal { since, error }) = &*self.state.refusal().borrow() {
            let held = "no run starts and no end is recorded until the disk takes them";
            add("disk", format!("nothing can be written since {}: {error}; {held}", short(*since)));
        }
        let stats = self.state.spool_stats();
        let full = stats.bytes >= self.spool_limit / 10 * 9;
        let away =
            self.delivery.failing().filter(|(since, _)| now.duration_since(*since) > PATIENCE);
        if let Some((since, reason)) = &away {
            let since = short(*since);
            let oldest =
                stats.oldest.map_or(String::new(), |at| format!(", the oldest from {}", short(at)));
            let items = thousands(stats.items);
            add(
                "log store",
                format!(
                    "it takes nothing since {since}: {reason}; the spool holds {items} items{oldest}"
                ),
            );
        }
        let lately = stats.dropped_at.filter(|at| now.duration_since(*at) < REMEMBER);
        if full || lately.is_some() {
            let (bytes, limit) = (thousands(stats.bytes), thousands(self.spool_limit));
            let dropped = thousands(stats.dropped_bytes);
            let last = lately.map_or(String::new(), |at| format!(", the last at {}", short(at)));
            let records = match stats.dropped_records {
                0 => "records of runs are kept".to_owned(),
                n => format!("{} records of runs were dropped too", thousands(n)),
            };
            add(
                "spool",
                format!(
                    "it holds {bytes} of at most {limit} bytes: the oldest output is dropped and \
                     counted ({dropped} bytes so far{last}), {records}"
                ),
            );
        }
        problems
    }

    /// The figures for the health record.
    pub fn work(&self) -> Work {
        let figures = self.progress.figures();
        let stats = self.state.spool_stats();
        Work {
            looked_at: figures.looked_at,
            lag_ms: figures.lag_ms,
            lag_max_ms: figures.lag_max_ms,
            running: self.registry.active().len() as u64,
            ready: figures.queue.ready,
            waiting: figures.queue.waiting,
            spool_items: stats.items,
            spool_bytes: stats.bytes,
            spool_oldest: stats.oldest,
            spool_dropped_bytes: stats.dropped_bytes,
            flush_ms: self.state.flush_ms(),
        }
    }

    /// Sets the gauges, for somebody who is about to read them.
    pub fn observe(&self, metrics: &Metrics, now: Timestamp) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let seconds = |since: Timestamp| now.duration_since(since).as_secs_f64().max(0.0);
        let millis = |ms: u64| ms as f64 / 1000.0;
        let (work, stats) = (self.work(), self.state.spool_stats());
        metrics.lag_max.set(millis(work.lag_max_ms));
        metrics.looked_age.set(work.looked_at.map_or(0.0, seconds));
        metrics.running.set(number(work.running));
        metrics.ready.set(number(work.ready));
        metrics.waiting.set(number(work.waiting));
        metrics.spool_items.set(number(stats.items));
        metrics.spool_bytes.set(number(stats.bytes));
        metrics.spool_backlog.set(number(stats.backlog));
        metrics.spool_limit.set(number(self.spool_limit));
        // They only grow; the spool itself counts them.
        metrics.spool_dropped.inner().store(stats.dropped_chunks, Ordering::Relaxed);
        metrics.spool_dropped_bytes.inner().store(stats.dropped_bytes, Ordering::Relaxed);
        metrics.spool_dropped_records.inner().store(stats.dropped_records, Ordering::Relaxed);
        metrics.spool_age.set(stats.oldest.map_or(0.0, seconds));
        metrics.state_pending.set(self.state.pending() as i64);
        metrics.state_flush.set(millis(work.flush_ms));
        metrics.drained.set(i64::from(self.progress.figures().queue.held));
        metrics.disk_refuses.set(i64::from(self.state.refusal().borrow().is_some()));
        metrics.log_store_refuses.set(i64::from(self.delivery.failing().is_some()));
    }
}

/// To the second.
fn short(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// `12,345`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{SpoolItem, StateOptions};
    use meepo_core::{
        id::RunId,
        run::{OutputChunk, Stream},
    };

    #[test]
    fn numbers_have_commas() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(n), text);
        }
    }

    #[test]
    fn a_delivery_that_fails_again_is_no_news_and_keeps_its_beginning() {
        let delivery = Delivery::default();
        assert!(!delivery.tried(Ok(())));
        assert!(delivery.tried(Err("a".into())));
        let (since, _) = delivery.failing().unwrap();
        assert!(!delivery.tried(Err("b".into())));
        assert_eq!(delivery.failing(), Some((since, "b".into())));
        assert!(delivery.tried(Ok(())) && delivery.failing().is_none());
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_in_words_and_shown_in_gauges() {
        let dir = tempfile::tempdir().unwrap();
        let options = StateOptions { spool_limit: 1000, ..StateOptions::new(dir.path()) };
        let vitals = Vitals {
            progress: Arc::default(),
            state: State::open(&options).unwrap(),
            registry: Registry::default(),
            delivery: Arc::default(),
            spool_limit: options.spool_limit,
        };
        let now = Timestamp::now();
        assert_eq!(vitals.problems(now), []);
        let chunk = |seq| {
            SpoolItem::Chunk(OutputChunk {
                run_id: RunId(uuid::Uuid::nil()),
                seq,
                stream: Stream::Stdout,
                at: now,
                data: vec![0; 860],
            })
        };
        vitals.state.spool(&[chunk(0), chunk(1)]).await.unwrap();
        vitals.delivery.tried(Err("no master leads".into()));
        vitals.progress.looked(SignedDuration::from_secs(12));
        let subjects =
            |at| vitals.problems(at).into_iter().map(|p| p.subject).collect::<Vec<_>>().join(" ");
        assert_eq!(subjects(now), "scheduler spool", "it may come back at once");
        let later = now + SignedDuration::from_secs(20);
        assert_eq!(subjects(later), "scheduler log store spool");
        let problems = vitals.problems(later);
        let store = &problems[1].reason;
        assert!(
            store.contains("no master leads; the spool holds 1 items, the oldest from"),
            "{store}"
        );
        assert!(problems[2].reason.contains("(860 bytes so far, the last at"), "{problems:?}");
        let metrics = Metrics::default();
        vitals.observe(&metrics, later);
        assert_eq!((metrics.lag_max.get(), metrics.log_store_refuses.get()), (12.0, 1));
        assert!(metrics.spool_age.get() >= 19.0 && metrics.disk_refuses.get() == 0);
    }
}
