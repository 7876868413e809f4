//! What a user sends, and how it becomes a task.

use super::{
    id::TaskId,
    record::{
        Control, DEFAULT_PRIORITY, DEFAULT_TTR, OnFailure, OnLoss, PartSpec, Policy, Task,
        TaskCommand,
    },
    repeat::Repeat,
};
use crate::{
    code::Code,
    duration::HumanDuration,
    error::Invalid,
    id::{Name, NodeId},
    input::{from_value, unknown_field},
    job::MAX_TIMEOUT,
    node::NodeInfo,
    retry::{self, Retry},
    rollout::Rollout,
    run::to_millis,
    target::Target,
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Most parts of a task.
pub const MAX_PARTS: usize = 10_000;
/// Longest command in bytes. Linux takes no argument of more than 128 KiB.
pub const MAX_CMD: usize = 100 * 1024;
/// Longest name of a task in bytes.
pub const MAX_TASK_NAME: usize = 200;
/// Longest delay, and the latest `at` from now.
pub const MAX_DELAY: Duration = Duration::from_secs(366 * 24 * 3600);

/// Body of `POST /v1/tasks`. Either `target`, `hosts` or `queue` says where; either `cmd`
/// (with the other fields of a command beside it) or `commands` says what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct TaskRequest {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Idempotency key: the same request with the same key is the same task, for a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Name>,
    /// The nodes, one part each; with `queue` those that may serve it, `all` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The nodes by their ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<NodeId>,
    /// Any suitable worker that is idle takes it, one part per command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Name>,
    /// What to run.
    #[serde(flatten)]
    pub command: TaskCommand,
    /// Several commands, each with its own nodes; in a queue a part each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<TaskItem>,
    /// The smaller is the first. Default 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Begin so much later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<HumanDuration>,
    /// Begin no sooner than at this instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub at: Option<Timestamp>,
    /// Drop a part that has not begun so long after it could. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<HumanDuration>,
    /// How long a worker may have a part; then it is ended. Default 1h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttr: Option<HumanDuration>,
    /// Whether and when a part that failed is tried again. Default: it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// What becomes of it after that. Default: `bury` with `retry`, else `fail`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// What becomes of a part whose worker died. Default `release`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_loss: Option<OnLoss>,
    /// In which portions parts are let go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// How often each part is run. Default: once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Repeat>,
    /// Fields that do not exist.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub extra: BTreeMap<String, Value>,
}

/// One of several commands of a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct TaskItem {
    /// The nodes; not in a queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The nodes by their ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<NodeId>,
    /// What to run there.
    #[serde(flatten)]
    pub command: TaskCommand,
    /// Fields that do not exist.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub extra: BTreeMap<String, Value>,
}

/// Fields of a request beside those of its command.
pub const FIELDS: &[&str] = &[
    "name",
    "key",
    "target",
    "hosts",
    "queue",
    "commands",
    "priority",
    "delay",
    "at",
    "ttl",
    "ttr",
    "retry",
    "on_failure",
    "on_loss",
    "rollout",
    "repeat",
];
/// … and of an item.
const ITEM_FIELDS: &[&str] = &["target", "hosts"];

fn bad<T>(field: &str, problem: impl Into<String>, expected: &str) -> Result<T, Invalid> {
    Err(Invalid::new(Code::BAD_VALUE, field, problem, expected))
}

impl TaskRequest {
    /// Reads what a user sent: unknown fields are refused, everything is validated that
    /// does not depend on the fleet.
    pub fn from_user(value: Value) -> Result<Self, Invalid> {
        let request: Self = from_value(value)?;
        request.validate()?;
        Ok(request)
    }

