//! Checks of lists: order, pages, filters, limits.

use super::{Random, at, model::Model, name, run};
use crate::{DEFAULT_RUNS, LogItem, LogStore, MAX_RUNS, RunQuery, StoreError, query::Position};
use jiff::SignedDuration;
use meepo_core::{
    code::Code,
    run::{Cause, RunRecord, RunState},
    task::{PartId, TaskId},
};
use std::{sync::Arc, time::Duration};

/// Outcomes for runs and for filters; one means success, and one no run has.
const CODES: [Code; 4] = [Code::OK, Code::EXIT_STATUS, Code::TIMED_OUT, Code(0x01FE)];

/// Follows the cursors of `q` to the end, checking that each page has the size asked
/// for, goes on where the one before ended, and says rightly whether it is the last.
pub(super) async fn every_page(store: &dyn LogStore, q: &RunQuery) -> Vec<RunRecord> {
    let mut q = q.clone();
    let mut all = Vec::new();
    loop {
        let page = store.list_runs(&q).await.unwrap();
        assert!(page.runs.len() <= q.page_size(), "a page longer than asked for");
        let goes_on = match (all.last(), page.runs.first()) {
            (None, _) => q.cursor.is_none(),
            (Some(last), Some(first)) => Position::from(first) < Position::from(last),
            (Some(_), None) => false,
        };
        assert!(goes_on, "a page repeats the one before, or is empty: {q:?}");
        all.extend(page.runs.iter().cloned());
        match page.next {
            None => return all,
            Some(next) => {
                assert_eq!(page.runs.len(), q.page_size(), "a short page that is not the last");
                q.cursor = Some(next);
            }
        }
    }
}

fn of_job(job: &str, limit: u32) -> RunQuery {
    RunQuery { job: Some(name(job)), limit: Some(limit), ..RunQuery::default() }
}

/// Newest slot first, then higher run id first, at every page size.
pub async fn ordering(store: Arc<dyn LogStore>) {
    let mut random = Random::new(10);
    let mut model = Model::default();
    let batch: Vec<_> = (0..90)
        .map(|_| {
            // Many share a slot, so that the run id decides.
            let slot = random.below(12) as i64 * 60_000 - 120_000;
            LogItem::Run(run(random.run_id(), "order-job", "order-node", slot))
        })
        .collect();
    model.append(&batch);
    store.append(&batch).await.unwrap();
    for limit in [1, 2, 7, 30, 45, 89, 90, 91, 1_000] {
        let q = of_job("order-job", limit);
        assert_eq!(every_page(&*store, &q).await, model.matching(&q), "pages of {limit}");
    }
}

/// While runs are added before, between and after, paging shows each of those that
/// were there at the start exactly once and nothing twice.
pub async fn paging_while_runs_arrive(store: Arc<dyn LogStore>) {
    let mut random = Random::new(11);
    let mut new = |slot: i64| run(random.run_id(), "page-job", "page-node", slot);
    let first: Vec<_> = (0..50).map(|i| new(1_000_000 + i / 3 * 1_000)).collect();
    let batch: Vec<_> = first.iter().cloned().map(LogItem::Run).collect();
    store.append(&batch).await.unwrap();
    let mut q = of_job("page-job", 7);
    let mut seen = Vec::new();
    loop {
        let page = store.list_runs(&q).await.unwrap();
        seen.extend(page.runs);
        let newer = LogItem::Run(new(9_000_000));
        let older = LogItem::Run(new(1));
        let same = LogItem::Run(new(1_000_000 + 8_000));
        // One that is known moves up meanwhile.
        let mut ended = first[random_index(&seen, &first)].clone();
        ended.state = RunState::Success;
        store.append(&[newer, older, same, LogItem::Run(ended)]).await.unwrap();
        // The oldest arrive as fast as they are read: enough is enough.
        match page.next {
            Some(next) if seen.len() < 200 && seen.last().is_some_and(|r| r.slot > at(1)) => {
                q.cursor = Some(next);
            }
            _ => break,
        }
    }
    let mut ids: Vec<_> = seen.iter().map(|r| r.run_id).collect();
    let in_order = seen.iter().map(|r| std::cmp::Reverse((r.slot, r.run_id))).is_sorted();
    assert!(in_order, "pages overlap or are out of order");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), seen.len(), "a run was shown twice");
    for r in &first {
        assert!(ids.contains(&r.run_id), "a run that was there from the start was not shown");
    }
}

