//! New items and a backlog, each delivered at its own pace.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn text(run_id: RunId, seq: u64) -> SpoolItem {
    SpoolItem::Chunk(OutputChunk { run_id, ..chunk(seq, b"some output") })
}

async fn all(state: &State, lane: Lane) -> Batch {
    state.take(lane, None, 0, Most(1_000, usize::MAX)).await.unwrap()
}

/// A run born now; its id differs in its time from those before.
fn newborn() -> RunId {
    std::thread::sleep(std::time::Duration::from_millis(2));
    new_id()
}

#[tokio::test]
async fn what_is_new_does_not_wait_for_a_backlog_and_runs_stay_in_order() {
    let dir = dir();
    let state = open(&dir);
    let old = newborn();
    state.spool(&[text(old, 0), text(old, 1)]).await.unwrap();
    state.part().await.unwrap();
    let new = newborn();
    state.spool(&[text(new, 0), text(old, 2), text(new, 1)]).await.unwrap();
    let stats = state.spool_stats();
    assert_eq!((stats.items, stats.backlog, stats.fresh()), (5, 3, 2));
    let fresh = all(&state, Lane::Fresh).await;
    assert_eq!(fresh.items, [text(new, 0), text(new, 1)]);
    let backlog = all(&state, Lane::Backlog).await;
    assert_eq!(backlog.items, [text(old, 0), text(old, 1), text(old, 2)]);
    // What comes after the look stays.
    state.spool(&[text(old, 3)]).await.unwrap();
    state.ack(&backlog).await.unwrap();
    state.ack(&fresh).await.unwrap();
    assert_eq!(all(&state, Lane::Backlog).await.items, [text(old, 3)]);
    assert_eq!(all(&state, Lane::Fresh).await.items, []);
    state.ack(&all(&state, Lane::Backlog).await).await.unwrap();
    // The backlog is done: there is one lane again.
    state.spool(&[text(old, 4)]).await.unwrap();
    assert_eq!(state.spool_stats().backlog, 0);
    assert_eq!(all(&state, Lane::Fresh).await.items, [text(old, 4)]);
}

#[tokio::test]
async fn a_second_outage_makes_one_backlog_of_both() {
    let dir = dir();
    let state = open(&dir);
    let (a, b) = (newborn(), newborn());
    state.spool(&[text(a, 0)]).await.unwrap();
    state.part().await.unwrap();
    let c = newborn();
    state.spool(&[text(c, 0), text(b, 0)]).await.unwrap();
    // While something of the fresh lane is under way, it is left as it is.
    let fresh = state.take(Lane::Fresh, None, 0, Most(1, usize::MAX)).await.unwrap();
    state.part().await.unwrap();
    assert_eq!(state.spool_stats().backlog, 2);
    state.ack(&fresh).await.unwrap();
    state.spool(&[text(newborn(), 0)]).await.unwrap();
    state.part().await.unwrap();
    assert_eq!(state.spool_stats().fresh(), 0);
    let d = newborn();
    state.spool(&[text(d, 0), text(c, 1)]).await.unwrap();
    assert_eq!(all(&state, Lane::Fresh).await.items, [text(d, 0)]);
    let backlog = all(&state, Lane::Backlog).await.items;
    assert_eq!((backlog.len(), &backlog[0], &backlog[3]), (4, &text(a, 0), &text(c, 1)));
}

#[tokio::test]
async fn what_an_earlier_life_left_is_a_backlog() {
    let dir = dir();
    let state = open(&dir);
    let run = RunRecord { run_id: newborn(), ..record(RunState::Running) };
    state.spool(&[SpoolItem::Record(run.clone()), text(run.run_id, 0)]).await.unwrap();
    state.close().await;
    let state = open(&dir);
    assert_eq!(state.spool_stats().backlog, 2);
    let new = newborn();
    state.spool(&[text(new, 0), text(run.run_id, 1)]).await.unwrap();
    assert_eq!(all(&state, Lane::Fresh).await.items, [text(new, 0)]);
    let last = &all(&state, Lane::Backlog).await.items[2];
    assert_eq!(last, &text(run.run_id, 1));
    // A run whose id is ahead of this clock, as its master's was.
    let dir = super::dir();
    let state = open(&dir);
    let ahead = jiff::Timestamp::now().as_millisecond() as u64 + 3_600_000;
    let builder = uuid::Builder::from_unix_timestamp_millis(ahead, &[7; 10]);
    let ahead = RunRecord { run_id: RunId(builder.into_uuid()), ..run };
    state.spool(&[SpoolItem::Record(ahead.clone())]).await.unwrap();
    state.close().await;
    let state = open(&dir);
    state.spool(&[text(ahead.run_id, 0)]).await.unwrap();
    assert_eq!(all(&state, Lane::Backlog).await.items.len(), 2);
}

