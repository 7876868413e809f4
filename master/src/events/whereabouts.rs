//! On which node a run is that the log store does not know yet: asked for and not taken, or
//! what some job runs now. Kept from the watch of the events, so that nobody has to read the
//! keys of the whole fleet for one run.

use meepo_coord::{CoordError, Etcd, keys, records::decode, watch::Change};
use meepo_core::{
    api::CronId,
    id::{NodeId, RunId},
};
use std::collections::HashMap;

/// Runs by the keys that tell of them.
#[derive(Debug, Default)]
pub(super) struct Whereabouts {
    /// What each key of `/cron/cronid/` says.
    current: HashMap<String, RunId>,
    /// Nodes of runs, and how many keys tell of them.
    nodes: HashMap<RunId, (NodeId, u32)>,
}

impl Whereabouts {
    /// As etcd was at `revision`.
    pub(super) async fn begin(etcd: &Etcd, revision: i64) -> Result<Self, CoordError> {
        let mut whereabouts = Self::default();
        for prefix in [keys::TRIGGERS, keys::CRONIDS] {
            for entry in etcd.list(prefix, Some(revision)).await?.0 {
                whereabouts.put(&entry.key, &entry.value);
            }
        }
        Ok(whereabouts)
    }

    /// Takes a change in.
    pub(super) fn change(&mut self, change: &Change) {
        match change {
            Change::Put(entry) => self.put(&entry.key, &entry.value),
            Change::Delete { key, .. } => self.delete(key),
        }
    }

    /// The node of a run.
    pub(super) fn node_of(&self, run: RunId) -> Option<NodeId> {
        self.nodes.get(&run).map(|(node, _)| node.clone())
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        if let Some((node, run)) = keys::node_and_run(key, keys::TRIGGERS) {
            // Written once.
            if !self.current.contains_key(key) {
                self.enter(key, node, run);
            }
        } else if let Some((node, _)) = keys::node_and_job(key, keys::CRONIDS) {
            self.delete(key);
            if let Ok(id) = decode::<CronId>(value) {
                self.enter(key, node, id.cronid);
            }
        }
    }

    fn enter(&mut self, key: &str, node: NodeId, run: RunId) {
        self.current.insert(key.to_owned(), run);
        self.nodes.entry(run).or_insert((node, 0)).1 += 1;
    }

    fn delete(&mut self, key: &str) {
        let Some(run) = self.current.remove(key) else { return };
        if let Some((_, keys)) = self.nodes.get_mut(&run) {
            *keys -= 1;
            if *keys == 0 {
                self.nodes.remove(&run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_coord::Entry;
    use uuid::Uuid;

    #[test]
    fn a_run_is_known_while_any_key_tells_of_it() {
        let (run, other) = (RunId(Uuid::now_v7()), RunId(Uuid::now_v7()));
        let put = |key: &str, value: String| {
            let (key, value) = (key.to_owned(), value.into_bytes());
            Change::Put(Entry { key, value, mod_revision: 1, create_revision: 1 })
        };
        let delete = |key: &str| Change::Delete { key: key.to_owned(), revision: 2 };
        let cronid = |run: RunId| {
            format!(r#"{{"cronid":"{run}","state":"running","slot":"2026-01-01T00:00:00Z"}}"#)
        };
        let trigger = format!("/cron/trigger/n1/{run}");
        let mut all = Whereabouts::default();
        all.change(&put(&trigger, "{}".into()));
        all.change(&put(&trigger, "{}".into()));
        assert_eq!(all.node_of(run).unwrap().as_str(), "n1");
        all.change(&put("/cron/cronid/jobs/n1/j", cronid(run)));
        all.change(&delete(&trigger));
        assert_eq!(all.node_of(run).unwrap().as_str(), "n1");
        // The next run of the job.
        all.change(&put("/cron/cronid/jobs/n1/j", cronid(other)));
        assert_eq!((all.node_of(run), all.node_of(other).is_some()), (None, true));
        all.change(&put("/cron/cronid/jobs/n1/j", "nonsense".into()));
        all.change(&delete("/cron/cronid/jobs/n1/j"));
        all.change(&delete("/cron/jobs/n1/j"));
        assert!(all.current.is_empty() && all.nodes.is_empty());
    }
}
