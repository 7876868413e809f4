//! What a change of a key means. A family of keys is one [`Projection`]: what is remembered
//! of a value, and what a change from one value to another tells.

use jiff::Timestamp;
use meepo_coord::{
    keys,
    records::{DrainRecord, LabelsRecord, LeaderRecord, decode},
};
use meepo_core::{
    api::CronId,
    code::Code,
    event::{Event, What},
    id::{Name, NodeId, RunId},
    job::JobStatus,
    node::{DRAINED, Health},
    run::RunState,
    task::{Control, Part, PartState, Task},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

/// A value where there is one, with the revision of its creation.
pub(super) type Written<'a> = Option<(&'a [u8], i64)>;

/// Events of one family of keys.
pub(super) trait Projection: Send {
    /// As much of a value as is needed to tell what changes: it is kept for every key.
    type Known: Send;
    /// Where the family lives.
    const PREFIX: &'static str;

    /// What a value says; `None`: nothing, as if there were no such key.
    fn read(value: &[u8], created: i64) -> Option<Self::Known>;

    /// What a change tells. `rest` is the key without the prefix; one of the values is there.
    fn tell(rest: &str, old: Option<&Self::Known>, new: Option<&Self::Known>) -> Vec<Event>;
}

/// A family with what it remembers.
pub(super) trait Track: Send {
    fn prefix(&self) -> &'static str;
    /// Takes in what is there before anything is told.
    fn seed(&mut self, key: &str, value: Written<'_>);
    /// Takes in a change and answers what it means.
    fn change(&mut self, key: &str, value: Written<'_>) -> Vec<Event>;
}

/// Every family, remembering nothing yet. A new family is one more line.
pub(super) fn all() -> Vec<Box<dyn Track>> {
    vec![
        Box::new(Tracked::<Jobs>::default()),
        Box::new(Tracked::<TreeJobs>::default()),
        Box::new(Tracked::<Tasks>::default()),
        Box::new(Tracked::<Parts>::default()),
        Box::new(Tracked::<Runs>::default()),
        Box::new(Tracked::<Nodes>::default()),
        Box::new(Tracked::<Online>::default()),
        Box::new(Tracked::<Labels>::default()),
        Box::new(Tracked::<Drains>::default()),
        Box::new(Tracked::<Leader>::default()),
    ]
}

struct Tracked<P: Projection> {
    known: BTreeMap<Box<str>, P::Known>,
}

impl<P: Projection> Default for Tracked<P> {
    fn default() -> Self {
        Self { known: BTreeMap::new() }
    }
}

impl<P: Projection> Track for Tracked<P> {
    fn prefix(&self) -> &'static str {
        P::PREFIX
    }

    fn seed(&mut self, key: &str, value: Written<'_>) {
        let Some(rest) = key.strip_prefix(P::PREFIX) else { return };
        if let Some(known) = value.and_then(|(value, created)| P::read(value, created)) {
            self.known.insert(rest.into(), known);
        }
    }

    fn change(&mut self, key: &str, value: Written<'_>) -> Vec<Event> {
        let Some(rest) = key.strip_prefix(P::PREFIX) else { return Vec::new() };
        let new = value.and_then(|(value, created)| P::read(value, created));
        let old = self.known.remove(rest);
        let told = match (&old, &new) {
            (None, None) => Vec::new(),
            (old, new) => P::tell(rest, old.as_ref(), new.as_ref()),
        };
        if let Some(new) = new {
            self.known.insert(rest.into(), new);
        }
        told
    }
}

fn name(text: &str) -> Option<Name> {
    Name::new(text).ok()
}

/// Hashes a value whatever the order of its fields. Whether `serde_json` keeps the order
/// it read is decided by what else is in the program.
fn hash_sorted(value: &Value, hasher: &mut impl Hasher) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            fields.len().hash(hasher);
            for (name, value) in fields {
                name.hash(hasher);
                hash_sorted(value, hasher);
            }
        }
        Value::Array(values) => {
            values.len().hash(hasher);
            values.iter().for_each(|value| hash_sorted(value, hasher));
        }
        other => other.to_string().hash(hasher),
    }
}

