//! Output as it comes: from the worker while the run is active, from the log store
//! once it has ended.

use super::Ops;
use crate::{
    error::{ApiError, ApiResult},
    sessions::Event,
};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    code::Code,
    id::{NodeId, RunId},
    run::{OutputChunk, RunRecord},
};
use std::time::Duration;
use tokio::{sync::mpsc, time::Instant};

/// Items on their way to the caller.
const BACKLOG: usize = 256;
/// Chunks read from the log store at once.
const PAGE: usize = 256;
/// How long a run that is on its way to its worker, or whose end is on its way to the
/// log store, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
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
        let found = self.locate(run_id).await?;
        if matches!(found, Found::Nowhere) && !is_fresh(run_id) {
            return Err(ApiError::not_found("run", run_id));
        }
        let next = after.map_or(0, |a| a + 1);
        if self.term().is_none() && !matches!(found, Found::Ended(_)) {
            return self.follow_at_leader(run_id, after).await;
        }
        let (tx, rx) = mpsc::channel(BACKLOG);
        let follower = Follower { ops: self.clone(), run_id, next, tx };
        tokio::spawn(follower.run(found));
        Ok(rx)
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

struct Follower {
    ops: Ops,
    run_id: RunId,
    next: u64,
    tx: mpsc::Sender<FollowItem>,
}

/// How following a run at its worker ended.
enum Live {
    /// The run has ended.
    Ended(Box<RunRecord>),
    /// The session broke.
    Broken,
    /// The worker does not know the run, or is not connected.
    Unknown,
}

/// The caller is gone.
struct Gone;

impl Follower {
    async fn run(mut self, found: Found) {
        // The caller being gone is the one end nobody needs to hear of.
        let _ = self.tell(found).await;
    }

    async fn tell(&mut self, mut found: Found) -> Result<(), Gone> {
        let mut patience = Instant::now() + PATIENCE;
        let mut wait = Duration::from_millis(20);
        loop {
            match found {
                Found::Ended(record) => {
                    if let Err(e) = self.stored().await? {
                        return self.send(FollowItem::Error(e)).await;
                    }
                    return self.send(FollowItem::End(record)).await;
                }
                Found::On(node) => {
                    match self.live(&node).await? {
                        Live::Ended(record) => return self.send(FollowItem::End(record)).await,
                        // It may have run for long without a word.
                        Live::Broken => patience = Instant::now() + PATIENCE,
                        Live::Unknown => {}
                    }
                }
                Found::Nowhere => {}
            }
            if Instant::now() > patience {
                let message = "the node that runs it cannot be reached";
                let error = ApiError::new(Code::HOST_OFFLINE, message);
                return self.send(FollowItem::Error(error)).await;
            }
            // On its way to its worker, or its end on its way to the log store.
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_millis(500));
            found = match self.ops.locate(self.run_id).await {
                Ok(found) => found,
                Err(e) => return self.send(FollowItem::Error(e)).await,
            };
        }
    }

    /// Everything the log store has from `next` on.
    async fn stored(&mut self) -> Result<ApiResult<()>, Gone> {
        loop {
            let after = self.next.checked_sub(1);
            let chunks = match self.ops.store.output(self.run_id, after, PAGE).await {
                Ok(chunks) => chunks,
                Err(e) => return Ok(Err(e.into())),
            };
            if chunks.is_empty() {
                return Ok(Ok(()));
            }
            for chunk in chunks {
                self.next = chunk.seq + 1;
                self.send(FollowItem::Output(chunk)).await?;
            }
        }
    }

    /// What the worker tells.
    async fn live(&mut self, node: &NodeId) -> Result<Live, Gone> {
        let subscription = self.ops.sessions.follow(node, self.run_id, self.next);
        let Some(mut subscription) = subscription else { return Ok(Live::Unknown) };
        loop {
            let event = tokio::select! {
                event = subscription.next() => event,
                () = self.tx.closed() => return Err(Gone),
            };
            match event {
                Event::Output(chunk) => {
                    self.next = chunk.seq + 1;
                    self.send(FollowItem::Output(chunk)).await?;
                }
                Event::Ended(record) => return Ok(Live::Ended(Box::new((*record).clone()))),
                Event::Unknown => return Ok(Live::Unknown),
                Event::Disconnected => return Ok(Live::Broken),
            }
        }
    }

    async fn send(&self, item: FollowItem) -> Result<(), Gone> {
        self.tx.send(item).await.map_err(|_| Gone)
    }
}
