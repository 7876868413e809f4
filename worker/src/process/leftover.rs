//! Processes of runs of an earlier life of the worker.

use super::{
    cgroup::Cgroups,
    procfs::{Scanner, is_alive},
    tree::Tree,
};
use meepo_core::id::RunId;
use std::sync::Arc;

/// Finds what an earlier life left behind.
#[derive(Debug)]
pub struct Leftovers {
    scanner: Arc<Scanner>,
    cgroups: Arc<Cgroups>,
}

/// What was left of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// How many processes were found.
    pub found: usize,
    /// Those of them that could not be killed.
    pub left: Vec<u32>,
}

impl Leftovers {
    /// With the control groups of runs in `cgroups`.
    pub fn new(cgroups: Arc<Cgroups>) -> Arc<Self> {
        Arc::new(Self { scanner: Scanner::new(0), cgroups })
    }

    /// Removes the control group of `run_id`, whose end has been seen, now or once what is
    /// in it has ended.
    pub(super) fn tidy(&self, run_id: RunId) {
        drop(self.cgroups.leftover(run_id));
    }

    /// Kills what is left of `run_id`. Its command was `process`, a pid and its start
    /// time; a bare pid is never trusted, as after a restart of the host it is another's.
    pub async fn end(&self, run_id: RunId, process: Option<(u32, u64)>) -> Leftover {
        // Once its leader has gone, the number of a group may be another's.
        let root = process.filter(|(pid, start)| is_alive(*pid, *start));
        let cgroup = self.cgroups.leftover(run_id);
        let mut tree = Tree::new(self.scanner.clone(), root, run_id.to_string(), cgroup);
        let (found, left) = tree.end().await;
        Leftover { found, left }
    }
}
