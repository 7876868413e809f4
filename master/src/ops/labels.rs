//! Labels set by the API.

use super::Ops;
use crate::{
    audit,
    error::{ApiError, ApiResult},
};
use meepo_coord::{
    etcd::Cas,
    keys,
    records::{LabelsRecord, decode, encode},
};
use meepo_core::{
    api::{LabelsRequest, NodeView},
    auth::Permission,
    code::Code,
    id::NodeId,
    labels,
};
use tracing::info;

/// How often a change is tried again when others change the same labels.
const TRIES: usize = 8;

impl Ops {
    /// Sets labels of a node and takes them away. Placement follows.
    pub async fn label_node(&self, id: &NodeId, change: &LabelsRequest) -> ApiResult<NodeView> {
        audit::object("node", id);
        for (key, value) in &change.labels {
            audit::detail(&format!("label {key}"), value.as_deref().unwrap_or("(taken away)"));
        }
        self.demand_node(Permission::NodeLabel, id)?;
        let key = keys::labels(id);
        for _ in 0..TRIES {
            let node = self.find_node(id).await?;
            let there = self.etcd.get(&key).await?;
            let expect = there.as_ref().map_or(0, |e| e.mod_revision);
            // What cannot be read would be lost.
            let before: LabelsRecord = match there {
                Some(entry) => decode(&entry.value).map_err(|e| {
                    ApiError::new(Code::CONFLICT, format!("the value at {key} is unreadable: {e}"))
                })?,
                None => LabelsRecord::default(),
            };
            let labels = labels::changed(&node.labels_configured, &before.labels, &change.labels)?;
            if labels == before.labels {
                return Ok(node);
            }
            let after = LabelsRecord { labels, extra: before.extra };
            let value = (after != LabelsRecord::default()).then(|| encode(&after));
            if let Cas::Done(_) = self.etcd.put_if(&key, value, expect, None).await? {
                info!(node = %id, labels = ?after.labels, "labels of a node were changed");
                return self.find_node(id).await;
            }
        }
        let message = format!("the labels of node {id} are being changed by others");
        Err(ApiError::new(Code::CONFLICT, message))
    }
}