/// Definitions of jobs.
struct Jobs;

/// The status of a definition, and a fingerprint of all else in it.
struct Definition {
    status: JobStatus,
    rest: u64,
}

impl Projection for Jobs {
    type Known = Definition;
    const PREFIX: &'static str = keys::JOBS;

    fn read(value: &[u8], _: i64) -> Option<Definition> {
        let mut hasher = DefaultHasher::new();
        let mut status = JobStatus::default();
        // What cannot be read is a definition all the same, perhaps of a newer version.
        match serde_json::from_slice::<Value>(value) {
            Ok(mut json) => {
                let taken = json.as_object_mut().and_then(|o| o.remove("status"));
                let read = taken.and_then(|s| serde_json::from_value(s).ok());
                status = read.unwrap_or_default();
                hash_sorted(&json, &mut hasher);
            }
            Err(_) => value.hash(&mut hasher),
        }
        Some(Definition { status, rest: hasher.finish() })
    }

    fn tell(rest: &str, old: Option<&Definition>, new: Option<&Definition>) -> Vec<Event> {
        let Some(job) = name(rest) else { return Vec::new() };
        let event = |what| Event::new(what).job(Some(job.clone()));
        happened(old, new).into_iter().map(|(what, state)| Event { state, ..event(what) }).collect()
    }
}

/// Definitions at places in the product tree.
struct TreeJobs;

impl Projection for TreeJobs {
    type Known = Definition;
    const PREFIX: &'static str = keys::TREE_JOBS;

    fn read(value: &[u8], created: i64) -> Option<Definition> {
        Jobs::read(value, created)
    }

    fn tell(rest: &str, old: Option<&Definition>, new: Option<&Definition>) -> Vec<Event> {
        let Some((job, path)) = rest.split_once('/') else { return Vec::new() };
        let message = Some(format!("at {path} in the product tree"));
        let event = |what| Event { message: message.clone(), ..Event::new(what).job(name(job)) };
        happened(old, new).into_iter().map(|(what, state)| Event { state, ..event(what) }).collect()
    }
}

/// What became of a definition, with the status it has now.
fn happened(old: Option<&Definition>, new: Option<&Definition>) -> Vec<(What, Option<String>)> {
    let mut whats = Vec::new();
    match (old, new) {
        (None, _) => whats.push(What::JobCreated),
        (_, None) => whats.push(What::JobDeleted),
        (Some(old), Some(new)) => {
            if old.rest != new.rest {
                whats.push(What::JobUpdated);
            }
            match (old.status, new.status) {
                (a, b) if a == b => {}
                (_, JobStatus::Pause) => whats.push(What::JobPaused),
                (_, JobStatus::Running) => whats.push(What::JobResumed),
            }
        }
    }
    let state = new.map(|n| match n.status {
        JobStatus::Running => "running".to_owned(),
        JobStatus::Pause => "pause".to_owned(),
    });
    whats.into_iter().map(|what| (what, state.clone())).collect()
}

/// Tasks that are not over.
struct Tasks;

impl Projection for Tasks {
    type Known = (Control, u32);
    const PREFIX: &'static str = keys::TASKS;

    fn read(value: &[u8], _: i64) -> Option<(Control, u32)> {
        decode::<Task>(value).ok().map(|t| (t.control, t.pardoned))
    }

    fn tell(rest: &str, old: Option<&(Control, u32)>, new: Option<&(Control, u32)>) -> Vec<Event> {
        let what = match (old, new) {
            (None, _) => What::TaskCreated,
            (_, None) => What::TaskEnded,
            (Some(old), Some(new)) if old == new => return Vec::new(),
            (_, Some((control, _))) => match control {
                Control::Active => What::TaskResumed,
                Control::Paused => What::TaskPaused,
                Control::Cancelled => What::TaskCancelled,
                Control::Stopped => What::TaskStopped,
            },
        };
        vec![Event { task: Some(rest.to_owned()), ..Event::new(what) }]
    }
}

