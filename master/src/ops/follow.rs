//! Output as it comes, to any number of readers.
//!
//! ```text
//! worker ─► leader: feed ─┬─► its readers
//!                         └─► another master: feed ─► its readers
//! ```
//!
//! Each master has one stream of a run, however many read; positions of the output have
//! no gaps while it is live, so whoever loses a stream goes on where he was, at any master.

mod feed;
mod source;

pub use feed::Feeds;

use super::Ops;
use crate::error::{ApiError, ApiResult};
use feed::{Feed, Last, Read};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    auth::Permission,
    id::{NodeId, RunId},
    run::{OutputChunk, RunRecord},
};
use prometheus_client::metrics::gauge::Gauge;
use source::Source;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Items on their way to the caller.
const BACKLOG: usize = 256;
/// Chunks read from the log store at once.
const PAGE: usize = 256;
/// A run id younger than this may belong to a run that nobody knows yet.
const FRESH: SignedDuration = SignedDuration::from_secs(10);

/// What a follower is told.
#[derive(Debug)]
pub enum FollowItem {
    /// A piece of output.
    Output(OutputChunk),
    /// The run has ended; nothing follows.
    End(Box<RunRecord>),
    /// The stream broke; the run may go on.
    Error(ApiError),
}

/// Where a run is.
enum Found {
    Ended(Box<RunRecord>),
    On(NodeId),
    Nowhere,
}

impl Ops {
    /// Follows a run from after the chunk `after`.
    pub async fn follow(
        &self,
        run_id: RunId,
        after: Option<u64>,
    ) -> ApiResult<mpsc::Receiver<FollowItem>> {
        self.demand_run(Permission::RunRead, run_id).await?;
        let next = after.map_or(0, |a| a.saturating_add(1));
        let from = match self.feeds.find(run_id, next) {
            Some(feed) => From::Feed(feed),
            None => self.begin(run_id, next).await?,
        };
        let (tx, rx) = mpsc::channel(BACKLOG);
        let counted = Counted::new(&self.metrics.followers);
        let reader = Reader { ops: self.clone(), run_id, next, tx, _counted: counted };
        tokio::spawn(reader.run(from));
        Ok(rx)
    }

    /// Where to read a run from whose feed is yet to begin.
    async fn begin(&self, run_id: RunId, next: u64) -> ApiResult<From> {
        let found = match self.locate(run_id).await? {
            // Everybody reads by himself what does not change any more.
            Found::Ended(record) => return Ok(From::Store(record)),
            Found::Nowhere if !is_fresh(run_id) => return Err(ApiError::not_found("run", run_id)),
            found => found,
        };
        // Asked now, so that what the leader refuses is an answer and no broken stream.
        let at_leader = match self.term() {
            Some(_) => None,
            None => Some(self.follow_at_leader(run_id, next.checked_sub(1)).await?),
        };
        let (feed, filler) = self.feeds.begin(self, run_id, next);
        if let Some(filler) = filler {
            let source = Source { ops: self.clone(), run_id, next, feed: filler };
            tokio::spawn(source.run(found, at_leader));
        }
        Ok(From::Feed(feed))
    }

    async fn locate(&self, run_id: RunId) -> ApiResult<Found> {
        let known = self.store.get_run(run_id).await;
        Ok(match known {
            Ok(Some(record)) if record.state.is_final() => Found::Ended(Box::new(record)),
            Ok(Some(record)) => Found::On(record.node),
            other => match self.find_run(run_id).await? {
                Some(node) => Found::On(node),
                None => {
                    other?;
                    Found::Nowhere
                }
            },
        })
    }
}

pub(super) fn is_fresh(run_id: RunId) -> bool {
    let Some(stamp) = run_id.0.get_timestamp() else { return false };
    let (seconds, nanos) = stamp.to_unix();
    let born = i64::try_from(seconds).ok().and_then(|s| Timestamp::new(s, nanos as i32).ok());
    born.is_some_and(|b| Timestamp::now().duration_since(b) < FRESH)
}

/// Where a reader reads.
enum From {
    Feed(Arc<Feed>),
    Store(Box<RunRecord>),
}

/// One of those who follow a run.
struct Reader {
    ops: Ops,
    run_id: RunId,
    next: u64,
    tx: mpsc::Sender<FollowItem>,
    _counted: Counted,
}

/// The caller is gone.
struct Gone;

impl Reader {
    async fn run(mut self, mut from: From) {
        // The caller being gone is the one end nobody needs to hear of.
        loop {
            let done = match from {
                From::Feed(feed) => self.read(&feed).await,
                From::Store(record) => self.stored(record).await.map(Some),
            };
            let last = match done {
                Err(Gone) => return,
                Ok(Some(last)) => last,
                // What comes next is not in the feed any more.
                Ok(None) => match self.ops.begin(self.run_id, self.next).await {
                    Ok(again) => {
                        from = again;
                        continue;
                    }
                    Err(e) => FollowItem::Error(e),
                },
            };
            let _ = self.send(last).await;
            return;
        }
    }

    /// Reads along with a feed; answers how it ends, or nothing if this one is too slow for
    /// it.
    async fn read(&mut self, feed: &Feed) -> Result<Option<FollowItem>, Gone> {
        let mut changes = feed.changes();
        loop {
            // Marked as seen before looking, so that nothing is missed in between.
            changes.mark_unchanged();
            match feed.read(self.next) {
                Read::Chunks(chunks) => {
                    for chunk in chunks {
                        self.next = chunk.seq + 1;
                        self.send(FollowItem::Output((*chunk).clone())).await?;
                    }
                }
                Read::Last(Last::End(record)) => {
                    return Ok(Some(FollowItem::End(Box::new((*record).clone()))));
                }
                Read::Last(Last::Error(e)) => return Ok(Some(FollowItem::Error(e))),
                Read::Missed => return Ok(None),
                Read::Nothing => tokio::select! {
                    // The sender lives as long as the feed.
                    _ = changes.changed() => {}
                    () = self.tx.closed() => return Err(Gone),
                },
            }
        }
    }

    /// Everything the log store has from `next` on, of a run that has ended.
    async fn stored(&mut self, record: Box<RunRecord>) -> Result<FollowItem, Gone> {
        loop {
            let after = self.next.checked_sub(1);
            let chunks = match self.ops.store.output(self.run_id, after, PAGE).await {
                Ok(chunks) => chunks,
                Err(e) => return Ok(FollowItem::Error(e.into())),
            };
            if chunks.is_empty() {
                return Ok(FollowItem::End(record));
            }
            for chunk in chunks {
                self.next = chunk.seq + 1;
                self.send(FollowItem::Output(chunk)).await?;
            }
        }
    }

    async fn send(&self, item: FollowItem) -> Result<(), Gone> {
        self.tx.send(item).await.map_err(|_| Gone)
    }
}

/// Counts itself as long as it lives.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