    /// Checks everything that does not depend on the fleet.
    pub fn validate(&self) -> Result<(), Invalid> {
        let known = |own: &'static [&'static str]| [own, TaskCommand::FIELDS].concat();
        if let Some(field) = self.extra.keys().next() {
            return Err(unknown_field(field, &known(FIELDS)));
        }
        if let Some(target) = &self.target {
            Target::parse(target)?;
        }
        if self.name.as_ref().is_some_and(|n| n.len() > MAX_TASK_NAME || n.contains(['\n', '\0'])) {
            return bad("name", "too long, or more than a line", "a line of at most 200 bytes");
        }
        if self.commands.is_empty() {
            check(&self.command)?;
        } else if self.command != TaskCommand::default() {
            let expected = "what to run either here or in each of `commands`";
            return bad("cmd", "stands beside `commands`", expected);
        }
        for (i, item) in self.commands.iter().enumerate() {
            let inside = |e: Invalid| {
                let field = format!("commands[{i}].{}", e.field);
                e.at(field)
            };
            if let Some(field) = item.extra.keys().next() {
                return Err(inside(unknown_field(field, &known(ITEM_FIELDS))));
            }
            if let Some(target) = &item.target {
                Target::parse(target).map_err(inside)?;
            }
            check(&item.command).map_err(inside)?;
        }
        self.check_places()?;
        self.check_times()
    }

    fn check_places(&self) -> Result<(), Invalid> {
        let named = |target: &Option<String>, hosts: &Vec<NodeId>| {
            usize::from(target.is_some()) + usize::from(!hosts.is_empty())
        };
        let top = named(&self.target, &self.hosts);
        if self.queue.is_some() {
            if !self.hosts.is_empty() {
                let expected = "a `target` for the nodes that may serve the queue, or no `queue`";
                return bad("hosts", "nodes are named for a task of a queue", expected);
            }
            let placed = |i: &TaskItem| named(&i.target, &i.hosts) > 0;
            return match self.commands.iter().position(placed) {
                Some(i) => {
                    let field = format!("commands[{i}].target");
                    bad(&field, "nodes are named for a task of a queue", "no nodes, or no `queue`")
                }
                None => Ok(()),
            };
        }
        let expected = "a `target` such as \"group=web\", a list of `hosts`, or a `queue`";
        if top > 1 {
            return bad("hosts", "given beside `target`", "one of them");
        }
        if self.commands.is_empty() && top == 0 {
            return bad("target", "nothing says where to run it", expected);
        }
        for (i, item) in self.commands.iter().enumerate() {
            match top + named(&item.target, &item.hosts) {
                1 => {}
                0 => return bad(&format!("commands[{i}].target"), "nothing says where", expected),
                _ => {
                    let expected = "the nodes either here or for the whole task";
                    return bad(&format!("commands[{i}].target"), "given twice", expected);
                }
            }
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), Invalid> {
        if self.delay.is_some() && self.at.is_some() {
            return bad("at", "given beside `delay`", "one of them");
        }
        if self.delay.is_some_and(|d| d.0 > MAX_DELAY) {
            return bad("delay", "out of range", "a duration of at most 366 days");
        }
        for (field, time) in [("ttl", self.ttl), ("ttr", self.ttr)] {
            if time.is_some_and(|t| t.0 < Duration::from_secs(1) || t.0 > MAX_TIMEOUT) {
                return bad(field, "out of range", "a duration from 1s to a year");
            }
        }
        self.rollout.as_ref().map_or(Ok(()), Rollout::validate)?;
        self.repeat.as_ref().map_or(Ok(()), Repeat::validate)?;
        if self.rollout.is_some() && self.repeat.is_some_and(|r| r.times.is_none()) {
            let expected = "`times`: the next portion waits for the end of the one before";
            return bad("repeat", "has no end, and the task is rolled out", expected);
        }
        self.retry.as_ref().map_or(Ok(()), Retry::validate)
    }

    /// The targets that say which nodes get parts.
    pub fn targets(&self) -> impl Iterator<Item = &String> {
        let own = self.target.iter().filter(|_| self.queue.is_none());
        own.chain(self.commands.iter().filter_map(|item| item.target.as_ref()))
    }

    /// The node ids written out, if nothing else says which nodes are meant: then only
    /// these must be looked up.
    pub fn only_ids(&self) -> Option<BTreeSet<NodeId>> {
        let places = || self.commands.iter().map(|i| (&i.target, &i.hosts));
        let all = || std::iter::once((&self.target, &self.hosts)).chain(places());
        let named = self.queue.is_some() || all().all(|(target, _)| target.is_none());
        named.then(|| all().flat_map(|(_, hosts)| hosts.iter().cloned()).collect())
    }

    /// The task this asks for, given the nodes there are. It must be valid.
    ///
    /// # Errors
    /// A host that does not exist, a target that means none, too many parts.
    pub fn task(
        &self,
        id: TaskId,
        nodes: &BTreeMap<NodeId, NodeInfo>,
        now: Timestamp,
    ) -> Result<Task, Invalid> {
        let now = to_millis(now);
        let (mut commands, mut parts) = (Vec::new(), Vec::new());
        let single = [TaskItem { command: self.command.clone(), ..TaskItem::default() }];
        let items = if self.commands.is_empty() { &single[..] } else { &self.commands };
        for (i, item) in items.iter().enumerate() {
            // Their number is bounded by the size of a request.
            let command = i as u32;
            commands.push(item.command.clone());
            if self.queue.is_some() {
                parts.push(PartSpec { node: None, command });
                continue;
            }
            let own = item.target.is_some() || !item.hosts.is_empty();
            let (target, hosts, at) = match own {
                true => (&item.target, &item.hosts, format!("commands[{i}].")),
                false => (&self.target, &self.hosts, String::new()),
            };
            let chosen = choose(target.as_deref(), hosts, nodes).map_err(|e| {
                let field = format!("{at}{}", e.field);
                e.at(field)
            })?;
            parts.extend(chosen.into_iter().map(|n| PartSpec { node: Some(n), command }));
        }
        if parts.len() > MAX_PARTS {
            let problem = format!("{} parts", parts.len());
            let expected = "at most 10000; several tasks for more";
            let field = if self.commands.is_empty() { "target" } else { "commands" };
            return Err(Invalid::new(Code::TOO_LARGE, field, problem, expected));
        }
        let later = self.delay.and_then(|d| SignedDuration::try_from(d.0).ok());
        let not_before = self.at.or(later.and_then(|d| now.checked_add(d).ok()));
        if not_before
            .is_some_and(|at| at.duration_since(now).unsigned_abs() > MAX_DELAY && at > now)
        {
            return bad("at", "too far away", "an instant at most 366 days from now");
        }
        Ok(Task {
            id,
            name: self.name.clone(),
            submitted_at: now,
            key: self.key.clone(),
            queue: self.queue.clone(),
            target: self.target.clone(),
            commands,
            parts,
            policy: Policy {
                priority: self.priority.unwrap_or(DEFAULT_PRIORITY),
                not_before: not_before.map(to_millis).filter(|at| *at > now),
                ttl: self.ttl,
                ttr: self.ttr.unwrap_or(HumanDuration(DEFAULT_TTR)),
                retry: self.retry.clone(),
                on_failure: self.on_failure.unwrap_or(match self.retry {
                    Some(_) => OnFailure::Bury,
                    None => OnFailure::Fail,
                }),
                on_loss: self.on_loss.unwrap_or_default(),
                rollout: self.rollout.clone(),
                repeat: self.repeat,
            },
            control: Control::Active,
            pardoned: 0,
            extra: BTreeMap::new(),
        })
    }

    /// A number that tells requests apart: what the idempotency key is compared by.
    pub fn digest(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        // Two halves: by chance alone two requests never share both.
        let other: String = text.chars().rev().collect();
        format!("{:016x}{:016x}", retry::seed([text.as_str()]), retry::seed([other.as_str()]))
    }
}

