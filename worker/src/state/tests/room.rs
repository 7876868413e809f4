//! What goes when the spool is full or too old.

use super::*;

/// Bytes of the row of a chunk with a kilobyte of output.
const KILO: u64 = 1_000 + 33 + 32;

fn limited(dir: &TempDir, spool_limit: u64) -> State {
    State::open(&StateOptions { spool_limit, ..StateOptions::new(dir.path()) }).unwrap()
}

/// A kilobyte of output of `run`.
fn kilo(run_id: RunId, seq: u64) -> SpoolItem {
    SpoolItem::Chunk(OutputChunk { run_id, ..chunk(seq, &[b'x'; 1_000]) })
}

/// The sequence numbers of the output that is there.
async fn seqs(state: &State) -> Vec<u64> {
    let items = state.peek(1_000, usize::MAX).await.unwrap().items;
    items
        .iter()
        .filter_map(|i| match i {
            SpoolItem::Chunk(c) => Some(c.seq),
            SpoolItem::Record(_) => None,
        })
        .collect()
}

#[tokio::test]
async fn the_oldest_output_goes_first_and_records_stay() {
    let dir = dir();
    let state = limited(&dir, 5 * KILO);
    let run = record(RunState::Success);
    let early = record(RunState::Running);
    state.spool(&[SpoolItem::Record(early.clone())]).await.unwrap();
    for n in 0..10 {
        state.spool(&[kilo(run.run_id, n)]).await.unwrap();
    }
    assert_eq!(seqs(&state).await, [6, 7, 8, 9]);
    let stats = state.spool_stats();
    assert_eq!((stats.dropped_chunks, stats.dropped_bytes), (6, 6_000));
    assert!(stats.dropped_at.is_some() && stats.bytes <= 5 * KILO);
    // The end tells of it.
    assert_eq!(state.end_run(&run).await.unwrap(), 6_000);
    // Records take the place of output, and then more than there is.
    for _ in 0..30 {
        state.end_run(&record(RunState::Success)).await.unwrap();
    }
    assert!(seqs(&state).await.is_empty());
    let stats = state.spool_stats();
    assert_eq!((stats.items, stats.dropped_chunks, stats.dropped_records), (32, 10, 0));
    // What was dropped after the end is told by the record as well.
    let batch = state.take(Lane::Fresh, None, 0, Most(100, usize::MAX)).await.unwrap();
    assert_eq!(batch.items[0], SpoolItem::Record(early));
    let told = RunRecord { dropped_bytes: 10_000, ..run.clone() };
    assert_eq!(batch.items[1], SpoolItem::Record(told));
    state.ack(&batch).await.unwrap();
    // Once: it is settled.
    state.spool(&[SpoolItem::Record(run.clone()), kilo(run.run_id, 99)]).await.unwrap();
    let kept = state.peek(10, usize::MAX).await.unwrap();
    assert_eq!(kept.items[0], SpoolItem::Record(run));
    assert_eq!(seqs(&state).await, [99], "with room again, output is taken again");
}

#[tokio::test]
async fn what_may_be_delivered_already_is_not_dropped() {
    let dir = dir();
    let state = limited(&dir, 5 * KILO);
    let run = new_id();
    for n in 0..4 {
        state.spool(&[kilo(run, n)]).await.unwrap();
    }
    let two = state.take(Lane::Fresh, None, 0, Most(2, usize::MAX)).await.unwrap();
    for n in 4..10 {
        state.spool(&[kilo(run, n)]).await.unwrap();
    }
    assert_eq!(seqs(&state).await, [0, 1, 8, 9]);
    // Tried again with less, it stays in doubt.
    let one = state.take(Lane::Fresh, None, 0, Most(1, usize::MAX)).await.unwrap();
    state.ack(&one).await.unwrap();
    state.spool(&[kilo(run, 10), kilo(run, 11)]).await.unwrap();
    assert_eq!(seqs(&state).await, [1, 8, 9, 10, 11]);
    state.ack(&two).await.unwrap();
    state.spool(&[kilo(run, 12), kilo(run, 13)]).await.unwrap();
    assert_eq!(seqs(&state).await, [10, 11, 12, 13]);
    // Where everything is in doubt, what comes is refused.
    state.spool(&[kilo(run, 14)]).await.unwrap();
    state.take(Lane::Fresh, None, 0, Most(9, usize::MAX)).await.unwrap();
    state.spool(&[kilo(run, 15)]).await.unwrap();
    assert_eq!(seqs(&state).await, [10, 11, 12, 13, 14]);
}

