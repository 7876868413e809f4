//! Nodes: those that are there and those that were.

use super::Ops;
use crate::{
    error::{ApiError, ApiResult},
    view::Data,
};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{
    etcd::Cas,
    keys,
    records::{DrainRecord, decode, encode},
};
use meepo_core::{
    api::{DrainRequest, DrainState, DrainView, NodeView},
    code::Code,
    id::NodeId,
    node::{self, Health, NodeInfo, NodeRecord},
    run::to_millis,
};
use std::collections::{BTreeMap, BTreeSet};
use tracing::info;

/// What etcd has of a node.
struct Found<'a> {
    record: Option<&'a NodeRecord>,
    health: Option<&'a Health>,
    drain: Option<&'a DrainRecord>,
}

impl Ops {
    /// All nodes ever seen, by id.
    pub async fn list_nodes(&self) -> ApiResult<Vec<NodeView>> {
        let (records, health, drains) = tokio::try_join!(
            self.etcd.list(keys::NODES, None),
            self.etcd.list(keys::HEALTH, None),
            self.etcd.list(keys::DRAINS, None)
        )?;
        let records: BTreeMap<NodeId, NodeRecord> = readable(&records.0, keys::NODES);
        let health: BTreeMap<NodeId, Health> = readable(&health.0, keys::HEALTH);
        let drains: BTreeMap<NodeId, DrainRecord> = readable(&drains.0, keys::DRAINS);
        let ids: BTreeSet<&NodeId> = records.keys().chain(health.keys()).collect();
        let found = |id: &NodeId| Found {
            record: records.get(id),
            health: health.get(id),
            drain: drains.get(id),
        };
        Ok(ids.into_iter().map(|id| self.node_view(id, &found(id))).collect())
    }

    /// One node.
    pub async fn get_node(&self, id: &NodeId) -> ApiResult<NodeView> {
        let (node_key, health_key, drain_key) = (keys::node(id), keys::health(id), keys::drain(id));
        let (record, health, drain) = tokio::try_join!(
            self.etcd.get(&node_key),
            self.etcd.get(&health_key),
            self.etcd.get(&drain_key)
        )?;
        let record: Option<NodeRecord> = record.and_then(|e| decode(&e.value).ok());
        let health: Option<Health> = health.and_then(|e| decode(&e.value).ok());
        let drain: Option<DrainRecord> = drain.and_then(|e| decode(&e.value).ok());
        if record.is_none() && health.is_none() {
            return Err(ApiError::not_found("node", id));
        }
        let (record, health, drain) = (record.as_ref(), health.as_ref(), drain.as_ref());
        Ok(self.node_view(id, &Found { record, health, drain }))
    }

    /// Asks a node to take nothing new, also after restarts, until [`Ops::undrain_node`].
    /// Asked again, the drain goes on and the new deadline counts.
    pub async fn drain_node(&self, id: &NodeId, request: &DrainRequest) -> ApiResult<NodeView> {
        self.get_node(id).await?;
        let now = to_millis(Timestamp::now());
        let deadline = request.deadline.and_then(|d| {
            let d = SignedDuration::try_from(d.0).ok()?;
            now.checked_add(d).ok()
        });
        let key = keys::drain(id);
        let there = self.etcd.get(&key).await?;
        let before = there.as_ref().and_then(|e| decode::<DrainRecord>(&e.value).ok());
        let requested_at = before.map_or(now, |b| b.requested_at);
        let record = DrainRecord { requested_at, deadline, extra: BTreeMap::new() };
        let expect = there.map_or(0, |e| e.mod_revision);
        match self.etcd.put_if(&key, Some(encode(&record)), expect, None).await? {
            Cas::Done(_) => {}
            Cas::Conflict(_) => {
                let message = format!("the drain of node {id} is being changed by others");
                return Err(ApiError::new(Code::CONFLICT, message));
            }
        }
        info!(node = %id, ?deadline, "a node is drained");
        self.get_node(id).await
    }

