//! Why a part that is ready has no worker yet, in words, and what it would need.

use crate::{id::NodeId, node::NodeInfo, target::Target};
use std::{collections::BTreeMap, fmt::Write};

/// A node as far as it could take parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Taker {
    /// What targets see of it.
    pub node: NodeInfo,
    /// Parts it takes at once; see [`slots`](super::dispatch::slots).
    pub slots: u32,
    /// Parts it has.
    pub taken: u32,
}

/// What keeps a node from taking a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hindrance {
    Offline,
    Drained,
    NoSlots,
    Full,
}

impl Taker {
    fn hindrance(&self) -> Option<Hindrance> {
        match () {
            () if !self.node.online => Some(Hindrance::Offline),
            () if self.node.drained => Some(Hindrance::Drained),
            () if self.slots == 0 => Some(Hindrance::NoSlots),
            () if self.taken >= self.slots => Some(Hindrance::Full),
            () => None,
        }
    }
}

/// Why a part for this node waits; `None` if the node could take it now.
pub fn for_node(node: &NodeId, takers: &BTreeMap<NodeId, Taker>) -> Option<String> {
    let Some(taker) = takers.get(node) else {
        return Some(format!(
            "node {node} is not known; needs a worker that registers with this id"
        ));
    };
    Some(match taker.hindrance()? {
        Hindrance::Offline => format!("node {node} is offline; needs its worker to be started"),
        Hindrance::Drained => {
            format!("node {node} is drained; needs `meepo node undrain {node}`")
        }
        Hindrance::NoSlots => format!(
            "node {node} takes no tasks now; needs a worker with `task_slots` that is not about \
             to end and whose disk takes writes"
        ),
        Hindrance::Full => format!(
            "all slots of node {node} are taken ({}); needs one of them to become free",
            taker.slots
        ),
    })
}

/// Why a part of a queue with this target waits; `None` if some node could take it now.
pub fn for_queue(target: &str, takers: &BTreeMap<NodeId, Taker>) -> Option<String> {
    let Ok(parsed) = Target::parse(target) else {
        return Some(format!("its target {target} cannot be read by this version"));
    };
    let mut counts: BTreeMap<Hindrance, usize> = BTreeMap::new();
    for taker in takers.values().filter(|t| parsed.matches(&t.node)) {
        *counts.entry(taker.hindrance()?).or_default() += 1;
    }
    let all: usize = counts.values().sum();
    if all == 0 {
        return Some(format!(
            "no node matches its target {target}; needs a node that does (see `meepo node list`)"
        ));
    }
    let nodes = if all == 1 { "node matches" } else { "nodes match" };
    let mut why = format!("{all} {nodes} its target {target}, and none can take it:");
    for (i, (hindrance, n)) in counts.iter().enumerate() {
        let what = match hindrance {
            Hindrance::Offline => "offline",
            Hindrance::Drained => "drained",
            Hindrance::NoSlots => "without task slots",
            Hindrance::Full => "with all slots taken",
        };
        let comma = if i == 0 { "" } else { "," };
        // Writing to a text does not fail.
        let _ = write!(why, "{comma} {n} {what}");
    }
    why.push_str("; needs one that is online, not drained and has a slot free");
    Some(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::Name, node::Facts};

    fn taker(id: &str, group: &str, online: bool, drained: bool, slots: u32, taken: u32) -> Taker {
        let node = NodeInfo {
            id: Name::new(id).unwrap(),
            online,
            drained,
            labels: [("group".to_owned(), group.to_owned())].into(),
            facts: Facts::default(),
        };
        Taker { node, slots, taken }
    }

    #[test]
    fn the_reason_names_what_would_be_needed() {
        let all = [
            taker("off", "a", false, false, 4, 0),
            taker("drained", "a", true, true, 4, 0),
            taker("none", "a", true, false, 0, 0),
            taker("full", "a", true, false, 2, 2),
            taker("free", "b", true, false, 2, 1),
        ];
        let all: BTreeMap<_, _> = all.into_iter().map(|t| (t.node.id.clone(), t)).collect();
        for (node, words) in [
            ("off", Some("is offline; needs its worker")),
            ("drained", Some("meepo node undrain drained")),
            ("none", Some("takes no tasks now")),
            ("full", Some("are taken (2)")),
            ("gone", Some("is not known")),
            ("free", None),
        ] {
            let why = for_node(&Name::new(node).unwrap(), &all);
            assert_eq!(why.is_some(), words.is_some(), "{node}: {why:?}");
            assert!(words.is_none_or(|w| why.as_ref().unwrap().contains(w)), "{node}: {why:?}");
        }
        assert_eq!(for_queue("all", &all), None);
        assert_eq!(for_queue("group=b", &all), None);
        let why = for_queue("group=a", &all).unwrap();
        assert!(
            why.contains(
                "4 nodes match its target group=a, and none can take it: 1 offline, 1 drained, \
                 1 without task slots, 1 with all slots taken; needs"
            ),
            "{why}"
        );
        assert!(for_queue("off", &all).unwrap().starts_with("1 node matches its target off"));
        assert!(for_queue("group=c", &all).unwrap().starts_with("no node matches"));
        assert!(for_queue("(", &all).unwrap().contains("cannot be read"));
    }
}
