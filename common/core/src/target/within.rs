//! Whether one target can mean only nodes that another means, whatever the fleet will be.

use super::{
    Target,
    expr::{Expr, Id},
    glob, tree,
};
use crate::{id::NodeId, node::NodeInfo};
use std::collections::BTreeMap;

type Nodes = BTreeMap<NodeId, NodeInfo>;

impl Target {
    /// Whether every node that this target means is one that `outer` means, its limit aside, as
    /// far as that can be told from how both are written. `true` is certain; `false` may be for
    /// want of a proof. Nodes that this target names one by one are looked up in `nodes`.
    pub fn within(&self, outer: &Target, nodes: &Nodes) -> bool {
        within(&self.expr, &outer.expr, nodes)
    }
}

fn within(inner: &Expr, outer: &Expr, nodes: &Nodes) -> bool {
    if inner == outer {
        return true;
    }
    match (inner, outer) {
        (_, Expr::Ids(ids)) if ids.contains(&Id::All) => true,
        (Expr::Or(parts), _) => parts.iter().all(|p| within(p, outer, nodes)),
        (_, Expr::And(parts)) => parts.iter().all(|p| within(inner, p, nodes)),
        (Expr::Ids(ids), _) => ids.iter().all(|id| id_within(id, outer, nodes)),
        (Expr::And(parts), Expr::Or(any)) => {
            parts.iter().any(|p| within(p, outer, nodes))
                || any.iter().any(|o| within(inner, o, nodes))
        }
        (Expr::And(parts), _) => parts.iter().any(|p| within(p, outer, nodes)),
        (_, Expr::Or(any)) => any.iter().any(|o| within(inner, o, nodes)),
        (
            Expr::Label { key, equal: true, patterns },
            Expr::Label { key: outer_key, equal: true, patterns: allowed },
        ) if key == outer_key => {
            let fits = if key == tree::LABEL { tree::matches } else { glob::matches };
            patterns.iter().all(|p| covered(p, allowed, fits))
        }
        (
            Expr::Text { fact, equal: true, patterns },
            Expr::Text { fact: outer_fact, equal: true, patterns: allowed },
        ) if fact == outer_fact => patterns.iter().all(|p| covered(p, allowed, glob::matches)),
        _ => false,
    }
}

/// Whether what a pattern can mean is meant by one of `allowed`.
fn covered(pattern: &String, allowed: &[String], fits: fn(&str, &str) -> bool) -> bool {
    allowed.contains(pattern)
        || (!glob::is_pattern(pattern) && allowed.iter().any(|a| fits(a, pattern)))
}

fn id_within(id: &Id, outer: &Expr, nodes: &Nodes) -> bool {
    if let Expr::Or(any) = outer {
        return any.iter().any(|o| id_within(id, o, nodes)) || known_within(id, outer, nodes);
    }
    let by_name = match (id, outer) {
        (Id::Exact(name), Expr::Ids(ids)) => ids.iter().any(|o| match o {
            Id::All => true,
            Id::Exact(other) => other == name,
            Id::Pattern(pattern) => glob::matches(pattern, name.as_str()),
        }),
        (Id::Pattern(_), Expr::Ids(ids)) => ids.contains(id),
        _ => false,
    };
    by_name || known_within(id, outer, nodes)
}

/// Whether a node that is named is there and meant.
fn known_within(id: &Id, outer: &Expr, nodes: &Nodes) -> bool {
    matches!(id, Id::Exact(name) if nodes.get(name).is_some_and(|n| outer.matches(n)))
}
