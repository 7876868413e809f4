//! Whether the agent gets on with its work: a worker whose slots pass unseen is not
//! well, however alive its process is.

use jiff::{SignedDuration, Timestamp};
use meepo_core::digest::Digest;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a slot may stay unseen.
const OVERDUE: SignedDuration = SignedDuration::from_secs(30);
/// How far back the largest lag is looked for.
const WINDOW: Duration = Duration::from_secs(60);

/// What waits in the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queue {
    /// Runs that wait for a place on the node.
    pub ready: u64,
    /// Runs that wait for an earlier run of their job.
    pub waiting: u64,
    /// Jobs whose slots are being claimed.
    pub claiming: u64,
    /// Nothing new is taken.
    pub held: bool,
}

/// What the agent holds of the node's assignments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// All of them, those among them that cannot be used included.
    pub digest: Digest,
    /// etcd's revision of the last list or change that is in it.
    pub revision: i64,
}

/// Where the agent stood when it last looked at what is due.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// When it last looked, and the next slot then.
    passed: Option<(Timestamp, Option<Timestamp>)>,
    queue: Queue,
    holdings: Option<Holdings>,
    lag: u64,
    /// Lags of the last minute that no later one exceeds, the largest first.
    lags: VecDeque<(Instant, u64)>,
}

/// The agent's figures at some instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// When the agent last looked at what is due.
    pub looked_at: Option<Timestamp>,
    /// How late the last slot was looked at, in milliseconds.
    pub lag_ms: u64,
    /// The largest of the last minute.
    pub lag_max_ms: u64,
    /// What waits.
    pub queue: Queue,
}

impl Progress {
    /// The agent has looked at everything up to `now`; the next slot is `head`.
    pub fn passed(&self, now: Timestamp, head: Option<Timestamp>, queue: Queue) {
        let mut inner = self.lock();
        inner.passed = Some((now, head));
        inner.queue = queue;
    }

    /// A slot was looked at `late` after its instant.
    pub fn looked(&self, late: SignedDuration) {
        let lag = u64::try_from(late.as_millis()).unwrap_or(0);
        self.lock().looked(lag, Instant::now());
    }

    /// The agent has taken in what etcd told.
    pub fn holds(&self, holdings: Holdings) {
        self.lock().holdings = Some(holdings);
    }

    /// What the agent holds; none until etcd has been heard.
    pub fn holdings(&self) -> Option<Holdings> {
        self.lock().holdings
    }

    /// What is wrong, if a slot has been due for too long.
    pub fn trouble(&self, now: Timestamp) -> Option<String> {
        let (pass, head) = self.lock().passed?;
        let head = head?;
        // The second guards against a clock that has just been set forward.
        let late = |t| now.duration_since(t) > OVERDUE;
        (late(head) && late(pass)).then(|| {
            format!(
                "the slot of {head} has not been looked at; the scheduler last did something at \
                 {pass}"
            )
        })
    }

    /// Whether the agent takes nothing new and has nothing left that is to begin.
    pub fn rests(&self) -> bool {
        let q = self.lock().queue;
        q.held && q.ready + q.waiting + q.claiming == 0
    }

    /// The figures.
    pub fn figures(&self) -> Figures {
        let mut inner = self.lock();
        inner.forget_old(Instant::now());
        Figures {
            looked_at: inner.passed.map(|(at, _)| at),
            lag_ms: inner.lag,
            lag_max_ms: inner.lags.front().map_or(0, |(_, lag)| *lag),
            queue: inner.queue,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half done in the critical sections above.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn looked(&mut self, lag: u64, now: Instant) {
        self.lag = lag;
        self.forget_old(now);
        while self.lags.back().is_some_and(|(_, smaller)| *smaller <= lag) {
            self.lags.pop_back();
        }
        // Few enough: one that is added to a longer list is not among the largest.
        if self.lags.len() < 64 {
            self.lags.push_back((now, lag));
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while self.lags.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.lags.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_nobody_looks_at_is_trouble() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let progress = Progress::default();
        let passed = |now, head| progress.passed(now, head, Queue::default());
        assert_eq!(progress.trouble(at(1000)), None);
        passed(at(100), None);
        assert_eq!(progress.trouble(at(1000)), None, "nothing is due");
        passed(at(100), Some(at(110)));
        assert_eq!(progress.trouble(at(140)), None);
        assert!(progress.trouble(at(141)).unwrap().contains("1970-01-01T00:01:50Z"));
        passed(at(141), Some(at(110)));
        assert_eq!(progress.trouble(at(142)), None, "it is at it");
        assert_eq!(progress.figures().looked_at, Some(at(141)));
    }

    #[test]
    fn the_largest_lag_is_that_of_the_last_minute() {
        let start = Instant::now();
        let mut inner = Inner::default();
        let max = |inner: &mut Inner, second: u64| {
            inner.forget_old(start + Duration::from_secs(second));
            inner.lags.front().map_or(0, |(_, lag)| *lag)
        };
        for (second, lag) in [(0, 50), (10, 900), (20, 30), (30, 200), (31, 1)] {
            inner.looked(lag, start + Duration::from_secs(second));
        }
        assert_eq!((max(&mut inner, 60), inner.lag), (900, 1));
        assert_eq!(max(&mut inner, 71), 200);
        assert_eq!(max(&mut inner, 91), 1);
        assert_eq!(max(&mut inner, 200), 0);
    }

    #[test]
    fn it_rests_when_it_is_held_and_nothing_is_left_to_begin() {
        let progress = Progress::default();
        let rests = |queue| {
            progress.passed(Timestamp::UNIX_EPOCH, None, queue);
            progress.rests()
        };
        let held = Queue { held: true, ..Queue::default() };
        assert!(!progress.rests() && !rests(Queue::default()) && rests(held));
        assert!(!rests(Queue { claiming: 1, ..held }) && !rests(Queue { waiting: 1, ..held }));
    }
}