/// What happens to a spool.
#[derive(Debug, Clone)]
enum Step {
    /// Run `n` writes so many bytes.
    Write(usize, usize),
    /// Run `n` ends, and another takes its place.
    End(usize),
    Part,
    /// Take a batch of a lane and deliver it; or try and fail; or deliver it and lose the
    /// acknowledgement.
    Deliver(Lane, usize, u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let lane = prop_oneof![Just(Lane::Fresh), Just(Lane::Backlog)];
    prop_oneof![
        8 => (0..4_usize, 1..400_usize).prop_map(|(n, bytes)| Step::Write(n, bytes)),
        2 => (0..4_usize).prop_map(Step::End),
        1 => Just(Step::Part),
        4 => (lane, 1..8_usize, 0..4_u8).prop_map(|(l, n, how)| Step::Deliver(l, n, how)),
        1 => Just(Step::Restart),
    ]
}

#[derive(Default)]
struct Run {
    next: u64,
    written: u64,
    stored: BTreeMap<u64, u64>,
    record: Option<RunRecord>,
}

fn store(runs: &mut BTreeMap<RunId, Run>, items: &[SpoolItem]) {
    for item in items {
        match item {
            SpoolItem::Chunk(c) => {
                let run = runs.get_mut(&c.run_id).unwrap();
                let newest = run.stored.last_key_value().map_or(0, |(seq, _)| *seq);
                // What is delivered again is known; what is new comes in order, before the end.
                if !run.stored.contains_key(&c.seq) {
                    assert!(run.stored.is_empty() || c.seq > newest, "out of order");
                    assert!(run.record.is_none(), "after the end");
                }
                run.stored.insert(c.seq, c.data.len() as u64);
            }
            SpoolItem::Record(r) => {
                let run = runs.get_mut(&r.run_id).unwrap();
                run.record.get_or_insert_with(|| r.clone());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happens, every run is stored in order, and all it wrote is stored or counted.
    /// (After a restart what was in doubt may be both.)
    #[test]
    fn nothing_is_lost_uncounted(
        steps in proptest::collection::vec(step(), 1..120),
        limit in prop_oneof![Just(1 << 20), 2_000..6_000_u64],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let checked: Result<(), TestCaseError> = runtime.block_on(async {
            let dir = dir();
            let options = StateOptions { spool_limit: limit, ..StateOptions::new(dir.path()) };
            let mut state = State::open(&options).unwrap();
            let mut runs: BTreeMap<RunId, Run> = BTreeMap::new();
            let mut active: Vec<RunId> = (0..4).map(|_| newborn()).collect();
            active.iter().for_each(|id| drop(runs.insert(*id, Run::default())));
            let mut doubtful = false;
            for step in steps {
                match step {
                    Step::Write(n, bytes) => {
                        let run = runs.get_mut(&active[n]).unwrap();
                        let chunk = OutputChunk { run_id: active[n], ..chunk(run.next, &vec![b'x'; bytes]) };
                        (run.next, run.written) = (run.next + 1, run.written + bytes as u64);
                        state.spool(&[SpoolItem::Chunk(chunk)]).await.unwrap();
                    }
                    Step::End(n) => {
                        let run_id = active[n];
                        state.end_run(&RunRecord { run_id, ..record(RunState::Success) }).await.unwrap();
                        active[n] = newborn();
                        runs.insert(active[n], Run::default());
                    }
                    Step::Part => state.part().await.unwrap(),
                    Step::Deliver(lane, n, how) => {
                        let batch = state.take(lane, None, 0, Most(n, usize::MAX)).await.unwrap();
                        match how {
                            0 => {}
                            1 => store(&mut runs, &batch.items),
                            _ => {
                                store(&mut runs, &batch.items);
                                state.ack(&batch).await.unwrap();
                            }
                        }
                    }
                    Step::Restart => {
                        doubtful = true;
                        state.close().await;
                        state = State::open(&options).unwrap();
                    }
                }
            }
            for id in active {
                state.end_run(&RunRecord { run_id: id, ..record(RunState::Success) }).await.unwrap();
            }
            for lane in [Lane::Fresh, Lane::Backlog] {
                loop {
                    let batch = state.take(lane, None, 0, Most(5, usize::MAX)).await.unwrap();
                    if batch.last_id == 0 {
                        break;
                    }
                    store(&mut runs, &batch.items);
                    state.ack(&batch).await.unwrap();
                }
            }
            let stats = state.spool_stats();
            prop_assert_eq!((stats.items, stats.backlog, stats.bytes), (0, 0, 0));
            for run in runs.values() {
                let record = run.record.as_ref().expect("its end is stored");
                let (stored, dropped) = (run.stored.values().sum::<u64>(), record.dropped_bytes);
                if doubtful {
                    prop_assert!(stored + dropped >= run.written);
                } else {
                    prop_assert_eq!(stored + dropped, run.written);
                }
            }
            Ok(())
        });
        checked?;
    }
}
