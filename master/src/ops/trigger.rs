//! Runs of jobs on request.

use super::{Ops, job_view::id_of};
use crate::{
    audit,
    error::{ApiError, ApiResult},
    seal::Seal,
};
use etcd_client::{PutOptions, Txn, TxnOp};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{
    etcd::{MAX_TXN_BYTES, MAX_TXN_OPS},
    keys,
    records::TriggerRecord,
};
use meepo_core::{
    api::{RunRef, TriggerRequest, Triggered},
    auth::Permission,
    code::Code,
    error::Invalid,
    id::{Name, NodeId, RunId},
    job::{Assignment, Placement},
    node::NodeInfo,
    run::to_millis,
    signing::FIELD,
    target::Target,
};
use meepo_runtime::telemetry::trace;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tracing::{info, warn};
use uuid::Uuid;

/// How long a request to run waits for its worker unless asked otherwise.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Furthest start of a run on request.
const LONGEST_DELAY: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Longest time a request waits.
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);
/// How long an expired request is kept for its worker to record.
const EXPIRED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Nodes on which a job could be run, and what to run there.
pub(super) type Places = (Placement, Vec<(NodeId, Assignment)>);

impl Ops {
    /// Runs a job now. Accepted means kept by etcd's quorum.
    pub async fn trigger(&self, name: &Name, request: &TriggerRequest) -> ApiResult<Triggered> {
        audit::object("job", name);
        if let Some(target) = &request.target {
            audit::detail("target", target);
        }
        if let Some(delay) = request.delay {
            audit::detail("delay", delay);
        }
        if let Some(at) = request.at {
            audit::detail("at", at);
        }
        let only = request.target.as_deref().map(Target::parse).transpose()?;
        let nodes = self.nodes_now().await?;
        let (plans, believed) = self.trigger_plans(name, &nodes).await?;
        let chosen: Option<BTreeSet<&NodeId>> = only.as_ref().map(|only| {
            let all = plans.iter().flat_map(|(_, places)| places);
            let infos = all.filter_map(|(node, _)| nodes.get(node));
            only.select(infos).iter().map(|n| &n.id).collect()
        });
        let mut places: Vec<(NodeId, Assignment)> = Vec::new();
        for (placement, mut some) in plans {
            some.retain(|(node, _)| chosen.as_ref().is_none_or(|chosen| chosen.contains(node)));
            let enough = match placement {
                Placement::Each => usize::MAX,
                Placement::Once => 1,
                Placement::Any(n) => n as usize,
            };
            if some.len() > enough {
                // Those that are there and take work first, of these whoever holds it.
                let takes = |n: &NodeId| nodes.get(n).is_some_and(|n| n.online && !n.drained);
                let view = self.view.read();
                let holders: BTreeSet<&NodeId> = view.fleet.holders(name).map(|(n, _)| n).collect();
                some.sort_by_key(|(n, _)| (!takes(n), !holders.contains(n)));
                some.truncate(enough);
            }
            places.append(&mut some);
        }
        self.demand_places(Permission::JobTrigger, &places)?;
        if places.is_empty() {
            let message = format!("no node holds job {name} and matches");
            return Err(ApiError::new(Code::NO_TARGET, message));
        }
        let now = to_millis(Timestamp::now());
        let ttl = request.ttl.map_or(DEFAULT_TTL, |d| d.0).min(MAX_TTL);
        let not_before = not_before(request, now)?;
        let expires_at = not_before.unwrap_or(now).checked_add(ttl).unwrap_or(Timestamp::MAX);
        let wait = not_before.map_or(Duration::ZERO, |at| at.duration_since(now).unsigned_abs());
        // A node that never comes back must not leave its requests behind for ever; one
        // that does gets a day to say that they had expired.
        let lease = self.etcd.grant(wait + ttl + EXPIRED_KEPT).await?;
        let (mut runs, mut groups, mut bytes) = (Vec::new(), vec![Vec::new()], 0);
        let traceparent = trace::current();
        let (term, unsigned) = (self.known_term(), Seal::default());
        for (node, mut assignment) in places {
            assignment.set_traceparent(traceparent.clone());
            let run_id = RunId(Uuid::now_v7());
            let record = TriggerRecord {
                job: name.clone(),
                assignment,
                requested_at: now,
                not_before,
                expires_at,
                rerun: None,
                extra: BTreeMap::new(),
            };
            let seal = if believed { self.view.seal() } else { &unsigned };
            let value = seal.trigger(term, &node, run_id, &record);
            bytes += value.len();
            if groups.last().is_some_and(|g| g.len() == MAX_TXN_OPS) || bytes > MAX_TXN_BYTES {
                groups.push(Vec::new());
                bytes = value.len();
            }
            let options = PutOptions::new().with_lease(lease);
            let put = TxnOp::put(keys::trigger(&node, run_id), value, Some(options));
            groups.last_mut().into_iter().for_each(|g| g.push(put.clone()));
            runs.push(RunRef { run_id, node });
        }
        for group in groups {
            if let Err(e) = self.etcd.txn("triggers", Txn::new().and_then(group)).await {
                // Some may run: to ask again would run them twice.
                warn!(job = %name, error = %e, "a request to run may or may not be kept");
                return Err(ApiError::new(Code::UNKNOWN_OUTCOME, Code::UNKNOWN_OUTCOME.meaning()));
            }
        }
        if let [run] = runs.as_slice() {
            audit::detail("run", run.run_id);
        }
        audit::detail("runs", runs.len());
        info!(job = %name, runs = runs.len(), "triggered");
        Ok(Triggered { runs })
    }

    /// Where a job could be run now, and what to run there; and whether a master has accepted
    /// that, as it is signed then: what anybody put into etcd by hand is not.
    async fn trigger_plans(
        &self,
        name: &Name,
        nodes: &BTreeMap<NodeId, NodeInfo>,
    ) -> ApiResult<(Vec<Places>, bool)> {
        let definitions = self.believed_definitions(name).await?;
        if !definitions.0.is_empty() {
            return Ok((super::tree::places(&definitions, nodes)?, true));
        }
        let entries = self.assignments_of(name).await?;
        if entries.is_empty() {
            return Err(ApiError::not_found("job", name));
        }
        let mut places = Vec::new();
        for entry in &entries {
            if let Some((node, _)) = id_of(entry) {
                let mut assignment = Assignment::from_etcd(&entry.value)?;
                assignment.extra.remove(FIELD);
                places.push((node, assignment));
            }
        }
        Ok((vec![(Placement::Each, places)], false))
    }
}

/// When a run on request may start at the earliest; none: at once.
fn not_before(request: &TriggerRequest, now: Timestamp) -> ApiResult<Option<Timestamp>> {
    let bad = |field: &str, problem: &str, expected: &str| {
        Err(Invalid::new(Code::BAD_VALUE, field, problem, expected).into())
    };
    let (field, at) = match (request.delay, request.at) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return bad("at", "stands beside delay", "either a delay or an instant");
        }
        (Some(delay), None) => ("delay", now.checked_add(delay.0).unwrap_or(Timestamp::MAX)),
        (None, Some(at)) => ("at", at),
    };
    if at > now + LONGEST_DELAY {
        return bad(field, "too far away", "at most 30 days from now");
    }
    Ok(Some(to_millis(at)).filter(|at| *at > now))
}
