//! The jobs this node holds: read from etcd, checked, and what is wrong with the
//! others.
//!
//! A node may hold a million, so a job is kept as the text that etcd has and is read
//! again when it fires; what its schedule is compiled to is shared by all jobs that
//! have the same.

use hashbrown::HashTable;
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{Entry, keys};
use meepo_core::{
    digest::{self, Digest},
    error::Invalid,
    id::{Name, NodeId},
    job::{Assignment, JobStatus, When},
};
use std::{
    collections::{BTreeMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    num::NonZeroU32,
    sync::Arc,
};

/// A valid assignment.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Its id.
    pub(super) id: Name,
    /// The assignment as it stands in etcd.
    value: Box<[u8]>,
    /// When it fires; none: only on demand.
    pub(super) when: Option<Arc<When>>,
    /// Every slot up to here has been dealt with.
    pub(super) after: Timestamp,
    /// Scheduled runs that have begun.
    pub(super) runs: u32,
    /// How many may; none: no limit.
    max_runs: Option<NonZeroU32>,
    /// How much later than its slots it starts, in milliseconds.
    delay_ms: u32,
    /// Its key is `/cron/jobs/<ip>/`, the oldest form.
    oldest_form: bool,
    status: JobStatus,
    once: bool,
}

/// An assignment as it was read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) id: Name,
    pub(super) assignment: Assignment,
    pub(super) when: Option<When>,
    oldest_form: bool,
}

impl Read {
    /// Reads the assignment at a key of this node. The id is the last part of the key,
    /// or for the oldest form, `/cron/jobs/<ip>/`, the `task_id`.
    pub(super) fn new(node: &NodeId, entry: &Entry) -> Result<Self, Invalid> {
        let (assignment, when) = Assignment::read(&entry.value)?;
        let rest = entry.key.strip_prefix(&keys::assignments_of(node)).unwrap_or_default();
        let id = assignment.id_at(rest)?;
        Ok(Self { id, assignment, when, oldest_form: rest.is_empty() })
    }

    /// Whether it has one slot only.
    pub(super) fn is_at(&self) -> bool {
        self.when.as_ref().is_some_and(|when| when.schedule.is_at())
    }
}

impl Job {
    /// Whether its schedule is followed.
    pub(super) fn scheduled(&self) -> Option<&When> {
        match self.status {
            JobStatus::Running => self.when.as_deref(),
            JobStatus::Pause => None,
        }
    }

    /// Whether a slot runs on one node of the cluster only.
    pub(super) fn is_once(&self) -> bool {
        self.once
    }

    /// Whether as many slots have run as may.
    pub(super) fn is_exhausted(&self) -> bool {
        self.max_runs.is_some_and(|max| self.runs >= max.get())
    }

    /// How many slots have run, if that is as many as may. Slots of a job that runs once are
    /// counted by their claims.
    pub(super) fn spent(&self) -> Option<u32> {
        Some(self.runs).filter(|_| self.is_exhausted() && !self.once)
    }

    /// How many slots may run still.
    pub(super) fn runs_left(&self) -> usize {
        self.max_runs.map_or(usize::MAX, |max| max.get().saturating_sub(self.runs) as usize)
    }

    /// How much later than its slots it starts.
    pub(super) fn delay(&self) -> SignedDuration {
        SignedDuration::from_millis(self.delay_ms.into())
    }

    /// What to run and how.
    ///
    /// # Errors
    /// None: the text was read before.
    pub(super) fn assignment(&self) -> Result<Assignment, Invalid> {
        Assignment::again(&self.value)
    }

    /// The key of the cursor of its claimed slots, if it runs once in the cluster.
    pub(super) fn claim_key(&self) -> String {
        let tree = self.assignment().map(|a| a.tree).unwrap_or_default();
        keys::claim_at(&self.id, &tree)
    }

    /// Its key in etcd.
    pub(super) fn key(&self, node: &NodeId) -> String {
        if self.oldest_form {
            return keys::assignments_of(node);
        }
        keys::assignment(node, &self.id)
    }

    /// Whether both follow the same schedule, so that slots missed under one are
    /// missed under the other.
    pub(super) fn same_schedule(&self, new: &Read) -> bool {
        (self.when.as_deref(), self.status, self.once)
            == (new.when.as_ref(), new.assignment.status, new.assignment.is_once())
    }

    /// Whether both have the same slots, followed or not.
    pub(super) fn same_times(&self, new: &Read) -> bool {
        self.when.as_deref() == new.when.as_ref()
    }

