//! Which nodes come first.

use super::expr::word;
use crate::node::NodeInfo;
use std::{cmp::Ordering, collections::HashMap, fmt};

/// What `prefer` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Prefer {
    /// The label whose values take turns.
    pub(super) spread: Option<String>,
    /// Those with the least load first.
    pub(super) least_loaded: bool,
}

impl Prefer {
    /// The label that `spread` alone means.
    pub(super) const SPREAD: &str = "zone";

    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Puts the nodes that come first to the front.
    pub(super) fn sort(&self, nodes: &mut [&NodeInfo]) {
        nodes.sort_by(|a, b| {
            let load = if self.least_loaded { by_load(a, b) } else { Ordering::Equal };
            away(a).cmp(&away(b)).then(load).then_with(|| a.id.cmp(&b.id))
        });
        let Some(label) = &self.spread else { return };
        // The first of every value, then the second of every value, and so on.
        let mut seen: HashMap<Option<&str>, usize> = HashMap::new();
        let mut turns: Vec<_> = nodes
            .iter()
            .map(|n| {
                let turn = seen.entry(n.labels.get(label).map(String::as_str)).or_default();
                *turn += 1;
                (away(n), *turn, *n)
            })
            .collect();
        turns.sort_by_key(|(away, turn, _)| (*away, *turn));
        for (place, (_, _, node)) in nodes.iter_mut().zip(turns) {
            *place = node;
        }
    }
}

/// Those that take work come before those that are there but do not, and these before
/// those that are away.
fn away(node: &NodeInfo) -> u8 {
    match (node.online, node.drained) {
        (true, false) => 0,
        (true, true) => 1,
        (false, _) => 2,
    }
}

/// Where nothing is known of the load, the node comes last.
fn by_load(a: &NodeInfo, b: &NodeInfo) -> Ordering {
    let load = |n: &NodeInfo| n.facts.load().unwrap_or(f64::INFINITY);
    load(a).total_cmp(&load(b)).then_with(|| a.facts.running.cmp(&b.facts.running))
}

impl fmt::Display for Prefer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(label) = &self.spread else {
            return f.write_str(if self.least_loaded { "least-loaded" } else { "" });
        };
        f.write_str("spread(")?;
        // Read back, `label.` goes.
        if label.starts_with("label.") {
            word(f, &format!("label.{label}"), false)?;
        } else {
            word(f, label, false)?;
        }
        f.write_str(if self.least_loaded { "), least-loaded" } else { ")" })
    }
}
