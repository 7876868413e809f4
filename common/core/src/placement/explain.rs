//! Why a node has a job or has it not, and where each field comes from.

use super::{
    FieldOrigin, Fleet, Held, NodeExplanation, Reason,
    choose::{Waiting, takes},
    fleet::{Job, On, Variant},
};
use crate::{
    id::{Name, NodeId},
    job::{JobSpec, Placement},
    node::NodeInfo,
    tree::{LABEL, TreePath},
};
use serde_json::Value;

impl Fleet {
    /// What becomes of a job on each of `nodes` that is known, and why.
    pub fn explain<'a>(
        &self,
        name: &Name,
        nodes: impl IntoIterator<Item = &'a NodeId>,
    ) -> Vec<NodeExplanation> {
        let waiting = Waiting::new();
        let desired = self.desired(name, &waiting);
        let explained = nodes.into_iter().filter_map(|id| {
            let node = self.nodes.get(id)?;
            let held = self.held.get(name).and_then(|h| h.get(id)).map(|at| &at.value);
            let put = desired.as_ref().is_some_and(|d| d.put.contains_key(id));
            let (tree, gets, reason, text) = self.reason(name, node, held, put);
            let fields = tree.as_ref().map(|path| self.fields(name, path)).unwrap_or_default();
            let place = node.labels.get(LABEL).cloned();
            let (node, holds) = (id.clone(), held.is_some());
            Some(NodeExplanation { node, place, gets, holds, reason, text, tree, fields })
        });
        explained.collect()
    }

    fn reason(
        &self,
        name: &Name,
        node: &NodeInfo,
        held: Option<&Held>,
        put: bool,
    ) -> (Option<TreePath>, bool, Reason, String) {
        if held == Some(&Held::Foreign) {
            let text = "its assignment was put into etcd by hand; no master touches it";
            return (None, true, Reason::ByHand, text.into());
        }
        let job = self.jobs.get(name);
        if job.is_some_and(Job::is_opaque) {
            let text = match job.and_then(Job::refused) {
                Some((path, why)) => format!(
                    "the definition at {path} is not believed ({why}): nodes keep what they have"
                ),
                None => "a definition of the job cannot be read: nodes keep what they have".into(),
            };
            return (None, held.is_some(), Reason::Unreadable, text);
        }
        let Some((path, variant)) = job.and_then(|j| j.variant(node)) else {
            let place = node.labels.get(LABEL).map_or_else(
                || format!("the node has no label {LABEL}"),
                |place| format!("the node is at {place}"),
            );
            let text = format!("nothing is defined at or above its place in the tree: {place}");
            return (None, false, Reason::NotDefined, text);
        };
        let (gets, reason, text) = match variant {
            Variant::Off => {
                let at = job.and_then(|j| j.definitions.resolve(path).ok());
                let at = at.and_then(|r| r.origins.get("disabled").cloned());
                let at = at.unwrap_or_else(|| path.clone());
                (false, Reason::Disabled, format!("switched off at {at}"))
            }
            Variant::Broken(e) => {
                let text = format!(
                    "the definitions at {path} and above do not make a job ({e}): the node keeps \
                     what it has"
                );
                (held.is_some(), Reason::Unreadable, text)
            }
            Variant::On(on) => chosen(on, node, held.is_some(), put),
        };
        (Some(path.clone()), gets, reason, text)
    }

    /// The fields of the job at a path and where they come from; those that nobody gave and
    /// that have no value are left out.
    fn fields(&self, name: &Name, path: &TreePath) -> Vec<FieldOrigin> {
        let Some(resolved) = self.jobs.get(name).and_then(|j| j.definitions.resolve(path).ok())
        else {
            return Vec::new();
        };
        let object = |spec: &JobSpec| match serde_json::to_value(spec) {
            Ok(Value::Object(fields)) => fields,
            _ => Default::default(),
        };
        let defaults = object(&JobSpec::new(name.clone(), ""));
        let mut values = object(&resolved.spec);
        for field in resolved.origins.keys() {
            values.entry(field.clone()).or_insert(Value::Null);
        }
        let field = |(field, value): (String, Value)| {
            let from = resolved.origins.get(&field);
            // A definition at the root is kept with the defaults written out.
            let default = from.is_none_or(|p| p.is_root() && defaults.get(&field) == Some(&value));
            let from = from.filter(|_| !default).map(ToString::to_string);
            FieldOrigin { field, value, from: from.unwrap_or_else(|| "default".into()) }
        };
        values.into_iter().filter(|(f, _)| f != "name").map(field).collect()
    }
}

/// Why a node gets a job that is switched on at its place, or gets it not.
fn chosen(on: &On, node: &NodeInfo, holds: bool, put: bool) -> (bool, Reason, String) {
    let (target, placement) = (&on.spec.target, on.spec.placement);
    let there = match (node.drained, node.online) {
        (true, _) => "; it is drained: nothing starts there",
        (_, false) => "; its worker is away",
        _ => "",
    };
    if put {
        let among = match placement {
            Placement::Each => "every node that matches".to_owned(),
            Placement::Once => "those that claim its slots".to_owned(),
            Placement::Any(n) => format!("the {n} chosen"),
        };
        let text = format!("matches the target {target}, placement {placement}: {among}{there}");
        return (true, Reason::Placed, text);
    }
    if !on.target.matches(node) {
        return (false, Reason::Target, format!("the target {target} does not mean it"));
    }
    if on.spec.placement == Placement::Once && holds && !takes(node, &Waiting::new()) {
        let text = format!("nobody who could take the job over is there: it is kept{there}");
        return (true, Reason::Placed, text);
    }
    if node.drained {
        return (false, Reason::Drained, "it is drained: others were chosen".into());
    }
    if !node.online {
        return (false, Reason::Offline, "its worker is away: others were chosen".into());
    }
    let text = format!("matches, but others were chosen: placement {placement}, target {target}");
    (false, Reason::Others, text)
}