#[tokio::test]
async fn output_that_is_refused_is_counted_in_its_run_also_after_a_restart() {
    let dir = dir();
    let state = limited(&dir, 0);
    let run = RunRecord { dropped_bytes: 1, ..record(RunState::Success) };
    let of = |run_id| SpoolItem::Chunk(OutputChunk { run_id, ..chunk(0, b"12345") });
    state.spool(&[of(run.run_id), of(new_id())]).await.unwrap();
    state.close().await;
    let state = limited(&dir, 0);
    state.spool(&[of(run.run_id)]).await.unwrap();
    assert_eq!(state.end_run(&run).await.unwrap(), 10);
    let kept = state.peek(10, usize::MAX).await.unwrap().items;
    assert_eq!(kept, [SpoolItem::Record(RunRecord { dropped_bytes: 11, ..run.clone() })]);
    assert_eq!(state.end_run(&run).await.unwrap(), 0, "counted once");
}

#[tokio::test]
async fn records_that_fill_the_spool_alone_go_when_the_reserve_is_used_up() {
    let dir = dir();
    let state = limited(&dir, 1 << 20);
    let large = || RunRecord { cmd: "x".repeat(1 << 20), ..record(RunState::Success) };
    let mut ids = Vec::new();
    for _ in 0..20 {
        let run = large();
        ids.push(run.run_id);
        state.end_run(&run).await.unwrap();
    }
    let stats = state.spool_stats();
    assert_eq!(stats.items + stats.dropped_records, 20);
    assert!(stats.dropped_records >= 3 && stats.bytes <= 17 << 20, "{stats:?}");
    let items = state.peek(100, usize::MAX).await.unwrap().items;
    let left: Vec<RunId> = items
        .iter()
        .map(|i| match i {
            SpoolItem::Record(r) => r.run_id,
            SpoolItem::Chunk(c) => panic!("{c:?}"),
        })
        .collect();
    assert_eq!(left, ids[stats.dropped_records as usize..], "the oldest go");
}

#[tokio::test]
async fn what_is_too_old_goes_output_before_records() {
    let dir = dir();
    let state = open(&dir);
    let run = record(RunState::Success);
    state.spool(&[kilo(run.run_id, 0), kilo(run.run_id, 1)]).await.unwrap();
    state.end_run(&run).await.unwrap();
    let (past, future) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
    state.expire(past, past).await.unwrap();
    assert_eq!(state.spool_stats().items, 3);
    state.expire(future, past).await.unwrap();
    let told = RunRecord { dropped_bytes: 2_000, ..run };
    assert_eq!(state.peek(9, usize::MAX).await.unwrap().items, [SpoolItem::Record(told)]);
    assert_eq!(state.spool_stats().dropped_bytes, 2_000);
    state.expire(future, future).await.unwrap();
    let stats = state.spool_stats();
    assert_eq!((stats.items, stats.bytes, stats.dropped_records), (0, 0, 1));
    // What comes later is looked at anew.
    state.spool(&[kilo(new_id(), 0)]).await.unwrap();
    state.expire(future, past).await.unwrap();
    assert_eq!(state.spool_stats().items, 0);
}

/// The end of a run with some kilobytes of output.
async fn end_with(state: &State, run: &RunRecord, kilos: u64) -> u64 {
    let data = [b'x'; 1_000];
    let piece = |seq| OutputChunk { run_id: run.run_id, ..chunk(seq, &data) };
    let output: Vec<_> = (0..kilos).map(|seq| Arc::new(piece(seq))).collect();
    state.end_run_with(run, &output, None, None).await.unwrap()
}

