//! What those who follow a run at this master share: one stream of it from its worker, or
//! from the leader, and the newest part of what it brought.
//!
//! Memory is bounded by the number of followed runs. Everybody reads at his own pace; who
//! has fallen behind what is kept, or asks for something older, begins a feed of his own.

use super::super::Ops;
use crate::error::ApiError;
use meepo_core::{
    id::RunId,
    run::{OutputChunk, RunRecord},
};
use prometheus_client::metrics::gauge::Gauge;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Bytes of output a feed keeps, with what each piece costs, unless one alone is larger.
const KEPT: usize = 1 << 20;
/// What a piece costs beyond its data, roughly.
const PIECE: usize = 96;
/// Pieces handed on at once, at most.
const BATCH: usize = 64;

/// The feeds of a master, by run. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Feeds {
    feeds: Arc<Mutex<HashMap<RunId, Weak<Feed>>>>,
}

impl Feeds {
    /// The feed of a run if there is one that has what comes from `next` on.
    pub(super) fn find(&self, run: RunId, next: u64) -> Option<Arc<Feed>> {
        let feed = self.lock().get(&run).and_then(Weak::upgrade)?;
        feed.has(next).then_some(feed)
    }

    /// Enters a new feed from `next` on, unless there is one that will do; answers it, with
    /// what fills it if it is new.
    pub(super) fn begin(&self, ops: &Ops, run: RunId, next: u64) -> (Arc<Feed>, Option<Filler>) {
        // Goes after the lock: its end needs it too.
        let old;
        let mut feeds = self.lock();
        old = feeds.get(&run).and_then(Weak::upgrade);
        if let Some(feed) = old.as_ref().filter(|feed| feed.has(next)) {
            return (feed.clone(), None);
        }
        let shared = Arc::new(Shared {
            kept: Mutex::new(Kept { first: next, ..Kept::default() }),
            changed: watch::Sender::new(()),
        });
        let stop = CancellationToken::new();
        let gauge = ops.metrics.feeds.clone();
        gauge.inc();
        let (_stop, feeds_of) = (stop.clone().drop_guard(), self.clone());
        let feed = Arc::new(Feed { shared: shared.clone(), run, feeds: feeds_of, gauge, _stop });
        feeds.insert(run, Arc::downgrade(&feed));
        (feed, Some(Filler { shared, stop }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RunId, Weak<Feed>>> {
        // Nothing is left half done while it is held.
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reading end. The stream ends with the last of them.
pub(super) struct Feed {
    shared: Arc<Shared>,
    run: RunId,
    feeds: Feeds,
    gauge: Gauge,
    _stop: DropGuard,
}

struct Shared {
    kept: Mutex<Kept>,
    /// Raised after each change of `kept`.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Kept {
    /// What comes from this position on is here or yet to come.
    first: u64,
    chunks: VecDeque<Arc<OutputChunk>>,
    bytes: usize,
    last: Option<Last>,
}

/// How a feed ends.
#[derive(Debug, Clone)]
pub(super) enum Last {
    /// The run has ended.
    End(Arc<RunRecord>),
    /// Nothing more will come; the run may go on.
    Error(ApiError),
}

/// What a reader finds.
pub(super) enum Read {
    /// The next pieces, one at least.
    Chunks(Vec<Arc<OutputChunk>>),
    /// Nothing follows.
    Last(Last),
    /// Not yet.
    Nothing,
    /// What comes next is not kept any more.
    Missed,
}

impl Feed {
    fn has(&self, next: u64) -> bool {
        let kept = self.shared.lock();
        kept.first <= next && !matches!(kept.last, Some(Last::Error(_)))
    }

    /// What there is from `next` on.
    pub(super) fn read(&self, next: u64) -> Read {
        let kept = self.shared.lock();
        if next < kept.first {
            return Read::Missed;
        }
        let from = kept.chunks.partition_point(|c| c.seq < next);
        let chunks: Vec<_> = kept.chunks.iter().skip(from).take(BATCH).cloned().collect();
        match &kept.last {
            _ if !chunks.is_empty() => Read::Chunks(chunks),
            Some(last) => Read::Last(last.clone()),
            None => Read::Nothing,
        }
    }

    /// Tells when there is more to read.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.gauge.dec();
        let mut feeds = self.feeds.lock();
        // Another may have taken the place.
        if feeds.get(&self.run).is_some_and(|feed| feed.strong_count() == 0) {
            feeds.remove(&self.run);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing is left half done while it is held.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end.
pub(super) struct Filler {
    shared: Arc<Shared>,
    /// Nobody reads any more.
    pub(super) stop: CancellationToken,
}

impl Filler {
    /// Hands on the next piece.
    pub(super) fn push(&self, chunk: OutputChunk) {
        let mut kept = self.shared.lock();
        kept.bytes += chunk.data.len() + PIECE;
        kept.chunks.push_back(Arc::new(chunk));
        while kept.bytes > KEPT
            && kept.chunks.len() > 1
            && let Some(oldest) = kept.chunks.pop_front()
        {
            kept.bytes -= oldest.data.len() + PIECE;
            kept.first = oldest.seq + 1;
        }
        drop(kept);
        self.shared.changed.send_replace(());
    }

    /// Nothing follows.
    pub(super) fn finish(&self, last: Last) {
        self.shared.lock().last = Some(last);
        self.shared.changed.send_replace(());
    }
}