/// Their parts.
struct Parts;

/// How a part stands.
struct PartKnown {
    state: PartState,
    node: Option<NodeId>,
    code: Option<Code>,
    since: Timestamp,
}

impl Projection for Parts {
    type Known = PartKnown;
    const PREFIX: &'static str = keys::PARTS;

    fn read(value: &[u8], _: i64) -> Option<PartKnown> {
        let part: Part = decode(value).ok()?;
        let code = part.outcome.map(|o| o.code);
        Some(PartKnown { state: part.state, node: part.node, code, since: part.since })
    }

    fn tell(rest: &str, old: Option<&PartKnown>, new: Option<&PartKnown>) -> Vec<Event> {
        // They leave etcd with their task.
        let Some(new) = new.filter(|n| old.is_none_or(|o| o.state != n.state)) else {
            return Vec::new();
        };
        let Some((task, n)) = rest.split_once('/') else { return Vec::new() };
        vec![Event {
            at: Some(new.since),
            task: Some(task.to_owned()),
            part: n.parse().ok(),
            node: new.node.clone(),
            code: new.code.filter(|_| new.state != PartState::Reserved),
            ..Event::new(What::TaskPart).state(new.state.as_str())
        }]
    }
}

/// What each job runs now, or how its last run ended.
struct Runs;

/// A run, so far as it matters here.
struct RunKnown {
    run_id: RunId,
    state: RunState,
    event: Box<Event>,
}

impl Projection for Runs {
    type Known = RunKnown;
    const PREFIX: &'static str = keys::CRONIDS;

    fn read(value: &[u8], _: i64) -> Option<RunKnown> {
        let id: CronId = decode(value).ok()?;
        let ended = id.state.is_final();
        let event = Event {
            at: if ended { id.ended_at } else { id.started_at },
            run_id: Some(id.cronid),
            code: id.code,
            ..Event::new(if ended { What::RunEnded } else { What::RunStarted })
                .state(id.state.as_str())
        };
        Some(RunKnown { run_id: id.cronid, state: id.state, event: Box::new(event) })
    }

    fn tell(rest: &str, old: Option<&RunKnown>, new: Option<&RunKnown>) -> Vec<Event> {
        let Some((node, job)) = rest.split_once('/') else { return Vec::new() };
        let place = |event: Event| event.node(name(node)).job(name(job));
        let away = |old: &RunKnown| Event {
            run_id: Some(old.run_id),
            ..Event::new(What::RunAway).state(old.state.as_str())
        };
        match (old, new) {
            // Written again under another lease.
            (Some(old), Some(new)) if (old.run_id, old.state) == (new.run_id, new.state) => {
                Vec::new()
            }
            (_, Some(new)) => vec![place((*new.event).clone())],
            (Some(old), None) if !old.state.is_final() => vec![place(away(old))],
            _ => Vec::new(),
        }
    }
}

/// Nodes ever seen.
struct Nodes;

impl Projection for Nodes {
    type Known = ();
    const PREFIX: &'static str = keys::NODES;

    fn read(_: &[u8], _: i64) -> Option<()> {
        Some(())
    }

    fn tell(rest: &str, old: Option<&()>, new: Option<&()>) -> Vec<Event> {
        let what = match (old, new) {
            (None, Some(())) => What::NodeRegistered,
            (Some(()), None) => What::NodeForgotten,
            // It registers with every start.
            _ => return Vec::new(),
        };
        vec![Event::new(what).node(name(rest))]
    }
}

/// Health records.
struct Online;

/// What of a health record does not change with every heartbeat.
struct Alive {
    instance: String,
    drained: bool,
    labels: BTreeMap<String, String>,
}

impl Projection for Online {
    type Known = Alive;
    const PREFIX: &'static str = keys::HEALTH;