#[tokio::test]
async fn of_a_record_with_its_output_the_output_goes_first() {
    let dir = dir();
    let state = limited(&dir, 5 * KILO);
    let runs: Vec<RunRecord> = (0..3).map(|_| record(RunState::Success)).collect();
    for run in &runs {
        assert_eq!(end_with(&state, run, 1).await, 0);
    }
    let before = state.spool_stats();
    assert_eq!((before.items, before.dropped_chunks), (3, 0));
    let other = new_id();
    state.spool(&[kilo(other, 1), kilo(other, 2)]).await.unwrap();
    let stats = state.spool_stats();
    let gone = stats.dropped_chunks;
    assert!((1..=2).contains(&gone) && stats.dropped_bytes == gone * 1_000, "{stats:?}");
    assert_eq!((stats.items, stats.dropped_records), (5, 0));
    let batch = state.take(Lane::Fresh, None, 0, Most(100, usize::MAX)).await.unwrap();
    let mut expected = Vec::new();
    for (n, run) in runs.iter().enumerate() {
        let whole = n as u64 >= gone;
        if whole {
            expected.push(kilo(run.run_id, 0));
        }
        let dropped_bytes = if whole { 0 } else { 1_000 };
        expected.push(SpoolItem::Record(RunRecord { dropped_bytes, ..run.clone() }));
    }
    expected.extend([kilo(other, 1), kilo(other, 2)]);
    assert_eq!(batch.items, expected);
    // Taken, they stay as they are.
    state.spool(&[kilo(other, 3), kilo(other, 4)]).await.unwrap();
    assert_eq!(state.peek(100, usize::MAX).await.unwrap().items[..expected.len()], expected);
    // What was counted is what is there.
    let counted = state.spool_stats();
    state.close().await;
    let state = limited(&dir, 5 * KILO);
    let stats = state.spool_stats();
    assert_eq!((stats.items, stats.bytes), (counted.items, counted.bytes));
}

#[tokio::test]
async fn output_for_which_there_is_no_room_does_not_take_its_record_with_it() {
    let dir = dir();
    let state = limited(&dir, 3 * KILO);
    let run = record(RunState::Success);
    // Too much for the spool: the newest of it stays, as of any output.
    assert_eq!(end_with(&state, &run, 4).await, 2_000);
    assert_eq!(seqs(&state).await, [2, 3]);
    let kept = state.peek(9, usize::MAX).await.unwrap().items;
    let told = state.spool_stats().dropped_bytes;
    assert_eq!(kept.last(), Some(&SpoolItem::Record(RunRecord { dropped_bytes: told, ..run })));
    // No room at all.
    let none = limited(&super::dir(), 0);
    let run = record(RunState::Failed);
    assert_eq!(end_with(&none, &run, 2).await, 2_000);
    let kept = none.peek(9, usize::MAX).await.unwrap().items;
    assert_eq!(kept, [SpoolItem::Record(RunRecord { dropped_bytes: 2_000, ..run })]);
}

#[tokio::test]
async fn a_record_with_its_output_grows_old_in_two_steps() {
    let dir = dir();
    let state = open(&dir);
    let run = record(RunState::Success);
    end_with(&state, &run, 2).await;
    let (past, future) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
    state.expire(future, past).await.unwrap();
    let told = RunRecord { dropped_bytes: 2_000, ..run };
    assert_eq!(state.peek(9, usize::MAX).await.unwrap().items, [SpoolItem::Record(told)]);
    let stats = state.spool_stats();
    assert_eq!((stats.items, stats.dropped_chunks, stats.dropped_bytes), (1, 2, 2_000));
    state.expire(future, future).await.unwrap();
    let stats = state.spool_stats();
    assert_eq!((stats.items, stats.bytes, stats.dropped_records), (0, 0, 1));
}
