//! Checks of single records: round trips, precedence, idempotence, refusals.

use super::{Random, at, chunk, name, run};
use crate::{LogItem, LogStore, MAX_ITEM_BYTES, MAX_SEQ, RunQuery, StoreError};
use jiff::SignedDuration;
use meepo_core::{
    code::Code,
    job::Executor,
    run::{Cause, RunState},
};
use std::sync::Arc;

/// A run nobody wrote is absent everywhere, and that is no error.
pub async fn unknown_runs(store: Arc<dyn LogStore>) {
    let id = Random::new(1).run_id();
    assert_eq!(store.get_run(id).await.unwrap(), None);
    assert_eq!(store.output(id, None, 10).await.unwrap(), []);
    assert_eq!(store.output(id, Some(7), 10).await.unwrap(), []);
    let q = RunQuery { job: Some(name("nobody-has-this")), ..RunQuery::default() };
    let page = store.list_runs(&q).await.unwrap();
    assert_eq!((page.runs, page.next), (vec![], None));
    assert!(store.last_runs(&[name("nobody-has-this")]).await.unwrap().is_empty());
    assert!(store.last_runs(&[]).await.unwrap().is_empty());
    store.append(&[]).await.unwrap();
}

/// What goes in comes out, field by field: awkward text, extreme numbers, absent
/// fields, times to the millisecond on both sides of 1970.
pub async fn records_round_trip(store: Arc<dyn LogStore>) {
    let mut random = Random::new(2);
    let mut bare = run(random.run_id(), "x", "rt-node", 0);
    bare.job = None;
    bare.pid = None;
    bare.started_at = None;

    let mut full = run(random.run_id(), "rt-job", "fe80::1", 1_700_000_000_789);
    full.attempt = u32::MAX;
    full.cause = Cause::Exec;
    full.executor = Executor::Python;
    full.cmd = "$job $$ROOT {\"a\": 'b'} \\ \u{0} \n\t ü 🦀 \u{ffff}".into();
    full.state = RunState::Failed;
    full.code = Code(u16::MAX);
    full.message = Some("$literal.with.dots; DROP TABLE runs; --".into());
    full.exit_code = Some(i32::MIN);
    full.signal = Some(i32::MAX);
    full.fence = Some(i64::MAX);
    full.pid = Some(u32::MAX);
    full.ended_at = Some(at(1_700_000_001_001));
    full.output_bytes = i64::MAX as u64;
    full.dropped_bytes = 1;

    let mut early = run(random.run_id(), "rt-job", "rt-node", -1_234_567);
    early.cmd = String::new();
    early.message = Some(String::new());
    early.fence = Some(i64::MIN);

    let mut all = vec![bare, full, early];
    for ms in [0, 1, 999, 1_000, 1_699_999_999_999, 253_402_207_199_000] {
        all.push(run(random.run_id(), "rt-job", "rt-node", ms));
    }
    for cause in
        [Cause::Schedule, Cause::Misfire, Cause::Reboot, Cause::Trigger, Cause::Exec, Cause::Task]
    {
        for executor in Executor::ALL {
            let mut r = run(random.run_id(), "rt-job", "rt-node", 5);
            (r.cause, r.executor) = (cause, executor);
            all.push(r);
        }
    }
    let batch: Vec<_> = all.iter().cloned().map(LogItem::Run).collect();
    store.append(&batch).await.unwrap();
    for r in &all {
        assert_eq!(store.get_run(r.run_id).await.unwrap().as_ref(), Some(r));
    }

    // Finer times are cut and larger counters clamped, not refused.
    let mut fine = run(random.run_id(), "rt-job", "rt-node", 1_000);
    fine.slot = at(1_000) + SignedDuration::from_nanos(999_999);
    fine.ended_at = Some(at(2_000) + SignedDuration::from_nanos(1));
    fine.output_bytes = u64::MAX;
    store.append(&[LogItem::Run(fine.clone())]).await.unwrap();
    (fine.slot, fine.ended_at) = (at(1_000), Some(at(2_000)));
    fine.output_bytes = i64::MAX as u64;
    assert_eq!(store.get_run(fine.run_id).await.unwrap(), Some(fine));
}

