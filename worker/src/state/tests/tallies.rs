//! What has happened to jobs, as etcd is to know it.

use super::*;
use meepo_core::notify::{Kind, Outcome, Tally};

async fn end(state: &State, record: &RunRecord) {
    let outcome = Outcome::of(record, true, false, None);
    state.end_run_with(record, &[], None, outcome.as_ref()).await.unwrap();
}

async fn due(state: &State) -> Vec<(Name, u64, Tally)> {
    let due = state.due_tallies(10).await.unwrap();
    let read = |t: DueTally| (t.job, t.seq, serde_json::from_str(&t.tally).unwrap());
    due.into_iter().map(read).collect()
}

#[tokio::test]
async fn what_happened_is_kept_until_etcd_knows_and_well_jobs_cost_nothing() {
    let dir = dir();
    let state = open(&dir);
    end(&state, &record(RunState::Success)).await;
    assert_eq!(due(&state).await, [], "nothing has failed");
    end(&state, &record(RunState::Failed)).await;
    tokio::time::timeout(std::time::Duration::from_secs(10), state.tallies_changed())
        .await
        .unwrap();
    state.close().await;
    drop(state);

    // The next life of the worker tells it.
    let state = open(&dir);
    let found = due(&state).await;
    let [(name, 1, tally)] = &found[..] else { panic!("{found:?}") };
    assert!(*name == job("backup") && tally.failing && tally.counts[&Kind::Failure] == 1);
    state.told(vec![(job("backup"), 1)]).await.unwrap();
    assert_eq!(due(&state).await, []);
    // It remembers that the job was failing.
    end(&state, &record(RunState::Success)).await;
    let found = due(&state).await;
    assert!(!found[0].2.failing && found[0].2.success.is_some(), "{found:?}");
    let epoch = found[0].2.epoch;
    state.told(vec![(job("backup"), 2)]).await.unwrap();
    end(&state, &record(RunState::Success)).await;
    end(&state, &record(RunState::Success)).await;
    assert_eq!(due(&state).await, []);
    // What came after it was read is not taken for told.
    end(&state, &record(RunState::Timeout)).await;
    let seq = due(&state).await[0].1;
    end(&state, &record(RunState::Failed)).await;
    state.told(vec![(job("backup"), seq)]).await.unwrap();
    let found = due(&state).await;
    assert_eq!((found[0].1, found[0].2.counts[&Kind::Failure], found[0].2.epoch), (4, 3, epoch));
}

#[tokio::test]
async fn slots_that_were_missed_count_and_those_of_commands_and_tasks_do_not() {
    let dir = dir();
    let state = open(&dir);
    let missed = record(RunState::Missed);
    let exec = RunRecord { job: None, cause: Cause::Exec, ..record(RunState::Failed) };
    let task = RunRecord { cause: Cause::Task, ..record(RunState::Failed) };
    state.note_runs(&[missed, record(RunState::Skipped)], None).await.unwrap();
    end(&state, &exec).await;
    end(&state, &task).await;
    let found = due(&state).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].2.counts, [(Kind::Missed, 1)].into());
}
