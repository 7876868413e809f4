//! Real processes and files, without etcd.

use super::*;

fn plan(slot: Timestamp) -> Plan {
    Plan {
        run_id: RunId(uuid::Uuid::now_v7()),
        job: Some(Name::new("j").unwrap()),
        assignment: Arc::new(serde_json::from_str(r#"{"cmd":"true"}"#).unwrap()),
        slot,
        attempt: 1,
        cause: Cause::Schedule,
        fence: None,
        permit: None,
    }
}

#[tokio::test]
async fn a_slot_that_is_taken_leaves_a_record_and_a_known_run_none() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::in_dir(dir.path()).await;
    let (first, second) = (plan(Timestamp::UNIX_EPOCH), plan(Timestamp::UNIX_EPOCH));
    let asked = Plan { cause: Cause::Trigger, ..plan(first.slot) };
    let tries = [(&asked, true), (&asked, false), (&first, true), (&second, false)];
    for (plan, runs) in tries {
        let begun = engine.begin(plan).await;
        let over = engine.execute(plan.clone(), begun, None, |_| None).await;
        assert_eq!(over.is_some(), runs);
    }
    let items = engine.state.peek(10, usize::MAX).await.unwrap().items;
    let states: Vec<_> = items
        .iter()
        .filter_map(|item| match item {
            SpoolItem::Record(r) if r.state.is_final() => Some((r.run_id, r.state)),
            _ => None,
        })
        .collect();
    let want = [
        (asked.run_id, RunState::Success),
        (first.run_id, RunState::Success),
        (second.run_id, RunState::Skipped),
    ];
    assert_eq!(states, want);
}

#[tokio::test]
async fn what_is_promised_is_kept_with_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::in_dir(dir.path()).await;
    let first = plan(Timestamp::UNIX_EPOCH);
    let second = Plan { attempt: 2, ..plan(first.slot) };
    let wait = WaitEntry { run_id: second.run_id, due: first.slot, plan: "{}".into() };
    let begun = engine.begin(&first).await;
    let promise = wait.clone();
    let over = engine.execute(first, begun, None, |ended| {
        assert_eq!((ended.attempt, ended.state), (1, RunState::Success));
        Some(promise)
    });
    assert_eq!(over.await.unwrap().next, Some(wait.clone()));
    assert_eq!(engine.state.waits().await.unwrap(), [wait]);
    // Its slot has been started before: the wait guards it, not the cursor.
    let begun = engine.begin(&second).await;
    let over = engine.execute(second, begun, None, |_| None).await.unwrap();
    assert_eq!((over.record.attempt, over.next), (2, None));
    assert!(engine.state.waits().await.unwrap().is_empty());
    let cursor = engine.state.cursor(Name::new("j").unwrap()).await.unwrap().unwrap();
    assert_eq!(cursor.runs, 1, "a further attempt is no further run");
}

#[tokio::test]
async fn a_brief_run_is_told_of_once_and_a_long_one_twice() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::in_dir(dir.path()).await;
    let brief = plan(Timestamp::UNIX_EPOCH);
    let assignment = serde_json::from_str(r#"{"cmd":"sleep 600"}"#).unwrap();
    let long =
        Plan { assignment: Arc::new(assignment), ..plan(Timestamp::from_second(1).unwrap()) };
    let (begun, long_id) = (engine.begin(&brief).await, long.run_id);
    engine.execute(brief, begun, None, |_| None).await.unwrap();
    let (begun, its) = (engine.begin(&long).await, engine.clone());
    let running = tokio::spawn(async move { its.execute(long, begun, None, |_| None).await });
    let mut changes = engine.state.spool_changes();
    // The end of the brief one, and the beginning of the long one.
    let told = changes.wait_for(|s| s.items == 2);
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap().unwrap();
    let open = engine.state.recover().await.unwrap();
    let pid = open[0].process.map(|(pid, _)| pid);
    assert_eq!((open.len(), open[0].record.run_id), (1, long_id));
    engine.registry.kill_all(KillReason::Requested);
    let ended = tokio::time::timeout(Duration::from_secs(30), running).await.unwrap().unwrap();
    assert_eq!(ended.unwrap().record.pid, pid, "the process was noted");
    let items = engine.state.peek(10, usize::MAX).await.unwrap().items;
    let states = items.iter().map(|item| match item {
        SpoolItem::Record(r) => (r.run_id == long_id, r.state),
        SpoolItem::Chunk(c) => panic!("{c:?}"),
    });
    let want = [(false, RunState::Success), (true, RunState::Running), (true, RunState::Killed)];
    assert_eq!(states.collect::<Vec<_>>(), want);
}
