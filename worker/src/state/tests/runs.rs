//! Journal and cursors.

use super::*;

#[tokio::test]
async fn a_run_begins_once_and_a_slot_is_taken_once() {
    let dir = dir();
    let state = open(&dir);
    let cursor = |s| Some((job("backup"), at(s)));
    let first = record(RunState::Running);
    assert_eq!(state.begin_run(&first, cursor(1_000)).await.unwrap(), Begin::New);
    assert_eq!(state.begin_run(&first, cursor(2_000)).await.unwrap(), Begin::KnownRun);
    let second = record(RunState::Running);
    let taken = Begin::SlotTaken { cursor: at(1_000) };
    assert_eq!(state.begin_run(&second, cursor(1_000)).await.unwrap(), taken);
    assert_eq!(state.begin_run(&second, cursor(999)).await.unwrap(), taken);
    assert_eq!(state.cursor(job("backup")).await.unwrap(), Some(at(1_000)));
    // What was refused left nothing behind and may begin with a later slot.
    assert_eq!(state.begin_run(&second, cursor(1_001)).await.unwrap(), Begin::New);
    // Runs on demand move no cursor.
    assert_eq!(state.begin_run(&record(RunState::Running), None).await.unwrap(), Begin::New);
    assert_eq!(state.cursors().await.unwrap(), [(job("backup"), at(1_001))].into());
    state.forget_job(job("backup")).await.unwrap();
    assert!(state.cursors().await.unwrap().is_empty());
}

#[tokio::test]
async fn open_runs_are_recovered_and_ended_ones_stay_known() {
    let dir = dir();
    let state = open(&dir);
    let (lost, ended, bare) =
        (record(RunState::Running), record(RunState::Running), record(RunState::Running));
    for r in [&lost, &ended, &bare] {
        state.begin_run(r, None).await.unwrap();
    }
    state.started(lost.run_id, 4242, u64::MAX - 1).await.unwrap();
    let done = RunRecord { state: RunState::Success, ..ended.clone() };
    state.end_run(&done).await.unwrap();
    state.close().await;
    let state = open(&dir);
    let mut open_runs = state.recover().await.unwrap();
    open_runs.sort_by_key(|r| r.record.run_id);
    let expected = [
        OpenRun { record: lost.clone(), process: Some((4242, u64::MAX - 1)) },
        OpenRun { record: bare.clone(), process: None },
    ];
    assert_eq!(open_runs, expected);
    for r in [&lost, &ended, &bare] {
        assert_eq!(state.begin_run(r, None).await.unwrap(), Begin::KnownRun);
    }
    let batch = state.peek(10, 1 << 20).await.unwrap();
    assert_eq!(batch.items, [SpoolItem::Record(done)]);
    state.end_run(&lost).await.unwrap();
    state.end_run(&bare).await.unwrap();
    assert!(state.recover().await.unwrap().is_empty());
}

#[tokio::test]
async fn slots_that_were_given_up_are_noted_once() {
    let dir = dir();
    let state = open(&dir);
    let missed = [record(RunState::Missed), record(RunState::Missed)];
    let cursor = Some((job("backup"), at(5)));
    assert_eq!(state.note_runs(&missed, cursor.clone()).await.unwrap(), Begin::New);
    let again = state.note_runs(&missed, cursor).await.unwrap();
    assert_eq!(again, Begin::SlotTaken { cursor: at(5) });
    assert_eq!(state.note_runs(&missed, None).await.unwrap(), Begin::New);
    let items = state.peek(10, 1 << 20).await.unwrap().items;
    assert_eq!(items, [&missed[..], &missed[..]].concat().map_records());
}

trait MapRecords {
    fn map_records(self) -> Vec<SpoolItem>;
}

impl MapRecords for Vec<RunRecord> {
    fn map_records(self) -> Vec<SpoolItem> {
        self.into_iter().map(SpoolItem::Record).collect()
    }
}

#[tokio::test]
async fn remembered_ids_are_bounded_and_open_runs_are_never_forgotten() {
    let dir = dir();
    let options = StateOptions { seen_limit: 300, ..StateOptions::new(dir.path()) };
    let state = State::open(&options).unwrap();
    let open_run = record(RunState::Running);
    state.begin_run(&open_run, None).await.unwrap();
    let ended: Vec<_> = (0..1_000).map(|_| record(RunState::Success)).collect();
    for r in &ended {
        state.end_run(r).await.unwrap();
    }
    let seen: i64 = state
        .call(|cx| cx.conn.query_row("SELECT count(*) FROM seen", [], |r| r.get(0)))
        .await
        .unwrap();
    assert!((300..300 + 256).contains(&seen), "{seen}");
    assert_eq!(state.begin_run(&open_run, None).await.unwrap(), Begin::KnownRun);
    assert_eq!(state.begin_run(&ended[999], None).await.unwrap(), Begin::KnownRun);
    assert_eq!(state.begin_run(&ended[0], None).await.unwrap(), Begin::New);
}

#[tokio::test]
async fn many_callers_share_few_transactions() {
    let dir = dir();
    let state = open(&dir);
    let before = state.stats();
    let calls = (0..400).map(|n| {
        let state = state.clone();
        async move {
            let cursor = Some((job(&format!("job-{n}")), at(1)));
            state.begin_run(&record(RunState::Running), cursor).await.unwrap()
        }
    });
    let all: Vec<_> = calls.map(tokio::spawn).collect();
    for call in all {
        assert_eq!(call.await.unwrap(), Begin::New);
    }
    let after = state.stats();
    assert_eq!(after.operations - before.operations, 400);
    let transactions = after.transactions - before.transactions;
    assert!(transactions <= 100, "{transactions} transactions for 400 runs");
    assert_eq!(state.cursors().await.unwrap().len(), 400);
}

#[tokio::test]
async fn what_may_be_decided_twice_is_recorded_once() {
    let dir = dir();
    let state = open(&dir);
    let claimed = RunRecord { fence: Some(7), ..record(RunState::Missed) };
    let asked = RunRecord { cause: Cause::Trigger, ..record(RunState::Missed) };
    let begun = RunRecord { cause: Cause::Trigger, ..record(RunState::Running) };
    assert!(state.begin_run(&begun, None).await.unwrap().is_new());
    for _ in 0..2 {
        let all = [claimed.clone(), asked.clone(), begun.clone()];
        state.note_runs(&all, None).await.unwrap();
    }
    let kept = state.peek(10, usize::MAX).await.unwrap().items;
    assert_eq!(kept, [claimed, asked.clone()].map(SpoolItem::Record));
    let again = state.begin_run(&asked, None).await.unwrap();
    assert_eq!(again, Begin::KnownRun, "what was turned down does not start later");
}

#[tokio::test]
async fn the_file_is_for_its_user_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = dir();
    let sub = dir.path().join("own");
    let state = State::open(&StateOptions::new(&sub)).unwrap();
    state.begin_run(&record(RunState::Running), None).await.unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&sub), 0o700);
    for file in ["state.db", "state.db-wal", "state.db-shm"] {
        assert_eq!(mode(&sub.join(file)), 0o600, "{file}");
    }
}
