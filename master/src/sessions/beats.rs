//! The last heartbeat of every worker that has a session: as many as there are sessions,
//! gone with the session.

use super::{Connection, Sessions};
use jiff::Timestamp;
use meepo_core::{
    digest::Digest,
    id::{NodeId, RunId},
    node::Live,
};
use meepo_proto::internal as pb;
use std::{collections::BTreeMap, sync::Arc};

/// What a worker last told of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Beat {
    /// How the host is, and when that was told.
    pub live: Live,
    /// Runs that have begun and not ended: the 1024 oldest; `live.running` counts all.
    pub running: Vec<RunId>,
    /// Runs of jobs that wait for a place on the node.
    pub ready: u64,
    /// Runs of jobs that wait for an earlier run of the same job.
    pub waiting: u64,
    /// Of the assignments it holds; none until it has heard etcd. The leader's own for
    /// comparison is in [`crate::view::Data::digests`].
    pub digest: Option<Digest>,
    /// etcd's revision of the last list or change of assignments that is in the digest.
    pub revision: i64,
}

/// How the host is, as a heartbeat tells it.
pub fn live_from(beat: &pb::Heartbeat, at: Timestamp) -> Live {
    Live {
        at,
        cpu_use: beat.cpu_use.filter(|p| (0.0..=100.0).contains(p)),
        load1: beat.load1,
        mem_total: beat.mem_total,
        mem_free: beat.mem_free,
        disk_total: beat.disk_total,
        disk_free: beat.disk_free,
        running: beat.running_total,
        clock_skew_ms: (beat.at_ms != 0).then(|| beat.at_ms - at.as_millisecond()),
    }
}

impl Beat {
    fn new(beat: pb::Heartbeat, at: Timestamp) -> Self {
        Self {
            live: live_from(&beat, at),
            running: beat.running.iter().filter_map(|id| id.parse().ok()).collect(),
            ready: beat.ready,
            waiting: beat.waiting,
            digest: beat.digest.parse().ok(),
            revision: beat.revision,
        }
    }
}

impl Sessions {
    /// Takes the heartbeat of the session `id` of a node in.
    pub fn beat(&self, node: &NodeId, id: u64, beat: pb::Heartbeat) {
        let beat = Arc::new(Beat::new(beat, Timestamp::now()));
        if let Some(c) = self.lock().nodes.get_mut(node).filter(|c| c.id == id) {
            c.beat = Some(beat);
        }
    }

    /// The last heartbeat of a node that has a session.
    pub fn last_beat(&self, node: &NodeId) -> Option<Arc<Beat>> {
        self.lock().nodes.get(node)?.beat.clone()
    }

    /// How the hosts of `nodes`, or of all nodes if there is none among them, are: of those
    /// that have sessions, with nothing before the first heartbeat.
    pub fn live(&self, nodes: &[NodeId]) -> BTreeMap<NodeId, Option<Live>> {
        let inner = self.lock();
        let live = |c: &Connection| c.beat.as_ref().map(|b| b.live.clone());
        match nodes {
            [] => inner.nodes.iter().map(|(n, c)| (n.clone(), live(c))).collect(),
            some => {
                some.iter().filter_map(|n| Some((n.clone(), live(inner.nodes.get(n)?)))).collect()
            }
        }
    }

    /// Those of all nodes that have sessions and have sent one.
    pub fn beats(&self) -> BTreeMap<NodeId, Arc<Beat>> {
        let inner = self.lock();
        inner.nodes.iter().filter_map(|(n, c)| Some((n.clone(), c.beat.clone()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::id::Name;
    use tokio::sync::mpsc;

    #[test]
    fn the_last_heartbeat_of_the_newest_session_is_kept_and_goes_with_it() {
        let sessions = Sessions::default();
        let node = Name::new("n").unwrap();
        let connect = || sessions.connect(node.clone(), 1, mpsc::channel(1).0);
        let beat = |load1| pb::Heartbeat {
            load1,
            cpu_use: Some(250.0),
            digest: "1-000000000000000a".into(),
            running: vec!["no id".into()],
            ..Default::default()
        };
        let (old, _over) = connect();
        assert_eq!(sessions.last_beat(&node), None);
        assert_eq!(sessions.live(&[]), [(node.clone(), None)].into());
        sessions.beat(&node, old, beat(1.0));
        sessions.beat(&node, old, beat(2.0));
        let last = sessions.last_beat(&node).unwrap();
        assert_eq!((last.live.load1, last.live.cpu_use, last.running.len()), (2.0, None, 0));
        assert_eq!(last.digest.unwrap().count(), 1);
        let (new, _over) = connect();
        sessions.beat(&node, old, beat(3.0));
        assert!(sessions.beats().is_empty(), "of a session that is over");
        sessions.beat(&node, new, beat(4.0));
        assert_eq!(sessions.beats()[&node].live.load1, 4.0);
        sessions.disconnect(&node, new);
        assert_eq!(sessions.last_beat(&node), None);
        assert!(sessions.live(std::slice::from_ref(&node)).is_empty());
    }
}
