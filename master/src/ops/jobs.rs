//! Definitions, and jobs that were put into etcd by hand.

use super::Ops;
use crate::{
    audit,
    error::{ApiError, ApiResult},
};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use jiff::Timestamp;
use meepo_coord::{
    etcd::{Cas, MAX_TXN_OPS},
    keys,
    records::{ClaimRecord, decode, encode},
};
use meepo_core::{
    api::{Action, Applied},
    auth::Permission,
    code::Code,
    error::Invalid,
    id::Name,
    input::from_value,
    job::{JobSpec, JobStatus},
    run::to_millis,
    tree::{JobDocument, TreePath},
};
use serde_json::Value;
use std::time::Duration;
use tracing::info;

/// How often a change is tried when others change the same job.
const TRIES: usize = 5;
/// How long the cursor of claimed slots outlives its job.
const CLAIM_KEPT: Duration = Duration::from_secs(600);

/// What a changed definition is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Basis {
    /// Of what was sent.
    New,
    /// Of what stood there.
    Old,
}

impl Ops {
    /// Creates or replaces the definition at the root.
    pub(super) async fn apply_whole(&self, spec: JobSpec) -> ApiResult<Applied> {
        spec.validate()?;
        let name = spec.name.clone();
        let change = |old: Option<JobSpec>| {
            let same = |old: &JobSpec| {
                (&old.schedule, &old.timezone, old.end_at)
                    == (&spec.schedule, &spec.timezone, spec.end_at)
            };
            if !old.as_ref().is_some_and(same) {
                not_over(&spec, Timestamp::now())?;
            }
            Ok(Some(spec.clone()))
        };
        self.change(&name, Basis::New, change).await
    }

    /// Follows the schedule, or does not.
    pub async fn set_status(&self, name: &Name, status: JobStatus) -> ApiResult<Applied> {
        audit::object("job", name);
        self.demand_job_named(Permission::JobPause, name).await?;
        let new = |old: Option<JobSpec>| Ok(old.map(|spec| JobSpec { status, ..spec }));
        let changed = self.change(name, Basis::Old, new).await;
        match changed {
            Err(e) if e.0.code == Code::NOT_FOUND => self.set_status_by_hand(name, status).await,
            other => other,
        }
    }

    /// Replaces the definition by what `new` makes of it; `None` from `new` means that
    /// there is nothing to change.
    async fn change(
        &self,
        name: &Name,
        basis: Basis,
        new: impl Fn(Option<JobSpec>) -> ApiResult<Option<JobSpec>>,
    ) -> ApiResult<Applied> {
        let key = keys::job(name);
        let mut there = self.etcd.get(&key).await?;
        for _ in 0..TRIES {
            let opened = there.as_ref().and_then(|entry| self.opened(entry));
            let (old, believed): (Option<JobSpec>, _) = match opened {
                Some((fields, believed)) => (from_value(Value::Object(fields)).ok(), believed),
                None => (None, Ok(())),
            };
            if basis == Basis::Old {
                // Its signature would make the whole of it what a master has accepted.
                believed.map_err(|e| super::tree::not_believed(name, &TreePath::ROOT, &e))?;
            }
            let own = there.as_ref().is_none_or(|e| self.view.seal().is_own(&e.value));
            let Some(spec) = new(old.clone())? else {
                return Err(ApiError::not_found("job", name));
            };
            let expect = there.as_ref().map_or(0, |e| e.mod_revision);
            if old.as_ref() == Some(&spec) && own {
                let action = Action::Unchanged;
                return Ok(Applied { name: name.clone(), action, revision: expect });
            }
            let action = if expect == 0 { Action::Created } else { Action::Updated };
            let before = there.as_ref().map(|e| e.value.as_slice());
            let value = match self.view.seal().is_on() {
                true => {
                    let fields = JobDocument::from(spec).fields;
                    self.view.seal().definition(&key, &fields, before)
                }
                false => encode(&spec),
            };
            match self.etcd.put_if(&key, Some(value), expect, None).await? {
                Cas::Done(revision) => {
                    info!(job = %name, ?action, revision, "definition written");
                    return Ok(Applied { name: name.clone(), action, revision });
                }
                Cas::Conflict(now) => there = now,
            }
        }
        Err(ApiError::new(Code::CONFLICT, format!("job {name} is being changed by others")))
    }

