//! The first word of a run that nobody has heard of yet.

use super::{Events, ring::Read};
use meepo_core::{
    event::{EventId, Filter},
    id::{NodeId, RunId},
};

/// Events looked at under the lock.
const BATCH: usize = 256;

impl Events {
    /// Where the newest event stands.
    pub fn head(&self) -> EventId {
        EventId::through(self.ring().head())
    }

    /// Waits until something is told of a run behind a place, and answers its node. `None`:
    /// so much has happened that it may have been missed.
    pub async fn first_of(&self, run: RunId, mut after: EventId) -> Option<NodeId> {
        let mut state = self.inner.state.subscribe();
        loop {
            let read = self.ring().read(after, &Filter::default(), BATCH);
            match read {
                Read::Events(events, cursor) => {
                    let told = events.iter().find(|e| e.run_id == Some(run));
                    if let Some(node) = told.and_then(|e| e.node.clone()) {
                        return Some(node);
                    }
                    after = cursor;
                    continue;
                }
                Read::Nothing(cursor) => after = cursor,
                Read::Older => return None,
            }
            if state.changed().await.is_err() {
                return None;
            }
        }
    }
}
