//! What a store should answer, said as plainly as possible: maps and sorting.

use crate::{LogItem, MAX_OUTPUT_BYTES, RunQuery, TallyRow, items, query, stats};
use jiff::Timestamp;
use meepo_core::{
    id::{Name, RunId},
    run::{OutputChunk, RunRecord, to_millis},
    task::TaskId,
};
use std::{collections::BTreeMap, time::Duration};

#[derive(Debug, Default, Clone)]
pub(super) struct Model {
    runs: BTreeMap<RunId, RunRecord>,
    output: BTreeMap<(RunId, u64), OutputChunk>,
}

impl Model {
    pub(super) fn append(&mut self, batch: &[LogItem]) {
        for item in batch {
            match item {
                LogItem::Run(r) => {
                    let newer =
                        self.runs.get(&r.run_id).is_none_or(|o| r.state.rank() > o.state.rank());
                    if newer {
                        self.runs.insert(r.run_id, items::normalised(r));
                    }
                }
                LogItem::Output(c) => {
                    let mut c = c.clone();
                    c.at = to_millis(c.at);
                    self.output.entry((c.run_id, c.seq)).or_insert(c);
                }
            }
        }
    }

    pub(super) fn run_ids(&self) -> Vec<RunId> {
        self.runs.keys().copied().collect()
    }

    pub(super) fn get_run(&self, run_id: RunId) -> Option<RunRecord> {
        self.runs.get(&run_id).cloned()
    }

    /// Every run that matches, in order, whatever the limit and cursor.
    pub(super) fn matching(&self, q: &RunQuery) -> Vec<RunRecord> {
        let mut runs: Vec<_> = self
            .runs
            .values()
            .filter(|r| {
                let of_task = |t: TaskId| {
                    let job = r.job.as_ref().map(|j| j.as_str()).unwrap_or_default();
                    job.strip_prefix(&t.to_string()).is_some_and(|rest| rest.starts_with('.'))
                };
                let took = r.took_ms().map(|ms| Duration::from_millis(ms.unsigned_abs()));
                q.job.as_ref().is_none_or(|j| r.job.as_ref() == Some(j))
                    && (q.jobs.is_empty() || r.job.as_ref().is_some_and(|j| q.jobs.contains(j)))
                    && q.task.is_none_or(of_task)
                    && (q.codes.is_empty() || q.codes.contains(&r.code))
                    && q.user.as_ref().is_none_or(|u| r.user.as_ref() == Some(u))
                    && q.min_took.is_none_or(|least| took.is_some_and(|t| t >= least))
                    && q.max_took.is_none_or(|most| took.is_some_and(|t| t <= most))
                    && q.node.as_ref().is_none_or(|n| r.node == *n)
                    && (q.states.is_empty() || q.states.contains(&r.state))
                    && q.cause.is_none_or(|c| r.cause == c)
                    && q.since.is_none_or(|t| r.slot >= t)
                    && q.until.is_none_or(|t| r.slot < t)
            })
            .cloned()
            .collect();
        runs.sort_by_key(|r| std::cmp::Reverse((r.slot, r.run_id)));
        runs
    }

    pub(super) fn last_runs(&self, jobs: &[Name]) -> BTreeMap<Name, RunRecord> {
        let newest = |job: &Name| {
            let q = RunQuery { job: Some(job.clone()), ..RunQuery::default() };
            Some((job.clone(), self.matching(&q).into_iter().next()?))
        };
        jobs.iter().filter_map(newest).collect()
    }

    /// The counts of a job's runs, in order.
    pub(super) fn tally(
        &self,
        job: &Name,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Vec<TallyRow> {
        let q = RunQuery { job: Some(job.clone()), since, until, ..RunQuery::default() };
        let mut rows: BTreeMap<_, TallyRow> = BTreeMap::new();
        for r in self.matching(&q) {
            let (slot, ms) = (r.slot.as_millisecond(), r.took_ms());
            let (day, took) = (slot / stats::DAY, ms.map(stats::bucket));
            let state = r.state.as_str().to_owned();
            let row = rows.entry((state.clone(), day, took)).or_insert(TallyRow {
                state,
                day,
                took,
                runs: 0,
                longest: None,
                oldest: i64::MAX,
            });
            row.runs += 1;
            row.longest = row.longest.max(ms);
            row.oldest = row.oldest.min(slot);
        }
        rows.into_values().collect()
    }

    pub(super) fn output(
        &self,
        run_id: RunId,
        after: Option<u64>,
        limit: usize,
    ) -> Vec<OutputChunk> {
        let mut bytes = 0;
        self.output
            .range((run_id, 0)..=(run_id, u64::MAX))
            .filter(|((_, seq), _)| after.is_none_or(|a| *seq > a))
            .map(|(_, c)| c.clone())
            .take(query::chunk_limit(limit))
            .take_while(|c| {
                let room = bytes < MAX_OUTPUT_BYTES;
                bytes += c.data.len();
                room
            })
            .collect()
    }
}
