//! Which events somebody wants.

use super::{Event, What};
use crate::{code::Code, error::Invalid, target};

/// Longest list of one filter.
const MAX_CHOICES: usize = 100;

/// Which events are told. An empty list asks for nothing in particular; an event that has
/// no job, node or task does not pass a filter on that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    whats: Vec<What>,
    jobs: Vec<String>,
    nodes: Vec<String>,
    tasks: Vec<String>,
}

impl Filter {
    /// Reads lists as users write them, the choices separated by commas: kinds (`job`) or
    /// names (`job.paused`) of events; names of jobs and nodes and ids of tasks, with `*`
    /// and `?`.
    pub fn parse(
        kind: Option<&str>,
        job: Option<&str>,
        node: Option<&str>,
        task: Option<&str>,
    ) -> Result<Self, Invalid> {
        let mut whats = Vec::new();
        for choice in choices("kind", kind)? {
            let of = |w: &&What| **w != What::Gap && (w.kind() == choice || w.as_str() == choice);
            let before = whats.len();
            whats.extend(What::ALL.iter().filter(of));
            if whats.len() == before {
                return Err(Invalid::new(
                    Code::BAD_VALUE,
                    "kind",
                    format!("no events are called {choice:?}"),
                    format!("{}, or the name of one such as job.paused", kinds().join(", ")),
                ));
            }
        }
        Ok(Self {
            whats,
            jobs: choices("job", job)?,
            nodes: choices("node", node)?,
            tasks: choices("task", task)?,
        })
    }

    /// Whether an event is wanted. A gap always is: nobody may be left to believe that
    /// nothing happened.
    pub fn matches(&self, event: &Event) -> bool {
        let fits = |patterns: &[String], text: Option<&str>| {
            patterns.is_empty() || text.is_some_and(|t| patterns.iter().any(|p| target::glob(p, t)))
        };
        event.what == What::Gap
            || (self.whats.is_empty() || self.whats.contains(&event.what))
                && fits(&self.jobs, event.job.as_ref().map(|n| n.as_str()))
                && fits(&self.nodes, event.node.as_ref().map(|n| n.as_str()))
                && fits(&self.tasks, event.task.as_deref())
    }
}

/// All kinds, for messages.
fn kinds() -> Vec<&'static str> {
    let mut kinds: Vec<_> = What::ALL.iter().map(|w| w.kind()).collect();
    kinds.dedup();
    kinds.retain(|k| *k != What::Gap.kind());
    kinds
}

fn choices(field: &str, text: Option<&str>) -> Result<Vec<String>, Invalid> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let found: Vec<String> = text.split(',').map(|c| c.trim().to_owned()).collect();
    let bad = |problem: String| {
        let expected = "names separated by commas, at most 100, * and ? allowed";
        Err(Invalid::new(Code::BAD_VALUE, field, problem, expected))
    };
    if found.iter().any(String::is_empty) {
        return bad(format!("{text:?} has an empty place"));
    }
    if found.len() > MAX_CHOICES {
        return bad(format!("{} choices", found.len()));
    }
    Ok(found)
}