    /// Lets a node take work again; it may do so already.
    pub async fn undrain_node(&self, id: &NodeId) -> ApiResult<NodeView> {
        let node = self.get_node(id).await;
        // A node that is gone for good may still have the key.
        if self.etcd.delete(&keys::drain(id)).await? {
            info!(node = %id, "a node takes work again");
        }
        node.map(|node| NodeView { drain: None, ..node })
    }

    /// Nodes as targets see them, as of this moment. The view may lag: it is fed by
    /// several watches, and one may be behind another.
    pub(super) async fn nodes_now(&self) -> ApiResult<BTreeMap<NodeId, NodeInfo>> {
        let (records, health, drains) = tokio::try_join!(
            self.etcd.list(keys::NODES, None),
            self.etcd.list(keys::HEALTH, None),
            self.etcd.list(keys::DRAINS, None)
        )?;
        Ok(Data::from_entries(records.0.iter().chain(&health.0).chain(&drains.0)).all_nodes())
    }

    fn node_view(&self, id: &NodeId, found: &Found<'_>) -> NodeView {
        let Found { record, health, drain } = *found;
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
            drain: drain_view(health, drain),
            work: health.and_then(|h| h.work.clone()),
        }
    }
}

/// The worker's word counts for the request it names. Without a request it drains by
/// itself, before it ends.
fn drain_view(health: Option<&Health>, drain: Option<&DrainRecord>) -> Option<DrainView> {
    let confirmed = health.and_then(|h| {
        let state = match h.status.as_str() {
            node::DRAINING => DrainState::Draining,
            node::DRAINED => DrainState::Drained,
            _ => return None,
        };
        Some((state, h.drain_requested_at?))
    });
    match (drain, confirmed) {
        (None, None) => None,
        (None, Some((state, requested_at))) => {
            Some(DrainView { state, requested_at, deadline: None })
        }
        (Some(drain), confirmed) => {
            let state = confirmed.filter(|(_, at)| *at >= drain.requested_at);
            Some(DrainView {
                state: state.map_or(DrainState::Asked, |(state, _)| state),
                requested_at: drain.requested_at,
                deadline: drain.deadline,
            })
        }
    }
}

/// The values that can be read, by the last part of their keys.
pub(super) fn readable<'a, T: serde::de::DeserializeOwned>(
    entries: impl IntoIterator<Item = &'a meepo_coord::Entry>,
    prefix: &str,
) -> BTreeMap<meepo_core::id::Name, T> {
    entries
        .into_iter()
        .filter_map(|e| Some((keys::last(&e.key, prefix)?, decode(&e.value).ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_worker_counts_for_the_request_it_names() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let health = |status: &str, of: i64| Health {
            drain_requested_at: Some(at(of)),
            ..decode(format!(r#"{{"status":"{status}","version":"1"}}"#).as_bytes()).unwrap()
        };
        let asked =
            DrainRecord { requested_at: at(20), deadline: Some(at(90)), extra: BTreeMap::new() };
        let state = |h: Option<&Health>, d: Option<&DrainRecord>| drain_view(h, d).map(|v| v.state);
        for (status, of, want) in [
            ("Online", 20, DrainState::Asked),
            ("Draining", 20, DrainState::Draining),
            ("Drained", 20, DrainState::Drained),
            // Of an earlier request.
            ("Drained", 10, DrainState::Asked),
        ] {
            assert_eq!(state(Some(&health(status, of)), Some(&asked)), Some(want), "{status} {of}");
        }
        assert_eq!(state(None, Some(&asked)), Some(DrainState::Asked));
        assert_eq!(state(Some(&health("Online", 0)), None), None);
        let stopping = drain_view(Some(&health("Draining", 5)), None).unwrap();
        assert_eq!((stopping.state, stopping.requested_at), (DrainState::Draining, at(5)));
    }
}
