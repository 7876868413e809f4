//! A node without a lease gives up what others may run by now.

use super::{Agent, overlap::Asked};
use meepo_core::{code::Code, run::RunState};
use tracing::warn;

impl Agent {
    /// The lease is lost, and soon the leader gives what may be run elsewhere to other
    /// nodes: what of it has not begun is ended, as the guard ends what has.
    pub(super) async fn lapse(&mut self) {
        if self.outlets.lease.borrow().id().is_some() {
            // It has just come back, before anybody has acted.
            return;
        }
        let custody = &self.engine.custody;
        let kept = |a: &Asked| custody.has(a.plan.run_id);
        let mut gone = self.overlap.take_claimed(kept);
        gone.extend(self.hold.take_where(kept));
        gone.extend(self.waits.take_where(kept));
        if gone.is_empty() {
            return;
        }
        warn!(runs = gone.len(), "the lease is lost: what waits and may be run elsewhere is ended");
        for asked in gone {
            let why = "the node lost its lease before it began; another may run it";
            self.turn_down(asked, RunState::Killed, Code::ETCD, Some(why.to_owned())).await;
        }
        self.begin_ready().await;
    }
}
