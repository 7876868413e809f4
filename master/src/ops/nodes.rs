//! Nodes: those that are there and those that were.

use super::Ops;
use crate::{
    error::{ApiError, ApiResult},
    view::Data,
};
use meepo_coord::{keys, records::decode};
use meepo_core::{
    api::NodeView,
    id::NodeId,
    node::{Health, NodeInfo, NodeRecord},
};
use std::collections::{BTreeMap, BTreeSet};

impl Ops {
    /// All nodes ever seen, by id.
    pub async fn list_nodes(&self) -> ApiResult<Vec<NodeView>> {
        let (records, health) = tokio::try_join!(
            self.etcd.list(keys::NODES, None),
            self.etcd.list(keys::HEALTH, None)
        )?;
        let records: BTreeMap<NodeId, NodeRecord> = readable(&records.0, keys::NODES);
        let health: BTreeMap<NodeId, Health> = readable(&health.0, keys::HEALTH);
        let ids: BTreeSet<&NodeId> = records.keys().chain(health.keys()).collect();
        Ok(ids.into_iter().map(|id| self.node_view(id, records.get(id), health.get(id))).collect())
    }

    /// One node.
    pub async fn get_node(&self, id: &NodeId) -> ApiResult<NodeView> {
        let (node_key, health_key) = (keys::node(id), keys::health(id));
        let (record, health) =
            tokio::try_join!(self.etcd.get(&node_key), self.etcd.get(&health_key))?;
        let record: Option<NodeRecord> = record.and_then(|e| decode(&e.value).ok());
        let health: Option<Health> = health.and_then(|e| decode(&e.value).ok());
        if record.is_none() && health.is_none() {
            return Err(ApiError::not_found("node", id));
        }
        Ok(self.node_view(id, record.as_ref(), health.as_ref()))
    }

    /// Nodes as targets see them, as of this moment. The view may lag: it is fed by
    /// several watches, and one may be behind another.
    pub(super) async fn nodes_now(&self) -> ApiResult<BTreeMap<NodeId, NodeInfo>> {
        let (records, health) = tokio::try_join!(
            self.etcd.list(keys::NODES, None),
            self.etcd.list(keys::HEALTH, None)
        )?;
        Ok(Data::from_entries(records.0.iter().chain(&health.0)).all_nodes())
    }

    fn node_view(
        &self,
        id: &NodeId,
        record: Option<&NodeRecord>,
        health: Option<&Health>,
    ) -> NodeView {
        let record_labels = || record.map(|r| r.labels.clone()).unwrap_or_default();
        let record_facts = || record.map(|r| r.facts.clone()).unwrap_or_default();
        let record_version = || record.map(|r| r.version.clone()).unwrap_or_default();
        NodeView {
            id: id.clone(),
            online: health.is_some(),
            connected: self.term().map(|_| self.sessions.is_connected(id)),
            version: health.map_or_else(record_version, |h| h.version.clone()),
            labels: health.map_or_else(record_labels, |h| h.labels.clone()),
            facts: health.map_or_else(record_facts, |h| h.facts.clone()),
            started_at: health.and_then(|h| h.started_at),
            registered_at: record.map(|r| r.registered_at),
            jobs: health.map_or(0, |h| h.jobs),
            problems: health.map(|h| h.problems.clone()).unwrap_or_default(),
        }
    }
}

/// The values that can be read, by the last part of their keys.
pub(super) fn readable<T: serde::de::DeserializeOwned>(
    entries: &[meepo_coord::Entry],
    prefix: &str,
) -> BTreeMap<meepo_core::id::Name, T> {
    entries
        .iter()
        .filter_map(|e| Some((keys::last(&e.key, prefix)?, decode(&e.value).ok()?)))
        .collect()
}
