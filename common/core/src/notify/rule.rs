//! Who is told of what.

use super::{Class, Happening, Kind};
use crate::{
    code::Code,
    duration::HumanDuration,
    error::Invalid,
    id::Name,
    input::{from_value, unknown_field},
    node::NodeInfo,
    run::RunState,
    target::{self, Target},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// How long a first happening waits for others, unless said otherwise.
const GROUP_WAIT: Duration = Duration::from_secs(5);
/// How long an incident is not told again, unless said otherwise.
const REPEAT_AFTER: Duration = Duration::from_secs(4 * 3600);
/// Longest `group_wait`.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);
/// Longest `repeat_after`.
const MAX_REPEAT: Duration = Duration::from_secs(366 * 24 * 3600);
/// Channels of one rule, patterns in it, at most.
const MAX_LIST: usize = 100;

/// What goes into one message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// What happens to the same job (or task, or node).
    #[default]
    Job,
    /// What happens on the same node.
    Node,
    /// What is of the same kind.
    Kind,
}

/// Who is told of what: the value at `/meepo/notify/rules/<name>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rule {
    /// Unique name.
    pub name: Name,
    /// Of which kinds. Default: of all but `attempt`.
    #[serde(default = "most", skip_serializing_if = "is_most")]
    pub on: Vec<Kind>,
    /// Only of jobs whose name matches one of these patterns. What is of no job does not match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<String>,
    /// Only of nodes that match this target. What is of no node does not match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Which ends of runs are failures. Default `failed`, `timeout`, `lost`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<RunState>,
    /// The channels.
    pub to: Vec<Name>,
    /// What goes into one message.
    #[serde(default)]
    pub group_by: GroupBy,
    /// How long the first waits for others. Default 5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_wait: Option<HumanDuration>,
    /// How long the same trouble is not told again. Default 4 h; 0: each failure is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_after: Option<HumanDuration>,
    /// Switched off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    /// Fields this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub extra: BTreeMap<String, Value>,
}

fn most() -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|k| *k != Kind::Attempt).collect()
}

fn is_most(on: &[Kind]) -> bool {
    *on == most()
}

/// Who is told of one job: the field `notify` of a job file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JobNotify {
    /// Of which kinds. Default: of all but `attempt`.
    #[serde(default = "most", skip_serializing_if = "is_most")]
    pub on: Vec<Kind>,
    /// The channels.
    pub to: Vec<Name>,
}

impl JobNotify {
    /// Checks what the types do not.
    pub fn validate(&self) -> Result<(), Invalid> {
        let of_jobs = |k: &&Kind| {
            matches!(k, Kind::NodeLost | Kind::NodeBack | Kind::TaskFailed | Kind::TaskBuried)
        };
        if !is_most(&self.on)
            && let Some(kind) = self.on.iter().find(of_jobs)
        {
            let problem = format!("`{kind}` does not happen to jobs");
            return bad("notify.on", problem, "a rule for it (`meepo notify rule apply`)");
        }
        lists(&self.on, &self.to).map_err(|e| {
            let field = format!("notify.{}", e.field);
            e.at(field)
        })
    }

    /// The rule it stands for.
    pub fn rule(&self, job: &Name) -> Rule {
        Rule { on: self.on.clone(), ..Rule::new(job.clone(), self.to.clone()) }
    }
}

fn bad<T>(field: &str, problem: impl Into<String>, expected: &str) -> Result<T, Invalid> {
    Err(Invalid::new(Code::BAD_VALUE, field, problem, expected))
}

fn lists(on: &[Kind], to: &[Name]) -> Result<(), Invalid> {
    if on.is_empty() {
        return bad("on", "empty", "at least one kind such as failure");
    }
    if to.is_empty() || to.len() > MAX_LIST {
        return bad("to", "no channel, or too many", "1 to 100 channels");
    }
    Ok(())
}

