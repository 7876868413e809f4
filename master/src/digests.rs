//! What every node should hold, as one number each: compared with what its worker says.

use meepo_coord::keys;
use meepo_core::{
    digest::{self, Digest},
    id::NodeId,
};
use std::collections::HashMap;

/// The digests of all nodes' assignments.
#[derive(Debug, Default)]
pub struct Digests(HashMap<NodeId, Node>);

#[derive(Debug, Default)]
struct Node {
    digest: Digest,
    /// The parts by the hash of their keys: the keys themselves stand elsewhere.
    pairs: HashMap<u64, u64>,
}

impl Digests {
    /// A key of some family was written.
    pub fn put(&mut self, key: &str, value: &[u8]) {
        let Some((node, rest)) = keys::node_and_rest(key, keys::ASSIGNMENTS) else { return };
        let node = self.0.entry(node).or_default();
        let pair = digest::pair(rest, value);
        node.digest.add(pair);
        if let Some(old) = node.pairs.insert(digest::pair(rest, b""), pair) {
            node.digest.remove(old);
        }
    }

    /// A key of some family was deleted.
    pub fn delete(&mut self, key: &str) {
        let Some((id, rest)) = keys::node_and_rest(key, keys::ASSIGNMENTS) else { return };
        let Some(node) = self.0.get_mut(&id) else { return };
        if let Some(old) = node.pairs.remove(&digest::pair(rest, b"")) {
            node.digest.remove(old);
        }
        if node.pairs.is_empty() {
            self.0.remove(&id);
        }
    }

    /// What a node should hold.
    pub fn of(&self, node: &NodeId) -> Digest {
        self.0.get(node).map_or_else(Digest::default, |n| n.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::id::Name;

    #[test]
    fn it_follows_writes_and_deletions() {
        let (a, b) = (Name::new("a").unwrap(), Name::new("b").unwrap());
        let mut digests = Digests::default();
        let mut want = Digest::default();
        want.add(digest::pair("x", b"2"));
        want.add(digest::pair("", b"old"));
        for (key, value) in [
            ("/cron/jobs/a/x", "1"),
            ("/cron/jobs/a/x", "2"),
            ("/cron/jobs/a/", "old"),
            ("/cron/jobs/b/x", "1"),
            ("/meepo/jobs/x", "1"),
        ] {
            digests.put(key, value.as_bytes());
        }
        assert_eq!(digests.of(&a), want);
        assert_eq!(digests.of(&b).count(), 1);
        digests.delete("/cron/jobs/a/");
        digests.delete("/cron/jobs/a/none");
        digests.delete("/cron/jobs/b/x");
        want.remove(digest::pair("", b"old"));
        assert_eq!(digests.of(&a), want);
        assert!(!digests.0.contains_key(&b));
    }
}
