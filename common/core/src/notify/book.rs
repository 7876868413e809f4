//! Everything the leading master remembers of what was told and what is to be told. It stands
//! in etcd, key by key ([`Item`]); a change of leader takes nothing from it.
//!
//! What is taken in and what comes of it are one step: whoever carries it out writes all
//! [changes](Book::changes) in one transaction, so nothing is told twice and nothing is
//! forgotten, whenever that master dies.

mod flush;
mod take;

use super::{Channel, Class, Cursor, Flow, Group, Happening, Incident, JobNotify, Message, Rule};
use crate::{
    duration::HumanDuration,
    id::{Name, NodeId, RunId},
    node::NodeInfo,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};

/// What a book asks about the fleet.
pub trait Surroundings {
    /// A node, where it is known.
    fn node(&self, id: &NodeId) -> Option<NodeInfo>;
    /// The field `notify` of a job, on a node where one is named.
    fn notify_of(&self, job: &Name, node: Option<&NodeId>) -> Option<JobNotify>;
    /// Whether a slot of the job runs on one node for all: its runs are told of as one.
    fn is_once(&self, job: &Name) -> bool;
}

/// A job that must succeed now and then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Silence {
    /// In this time.
    pub within: HumanDuration,
    /// Since when it is watched, or its last success, UTC.
    pub since: Timestamp,
    /// It has not, and that was told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told: bool,
}

/// What is remembered of a job on a node, of a node, or of a task: the value at
/// `/meepo/notify/subjects/<subject>`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// The job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Name>,
    /// The node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// How far the tallies of nodes have been read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub seen: BTreeMap<NodeId, Cursor>,
    /// When the last run that failed ended, if none has succeeded since, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<Timestamp>,
    /// When the last run that counted succeeded, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<Timestamp>,
    /// The newest runs that were told as lost with their node: it may yet tell of them itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<RunId>,
    /// It must succeed now and then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<Silence>,
    /// It is a node that is gone, or a task with buried parts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub down: bool,
    /// What is wrong, by rule.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub open: BTreeMap<String, BTreeMap<Class, Incident>>,
}

impl Subject {
    /// Nothing about it need be remembered.
    fn is_idle(&self) -> bool {
        let Self { seen, failing, silence, down, open, lost, .. } = self;
        let quiet = failing.is_none() && silence.is_none() && !down && lost.is_empty();
        seen.is_empty() && open.is_empty() && quiet
    }

    /// A happening about it.
    fn happening(&self, kind: super::Kind, at: Timestamp) -> Happening {
        Happening {
            job: self.job.clone(),
            node: self.node.clone(),
            task: self.task.clone(),
            ..Happening::new(kind, at)
        }
    }

    /// When time alone makes it worth telling.
    fn next(&self) -> Option<Timestamp> {
        let silence = self.silence.as_ref().filter(|s| !s.told).map(Silence::due);
        let lasting = self.open.values().flatten().filter(|(class, _)| class.lasts());
        silence.into_iter().chain(lasting.filter_map(|(_, i)| i.again)).min()
    }
}

/// A key of the book.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// What is remembered of a job, a node or a task.
    Subject(String),
    /// What waits to go into one message: rule and group.
    Group(String, String),
    /// How much a channel may be sent.
    Flow(Name),
    /// A message.
    Message(String),
}

/// A value to be written, or with `None` to be deleted.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Where.
    pub item: Item,
    /// What.
    pub value: Option<Vec<u8>>,
}

/// The book.
#[derive(Debug, Clone, Default)]
pub struct Book {
    rules: BTreeMap<Name, Rule>,
    channels: BTreeMap<Name, Channel>,
    subjects: BTreeMap<String, Subject>,
    groups: BTreeMap<(String, String), Group>,
    flows: BTreeMap<Name, Flow>,
    messages: BTreeMap<String, Message>,
    /// When time alone makes subjects worth telling of.
    timed: BTreeMap<String, Timestamp>,
    /// The same, by time.
    timers: BTreeSet<(Timestamp, String)>,
    dirty: BTreeSet<Item>,
    /// Messages that were to be held back since this was last asked, by channel.
    throttled: BTreeMap<Name, u64>,
}

fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|e| e.to_string())
}

impl Book {
    /// Takes in what stood in etcd when this master began to lead.
    ///
    /// # Errors
    /// A value that cannot be read; the book goes on without it.
    pub fn load(&mut self, item: Item, value: &[u8]) -> Result<(), String> {
        match item {
            Item::Subject(key) => {
                let subject: Subject = read(value)?;
                self.subjects.insert(key.clone(), subject);
                self.set_timer(&key);
            }
            Item::Group(rule, group) => {
                self.groups.insert((rule, group), read(value)?);
            }
            Item::Flow(channel) => {
                self.flows.insert(channel, read(value)?);
            }
            Item::Message(id) => {
                self.messages.insert(id, read(value)?);
            }
        }
        Ok(())
    }