/// For every pair of states, in one batch and in two: the record whose state ranks
/// higher stays, the first of equals stays, and the loser leaves no trace.
pub async fn rank_decides(store: Arc<dyn LogStore>) {
    let mut random = Random::new(3);
    for first in RunState::ALL {
        for second in RunState::ALL {
            for together in [false, true] {
                let id = random.run_id();
                let mut a = run(id, "rank-job", "rank-node", 10_000);
                (a.state, a.message) = (first, Some("first".into()));
                let mut b = run(id, "rank-job", "rank-node", 10_000);
                (b.state, b.exit_code, b.pid) = (second, Some(3), None);
                let want = if second.rank() > first.rank() { b.clone() } else { a.clone() };
                if together {
                    store.append(&[LogItem::Run(a), LogItem::Run(b)]).await.unwrap();
                } else {
                    store.append(&[LogItem::Run(a)]).await.unwrap();
                    store.append(&[LogItem::Run(b)]).await.unwrap();
                }
                let got = store.get_run(id).await.unwrap();
                assert_eq!(got, Some(want), "{first} then {second}, one batch: {together}");
                // The filter follows the record.
                let q = RunQuery {
                    job: Some(name("rank-job")),
                    states: vec![got.unwrap().state],
                    limit: Some(1_000),
                    ..RunQuery::default()
                };
                let listed = store.list_runs(&q).await.unwrap().runs;
                assert!(listed.iter().any(|r| r.run_id == id), "{first} then {second}");
            }
        }
    }
}

/// The same items again, whole, in parts, backwards or doubled, change nothing.
pub async fn batches_are_idempotent(store: Arc<dyn LogStore>) {
    let mut random = Random::new(4);
    let ids: Vec<_> = (0..20).map(|_| random.run_id()).collect();
    let mut batch = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let mut r = run(*id, "idem-job", "idem-node", 1_000 * i as i64);
        batch.push(LogItem::Run(r.clone()));
        batch.extend((0..7).map(|s| LogItem::Output(chunk(*id, s, random.bytes(50)))));
        r.state = RunState::Success;
        r.ended_at = Some(at(99_999));
        batch.push(LogItem::Run(r));
    }
    store.append(&batch).await.unwrap();
    let q = RunQuery { job: Some(name("idem-job")), limit: Some(1_000), ..RunQuery::default() };
    let state = async || {
        let page = store.list_runs(&q).await.unwrap();
        let mut output = Vec::new();
        for id in &ids {
            output.push(store.output(*id, None, 100).await.unwrap());
        }
        (page, output)
    };
    let before = state().await;
    assert_eq!(before.0.runs.len(), ids.len());
    assert!(before.0.runs.iter().all(|r| r.state == RunState::Success));
    assert!(before.1.iter().all(|chunks| chunks.len() == 7));
    let mut doubled = batch.clone();
    doubled.extend(batch.clone());
    let backwards: Vec<_> = batch.iter().rev().cloned().collect();
    for (how, again) in [("whole", &batch), ("doubled", &doubled), ("backwards", &backwards)] {
        store.append(again).await.unwrap();
        assert_eq!(state().await, before, "{how}");
    }
    for part in batch.chunks(13) {
        store.append(part).await.unwrap();
    }
    assert_eq!(state().await, before, "in parts");
}

/// What no store could keep is refused at once, with nothing of the batch stored, and
/// the largest that may be kept is.
pub async fn oversized_items_are_refused(store: Arc<dyn LogStore>) {
    let mut random = Random::new(5);
    let id = random.run_id();
    let good = LogItem::Run(run(id, "big-job", "big-node", 0));
    let mut wordy = run(random.run_id(), "big-job", "big-node", 0);
    wordy.cmd = "x".repeat(MAX_ITEM_BYTES + 1);
    for bad in [
        LogItem::Run(wordy),
        LogItem::Output(chunk(id, 0, vec![0; MAX_ITEM_BYTES + 1])),
        LogItem::Output(chunk(id, MAX_SEQ + 1, "x")),
        LogItem::Output(chunk(id, u64::MAX, "x")),
    ] {
        let e = store.append(&[good.clone(), bad]).await.unwrap_err();
        assert!(matches!(e, StoreError::Refused { .. }) && !e.retryable(), "{e}");
        assert!(e.to_string().contains("at most"), "{e}");
        assert_eq!(store.get_run(id).await.unwrap(), None, "{e}");
    }
    let mut largest = run(id, "big-job", "big-node", 0);
    largest.cmd = "$".repeat(MAX_ITEM_BYTES);
    let chunks = [
        chunk(id, 3, random.bytes(MAX_ITEM_BYTES)),
        chunk(id, MAX_SEQ - 1, "last but one"),
        chunk(id, MAX_SEQ, "last"),
    ];
    let mut batch: Vec<_> = chunks.iter().cloned().map(LogItem::Output).collect();
    batch.push(LogItem::Run(largest.clone()));
    store.append(&batch).await.unwrap();
    assert!(store.get_run(id).await.unwrap() == Some(largest));
    assert!(store.output(id, None, 10).await.unwrap() == chunks);
    assert_eq!(store.output(id, Some(MAX_SEQ - 1), 10).await.unwrap(), chunks[2..]);
    assert_eq!(store.output(id, Some(MAX_SEQ), 10).await.unwrap(), []);
    assert_eq!(store.output(id, Some(u64::MAX), 10).await.unwrap(), []);
}