impl Rule {
    const FIELDS: &'static [&'static str] = &[
        "name",
        "on",
        "jobs",
        "target",
        "states",
        "to",
        "group_by",
        "group_wait",
        "repeat_after",
        "disabled",
    ];

    /// One with the default of everything.
    pub fn new(name: Name, to: Vec<Name>) -> Self {
        Self {
            name,
            on: most(),
            jobs: Vec::new(),
            target: None,
            states: Vec::new(),
            to,
            group_by: GroupBy::default(),
            group_wait: None,
            repeat_after: None,
            disabled: false,
            extra: BTreeMap::new(),
        }
    }

    /// Reads what a user sent.
    ///
    /// # Errors
    /// Unknown fields, and values that cannot be.
    pub fn from_user(value: Value) -> Result<Self, Invalid> {
        let rule: Self = from_value(value)?;
        if let Some(field) = rule.extra.keys().next() {
            return Err(unknown_field(field, Self::FIELDS));
        }
        rule.validate()?;
        Ok(rule)
    }

    fn validate(&self) -> Result<(), Invalid> {
        lists(&self.on, &self.to)?;
        if self.jobs.len() > MAX_LIST || self.jobs.iter().any(|p| p.is_empty() || p.len() > 256) {
            return bad("jobs", "not patterns", "at most 100 names or patterns such as backup-*");
        }
        if let Some(target) = &self.target {
            let target = Target::parse(target)?;
            if target.is_limited() {
                return bad("target", "`limit` chooses among nodes", "a target without it");
            }
            if let Some(what) = target.asks_for_load() {
                let problem = format!("`{what}` changes from moment to moment");
                return bad("target", problem, "labels and facts that stay");
            }
        }
        if let Some(state) = self.states.iter().find(|s| {
            !matches!(s, RunState::Failed | RunState::Timeout | RunState::Lost | RunState::Killed)
        }) {
            let problem = format!("`{state}` is no failure");
            return bad("states", problem, "failed, timeout, lost or killed");
        }
        if self.group_wait.is_some_and(|d| d.0 > MAX_WAIT) {
            return bad("group_wait", "out of range", "a duration of at most a day, such as 30s");
        }
        if self.repeat_after.is_some_and(|d| d.0 > MAX_REPEAT) {
            return bad("repeat_after", "out of range", "a duration of at most a year, such as 4h");
        }
        Ok(())
    }

    /// How long the first waits for others.
    pub fn group_wait(&self) -> Duration {
        self.group_wait.map_or(GROUP_WAIT, |d| d.0)
    }

    /// How long the same trouble is not told again.
    pub fn repeat_after(&self) -> Duration {
        self.repeat_after.map_or(REPEAT_AFTER, |d| d.0)
    }

    /// Whether it wants to hear of the beginning or the end of such trouble.
    pub(super) fn follows(&self, class: Class) -> bool {
        let end = match class {
            Class::Run | Class::Silence => Some(Kind::Recovery),
            Class::Node => Some(Kind::NodeBack),
            Class::Missed | Class::Buried => None,
        };
        self.on.iter().any(|k| *k == class.kind() || Some(*k) == end)
    }

    /// Whether it is about this, whatever its kind. `node` is where it happened, where that is
    /// known.
    pub(super) fn is_about(&self, what: &Happening, node: Option<&NodeInfo>) -> bool {
        if self.disabled {
            return false;
        }
        let pattern = |job: &Name| self.jobs.iter().any(|p| target::glob(p, job.as_str()));
        if !self.jobs.is_empty() && !what.job.as_ref().is_some_and(pattern) {
            return false;
        }
        if let Some(target) = &self.target {
            let meant = Target::parse(target).ok();
            if !node.is_some_and(|node| meant.is_some_and(|t| t.matches(node))) {
                return false;
            }
        }
        match (what.kind, what.state) {
            (Kind::Failure | Kind::Attempt, Some(state)) if self.states.is_empty() => {
                state != RunState::Killed
            }
            (Kind::Failure | Kind::Attempt, Some(state)) => self.states.contains(&state),
            _ => true,
        }
    }

    /// What tells the groups of this rule apart.
    pub(super) fn group_of(&self, what: &Happening) -> String {
        let job = what.job.as_ref().map(Name::as_str).or(what.task.as_deref());
        let node = what.node.as_ref().map(Name::as_str);
        let group = match self.group_by {
            GroupBy::Job => job.or(node),
            GroupBy::Node => node.or(job),
            GroupBy::Kind => Some(what.kind.as_str()),
        };
        group.unwrap_or("-").to_owned()
    }
}