    /// Its part of the digest.
    fn pair(&self) -> u64 {
        let rest = if self.oldest_form { "" } else { self.id.as_str() };
        digest::pair(rest, &self.value)
    }

    /// Whether it is held as `value` at a key of the same form.
    pub(super) fn is(&self, value: &[u8]) -> bool {
        *self.value == *value
    }
}

/// All of them, and what cannot be used.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// The valid ones by number; free numbers are used again.
    jobs: Vec<Option<Job>>,
    free: Vec<u32>,
    /// The numbers by the hash of the id: the ids themselves stand in `jobs`.
    numbers: HashTable<u32>,
    hasher: RandomState,
    /// The compiled schedules of all jobs.
    whens: HashSet<Arc<When>>,
    /// The job whose key is of the oldest form, of which a node has one at most.
    oldest: Option<Name>,
    /// What is wrong with the others, by key.
    pub(super) problems: BTreeMap<String, String>,
    /// Their parts of the digest.
    refused: BTreeMap<String, u64>,
    /// Of all that stands in etcd, usable or not.
    digest: Digest,
    /// Claims in the future, which keep jobs that run once from running, by key.
    pub(super) ahead: BTreeMap<String, String>,
    /// Jobs that are held and that the lists of this node do not let run, by key.
    pub(super) barred: BTreeMap<String, String>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// One number for everything that is held, also what cannot be used.
    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    /// Notes what is wrong with what stands at a key; answers what was wrong before.
    pub(super) fn refuse(&mut self, node: &NodeId, entry: &Entry, why: String) -> Option<String> {
        let rest = entry.key.strip_prefix(&keys::assignments_of(node)).unwrap_or_default();
        let pair = digest::pair(rest, &entry.value);
        self.digest.add(pair);
        if let Some(old) = self.refused.insert(entry.key.clone(), pair) {
            self.digest.remove(old);
        }
        self.problems.insert(entry.key.clone(), why)
    }

    /// Nothing that cannot be used stands at a key any more; answers what was wrong.
    pub(super) fn refuse_no_more(&mut self, key: &str) -> Option<String> {
        if let Some(pair) = self.refused.remove(key) {
            self.digest.remove(pair);
        }
        self.problems.remove(key)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &Name> {
        self.jobs().map(|job| &job.id)
    }

    pub(super) fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().flatten()
    }

    pub(super) fn number(&self, id: &Name) -> Option<u32> {
        self.find(id.as_str())
    }

    fn find(&self, id: &str) -> Option<u32> {
        let same = |number: &u32| self.at(*number).is_some_and(|job| job.id.as_str() == id);
        self.numbers.find(self.hasher.hash_one(id), same).copied()
    }

    pub(super) fn at(&self, number: u32) -> Option<&Job> {
        self.jobs.get(number as usize)?.as_ref()
    }

    pub(super) fn get(&self, id: &Name) -> Option<&Job> {
        self.at(self.number(id)?)
    }

    pub(super) fn get_mut(&mut self, id: &Name) -> Option<&mut Job> {
        let number = self.number(id)?;
        self.jobs.get_mut(number as usize)?.as_mut()
    }

    /// Puts a job in the place of the one with its id; answers its number.
    pub(super) fn insert(
        &mut self,
        node: &NodeId,
        read: Read,
        value: Vec<u8>,
        after: Timestamp,
        runs: u32,
    ) -> u32 {
        let Read { id, assignment, when, oldest_form } = read;
        let there = self.number(&id);
        let new = there.is_none();
        let number = match there {
            Some(number) => {
                self.clear(number);
                number
            }
            None => self.free.pop().unwrap_or_else(|| {
                self.jobs.push(None);
                // A node does not hold four billion jobs.
                (self.jobs.len() - 1) as u32
            }),
        };
        if oldest_form {
            self.oldest = Some(id.clone());
        }
        let delay = assignment.delay(&id, node).as_millis();
        let when = when.map(|when| self.share(when));
        let job = Job {
            id,
            value: value.into_boxed_slice(),
            when,
            after,
            runs,
            max_runs: assignment.max_runs.and_then(NonZeroU32::new),
            delay_ms: u32::try_from(delay).unwrap_or(u32::MAX),
            oldest_form,
            status: assignment.status,
            once: assignment.is_once(),
        };
        self.digest.add(job.pair());
        self.jobs[number as usize] = Some(job);
        if new {
            let Self { numbers, hasher, jobs, .. } = self;
            let hash = |number: &u32| {
                let job = jobs.get(*number as usize).and_then(Option::as_ref);
                hasher.hash_one(job.map_or("", |job| job.id.as_str()))
            };
            numbers.insert_unique(hash(&number), number, hash);
        }
        number
    }

    /// Takes a job out; answers the number it had.
    pub(super) fn remove(&mut self, id: &Name) -> Option<u32> {
        let number = self.number(id)?;
        let hash = self.hasher.hash_one(id.as_str());
        if let Ok(entry) = self.numbers.find_entry(hash, |n| *n == number) {
            entry.remove();
        }
        self.clear(number);
        self.free.push(number);
        if self.oldest.as_ref() == Some(id) {
            self.oldest = None;
        }
        Some(number)
    }

    /// The job whose assignment stands at `key`.
    pub(super) fn at_key(&self, node: &NodeId, key: &str) -> Option<Name> {
        match key.rsplit('/').next().unwrap_or_default() {
            "" if key == keys::assignments_of(node) => self.oldest.clone(),
            "" => None,
            id => {
                let job = self.at(self.find(id)?)?;
                // A key with more parts is another.
                (job.key(node) == key).then(|| job.id.clone())
            }
        }
    }

    fn clear(&mut self, number: u32) {
        let job = self.jobs.get_mut(number as usize).and_then(Option::take);
        if let Some(job) = &job {
            self.digest.remove(job.pair());
        }
        if let Some(when) = job.and_then(|job| job.when)
            // This one and that of the set.
            && Arc::strong_count(&when) == 2
        {
            self.whens.remove(&when);
        }
    }

    fn share(&mut self, when: When) -> Arc<When> {
        if let Some(shared) = self.whens.get(&when) {
            return shared.clone();
        }
        let when = Arc::new(when);
        self.whens.insert(when.clone());
        when
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

    fn node() -> NodeId {
        Name::new("127.0.0.1").unwrap()
    }

    fn id(rest: &str, value: &str) -> Result<String, String> {
        Read::new(&node(), &entry(rest, value)).map(|r| r.id.to_string()).map_err(|e| e.field)
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

    #[test]
    fn the_digest_is_of_everything_that_stands_in_etcd() {
        let mut table = Table::default();
        let values = [
            ("a", r#"{"cmd":"date"}"#),
            ("a", r#"{"cmd":"true"}"#),
            ("", r#"{"cmd":"date","task_id":"b"}"#),
        ];
        for (rest, value) in values {
            let entry = entry(rest, value);
            let read = Read::new(&node(), &entry).unwrap();
            table.insert(&node(), read, entry.value, Timestamp::UNIX_EPOCH, 0);
        }
        let bad = entry("x", "no json");
        table.refuse(&node(), &bad, "bad".into());
        table.refuse(&node(), &bad, "bad".into());
        let of = |held: &[(&str, &str)]| {
            let mut want = Digest::default();
            held.iter().for_each(|(rest, value)| want.add(digest::pair(rest, value.as_bytes())));
            want
        };
        assert_eq!(table.digest(), of(&[values[1], values[2], ("x", "no json")]));
        table.refuse_no_more(&bad.key);
        table.refuse_no_more(&bad.key);
        table.remove(&Name::new("b").unwrap());
        assert_eq!(table.digest(), of(&[values[1]]));
    }

    #[test]
    fn numbers_and_compiled_schedules_are_shared_and_given_back() {
        let mut table = Table::default();
        let put = |table: &mut Table, name: &str, express: &str| {
            let value = format!(r#"{{"cmd":"date","express":"{express}","jitter":"1h"}}"#);
            let entry = entry(name, &value);
            let read = Read::new(&node(), &entry).unwrap();
            table.insert(&node(), read, entry.value, Timestamp::UNIX_EPOCH, 0)
        };
        let numbers = ["a", "b", "c"].map(|name| put(&mut table, name, "1 * * * *"));
        assert_eq!((numbers, table.whens.len(), table.len()), ([0, 1, 2], 1, 3));
        let delay = |table: &Table, number| table.at(number).unwrap().delay();
        assert_ne!(delay(&table, 0), delay(&table, 1));
        assert_eq!(put(&mut table, "b", "2 * * * *"), 1);
        assert_eq!(table.whens.len(), 2);
        let b = Name::new("b").unwrap();
        assert_eq!(table.get(&b).unwrap().key(&node()), "/cron/jobs/127.0.0.1/b");
        assert_eq!(table.remove(&b), Some(1));
        assert_eq!((table.whens.len(), table.remove(&b)), (1, None));
        assert_eq!(put(&mut table, "d", "1 * * * *"), 1, "its number is free");
        assert_eq!(table.ids().count(), table.jobs().count());
    }
}