/// Some index into `first` that depends on how far `seen` is.
fn random_index(seen: &[RunRecord], first: &[RunRecord]) -> usize {
    seen.len() * 31 % first.len()
}

/// Every combination of filters, against the plain model.
pub async fn filters(store: Arc<dyn LogStore>) {
    let mut random = Random::new(12);
    let mut model = Model::default();
    let (jobs, nodes) = (["f-job-1", "f-job-2"], ["f-node-1", "f-node-2", "f-node-3"]);
    let causes = [Cause::Schedule, Cause::Trigger, Cause::Exec];
    // A span of time no other check uses: also lists by time alone are compared.
    let base = 4_000_000_000_000_i64;
    let batch: Vec<_> = (0..400)
        .map(|_| {
            let slot = base + random.below(100) as i64 * 500;
            let mut r = run(random.run_id(), random.pick(&jobs), random.pick(&nodes), slot);
            r.state = random.pick(&RunState::ALL);
            r.cause = random.pick(&causes);
            r.code = random.pick(&CODES);
            r.user = random.once_in(4).then(|| "backup".to_owned());
            r.started_at = random.once_in(2).then_some(r.slot);
            r.ended_at = Some(at(slot + [0, 999, 1_000, 60_000][random.below(4)]));
            if random.once_in(5) {
                r.job = None;
            }
            LogItem::Run(r)
        })
        .collect();
    model.append(&batch);
    store.append(&batch).await.unwrap();

    let fine = SignedDuration::from_micros(1);
    for bits in 0..128_u32 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        for round in 0..3 {
            let (since, until) = match round {
                0 => (at(base), at(base + 50_000)),
                1 => (at(base + 10_000), at(base + 30_500)),
                // Finer than what is stored: just after a slot excludes it, and
                // until just after a slot includes it.
                _ => (at(base + 10_000) + fine, at(base + 30_000) + fine),
            };
            let q = RunQuery {
                job: has(0).then(|| name(random.pick(&jobs))),
                node: has(1).then(|| name(random.pick(&nodes))),
                states: if has(2) {
                    // Now and then one twice.
                    (0..=random.below(4)).map(|_| random.pick(&RunState::ALL)).collect()
                } else {
                    Vec::new()
                },
                cause: has(3).then(|| random.pick(&causes)),
                since: Some(since),
                until: Some(until),
                limit: Some(if has(4) { 9 } else { 1_000 }),
                codes: if has(5) {
                    (0..=random.below(3)).map(|_| random.pick(&CODES)).collect()
                } else {
                    Vec::new()
                },
                user: (has(6) && round == 0).then(|| "backup".to_owned()),
                min_took: (has(6) && round == 1).then_some(Duration::from_micros(999_500)),
                max_took: (has(6) && round > 0).then_some(Duration::from_micros(1_000_900)),
                jobs: if has(6) && round == 2 { jobs.map(name).to_vec() } else { Vec::new() },
                task: None,
                cursor: None,
            };
            assert_eq!(every_page(&*store, &q).await, model.matching(&q), "{q:?}");
        }
    }
    for q in [
        RunQuery { since: Some(at(base + 40_000)), ..of_job("f-job-1", 10) },
        RunQuery { until: Some(at(base + 4_000)), ..of_job("f-job-2", 10) },
        RunQuery { until: Some(at(base)), ..of_job("f-job-1", 10) },
        RunQuery { since: Some(at(base + 9)), until: Some(at(base)), ..of_job("f-job-1", 10) },
    ] {
        assert_eq!(every_page(&*store, &q).await, model.matching(&q), "{q:?}");
    }
}