    /// A rule is there, or with `None` is not any more.
    pub fn set_rule(&mut self, name: Name, rule: Option<Rule>) {
        match rule {
            Some(rule) => drop(self.rules.insert(name, rule)),
            None => {
                self.rules.remove(&name);
                let its = |s: &&mut Subject| s.open.contains_key(name.as_str());
                let keys: Vec<String> = self
                    .subjects
                    .iter_mut()
                    .filter(|(_, s)| its(s))
                    .map(|(key, s)| {
                        s.open.remove(name.as_str());
                        key.clone()
                    })
                    .collect();
                keys.iter().for_each(|key| self.store(key));
            }
        }
    }

    /// A channel is there, or with `None` is not any more.
    pub fn set_channel(&mut self, name: Name, channel: Option<Channel>) {
        match channel {
            Some(channel) => drop(self.channels.insert(name, channel)),
            None => {
                self.channels.remove(&name);
                if self.flows.remove(&name).is_some() {
                    self.dirty.insert(Item::Flow(name));
                }
            }
        }
    }

    /// The channels there are.
    pub fn channel(&self, name: &Name) -> Option<&Channel> {
        self.channels.get(name)
    }

    /// Rules and channels as they were listed anew: others are not there any more.
    pub fn keep_only(&mut self, rules: &BTreeSet<Name>, channels: &BTreeSet<Name>) {
        let gone: Vec<Name> = self.rules.keys().filter(|n| !rules.contains(*n)).cloned().collect();
        gone.into_iter().for_each(|name| self.set_rule(name, None));
        let gone: Vec<Name> =
            self.channels.keys().filter(|n| !channels.contains(*n)).cloned().collect();
        gone.into_iter().for_each(|name| self.set_channel(name, None));
    }

    /// What is to be written, in one transaction, since this was last asked.
    pub fn changes(&mut self) -> Vec<Change> {
        fn json<T: Serialize>(value: Option<&T>) -> Option<Vec<u8>> {
            // The values have string keys and nothing that can fail.
            value.and_then(|v| serde_json::to_vec(v).ok())
        }
        let dirty = std::mem::take(&mut self.dirty);
        let change = |item: Item| {
            let value = match &item {
                Item::Subject(key) => json(self.subjects.get(key)),
                Item::Group(rule, group) => json(self.groups.get(&(rule.clone(), group.clone()))),
                Item::Flow(channel) => json(self.flows.get(channel)),
                Item::Message(id) => json(self.messages.get(id)),
            };
            Change { item, value }
        };
        dirty.into_iter().map(change).collect()
    }

    /// Whether anything is to be written.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// How many keys are to be written.
    pub fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// How many messages were held back since this was last asked, by channel.
    pub fn take_throttled(&mut self) -> BTreeMap<Name, u64> {
        std::mem::take(&mut self.throttled)
    }

    /// What is remembered, by subject.
    pub fn subjects(&self) -> impl Iterator<Item = (&String, &Subject)> {
        self.subjects.iter()
    }

    #[cfg(test)]
    pub(super) fn groups_len(&self) -> usize {
        self.groups.len()
    }

    #[cfg(test)]
    pub(super) fn messages_len(&self) -> usize {
        self.messages.len()
    }

    /// A subject has changed.
    fn store(&mut self, key: &str) {
        let idle = self.subjects.get(key).is_none_or(Subject::is_idle);
        self.set_timer(key);
        if idle {
            self.subjects.remove(key);
        }
        self.dirty.insert(Item::Subject(key.to_owned()));
    }

    fn set_timer(&mut self, key: &str) {
        let next = self.subjects.get(key).and_then(Subject::next);
        let before = match next {
            Some(at) => self.timed.insert(key.to_owned(), at),
            None => self.timed.remove(key),
        };
        if let Some(at) = before {
            self.timers.remove(&(at, key.to_owned()));
        }
        if let Some(at) = next {
            self.timers.insert((at, key.to_owned()));
        }
    }

    /// The rule of this name: one in etcd, or that of a job.
    fn rule(&self, name: &str, subject: &Subject, around: &dyn Surroundings) -> Option<Rule> {
        match name.strip_prefix("job:") {
            None => self.rules.get(name).cloned(),
            Some(_) => job_rule(subject.job.as_ref(), subject.node.as_ref(), around),
        }
    }
}

/// The rule that a job's own field stands for.
fn job_rule(job: Option<&Name>, node: Option<&NodeId>, around: &dyn Surroundings) -> Option<Rule> {
    let job = job?;
    around.notify_of(job, node).map(|notify| notify.rule(job))
}
