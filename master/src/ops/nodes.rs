//! Nodes: those that are there and those that were.

use super::{
    Ops,
    live::{LiveNodes, overlay},
};
use crate::{
    audit,
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
    api::{DrainRequest, DrainState, DrainView, NodeList, NodeView},
    auth::Permission,
    code::Code,
    id::NodeId,
    node::{self, Health, NodeInfo},
    run::to_millis,
    target::Target,
};
use std::collections::BTreeMap;
use tracing::info;

impl Ops {
    /// All nodes ever seen by id, or those of a target in its order.
    pub async fn list_nodes(&self, target: Option<&Target>) -> ApiResult<NodeList> {
        let (records, health, drains, labels, live) = tokio::join!(
            self.etcd.list(keys::NODES, None),
            self.etcd.list(keys::HEALTH, None),
            self.etcd.list(keys::DRAINS, None),
            self.etcd.list(keys::LABELS, None),
            self.live(&[])
        );
        let (records, health, drains, labels) = (records?.0, health?.0, drains?.0, labels?.0);
        let data = Data::from_entries(records.iter().chain(&health).chain(&drains).chain(&labels));
        let stale = live.as_ref().err().map(|e| {
            format!(
                "facts are those that workers last wrote to etcd, perhaps minutes ago: {}",
                e.0.message
            )
        });
        let live = live.ok();
        let mut nodes = data.all_nodes_now();
        overlay(&mut nodes, live.as_ref().unwrap_or(&LiveNodes::new()));
        let meant = match target {
            Some(target) => target.select(nodes.values()),
            None => nodes.values().collect(),
        };
        let sight = self.sight(Permission::NodeRead);
        let views = meant.into_iter().filter(|node| sight.info(node)).map(|node| NodeView {
            offline_since: self.gone(node),
            ..node_view(node, &data, live.as_ref())
        });
        Ok(NodeList { nodes: views.collect(), stale })
    }

    /// One node.
    pub async fn get_node(&self, id: &NodeId) -> ApiResult<NodeView> {
        match self.sight(Permission::NodeRead).node(id) {
            true => self.find_node(id).await,
            false => Err(ApiError::not_found("node", id)),
        }
    }

    /// One node, whoever asks.
    pub(super) async fn find_node(&self, id: &NodeId) -> ApiResult<NodeView> {
        let etcd = [keys::node(id), keys::health(id), keys::drain(id), keys::labels(id)];
        let (entries, live) =
            tokio::join!(self.etcd.get_all(&etcd), self.live(std::slice::from_ref(id)));
        let data = Data::from_entries(&entries?);
        let live = live.ok();
        let mut nodes = data.all_nodes_now();
        overlay(&mut nodes, live.as_ref().unwrap_or(&LiveNodes::new()));
        match nodes.get(id) {
            Some(node) => {
                let offline_since = self.gone(node);
                let mut view = NodeView { offline_since, ..node_view(node, &data, live.as_ref()) };
                view.diagnosis = self.doctor_node(&view);
                Ok(view)
            }
            None => Err(ApiError::not_found("node", id)),
        }
    }

    /// Asks a node to take nothing new, also after restarts, until [`Ops::undrain_node`].
    /// Asked again, the drain goes on and the new deadline counts.
    pub async fn drain_node(&self, id: &NodeId, request: &DrainRequest) -> ApiResult<NodeView> {
        audit::object("node", id);
        if let Some(deadline) = request.deadline {
            audit::detail("deadline", deadline);
        }
        self.demand_node(Permission::NodeDrain, id)?;
        self.find_node(id).await?;
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
        self.find_node(id).await
    }

    /// Lets a node take work again; it may do so already.
    pub async fn undrain_node(&self, id: &NodeId) -> ApiResult<NodeView> {
        audit::object("node", id);
        self.demand_node(Permission::NodeDrain, id)?;
        let node = self.find_node(id).await;
        // A node that is gone for good may still have the key.
        if self.etcd.delete(&keys::drain(id)).await? {
            info!(node = %id, "a node takes work again");
        }
        node.map(|node| NodeView { drain: None, ..node })
    }

    /// Since when a node is offline, where this master has seen it go.
    fn gone(&self, node: &NodeInfo) -> Option<Timestamp> {
        self.view.offline_since(&node.id).filter(|_| !node.online).map(to_millis)
    }

    /// Nodes as targets see them, as etcd has them now. The view may lag: it is fed by
    /// several watches, and one may be behind another.
    pub(super) async fn nodes_now(&self) -> ApiResult<BTreeMap<NodeId, NodeInfo>> {
        let (records, health, drains, labels) = tokio::try_join!(
            self.etcd.list(keys::NODES, None),
            self.etcd.list(keys::HEALTH, None),
            self.etcd.list(keys::DRAINS, None),
            self.etcd.list(keys::LABELS, None)
        )?;
        let entries = records.0.iter().chain(&health.0).chain(&drains.0).chain(&labels.0);
        Ok(Data::from_entries(entries).all_nodes_now())
    }
}

/// `node` is how targets see it.
fn node_view(node: &NodeInfo, data: &Data, live: Option<&LiveNodes>) -> NodeView {
    let id = &node.id;
    let (record, health) = (data.nodes.get(id), data.health.get(id));
    let version = health.map(|h| &h.version).or(record.map(|r| &r.version));
    let configured = health.map(|h| &h.labels).or(record.map(|r| &r.labels));
    let beat = live.and_then(|l| l.get(id)?.as_ref());
    NodeView {
        id: id.clone(),
        online: node.online,
        connected: live.map(|l| l.contains_key(id)),
        version: version.cloned().unwrap_or_default(),
        labels: node.labels.clone(),
        labels_configured: configured.cloned().unwrap_or_default(),
        labels_set: data.labels.get(id).map(|l| l.labels.clone()).unwrap_or_default(),
        facts: node.facts.clone(),
        facts_at: beat.map(|b| to_millis(b.at)),
        started_at: health.and_then(|h| h.started_at),
        registered_at: record.map(|r| r.registered_at),
        jobs: health.map_or(0, |h| h.jobs),
        problems: health.map(|h| h.problems.clone()).unwrap_or_default(),
        drain: drain_view(health, data.drains.get(id)),
        work: health.and_then(|h| h.work.clone()),
        offline_since: None,
        clock_skew_ms: beat.and_then(|b| b.clock_skew_ms),
        diagnosis: Vec::new(),
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
                // Of an unreadable request only the worker says since when.
                requested_at: state.map_or(drain.requested_at, |(_, at)| at),
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
