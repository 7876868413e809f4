//! The jobs this node holds: read from etcd, checked, and what is wrong with the
//! others.

use jiff::Timestamp;
use meepo_coord::{Entry, keys};
use meepo_core::{
    error::Invalid,
    id::{Name, NodeId},
    job::{Assignment, JobStatus, When},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A valid assignment.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Its key in etcd.
    pub(super) key: String,
    /// What to run and how.
    pub(super) assignment: Arc<Assignment>,
    /// When it fires; none: only on demand.
    pub(super) when: Option<When>,
    /// Every slot up to here has been dealt with.
    pub(super) after: Timestamp,
}

impl Job {
    /// Whether its schedule is followed.
    pub(super) fn scheduled(&self) -> Option<&When> {
        match self.assignment.status {
            JobStatus::Running => self.when.as_ref(),
            JobStatus::Pause => None,
        }
    }

    /// Whether both follow the same schedule, so that slots missed under one are
    /// missed under the other.
    pub(super) fn same_schedule(&self, other: &Assignment) -> bool {
        let a = &self.assignment;
        (&a.express, &a.timezone, a.status, a.is_once())
            == (&other.express, &other.timezone, other.status, other.is_once())
    }
}

/// All of them, and what cannot be used.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// The valid ones by job id.
    pub(super) jobs: HashMap<Name, Job>,
    /// What is wrong with the others, by key.
    pub(super) problems: BTreeMap<String, String>,
    /// Claims in the future, which keep jobs that run once from running, by key.
    pub(super) ahead: BTreeMap<String, String>,
}

/// Reads the assignment at a key of this node. The id is the last part of the key, or
/// for the oldest form, `/cron/jobs/<ip>/`, the `task_id`.
pub(super) fn read(
    node: &NodeId,
    entry: &Entry,
) -> Result<(Name, Assignment, Option<When>), Invalid> {
    let assignment = Assignment::from_etcd(&entry.value)?;
    let when = assignment.validate()?;
    let rest = entry.key.strip_prefix(&keys::assignments_of(node)).unwrap_or_default();
    let id = assignment.id_at(rest)?;
    Ok((id, assignment, when))
}

impl Table {
    /// The job whose assignment stands at `key`.
    pub(super) fn at_key(&self, key: &str) -> Option<Name> {
        let last = key.rsplit('/').next().unwrap_or_default();
        if let Some((id, job)) = self.jobs.get_key_value(last) {
            return (job.key == key).then(|| id.clone());
        }
        // The oldest form, of which a node has one at most.
        self.jobs.iter().find(|(_, job)| job.key == key).map(|(id, _)| id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(rest: &str, value: &str) -> Entry {
        Entry {
            key: format!("/cron/jobs/127.0.0.1/{rest}"),
            value: value.into(),
            mod_revision: 1,
            create_revision: 1,
        }
    }

    fn id(rest: &str, value: &str) -> Result<String, String> {
        let node = Name::new("127.0.0.1").unwrap();
        read(&node, &entry(rest, value)).map(|r| r.0.to_string()).map_err(|e| e.field)
    }

    #[test]
    fn the_key_names_the_job_and_the_oldest_form_its_task_id() {
        assert_eq!(id("a", r#"{"cmd":"date"}"#), Ok("a".into()));
        assert_eq!(id("a", r#"{"cmd":"date","task_id":"a"}"#), Ok("a".into()));
        assert_eq!(id("", r#"{"cmd":"date","task_id":"b"}"#), Ok("b".into()));
        assert_eq!(id("", r#"{"cmd":"date"}"#), Err("task_id".into()));
        assert_eq!(id("a", r#"{"cmd":"date","task_id":"b"}"#), Err("task_id".into()));
        assert_eq!(id("a b", r#"{"cmd":"date"}"#), Err("(key)".into()));
        assert_eq!(id("a", "no json"), Err("(document)".into()));
        assert_eq!(id("a", r#"{"cmd":"date","executor":"perl"}"#), Err("executor".into()));
    }
}