fn check(command: &TaskCommand) -> Result<(), Invalid> {
    if command.cmd.len() > MAX_CMD {
        let problem = format!("{} bytes", command.cmd.len());
        let expected = "at most 102400 bytes; a file on the nodes for more";
        return Err(Invalid::new(Code::TOO_LARGE, "cmd", problem, expected));
    }
    command.assignment().validate().map(drop)
}

/// The nodes that are meant, in order of their ids.
fn choose(
    target: Option<&str>,
    hosts: &[NodeId],
    nodes: &BTreeMap<NodeId, NodeInfo>,
) -> Result<BTreeSet<NodeId>, Invalid> {
    let unknown = |ids: Vec<&NodeId>, field: &str| {
        let names: Vec<&str> = ids.iter().take(10).map(|id| id.as_str()).collect();
        let more = ids.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let problem = format!("no such host: {}{more}", names.join(", "));
        Err(Invalid::new(Code::NO_SUCH_HOST, field, problem, "nodes that `meepo node list` shows"))
    };
    let Some(target) = target else {
        let missing: Vec<_> = hosts.iter().filter(|id| !nodes.contains_key(*id)).collect();
        return match missing.is_empty() {
            true => Ok(hosts.iter().cloned().collect()),
            false => unknown(missing, "hosts"),
        };
    };
    let target = Target::parse(target)?;
    let ids = target.ids();
    let missing: Vec<_> = ids.iter().filter(|id| !nodes.contains_key(*id)).collect();
    if !missing.is_empty() {
        return unknown(missing, "target");
    }
    let chosen: BTreeSet<NodeId> =
        target.select(nodes.values()).into_iter().map(|n| n.id.clone()).collect();
    if chosen.is_empty() {
        let problem = format!("{target} matches no node");
        let expected = "a target that matches one at least";
        return Err(Invalid::new(Code::NO_TARGET, "target", problem, expected));
    }
    Ok(chosen)
}
