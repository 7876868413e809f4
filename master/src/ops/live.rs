//! How hosts are at the moment: from the heartbeats that the leader has, whichever master
//! is asked.

use super::Ops;
use crate::error::{ApiError, ApiResult};
use meepo_core::{
    code::Code,
    id::NodeId,
    node::{Live, NodeInfo},
};
use std::collections::BTreeMap;

/// The nodes that have a session with the leader, with what their last heartbeats told;
/// nothing between the start of a session and its first heartbeat.
pub type LiveNodes = BTreeMap<NodeId, Option<Live>>;

impl Ops {
    /// Those among `nodes`, or all if there is none among them, from this master's own
    /// sessions.
    pub fn live_here(&self, nodes: &[NodeId]) -> ApiResult<LiveNodes> {
        if self.term().is_none() {
            return Err(ApiError::new(Code::NO_LEADER, "this master does not lead"));
        }
        Ok(self.sessions.live(nodes))
    }

    /// The same, wherever the leader is.
    pub(crate) async fn live(&self, nodes: &[NodeId]) -> ApiResult<LiveNodes> {
        match self.term() {
            Some(_) => self.live_here(nodes),
            None => self.live_at_leader(nodes).await,
        }
    }

    /// Every node ever seen, with facts of this moment where its worker has told them to
    /// this master. For the leader, who chooses nodes for what is to run now.
    pub fn nodes_with_live_facts(&self) -> BTreeMap<NodeId, NodeInfo> {
        let mut nodes = self.view.read().all_nodes_now();
        overlay(&mut nodes, &self.sessions.live(&[]));
        nodes
    }
}

/// Lays facts of this moment over those of the records.
pub(super) fn overlay(nodes: &mut BTreeMap<NodeId, NodeInfo>, live: &LiveNodes) {
    for (id, live) in live {
        if let (Some(node), Some(live)) = (nodes.get_mut(id), live) {
            node.facts = node.facts.with(live);
        }
    }
}
