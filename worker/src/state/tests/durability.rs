//! Crashes, damage, full disks, second workers.

use super::*;
use std::fs;

#[tokio::test]
async fn what_was_answered_survives_a_crash() {
    let dir = dir();
    let state = open(&dir);
    let r = record(RunState::Running);
    state.begin_run(&r, Some((job("backup"), at(5)))).await.unwrap();
    state.spool(&[SpoolItem::Chunk(chunk(0, b"x"))]).await.unwrap();
    // The files as they are at this moment are what a crash would leave.
    let after = tempfile::tempdir().unwrap();
    for file in fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), after.path().join(file.file_name())).unwrap();
    }
    let revived = open(&after);
    assert_eq!(revived.recover().await.unwrap()[0].record, r);
    assert_eq!(
        revived.cursors().await.unwrap(),
        [(job("backup"), Cursor { slot: at(5), runs: 1 })].into()
    );
    assert_eq!(revived.spool_stats().items, 1);
    assert_eq!(revived.begin_run(&r, None).await.unwrap(), Begin::KnownRun);
}

#[tokio::test]
async fn a_second_worker_is_refused_until_the_first_is_gone() {
    let dir = dir();
    let first = open(&dir);
    let e = State::open(&StateOptions::new(dir.path())).unwrap_err();
    assert_eq!(e.problem, StateProblem::Locked);
    assert!(e.message.contains(&format!("pid {}", std::process::id())), "{e}");
    assert!(e.message.contains(dir.path().to_str().unwrap()), "{e}");
    first.close().await;
    let second = open(&dir);
    assert_eq!(first.cursors().await.unwrap_err().problem, StateProblem::Closed);
    assert!(second.cursors().await.is_ok());
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused_and_left_alone() {
    let dir = dir();
    open(&dir).close().await;
    let file = dir.path().join("state.db");
    let conn = rusqlite::Connection::open(&file).unwrap();
    conn.pragma_update(None, "user_version", 999).unwrap();
    drop(conn);
    let e = State::open(&StateOptions::new(dir.path())).unwrap_err();
    assert_eq!(e.problem, StateProblem::Newer);
    assert!(e.message.contains("999") && e.message.contains(file.to_str().unwrap()), "{e}");
    assert!(!e.retryable());
}

#[tokio::test]
async fn a_damaged_file_is_named() {
    let dir = dir();
    let file = dir.path().join("state.db");
    fs::write(&file, "this is not a database, and long enough to look like one".repeat(100))
        .unwrap();
    let e = State::open(&StateOptions::new(dir.path())).unwrap_err();
    assert_eq!(e.problem, StateProblem::Corrupt, "{e}");
    assert!(e.message.contains(file.to_str().unwrap()), "{e}");
    fs::remove_file(&file).unwrap();
    // The head is whole, a page further back is not.
    let state = open(&dir);
    for n in 0..200 {
        state.spool(&[SpoolItem::Chunk(chunk(n, &[1; 3_000]))]).await.unwrap();
    }
    state.close().await;
    let mut bytes = fs::read(&file).unwrap();
    bytes[8 * 4096..60 * 4096].fill(0xAA);
    fs::write(&file, bytes).unwrap();
    let e = State::open(&StateOptions::new(dir.path())).unwrap_err();
    assert_eq!(e.problem, StateProblem::Corrupt, "{e}");
}

#[tokio::test]
async fn a_full_disk_refuses_runs_loses_nothing_and_recovers() {
    let dir = dir();
    let state = open(&dir);
    let limit = |pages: i64| {
        let state = state.clone();
        async move {
            let sql = format!("PRAGMA max_page_count={pages}");
            state.call(move |cx| cx.conn.query_row(&sql, [], |_| Ok(()))).await.unwrap();
        }
    };
    state.spool(&[SpoolItem::Chunk(chunk(0, b"kept"))]).await.unwrap();
    let kept = state.spool_stats();
    limit(1).await;
    let big = [SpoolItem::Chunk(chunk(1, &[0; 100_000]))];
    let e = state.spool(&big).await.unwrap_err();
    assert_eq!(e.problem, StateProblem::Full);
    assert!(e.retryable() && e.message.contains("make room"), "{e}");
    let mut r = record(RunState::Running);
    r.cmd = "x".repeat(100_000);
    let cursor = Some((job("backup"), at(1)));
    let e = state.begin_run(&r, cursor.clone()).await.unwrap_err();
    assert_eq!(e.problem, StateProblem::Full);
    assert_eq!(state.cursors().await.unwrap(), [].into(), "nothing is half done");
    assert_eq!(state.spool_stats(), kept);
    assert_eq!(state.peek(10, 1000).await.unwrap().items.len(), 1);
    // A read that goes well says nothing of the disk: only a trial ends the refusal.
    let refusal = state.refusal();
    let problem = |r: &Refusal| r.error.problem;
    assert_eq!(refusal.borrow().as_ref().map(problem), Some(StateProblem::Full));
    limit(1 << 20).await;
    assert!(state.refuses());
    state.try_again(dir.path()).await.unwrap();
    assert!(!state.refuses() && !dir.path().join("trial").exists());
    assert_eq!(state.begin_run(&r, cursor).await.unwrap(), Begin::New);
    assert_eq!(state.stats().failed, 2);
}

#[tokio::test]
async fn one_that_fails_takes_nobody_with_it() {
    let dir = dir();
    let state = open(&dir);
    // Sent together while the thread is busy, so that they share a transaction.
    let busy = state.call(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        Ok(())
    });
    let bad = state.call(|cx| cx.conn.execute_batch("INSERT INTO no_such_table VALUES (1)"));
    let (one, two) = (record(RunState::Running), record(RunState::Running));
    let (busy, first, bad, second) =
        tokio::join!(busy, state.begin_run(&one, None), bad, state.begin_run(&two, None));
    busy.unwrap();
    assert_eq!((first.unwrap(), second.unwrap()), (Begin::New, Begin::New));
    assert_eq!(bad.unwrap_err().problem, StateProblem::Other);
    assert_eq!(state.recover().await.unwrap().len(), 2);
    assert_eq!(state.stats().failed, 1);
}

#[tokio::test]
async fn a_file_of_the_first_version_is_brought_up_to_date() {
    let dir = dir();
    let conn = rusqlite::Connection::open(dir.path().join("state.db")).unwrap();
    conn.execute_batch(include_str!("../schema_1.sql")).unwrap();
    conn.execute_batch("INSERT INTO cursor VALUES ('backup', 5000); PRAGMA user_version = 1")
        .unwrap();
    let spooled = record(RunState::Success);
    conn.execute(
        "INSERT INTO spool (id, kind, at, payload) VALUES (7, 1, 0, ?1)",
        [serde_json::to_vec(&spooled).unwrap()],
    )
    .unwrap();
    drop(conn);
    let state = open(&dir);
    let batch = state.peek(10, 1 << 20).await.unwrap();
    assert_eq!((batch.items, batch.last_id), (vec![SpoolItem::Record(spooled)], 7));
    let cursor = Cursor { slot: at(5), runs: 0 };
    assert_eq!(state.cursors().await.unwrap(), [(job("backup"), cursor)].into());
    assert!(state.waits().await.unwrap().is_empty());
}