/// Limits move to the nearer end, and a cursor must be one.
pub async fn limits(store: Arc<dyn LogStore>) {
    let mut random = Random::new(13);
    let many = MAX_RUNS + 20;
    let batch: Vec<_> = (0..many)
        .map(|i| LogItem::Run(run(random.run_id(), "limit-job", "limit-node", i.into())))
        .collect();
    store.append(&batch).await.unwrap();
    for (limit, want) in [
        (None, DEFAULT_RUNS),
        (Some(0), 1),
        (Some(1), 1),
        (Some(MAX_RUNS), MAX_RUNS),
        (Some(MAX_RUNS + 1), MAX_RUNS),
        (Some(u32::MAX), MAX_RUNS),
    ] {
        let q = RunQuery { limit, ..of_job("limit-job", 0) };
        let page = store.list_runs(&q).await.unwrap();
        assert_eq!(page.runs.len(), want as usize, "limit {limit:?}");
        assert!(page.next.is_some_and(|c| c.bytes().all(|b| b.is_ascii_alphanumeric())));
    }
    for bad in ["", "0", "newest", "'; DROP TABLE runs; --", &"z".repeat(48)] {
        let q = RunQuery { cursor: Some(bad.into()), ..RunQuery::default() };
        let e = store.list_runs(&q).await.unwrap_err();
        assert!(matches!(e, StoreError::Refused { .. }) && !e.retryable(), "{bad:?}: {e}");
    }
}

/// The newest run of each job, and nothing for jobs without runs.
pub async fn last_runs(store: Arc<dyn LogStore>) {
    let mut random = Random::new(14);
    let mut model = Model::default();
    let jobs: Vec<_> = (0..30).map(|i| format!("last-job-{i}")).collect();
    let batch: Vec<_> = (0..500)
        .map(|_| {
            // The first five have no runs; ties in the slot are common.
            let job = &jobs[5 + random.below(25)];
            let mut r = run(random.run_id(), job, "last-node", random.below(10) as i64);
            r.state = random.pick(&RunState::ALL);
            LogItem::Run(r)
        })
        .collect();
    model.append(&batch);
    store.append(&batch).await.unwrap();
    let names: Vec<_> = jobs.iter().map(|j| name(j)).collect();
    for asked in [&names[..], &names[3..9], &names[..5], &names[20..21]] {
        assert_eq!(store.last_runs(asked).await.unwrap(), model.last_runs(asked));
    }
    // Asking twice for one is no error.
    let twice = [names[10].clone(), names[10].clone()];
    assert_eq!(store.last_runs(&twice).await.unwrap(), model.last_runs(&twice));
}

/// The runs of a task's parts, whatever else there is; and of many jobs at once.
pub async fn tasks_and_many_jobs(store: Arc<dyn LogStore>) {
    let mut random = Random::new(15);
    let mut model = Model::default();
    let tasks: Vec<_> = (0..3).map(|_| TaskId(random.run_id().0)).collect();
    let mut batch = Vec::new();
    for task in &tasks {
        for n in 1..=30 {
            for attempt in 0..2 {
                let part = PartId { task: *task, n };
                let slot = 7_000_000 + random.below(20) as i64 + attempt;
                batch.push(LogItem::Run(run(random.run_id(), part.name().as_str(), "t", slot)));
            }
        }
    }
    for i in 0..60 {
        batch.push(LogItem::Run(run(random.run_id(), &format!("many-{i}"), "t", 7_000_000 + i)));
    }
    model.append(&batch);
    store.append(&batch).await.unwrap();
    for limit in [7, 1_000] {
        let task = |task| RunQuery { task: Some(task), limit: Some(limit), ..RunQuery::default() };
        for q in [
            task(tasks[0]),
            RunQuery { states: vec![RunState::Running], ..task(tasks[1]) },
            RunQuery { job: Some(PartId { task: tasks[1], n: 3 }.name()), ..task(tasks[1]) },
            RunQuery { job: Some(PartId { task: tasks[2], n: 3 }.name()), ..task(tasks[1]) },
            RunQuery { node: Some(name("elsewhere")), ..task(tasks[2]) },
            task(TaskId(random.run_id().0)),
        ] {
            assert_eq!(every_page(&*store, &q).await, model.matching(&q), "{q:?}");
        }
        for many in [2, 50, 60] {
            let q = RunQuery {
                jobs: (0..many).map(|i| name(&format!("many-{i}"))).collect(),
                states: if many == 60 { vec![] } else { vec![RunState::Running] },
                limit: Some(limit),
                ..RunQuery::default()
            };
            let got = every_page(&*store, &q).await;
            assert_eq!(got.len(), many);
            assert_eq!(got, model.matching(&q), "{q:?}");
        }
    }
}