    fn read(value: &[u8], _: i64) -> Option<Alive> {
        // A worker of another version is there, too.
        let read = decode::<Health>(value).ok();
        let (instance, status, labels) =
            read.map(|h| (h.instance, h.status, h.labels)).unwrap_or_default();
        Some(Alive { instance, drained: status == DRAINED, labels })
    }

    fn tell(rest: &str, old: Option<&Alive>, new: Option<&Alive>) -> Vec<Event> {
        let Some(node) = name(rest) else { return Vec::new() };
        let event = |what| Event::new(what).node(Some(node.clone()));
        let Some(new) = new else { return vec![event(What::NodeOffline)] };
        let mut events = Vec::new();
        let labels = || Some(new.labels.clone()).filter(|l| !l.is_empty());
        match old {
            None => events.push(Event { labels: labels(), ..event(What::NodeOnline) }),
            Some(old) => {
                if old.instance != new.instance {
                    events.push(event(What::NodeRestarted));
                }
                if old.labels != new.labels {
                    let labels = Some(new.labels.clone());
                    events.push(Event { labels, ..event(What::NodeLabels) });
                }
            }
        }
        if new.drained && !old.is_some_and(|o| o.drained) {
            events.push(event(What::NodeDrained));
        }
        events
    }
}

/// Labels that the API set.
struct Labels;

impl Projection for Labels {
    type Known = BTreeMap<String, String>;
    const PREFIX: &'static str = keys::LABELS;

    fn read(value: &[u8], _: i64) -> Option<Self::Known> {
        decode::<LabelsRecord>(value).ok().map(|r| r.labels)
    }

    fn tell(rest: &str, old: Option<&Self::Known>, new: Option<&Self::Known>) -> Vec<Event> {
        if old == new {
            return Vec::new();
        }
        let labels = Some(new.cloned().unwrap_or_default());
        let message = Some("set by the API".to_owned());
        vec![Event { labels, message, ..Event::new(What::NodeLabels).node(name(rest)) }]
    }
}

/// Nodes that are to take nothing new.
struct Drains;

impl Projection for Drains {
    type Known = Option<Timestamp>;
    const PREFIX: &'static str = keys::DRAINS;

    fn read(value: &[u8], _: i64) -> Option<Option<Timestamp>> {
        Some(decode::<DrainRecord>(value).ok().map(|d| d.requested_at))
    }

    fn tell(
        rest: &str,
        old: Option<&Option<Timestamp>>,
        new: Option<&Option<Timestamp>>,
    ) -> Vec<Event> {
        let (what, at) = match (old, new) {
            (None, Some(at)) => (What::NodeDraining, *at),
            (Some(_), None) => (What::NodeUndrained, None),
            // Another deadline.
            _ => return Vec::new(),
        };
        let node: Option<NodeId> = name(rest);
        vec![Event { at, ..Event::new(what).node(node) }]
    }
}

/// The leading master.
struct Leader;

impl Projection for Leader {
    type Known = (String, i64);
    const PREFIX: &'static str = keys::LEADER;

    fn read(value: &[u8], created: i64) -> Option<(String, i64)> {
        let record = decode::<LeaderRecord>(value).ok();
        Some((record.map(|r| r.http).unwrap_or_default(), created))
    }

    fn tell(rest: &str, old: Option<&(String, i64)>, new: Option<&(String, i64)>) -> Vec<Event> {
        let (what, (master, term)) = match (old, new) {
            // Keys that only begin like that of the leader.
            _ if !rest.is_empty() => return Vec::new(),
            (Some(old), Some(new)) if old == new => return Vec::new(),
            (_, Some(new)) => (What::LeaderElected, new),
            (Some(old), None) => (What::LeaderGone, old),
            (None, None) => return Vec::new(),
        };
        let master = Some(master.clone()).filter(|m| !m.is_empty());
        vec![Event { master, term: Some(*term), ..Event::new(what) }]
    }
}

#[cfg(test)]
#[path = "families_tests.rs"]
mod tests;
