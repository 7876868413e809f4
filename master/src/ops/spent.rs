//! Jobs whose `max_runs` are used up: their schedules name slots that will not run.

use super::Ops;
use crate::error::ApiResult;
use meepo_coord::{
    Entry, keys,
    records::{ClaimRecord, SpentRecord, decode},
};
use meepo_core::{
    api::JobView,
    id::{Name, NodeId},
    job::Assignment,
};
use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap},
};

/// How many slots have run, by the keys that tell so.
#[derive(Default)]
pub(super) struct Counts(HashMap<String, u32>);

impl Counts {
    /// What of `entries` tells.
    pub(super) fn of(entries: &[Entry]) -> Self {
        let runs = |e: &Entry| {
            let runs = if e.key.starts_with(keys::SPENT) {
                decode::<SpentRecord>(&e.value).ok()?.runs
            } else if e.key.starts_with(keys::CLAIMS) {
                decode::<ClaimRecord>(&e.value).ok()?.runs
            } else {
                return None;
            };
            Some((e.key.clone(), runs))
        };
        Self(entries.iter().filter_map(runs).collect())
    }

    /// Whether as many slots of a job have run on a node, or in the cluster, as may.
    pub(super) fn spent(&self, node: &NodeId, job: &Name, assignment: &Assignment) -> bool {
        let Some((key, max)) = bounded(node, job, assignment) else { return false };
        self.0.get(&key).is_some_and(|runs| *runs >= max)
    }
}

/// Where the runs of an assignment that bounds them are counted, and the bound.
fn bounded(node: &NodeId, job: &Name, assignment: &Assignment) -> Option<(String, u32)> {
    let max = assignment.max_runs?;
    let key = match assignment.is_once() {
        true => keys::claim_at(job, &assignment.tree),
        false => keys::spent(node, job),
    };
    Some((key, max))
}

impl Ops {
    /// What the keys hold that tell how many slots of these assignments have run.
    pub(super) async fn counts<A: Borrow<Assignment>>(
        &self,
        assignments: impl Iterator<Item = (NodeId, Name, A)>,
    ) -> ApiResult<Vec<Entry>> {
        let key = |(node, job, a): (NodeId, Name, A)| Some(bounded(&node, &job, a.borrow())?.0);
        let wanted: BTreeSet<String> = assignments.filter_map(key).collect();
        let wanted: Vec<String> = wanted.into_iter().collect();
        match wanted.is_empty() {
            true => Ok(Vec::new()),
            false => Ok(self.etcd.get_all(&wanted).await?),
        }
    }

    /// How many slots of a job may run still, as far as it is known here.
    pub(super) async fn slots_left(&self, view: &JobView, max: u32) -> ApiResult<usize> {
        if !view.nodes.is_empty() && view.nodes.iter().all(|n| n.spent) {
            return Ok(0);
        }
        // Each node counts for itself, but for slots that are claimed.
        let claim = self.etcd.get(&keys::claim(&view.name)).await?;
        let claimed = claim.and_then(|e| decode::<ClaimRecord>(&e.value).ok());
        let runs = claimed.map_or(0, |c| c.runs);
        Ok(usize::try_from(max.saturating_sub(runs)).unwrap_or(usize::MAX))
    }
}
