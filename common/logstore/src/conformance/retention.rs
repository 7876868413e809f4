//! Checks of removing what is old. They take a store of their own: everything in it ages.

use super::{Random, at, chunk, run, tasks::task};
use crate::{Class, Keep, LogItem, LogStore, Retention, RunQuery};
use jiff::Timestamp;
use meepo_core::{
    id::RunId,
    run::RunState,
    task::{TaskId, TaskState, TaskView},
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

const DAY: i64 = 24 * 3600 * 1000;
/// When the checks take place.
const NOW: i64 = 20_000 * DAY;

fn days(n: u64) -> Keep {
    Keep::For(Duration::from_secs(n * 24 * 3600))
}

/// Sweeps until nothing is left to do.
async fn sweep(store: &dyn LogStore, retention: &Retention, now: Timestamp) -> (u64, u64, u64) {
    let mut all = (0, 0, 0);
    for _ in 0..1_000 {
        let swept = store.sweep(retention, now).await.unwrap();
        all.0 += swept.runs;
        all.1 += swept.chunks;
        all.2 += swept.tasks;
        if !swept.more {
            return all;
        }
    }
    panic!("sweeping has no end");
}

async fn every_run(store: &dyn LogStore) -> BTreeSet<RunId> {
    let q = RunQuery { limit: Some(1_000), ..RunQuery::default() };
    let runs = super::listing::every_page(store, &q).await;
    runs.into_iter().map(|r| r.run_id).collect()
}

/// Each class is kept as long as is said and no longer; a change of what is said holds for
/// what is there already.
pub async fn retention(store: Arc<dyn LogStore>) {
    let mut random = Random::new(80);
    let mut runs = Vec::new();
    let mut batch = Vec::new();
    // One of each state that ended on each of the last 30 days, with two chunks.
    for age in 0..30 {
        for state in RunState::ALL {
            let ended = NOW - age * DAY - 1;
            let mut r = run(random.run_id_at((ended - 60_000) as u64), "keep", "n", ended - 60_000);
            (r.state, r.output_bytes) = (state, 2);
            r.ended_at = state.is_final().then(|| at(ended));
            for seq in 0..2 {
                let mut c = chunk(r.run_id, seq, "x");
                c.at = at(ended - 1);
                batch.push(LogItem::Output(c));
            }
            batch.push(LogItem::Run(r.clone()));
            runs.push((age, r));
        }
    }
    // Made up for long after its slot: its age is that of its end.
    let mut late = run(random.run_id_at((NOW - DAY) as u64), "keep", "n", NOW - 300 * DAY);
    (late.state, late.ended_at) = (RunState::Success, Some(at(NOW - DAY)));
    batch.push(LogItem::Run(late.clone()));
    store.append(&batch).await.unwrap();
    let mut tasks: Vec<TaskView> = Vec::new();
    for age in 0..30 {
        let id = TaskId(random.run_id_at((NOW - age * DAY - 60_000) as u64).0);
        let ended_at = Some(at(NOW - age * DAY - 1));
        tasks.push(TaskView { id, ended_at, ..task(&mut random, 1, "keep", TaskState::Success) });
    }
    store.put_tasks(&tasks).await.unwrap();

    assert_eq!(sweep(&*store, &Retention::FOREVER, at(NOW)).await, (0, 0, 0));
    let mut said = Retention::FOREVER;
    for (class, keep) in [
        (Class::Success, days(20)),
        (Class::Failed, days(25)),
        (Class::Missed, days(5)),
        (Class::Output, days(10)),
        (Class::Tasks, days(15)),
        // Shorter, and longer again: what is gone stays gone.
        (Class::Success, days(3)),
        (Class::Success, days(300)),
        (Class::Output, days(1)),
    ] {
        said.set(class, keep);
        sweep(&*store, &said, at(NOW)).await;
        let mut want: BTreeSet<RunId> = [late.run_id].into();
        for (age, r) in &runs {
            let most = match r.state {
                RunState::Running => 99,
                RunState::Success if said.success == days(300) => 3,
                state => match said.of_state(state) {
                    Keep::Forever => 99,
                    Keep::For(time) => time.as_secs() as i64 / 86_400,
                },
            };
            let kept = *age < most;
            if kept {
                want.insert(r.run_id);
            }
            let output = match said.output {
                Keep::Forever => kept,
                Keep::For(time) => kept && *age < time.as_secs() as i64 / 86_400,
            };
            let chunks = store.output(r.run_id, None, 10).await.unwrap();
            assert_eq!(chunks.len(), if output { 2 } else { 0 }, "{class:?}: {age} {r:?}");
        }
        assert_eq!(every_run(&*store).await, want, "{class:?} {keep}");
    }
    for (age, t) in tasks.iter().enumerate() {
        assert_eq!(store.get_task(t.id).await.unwrap().is_some(), age < 15, "{age}");
    }
    assert_eq!(sweep(&*store, &said, at(NOW)).await, (0, 0, 0));
    // A worker that was away delivers what is too old by now.
    store.append(&batch).await.unwrap();
    sweep(&*store, &said, at(NOW)).await;
    assert!(!every_run(&*store).await.contains(&runs[29 * 8 + 2].1.run_id));
}

/// More than a step takes; whoever looks on sees no output go after its run, and what is
/// kept goes on as it was.
pub async fn what_is_removed_stays_consistent(store: Arc<dyn LogStore>) {
    let mut random = Random::new(81);
    let (mut old, mut new, mut batch) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..1_300 {
        let ended = if i % 10 == 0 { NOW - DAY } else { NOW - 50 * DAY };
        let mut r = run(random.run_id_at(ended as u64), "many", "n", ended - 5);
        (r.state, r.ended_at, r.output_bytes) = (RunState::Success, Some(at(ended)), 1);
        for seq in 0..3 {
            let mut c = chunk(r.run_id, seq, "x");
            c.at = at(ended);
            batch.push(LogItem::Output(c));
        }
        batch.push(LogItem::Run(r.clone()));
        if i % 10 == 0 { &mut new } else { &mut old }.push(r);
    }
    store.append(&batch).await.unwrap();
    let said = Retention { success: days(10), ..Retention::FOREVER };
    let (mut removed, mut steps) = (0, 0);
    loop {
        let swept = store.sweep(&said, at(NOW)).await.unwrap();
        (removed, steps) = (removed + swept.runs, steps + 1);
        let there = every_run(&*store).await;
        for r in old.iter().step_by(37) {
            let chunks = store.output(r.run_id, None, 10).await.unwrap().len();
            assert_eq!(chunks, if there.contains(&r.run_id) { 3 } else { 0 });
        }
        if !swept.more {
            break;
        }
    }
    assert_eq!(removed, old.len() as u64);
    assert!(steps > 1, "so many at once hold up others");
    for r in &new {
        assert_eq!(store.get_run(r.run_id).await.unwrap().as_ref(), Some(r));
        assert_eq!(store.output(r.run_id, None, 10).await.unwrap().len(), 3);
    }
}