    /// Changes the status in every assignment, leaving all else as it was put.
    async fn set_status_by_hand(&self, name: &Name, status: JobStatus) -> ApiResult<Applied> {
        let mut last = None;
        for entry in self.assignments_of(name).await? {
            let Ok(Value::Object(mut value)) = serde_json::from_slice(&entry.value) else {
                continue;
            };
            if value.contains_key("spec_revision") {
                // A master's: it follows its definition.
                continue;
            }
            value.insert("status".into(), serde_json::to_value(status).unwrap_or_default());
            let text = Value::Object(value).to_string().into_bytes();
            match self.etcd.put_if(&entry.key, Some(text), entry.mod_revision, None).await? {
                Cas::Done(revision) => last = Some(revision),
                Cas::Conflict(_) => {
                    let message = format!("job {name} is being changed by others");
                    return Err(ApiError::new(Code::CONFLICT, message));
                }
            }
        }
        let revision = last.ok_or_else(|| ApiError::not_found("job", name))?;
        Ok(Applied { name: name.clone(), action: Action::Updated, revision })
    }

    /// Deletes the definition at the root (its assignments follow) or, if there is none, what
    /// was put by hand. Runs that are under way go on to their end.
    pub(super) async fn delete_whole(&self, name: &Name) -> ApiResult<Applied> {
        let key = keys::job(name);
        let there = self.etcd.get(&key).await?;
        let revision = match there {
            Some(_) => Some(self.delete_definition(name, &TreePath::ROOT).await?),
            None => {
                let entries = self.assignments_of(name).await?;
                if entries.is_empty() {
                    return Err(ApiError::not_found("job", name));
                }
                let mut revision = None;
                for group in entries.chunks(MAX_TXN_OPS) {
                    let ops: Vec<_> =
                        group.iter().map(|e| TxnOp::delete(e.key.clone(), None)).collect();
                    revision = self.etcd.txn(&key, Txn::new().and_then(ops)).await?;
                }
                revision
            }
        };
        info!(job = %name, "deleted");
        let revision = revision.unwrap_or_default();
        Ok(Applied { name: name.clone(), action: Action::Deleted, revision })
    }

    /// Deletes a definition. The cursor of its claims ends some time later: nodes that
    /// hold the job still must not take its last slot for one that is free.
    pub(super) async fn delete_definition(&self, name: &Name, path: &TreePath) -> ApiResult<i64> {
        let (key, claim) = (keys::job_at(name, path), keys::claim_at(name, path));
        for _ in 0..TRIES {
            let cursor = self.etcd.get(&claim).await?;
            let seen = cursor.as_ref().map_or(0, |e| e.mod_revision);
            let mut ops = vec![TxnOp::delete(key.clone(), None)];
            if let Some(cursor) = cursor {
                let lease = self.etcd.grant(CLAIM_KEPT).await?;
                let options = PutOptions::new().with_lease(lease);
                // A job of this name that is created meanwhile counts its runs anew.
                let value = match decode::<ClaimRecord>(&cursor.value) {
                    Ok(record) => encode(&ClaimRecord { runs: 0, ..record }),
                    Err(_) => cursor.value,
                };
                ops.push(TxnOp::put(claim.clone(), value, Some(options)));
            }
            // Another slot may be claimed meanwhile.
            let unchanged = Compare::mod_revision(claim.clone(), CompareOp::Equal, seen);
            let txn = Txn::new().when([unchanged]).and_then(ops);
            if let Some(revision) = self.etcd.txn(&key, txn).await? {
                return Ok(revision);
            }
        }
        Err(ApiError::new(Code::CONFLICT, format!("job {name} is being changed by others")))
    }
}

/// Refuses a schedule that can never fire any more: nobody means that.
pub(super) fn not_over(spec: &JobSpec, now: Timestamp) -> Result<(), Invalid> {
    let Some(when) = spec.assignment(None, Vec::new()).validate()? else { return Ok(()) };
    if when.schedule.is_reboot() || when.next_after(now).is_some() {
        return Ok(());
    }
    let field = if spec.end_at.is_some_and(|end| end <= now) { "end_at" } else { "schedule" };
    let problem = format!("it is {} and no slot is left", to_millis(now));
    Err(Invalid::new(Code::BAD_SCHEDULE, field, problem, "an instant that is still to come"))
}
