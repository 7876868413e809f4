//! Starts that are moved, bounded or put off.

use super::*;
use crate::agent::waits::promise;
use meepo_coord::watch::Change;
use meepo_core::run::RunRecord;

/// The end of a run whose job wants it tried again.
fn failed(plan: &Plan) -> RunRecord {
    RunRecord {
        state: RunState::Failed,
        code: Code::EXIT_STATUS,
        ..plan.record(&Name::new("127.0.0.9").unwrap())
    }
}

fn first(rig: &Rig, fence: Option<i64>) -> Plan {
    let job = rig.agent.table.get(&j()).unwrap();
    let slots = Slots::new(job, job.assignment().unwrap());
    Plan { fence, ..slots.plan(second(), Cause::Schedule) }
}

const RETRIED: &str =
    r#"{"cmd":"true","express":"0 0 1 1 *","retry":{"max":2,"delay":"1h","backoff":"fixed"}}"#;

#[tokio::test]
async fn jitter_moves_the_start_and_not_the_slot() {
    let mut rig = rig().await;
    rig.load(r#"{"cmd":"true","express":"* * * * *","jitter":"50s"}"#, false).await;
    let delay = rig.agent.table.get(&j()).unwrap().delay();
    assert!(delay > SignedDuration::ZERO && delay < SignedDuration::from_secs(50));
    let start = rig.agent.agenda.head().unwrap();
    let slot = start - delay;
    assert_eq!(slot.as_second() % 60, 0, "{slot}");
    // As if a slot had been due for a second.
    let due = Timestamp::from_second(Timestamp::now().as_second() / 60 * 60).unwrap();
    let job = rig.agent.table.get_mut(&j()).unwrap();
    job.after = due - SignedDuration::from_mins(2);
    rig.agent.schedule(&j());
    rig.agent.fire_due().await;
    let slots: Vec<_> = rig.agent.overlap.drain().iter().map(|a| a.plan.slot).collect();
    assert!(slots.iter().all(|s| s.as_second() % 60 == 0), "{slots:?}");
}

fn at(instant: Timestamp, more: &str) -> String {
    format!(r#"{{"cmd":"true","express":"@at {instant}"{more}}}"#)
}

/// What the agent finds in etcd when it starts, `value` being all there is, after a life that
/// held `before`.
async fn found(rig: &mut Rig, before: Option<&str>, value: &str) {
    let before = before.map(|value| (KEY.to_owned(), value.as_bytes().to_vec()));
    rig.agent.snapshot.extend(before);
    let entries = vec![entry(KEY, value)];
    rig.agent.heard(Batch::Reset { entries, revision: 1 }).await;
    rig.agent.fire_due().await;
}

#[tokio::test]
async fn an_instant_that_has_passed_unheard_is_missed_unless_it_may_have_run_here() {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    let ago = |minutes| now - SignedDuration::from_mins(minutes);
    let due = at(ago(5), "");
    // The file is older than the instant, or it is not.
    for (since, missed) in [(ago(60), 1), (ago(4), 0), (now + SignedDuration::from_mins(9), 0)] {
        let mut rig = rig().await;
        rig.agent.since = since;
        found(&mut rig, None, &due).await;
        let records = rig.records().await;
        assert_eq!(records.len(), missed, "{since}: {records:?}");
        assert!(records.iter().all(|r| (r.state, r.slot) == (RunState::Missed, ago(5))));
    }
    let mut rig = rig().await;
    rig.agent.since = ago(60);
    found(&mut rig, None, &at(ago(5), r#","misfire":"once""#)).await;
    assert_eq!(rig.agent.overlap.next().unwrap().plan.cause, Cause::Misfire);
}

#[tokio::test]
async fn an_instant_counts_as_missed_only_where_the_schedule_was_to_be_followed() {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    let ago = |minutes| now - SignedDuration::from_mins(minutes);
    let due = at(ago(5), "");
    let missed = async |before: &str, cursor: Timestamp| {
        let mut rig = rig().await;
        rig.agent.since = ago(60);
        rig.agent.cursors.insert(j(), Cursor { slot: cursor, runs: 0 });
        found(&mut rig, Some(before), &due).await;
        rig.records().await.len()
    };
    assert_eq!(missed(&due, ago(30)).await, 1, "nothing has changed");
    assert_eq!(missed(&due, ago(5)).await, 0, "it has run");
    assert_eq!(missed(YEARLY, ago(30)).await, 1, "another schedule before");
    assert_eq!(missed(YEARLY, ago(1)).await, 0, "changed after it had passed");
    assert_eq!(missed(&at(ago(5), r#","status":"pause""#), ago(30)).await, 0, "it was paused");
    // The same in one life.
    let mut rig = rig().await;
    rig.load(YEARLY, false).await;
    rig.agent.table.get_mut(&j()).unwrap().after = ago(30);
    rig.load(&at(ago(5), r#","status":"pause""#), false).await;
    rig.load(&due, false).await;
    rig.agent.fire_due().await;
    assert!(rig.records().await.is_empty(), "it was paused");
    rig.load(YEARLY, false).await;
    rig.agent.table.get_mut(&j()).unwrap().after = ago(30);
    rig.load(&due, false).await;
    rig.agent.fire_due().await;
    assert_eq!(rig.records().await.len(), 1);
}

#[tokio::test]
async fn an_instant_that_ran_does_not_run_again_when_its_job_is_put_anew() {
    let mut rig = rig().await;
    let now = Timestamp::now();
    let due = at(Timestamp::from_second(now.as_second() - 60).unwrap(), "");
    rig.agent.since = now - SignedDuration::from_hours(1);
    found(&mut rig, None, &due).await;
    assert_eq!(rig.records().await.len(), 1);
    let delete = Change::Delete { key: KEY.to_owned(), revision: 2 };
    let put = || Change::Put(entry(KEY, &due));
    // At once, or later.
    rig.agent.heard(Batch::Changes(vec![delete, put()])).await;
    let delete = Change::Delete { key: KEY.to_owned(), revision: 3 };
    rig.agent.heard(Batch::Changes(vec![delete])).await;
    rig.agent.heard(Batch::Changes(vec![put()])).await;
    rig.agent.fire_due().await;
    assert_eq!(rig.records().await.len(), 1);
    assert!(
        rig.agent.engine.state.forgotten_at().await.unwrap()
            >= rig.agent.since - SignedDuration::from_secs(1)
    );
}

#[tokio::test]
async fn a_schedule_ends_after_max_runs_also_in_the_next_life() {
    let mut rig = rig().await;
    let value = r#"{"cmd":"true","express":"* * * * * *","max_runs":2,"misfire":"all","concurrency":"allow"}"#;
    rig.load(value, false).await;
    let after = Timestamp::now() - SignedDuration::from_secs(5);
    rig.agent.table.get_mut(&j()).unwrap().after = after;
    rig.agent.engine.state.restart_cursors_later(vec![(j(), after)]).await.unwrap();
    rig.agent.schedule(&j());
    // Five slots are due; what has not begun counts too.
    rig.agent.fire_due().await;
    assert_eq!(rig.agent.overlap.ready(), 2);
    assert!(!rig.agent.agenda.is_empty(), "one of them may not begin");
    rig.agent.places.add_permits(2);
    rig.agent.begin_ready().await;
    assert!(rig.agent.agenda.is_empty());
    // The next life knows it from the cursor.
    let cursor = rig.agent.engine.state.cursor(j()).await.unwrap().unwrap();
    assert_eq!(cursor.runs, 2);
    rig.agent.unload(KEY).await;
    rig.agent.cursors.insert(j(), cursor);
    rig.load(value, true).await;
    assert!(rig.agent.agenda.is_empty());
}

#[tokio::test]
async fn a_further_attempt_is_promised_kept_and_given_up_with_its_job() {
    let mut rig = rig().await;
    rig.load(RETRIED, false).await;
    let plan = first(&rig, None);
    let now = Timestamp::now();
    let wait = promise(&plan, &failed(&plan), now).unwrap();
    assert_eq!(wait.due, now + SignedDuration::from_hours(1));
    let killed = RunRecord { code: Code::KILLED, ..failed(&plan) };
    assert_eq!(promise(&plan, &killed, now), None);
    let last = Plan { attempt: 3, ..plan.clone() };
    assert_eq!(promise(&last, &failed(&last), now), None);

    rig.agent.promised(wait.clone()).await;
    assert_eq!(rig.agent.waits.head(), Some(wait.due));
    rig.agent.start_waiting(wait.due).await;
    let asked = rig.agent.overlap.next().unwrap().plan;
    assert_eq!((asked.attempt, asked.slot, asked.run_id), (2, plan.slot, wait.run_id));
    rig.agent.overlap.release(&j(), asked.run_id);

    for (value, why) in [
        (r#"{"cmd":"true","express":"0 0 1 1 *"}"#, "not tried again any more"),
        (&RETRIED.replace("\"cmd\"", "\"status\":\"pause\",\"cmd\""), "paused"),
    ] {
        rig.load(value, false).await;
        let wait = promise(&plan, &failed(&plan), now).unwrap();
        rig.agent.promised(wait.clone()).await;
        rig.agent.start_waiting(wait.due).await;
        let record = rig.records().await.pop().unwrap();
        assert_eq!((record.state, record.attempt), (RunState::Skipped, 2));
        assert!(record.message.as_ref().unwrap().contains(why), "{record:?}");
    }
}

#[tokio::test]
async fn a_further_attempt_of_a_claimed_run_waits_for_the_lease() {
    let mut rig = rig().await;
    rig.load(RETRIED, false).await;
    let plan = first(&rig, Some(7));
    let wait = promise(&plan, &failed(&plan), Timestamp::now()).unwrap();
    rig.agent.promised(wait.clone()).await;
    rig.agent.start_waiting(wait.due).await;
    assert_eq!(rig.agent.overlap.ready(), 0);
    assert!(rig.agent.waits.head().unwrap() > wait.due, "it is put off");
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    rig.lease.send_replace(LeaseState::Held { id: 1, until });
    rig.agent.start_waiting(wait.due + SignedDuration::from_mins(1)).await;
    let asked = rig.agent.overlap.next().unwrap();
    assert_eq!((asked.plan.attempt, asked.plan.fence), (2, Some(7)));
}

#[tokio::test]
async fn a_run_that_is_put_off_starts_later_unless_it_is_killed_or_taken_back() {
    let mut rig = rig().await;
    let node = rig.agent.engine.node.clone();
    let at = Timestamp::now() + SignedDuration::from_hours(2);
    let ask = async |rig: &mut Rig| {
        let run_id = RunId(uuid::Uuid::now_v7());
        let key = keys::trigger(&node, run_id);
        let record = TriggerRecord { not_before: Some(at), ..trigger(3 * 3600) };
        for _ in 0..2 {
            rig.agent.asked(Entry { value: encode(&record), ..entry(&key, "") }).await;
        }
        assert!(rig.agent.waits.knows(run_id) && rig.agent.overlap.ready() == 0);
        (run_id, key)
    };
    let (run_id, _) = ask(&mut rig).await;
    rig.agent.start_waiting(at).await;
    assert_eq!(rig.agent.overlap.next().unwrap().plan.run_id, run_id);
    rig.agent.overlap.release(&j(), run_id);
    let (run_id, key) = ask(&mut rig).await;
    rig.agent.asked_no_more(&key).await;
    assert!(!rig.agent.waits.knows(run_id));
    let (run_id, _) = ask(&mut rig).await;
    assert!(rig.agent.kill_waiting(run_id).await && !rig.agent.waits.knows(run_id));
    assert_eq!(rig.recorded().await[0].state, RunState::Killed);
}

#[tokio::test]
async fn a_run_that_needs_a_lock_does_not_begin_without_and_leaves_the_line_when_dropped() {
    let mut rig = rig().await;
    rig.agent.places.add_permits(1);
    rig.load(r#"{"cmd":"true","express":"0 0 1 1 *","lock":{"name":"db"}}"#, false).await;
    let loaded = rig.cursor().await;
    let run_id = rig.slot(1).await;
    assert!(rig.knows(run_id) && rig.agent.places.available_permits() == 1);
    assert_eq!(rig.cursor().await, loaded, "it has not begun");
    let ticket = rig.agent.overlap.ticket(run_id).unwrap();
    rig.agent.locked(run_id, uuid::Uuid::now_v7(), Err("of an earlier try".into())).await;
    assert!(rig.knows(run_id));
    rig.agent.locked(run_id, ticket, Err("too long".into())).await;
    let record = rig.records().await.remove(0);
    assert_eq!((record.state, record.code), (RunState::Skipped, Code::LOCK_TAKEN));
    assert_eq!(rig.cursor().await, Some(rig.after()));
    let run_id = rig.slot(2).await;
    assert!(rig.agent.kill_waiting(run_id).await && !rig.knows(run_id));
}

#[tokio::test]
async fn a_further_attempt_that_is_due_waits_until_its_job_is_known() {
    let mut rig = rig().await;
    rig.load(RETRIED, false).await;
    let plan = first(&rig, None);
    rig.agent.unload(KEY).await;
    let wait = promise(&plan, &failed(&plan), Timestamp::UNIX_EPOCH).unwrap();
    rig.agent.waits.promised(wait.clone());
    // A worker that has just started knows no jobs yet.
    rig.agent.loaded = false;
    rig.agent.fire_due().await;
    assert!(rig.agent.waits.knows(wait.run_id) && rig.agent.next_wait().is_none());
    let entries = vec![entry(KEY, RETRIED)];
    rig.agent.heard(Batch::Reset { entries, revision: 1 }).await;
    rig.agent.fire_due().await;
    assert_eq!(rig.agent.overlap.next().unwrap().plan.run_id, wait.run_id);
}

#[tokio::test]
async fn slots_of_one_job_ask_for_their_lock_one_after_the_other() {
    let mut rig = rig().await;
    let value = r#"{"cmd":"true","express":"0 0 1 1 *","concurrency":"allow",
        "lock":{"name":"db","permits":2}}"#;
    rig.load(value, false).await;
    let (one, two) = (rig.slot(1).await, rig.slot(2).await);
    assert!(rig.agent.overlap.ticket(one).is_some() && rig.agent.overlap.ticket(two).is_none());
    assert!(rig.knows(two) && rig.agent.overlap.count_locking() == 2);
    let ticket = rig.agent.overlap.ticket(one).unwrap();
    rig.agent.locked(one, ticket, Err("too long".into())).await;
    assert!(rig.agent.overlap.ticket(two).is_some(), "its turn");
    // The same when the one before is killed.
    let three = rig.slot(3).await;
    assert!(rig.agent.kill_waiting(two).await);
    assert!(rig.agent.overlap.ticket(three).is_some());
}

#[tokio::test]
async fn a_key_with_more_parts_is_no_job_and_harms_none() {
    let mut rig = rig().await;
    rig.load(YEARLY, false).await;
    let nested = entry("/cron/jobs/127.0.0.9/x/j", YEARLY);
    rig.agent.load(nested.clone(), Timestamp::now(), Before::Nothing).await;
    assert!(rig.agent.table.get(&j()).is_some() && rig.agent.table.problems.len() == 1);
    rig.agent.unload(&nested.key).await;
    assert!(rig.agent.table.get(&j()).is_some() && rig.agent.table.problems.is_empty());
}

#[tokio::test]
async fn without_a_lease_nothing_claimed_begins_and_what_others_may_run_is_ended() {
    let mut rig = rig().await;
    let value = r#"{"cmd":"true","express":"0 0 1 1 *","concurrency":"queue(5)"}"#;
    rig.load(value, false).await;
    let (ready, waiting, own) = (first(&rig, Some(7)), first(&rig, Some(8)), first(&rig, Some(9)));
    for plan in [&ready, &waiting] {
        let custody = &rig.agent.engine.custody;
        let rerun = meepo_core::job::OnNodeLoss::Rerun;
        let tree = meepo_core::tree::TreePath::ROOT;
        custody.took(plan.run_id, custody.record(&j(), &tree, rerun, plan.slot).unwrap());
    }
    rig.agent.places.add_permits(1);
    for plan in [&ready, &waiting, &own] {
        rig.agent.start(plan.clone().into()).await;
    }
    assert_eq!((rig.agent.overlap.ready(), rig.agent.overlap.count_waiting()), (1, 2));
    assert!(rig.agent.engine.registry.active().is_empty(), "nothing begins without a lease");
    rig.agent.lapse().await;
    let ended: Vec<_> = rig.records().await.iter().map(|r| (r.run_id, r.state, r.code)).collect();
    let killed = |plan: &Plan| (plan.run_id, RunState::Killed, Code::ETCD);
    assert_eq!(ended, [killed(&ready), killed(&waiting)]);
    assert!(rig.knows(own.run_id), "nobody else may run that");
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    rig.lease.send_replace(LeaseState::Held { id: 1, until });
    rig.agent.begin_ready().await;
    assert_eq!(rig.agent.engine.registry.active(), [own.run_id]);
}

const EVERY_MINUTE: &str = r#"{"cmd":"true","express":"* * * * *","misfire":"once"}"#;

#[tokio::test]
async fn a_clock_that_was_set_runs_nothing_twice_and_forgets_nothing() {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    let by = |minutes| now + SignedDuration::from_mins(minutes);
    // How far the job was when the clock was set, as the new clock sees it.
    let set = async |after: Timestamp| {
        let mut rig = rig().await;
        rig.load(EVERY_MINUTE, false).await;
        rig.agent.engine.state.restart_cursors_later(vec![(j(), after)]).await.unwrap();
        rig.agent.table.get_mut(&j()).unwrap().after = after;
        rig.agent.reschedule().await;
        rig.agent.fire_due().await;
        let missed = rig.records().await.len();
        (rig.agent.overlap.ready(), missed, rig.agent.agenda.head().unwrap(), rig.after())
    };
    // Forward by an hour, or a night asleep: missed slots, of which one is made up for.
    let (made_up, missed, next, _) = set(by(-60)).await;
    assert_eq!(made_up, 1);
    assert!((58..=60).contains(&missed) && next > now, "{missed} {next}");
    // Back by an hour: what has run does not run again.
    let (started, missed, next, after) = set(by(60)).await;
    assert_eq!((started, missed, after), (0, 0, by(60)));
    assert!(next > by(60), "{next}");
    // Back by a day: the time before was wrong.
    let (started, missed, next, after) = set(by(24 * 60)).await;
    assert_eq!((started, missed), (0, 0));
    assert!(after < by(1) && next <= by(2), "{after} {next}");
}
