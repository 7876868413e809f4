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
    assert_eq!(
        state.cursor(job("backup")).await.unwrap(),
        Some(Cursor { slot: at(1_000), runs: 1 })
    );
    // What was refused left nothing behind and may begin with a later slot.
    assert_eq!(state.begin_run(&second, cursor(1_001)).await.unwrap(), Begin::New);
    // Runs on demand move no cursor.
    assert_eq!(state.begin_run(&record(RunState::Running), None).await.unwrap(), Begin::New);
    let cursor = Cursor { slot: at(1_001), runs: 2 };
    assert_eq!(state.cursors().await.unwrap(), [(job("backup"), cursor)].into());
    let made = state.forgotten_at().await.unwrap();
    let now = Timestamp::now();
    assert!(now.duration_since(made).abs() < jiff::SignedDuration::from_mins(5), "{made}");
    state.forget_job(job("other"), at(5_000)).await.unwrap();
    assert_eq!(state.forgotten_at().await.unwrap(), made, "there was none");
    state.forget_job(job("backup"), at(5_000)).await.unwrap();
    assert!(state.cursors().await.unwrap().is_empty());
    assert_eq!(state.forgotten_at().await.unwrap(), at(5_000));
}

#[tokio::test]
async fn open_runs_are_recovered_and_ended_ones_stay_known() {
    let dir = dir();
    let state = open(&dir);
    let [lost, ended, bare] = std::array::from_fn(|_| asked(RunState::Running));
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
    assert_eq!(items, missed.to_vec().map_records());
}

/// The record of a run that may come again.
fn asked(state: RunState) -> RunRecord {
    RunRecord { cause: Cause::Trigger, ..record(state) }
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
    let open_run = asked(RunState::Running);
    state.begin_run(&open_run, None).await.unwrap();
    let ended: Vec<_> = (0..1_000).map(|_| asked(RunState::Success)).collect();
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
    let (asked, begun) = (asked(RunState::Missed), asked(RunState::Running));
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

#[tokio::test]
async fn only_runs_that_begin_count_and_a_new_schedule_keeps_the_count() {
    let dir = dir();
    let state = open(&dir);
    let cursor = |s| Some((job("backup"), at(s)));
    let begin = async |s| state.begin_run(&record(RunState::Running), cursor(s)).await.unwrap();
    assert!(begin(10).await.is_new() && begin(20).await.is_new());
    assert!(!begin(20).await.is_new());
    state.note_runs(&[record(RunState::Missed)], cursor(30)).await.unwrap();
    let there = async || state.cursor(job("backup")).await.unwrap();
    assert_eq!(there().await, Some(Cursor { slot: at(30), runs: 2 }));
    state.restart_cursors_later(vec![(job("backup"), at(5))]).await.unwrap();
    assert_eq!(there().await, Some(Cursor { slot: at(5), runs: 2 }));
    assert!(begin(6).await.is_new());
    assert_eq!(there().await, Some(Cursor { slot: at(6), runs: 3 }));
    state.forget_job(job("backup"), at(9)).await.unwrap();
    assert_eq!(there().await, None);
    state.restart_cursors_later(vec![(job("backup"), at(7))]).await.unwrap();
    assert_eq!(there().await, Some(Cursor { slot: at(7), runs: 0 }));
}

#[tokio::test]
async fn a_promised_attempt_waits_over_a_restart_until_it_begins_or_is_given_up() {
    let dir = dir();
    let state = open(&dir);
    let wait = |due, attempt: &RunRecord| WaitEntry {
        run_id: attempt.run_id,
        due: at(due),
        plan: format!(r#"{{"attempt":{due}}}"#),
    };
    let attempts: Vec<_> = (0..3).map(|_| record(RunState::Running)).collect();
    let waits = [wait(3, &attempts[0]), wait(2, &attempts[1]), wait(1, &attempts[2])];
    for next in &waits {
        let first = record(RunState::Running);
        state.begin_run(&first, None).await.unwrap();
        let failed = RunRecord { state: RunState::Failed, ..first };
        state.end_run_with(&failed, &[], Some(next), None).await.unwrap();
    }
    state.close().await;
    let state = open(&dir);
    let [a, b, c] = waits;
    assert_eq!(state.waits().await.unwrap(), [c.clone(), b.clone(), a.clone()]);
    assert!(state.begin_run(&attempts[0], None).await.unwrap().is_new());
    assert_eq!(state.waits().await.unwrap(), [c.clone(), b]);
    let skipped = RunRecord { state: RunState::Skipped, ..attempts[1].clone() };
    state.note_runs(&[skipped], None).await.unwrap();
    assert_eq!(state.waits().await.unwrap(), [c]);
    state.remove_wait(attempts[2].run_id).await.unwrap();
    assert!(state.waits().await.unwrap().is_empty());
}

#[tokio::test]
async fn runs_that_a_cursor_guards_leave_nothing_behind() {
    let dir = dir();
    let state = open(&dir);
    let scheduled = record(RunState::Running);
    let cursor = Some((job("backup"), at(1)));
    assert!(state.begin_run(&scheduled, cursor.clone()).await.unwrap().is_new());
    let again = state.begin_run(&scheduled, None).await.unwrap();
    assert_eq!(again, Begin::KnownRun, "it is in the journal");
    state.end_run(&RunRecord { state: RunState::Success, ..scheduled.clone() }).await.unwrap();
    let again = state.begin_run(&scheduled, cursor).await.unwrap();
    assert_eq!(again, Begin::SlotTaken { cursor: at(1) });
    let seen: i64 = state
        .call(|cx| cx.conn.query_row("SELECT count(*) FROM seen", [], |r| r.get(0)))
        .await
        .unwrap();
    assert_eq!(seen, 0);
}
