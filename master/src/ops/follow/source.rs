//! What fills a feed: the worker while the run is active, the leader if that is another
//! master, the log store once the run has ended.

use super::{
    super::Ops,
    FollowItem, Found,
    feed::{Filler, Last},
};
use crate::{
    error::{ApiError, ApiResult},
    events::{Begin, Item},
    sessions::Event,
};
use meepo_core::{code::Code, event::Filter, id::NodeId, id::RunId, run::RunRecord};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};

/// Chunks read from the log store at once.
const PAGE: usize = 256;
/// How long a run that is on its way to its worker, or whose end is on its way to the
/// log store, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks, when nothing tells of the run before: at first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Fills one feed.
pub(super) struct Source {
    pub(super) ops: Ops,
    pub(super) run_id: RunId,
    /// The position that comes next.
    pub(super) next: u64,
    pub(super) feed: Filler,
}

/// How following a run at its worker or at the leader ended.
enum Live {
    /// The run has ended.
    Ended(Arc<RunRecord>),
    /// The stream broke, or another master leads.
    Broken,
    /// The worker does not know the run, or is not connected.
    Unknown,
    /// It cannot be followed there.
    Failed(ApiError),
}

impl Source {
    /// Fills the feed until the run ends, it cannot be followed, or nobody reads.
    pub(super) async fn run(mut self, found: Found, at_leader: Option<mpsc::Receiver<FollowItem>>) {
        let stop = self.feed.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            last = self.tell(found, at_leader) => self.feed.finish(last),
        }
    }

    async fn tell(
        &mut self,
        mut found: Found,
        mut at_leader: Option<mpsc::Receiver<FollowItem>>,
    ) -> Last {
        let mut patience = Instant::now() + PATIENCE;
        let mut wait = LOOK.0;
        let mut leadership = self.ops.leadership.clone();
        loop {
            leadership.mark_unchanged();
            let live = match found {
                Found::Ended(record) => {
                    return match self.stored().await {
                        Ok(()) => Last::End(record.into()),
                        Err(e) => Last::Error(e),
                    };
                }
                _ if self.ops.term().is_none() => self.at_leader(at_leader.take()).await,
                Found::On(node) => self.live(&node).await,
                Found::Nowhere => Live::Unknown,
            };
            let mut error =
                ApiError::new(Code::HOST_OFFLINE, "the node that runs it cannot be reached");
            match live {
                Live::Ended(record) => return Last::End(record),
                // It may have run for long without a word.
                Live::Broken => (patience, wait) = (Instant::now() + PATIENCE, LOOK.0),
                Live::Unknown => {}
                Live::Failed(e) if !e.0.retry => return Last::Error(e),
                Live::Failed(e) => error = e,
            }
            if Instant::now() > patience {
                return Last::Error(error);
            }
            // On its way to its worker, or its end on its way to the log store, or the fleet
            // to another leader.
            tokio::select! {
                _ = leadership.changed() => {}
                () = self.heard() => {}
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LOOK.1);
            found = match self.ops.locate(self.run_id).await {
                Ok(found) => found,
                Err(e) => return Last::Error(e),
            };
        }
    }

    /// Waits until etcd tells of the run.
    async fn heard(&self) {
        let runs = Filter::parse(Some("run"), None, None, None);
        if let Ok(runs) = runs
            && let Ok(mut events) = self.ops.events.listen(runs, Begin::Now, true).await
        {
            while let Some(item) = events.recv().await {
                if matches!(&item, Item::Event(e) if e.run_id == Some(self.run_id)) {
                    return;
                }
            }
        }
        // The next look comes all the same.
        std::future::pending().await
    }

    /// Everything the log store has from `next` on.
    async fn stored(&mut self) -> ApiResult<()> {
        loop {
            let after = self.next.checked_sub(1);
            let chunks = self.ops.store.output(self.run_id, after, PAGE).await?;
            if chunks.is_empty() {
                return Ok(());
            }
            for chunk in chunks {
                self.next = chunk.seq + 1;
                self.feed.push(chunk);
            }
        }
    }

    /// What the worker tells.
    async fn live(&mut self, node: &NodeId) -> Live {
        let subscription = self.ops.sessions.follow(node, self.run_id, self.next);
        let Some(mut subscription) = subscription else { return Live::Unknown };
        loop {
            match subscription.next().await {
                Event::Output(chunk) => {
                    self.next = chunk.seq + 1;
                    self.feed.push(chunk);
                }
                Event::Ended(record) => return Live::Ended(record),
                Event::Unknown => return Live::Unknown,
                Event::Disconnected => return Live::Broken,
            }
        }
    }

    /// What the leader tells, as long as it leads.
    async fn at_leader(&mut self, begun: Option<mpsc::Receiver<FollowItem>>) -> Live {
        let mut leadership = self.ops.leadership.clone();
        let leader = leadership.borrow_and_update().leader.as_ref().map(|(_, term)| *term);
        let mut items = match begun {
            Some(items) => items,
            None => {
                let after = self.next.checked_sub(1);
                match self.ops.follow_at_leader(self.run_id, after).await {
                    Ok(items) => items,
                    Err(e) => return Live::Failed(e),
                }
            }
        };
        let another = leadership
            .wait_for(|l| l.leader.as_ref().map(|(_, term)| *term) != leader || l.term().is_some());
        tokio::pin!(another);
        loop {
            let item = tokio::select! {
                item = items.recv() => item,
                _ = &mut another => return Live::Broken,
            };
            match item {
                Some(FollowItem::Output(chunk)) => {
                    self.next = chunk.seq + 1;
                    self.feed.push(chunk);
                }
                Some(FollowItem::End(record)) => return Live::Ended(record.into()),
                Some(FollowItem::Error(e)) if !e.0.retry => return Live::Failed(e),
                Some(FollowItem::Error(_)) | None => return Live::Broken,
            }
        }
    }
}
