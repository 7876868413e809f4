//! The agent's decisions, with real files and without etcd.

use super::{
    fire::Slots,
    load::Before,
    overlap::{Asked, Request},
    *,
};
use crate::state::SpoolItem;
use meepo_coord::{
    Entry, keys,
    records::{TriggerRecord, encode},
};
use meepo_core::{
    code::Code,
    run::{Cause, RunRecord, RunState},
};
use tempfile::TempDir;

mod later;

const KEY: &str = "/cron/jobs/127.0.0.9/j";

pub(super) struct Rig {
    pub(super) agent: Agent,
    status: watch::Receiver<Status>,
    _registration: watch::Sender<Registration>,
    lease: watch::Sender<LeaseState>,
    _dir: TempDir,
}

/// An agent without a free place: whatever starts stays ready.
pub(super) async fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::in_dir(dir.path()).await;
    let etcd = engine.etcd.clone();
    let (registration_tx, registration) = watch::channel(Registration::Done);
    let (status_tx, status) = watch::channel(Status::default());
    let (lease, lease_rx) = watch::channel(LeaseState::None);
    let outlets = Outlets {
        status: status_tx,
        progress: Arc::default(),
        registration,
        lease: lease_rx,
        lease_ttl: Duration::from_secs(10),
        late: None,
    };
    let mut agent = Agent::new(engine, etcd, 0, outlets, CancellationToken::new()).await.unwrap();
    agent.loaded = true;
    Rig { agent, status, _registration: registration_tx, lease, _dir: dir }
}

pub(super) fn j() -> Name {
    Name::new("j").unwrap()
}

fn entry(key: &str, value: &str) -> Entry {
    Entry { key: key.into(), value: value.into(), mod_revision: 1, create_revision: 1 }
}

impl Rig {
    pub(super) async fn load(&mut self, value: &str, resume: bool) {
        let before = if resume { Before::Same } else { Before::Nothing };
        self.agent.load(entry(KEY, value), Timestamp::now(), before).await;
        self.agent.write_fresh().await;
    }

    /// Starts a run for the job's slot `n` seconds from when it was loaded.
    pub(super) async fn slot(&mut self, n: i64) -> RunId {
        let job = self.agent.table.get_mut(&j()).unwrap();
        job.after = second() + SignedDuration::from_secs(n);
        let slots = Slots::new(job, job.assignment().unwrap());
        let plan = slots.plan(job.after, Cause::Schedule);
        let run_id = plan.run_id;
        self.agent.start(plan.into()).await;
        run_id
    }

    pub(super) fn after(&self) -> Timestamp {
        self.agent.table.get(&j()).unwrap().after
    }

    pub(super) async fn cursor(&self) -> Option<Timestamp> {
        self.agent.engine.state.cursor(j()).await.unwrap().map(|c| c.slot)
    }

    async fn records(&self) -> Vec<RunRecord> {
        let batch = self.agent.engine.state.peek(100, usize::MAX).await.unwrap();
        let record = |item| match item {
            SpoolItem::Record(record) => Some(record),
            SpoolItem::Chunk(_) => None,
        };
        batch.items.into_iter().filter_map(record).collect()
    }

    /// Waits for records that tasks of their own write.
    pub(super) async fn recorded(&self) -> Vec<RunRecord> {
        let mut changes = self.agent.engine.state.spool_changes();
        let some = changes.wait_for(|s| s.items > 0);
        tokio::time::timeout(Duration::from_secs(20), some).await.unwrap().unwrap();
        self.records().await
    }

    pub(super) fn knows(&self, run_id: RunId) -> bool {
        self.agent.overlap.knows(&j(), run_id)
    }
}

/// An instant in the near future: later than any cursor that loading leaves.
pub(super) fn second() -> Timestamp {
    static AT: std::sync::LazyLock<Timestamp> =
        std::sync::LazyLock::new(|| Timestamp::from_second(Timestamp::now().as_second()).unwrap());
    *AT + SignedDuration::from_secs(600)
}

fn trigger(expires_in: i64) -> TriggerRecord {
    let now = Timestamp::now();
    TriggerRecord {
        job: j(),
        assignment: serde_json::from_str(r#"{"cmd":"true"}"#).unwrap(),
        requested_at: now,
        not_before: None,
        expires_at: now + SignedDuration::from_secs(expires_in),
        rerun: None,
        extra: BTreeMap::new(),
    }
}

pub(super) fn request(expires_in: i64) -> (RunId, Asked) {
    let t = trigger(expires_in);
    let run_id = RunId(uuid::Uuid::now_v7());
    let plan = Plan {
        run_id,
        job: Some(j()),
        assignment: Arc::new(t.assignment),
        slot: t.requested_at,
        attempt: 1,
        cause: Cause::Trigger,
        fence: None,
        permit: None,
    };
    let request = Some(Request { key: "/k".into(), expires_at: t.expires_at });
    (run_id, Asked { plan, request, lock: None })
}

const YEARLY: &str = r#"{"cmd":"true","express":"0 0 1 1 *"}"#;

#[tokio::test]
async fn a_skipped_slot_does_not_move_the_cursor_past_one_that_is_ready() {
    let mut rig = rig().await;
    rig.load(YEARLY, false).await;
    let loaded = rig.cursor().await.unwrap();
    rig.slot(1).await;
    rig.slot(2).await;
    let skipped = rig.records().await;
    assert_eq!((skipped.len(), skipped[0].state), (1, RunState::Skipped));
    assert_eq!(rig.cursor().await, Some(loaded));
    rig.agent.places.add_permits(1);
    rig.agent.begin_ready().await;
    let after = rig.after();
    assert_eq!(rig.cursor().await, Some(after), "it follows when the first has begun");
}

#[tokio::test]
async fn what_passed_is_recorded_once_though_the_worker_comes_to_it_again() {
    let mut rig = rig().await;
    rig.load(r#"{"cmd":"true","express":"*/5 * * * * *"}"#, false).await;
    let number = rig.agent.table.number(&j()).unwrap();
    let looked_at = Timestamp::now() - SignedDuration::from_secs(60);
    // Slots that are on time wait for a place, as there is none: each life of the worker ends
    // before they begin.
    let mut lives = Vec::new();
    for _ in 0..2 {
        rig.agent.engine.state.restart_cursors_later(vec![(j(), looked_at)]).await.unwrap();
        rig.agent.overlap.drop_slots(&j());
        rig.agent.table.get_mut(&j()).unwrap().after = looked_at;
        rig.agent.agenda.set(number, looked_at);
        rig.agent.fire_due().await;
        assert!(rig.agent.overlap.ready() > 0, "the newest is on time");
        let mut records = rig.records().await;
        records.retain(|r| r.state == RunState::Missed);
        lives.push((records, rig.cursor().await.unwrap()));
    }
    let (missed, cursor) = &lives[0];
    assert!(missed.len() >= 8, "{missed:?}");
    assert!(missed.iter().all(|r| r.slot <= *cursor), "not come to again by the next: {cursor}");
    let slots: std::collections::BTreeSet<_> = lives[1].0.iter().map(|r| r.slot).collect();
    assert_eq!(slots.len(), lives[1].0.len(), "{:?}", lives[1].0);
}

#[tokio::test]
async fn the_end_of_a_slot_that_waits_lets_the_cursor_follow() {
    let mut rig = rig().await;
    rig.load(YEARLY, false).await;
    let first = rig.slot(1).await;
    rig.slot(2).await;
    assert!(rig.agent.kill_waiting(first).await);
    assert_eq!(rig.cursor().await, Some(rig.after()));
    assert_eq!(rig.records().await.last().unwrap().state, RunState::Killed);
}

#[tokio::test]
async fn a_cursor_ahead_of_now_swallows_no_slots_of_a_new_schedule() {
    let mut rig = rig().await;
    let ahead = second() + SignedDuration::from_hours(2);
    rig.agent.engine.state.note_runs(&[], Some((j(), ahead))).await.unwrap();
    rig.load(YEARLY, false).await;
    assert!(rig.cursor().await.unwrap() < ahead);
}

#[tokio::test]
async fn an_edited_schedule_skips_what_waits_and_an_edited_command_does_not() {
    let mut rig = rig().await;
    rig.load(YEARLY, false).await;
    let slot = rig.slot(1).await;
    rig.load(r#"{"cmd":"false","express":"0 0 1 1 *"}"#, false).await;
    assert!(rig.knows(slot) && rig.records().await.is_empty());
    rig.load(r#"{"cmd":"false","express":"0 0 2 1 *"}"#, false).await;
    assert!(!rig.knows(slot));
    let record = rig.records().await.remove(0);
    assert_eq!((record.run_id, record.state), (slot, RunState::Skipped));
    assert!(record.message.unwrap().contains("schedule was changed"));
}

#[tokio::test]
async fn a_job_that_goes_leaves_its_requests() {
    let mut rig = rig().await;
    rig.load(YEARLY, false).await;
    let slot = rig.slot(1).await;
    let (asked, plan) = request(60);
    rig.agent.overlap.enter(&j(), plan, true);
    rig.agent.unload(KEY).await;
    assert!(rig.knows(asked) && !rig.knows(slot));
    assert_eq!(rig.records().await.len(), 1);
    assert_eq!(rig.cursor().await, None);
}

#[tokio::test]
async fn a_request_seen_again_is_one_run_and_expires_when_its_turn_comes_too_late() {
    let mut rig = rig().await;
    let (asked, plan) = request(-1);
    rig.agent.start(plan).await;
    let key = keys::trigger(&rig.agent.engine.node, asked);
    rig.agent.asked(Entry { value: encode(&trigger(-1)), ..entry(&key, "") }).await;
    assert!(rig.records().await.is_empty(), "it has its place in the queue");
    rig.agent.places.add_permits(1);
    rig.agent.begin_ready().await;
    let records = rig.recorded().await;
    assert_eq!((records.len(), records[0].code), (1, Code::EXPIRED));
    assert!(!rig.knows(asked));
}

#[tokio::test]
async fn an_end_that_is_seen_before_its_beginning_holds() {
    let mut rig = rig().await;
    let run_id = RunId(uuid::Uuid::now_v7());
    let node = rig.agent.engine.node.clone();
    rig.agent.asked(entry(&keys::kill(&node, run_id), "{}")).await;
    let key = keys::trigger(&node, run_id);
    rig.agent.asked(Entry { value: encode(&trigger(60)), ..entry(&key, "") }).await;
    assert!(!rig.knows(run_id));
    assert_eq!(rig.recorded().await[0].state, RunState::Killed);
}

#[tokio::test]
async fn a_replacement_takes_the_place_of_what_is_only_ready() {
    let mut rig = rig().await;
    let value = r#"{"cmd":"true","express":"0 0 1 1 *","concurrency":"replace"}"#;
    rig.load(value, false).await;
    let loaded = rig.cursor().await;
    let (first, next) = (rig.slot(1).await, rig.slot(2).await);
    assert!(!rig.knows(first) && rig.knows(next));
    assert_eq!(rig.records().await[0].slot, second() + SignedDuration::from_secs(1));
    assert_eq!(rig.cursor().await, loaded, "the second has yet to begin");
}

#[tokio::test]
async fn a_shutdown_records_what_was_claimed_and_leaves_the_rest() {
    let mut rig = rig().await;
    rig.load(YEARLY, false).await;
    let job = rig.agent.table.get(&j()).unwrap().clone();
    let slots = Slots::new(&job, job.assignment().unwrap());
    let claimed = |fence| Plan { fence: Some(fence), ..slots.plan(second(), Cause::Schedule) };
    rig.agent.overlap.enter(&j(), claimed(1).into(), false);
    rig.agent.overlap.enter(&j(), request(60).1, true);
    rig.slot(1).await;
    rig.agent.reports.send(Report::Won(Box::new(claimed(2)))).await.unwrap();
    let before = rig.records().await.len();
    rig.agent.wind_up().await;
    let fences: Vec<_> = rig.records().await[before..].iter().map(|r| r.fence).collect();
    assert_eq!(fences, [Some(1), Some(2)]);
}

#[tokio::test]
async fn an_edit_does_not_fire_at_reboot_again() {
    let mut rig = rig().await;
    rig.agent.boot = Some(Timestamp::now());
    let before = Timestamp::now() - SignedDuration::from_hours(1);
    rig.agent.cursors.insert(j(), Cursor { slot: before, runs: 0 });
    rig.load(r#"{"cmd":"true","express":"@reboot","concurrency":"allow"}"#, true).await;
    assert_eq!(rig.agent.overlap.ready(), 1);
    rig.load(r#"{"cmd":"false","express":"@reboot","concurrency":"allow"}"#, false).await;
    assert_eq!(rig.agent.overlap.ready(), 1);
}

#[tokio::test]
async fn the_oldest_key_form_holds_one_job() {
    let mut rig = rig().await;
    let key = "/cron/jobs/127.0.0.9/";
    for task_id in ["a", "b"] {
        let value = format!(r#"{{"cmd":"true","express":"0 0 1 1 *","task_id":"{task_id}"}}"#);
        rig.agent.load(entry(key, &value), Timestamp::now(), Before::Nothing).await;
    }
    let held: Vec<_> = rig.agent.table.ids().map(Name::as_str).collect();
    assert_eq!((held, rig.agent.agenda.len()), (vec!["b"], 1));
}

const ONCE: &str = r#"{"cmd":"true","express":"* * * * *","once":["127.0.0.9"]}"#;

#[tokio::test]
async fn a_slot_that_could_not_be_claimed_stays_due() {
    let mut rig = rig().await;
    rig.load(ONCE, false).await;
    rig.agent.found_claimed(&j(), None).await;
    let after = Timestamp::now() - SignedDuration::from_mins(5);
    rig.agent.table.get_mut(&j()).unwrap().after = after;
    rig.agent.schedule(&j());
    rig.agent.fire_due().await;
    assert!(rig.agent.once.is_claiming(&j()) && rig.agent.agenda.is_empty());
    rig.agent.schedule(&j());
    rig.agent.fire_due().await;
    assert!(rig.agent.agenda.is_empty(), "one task at a time");
    rig.agent.claimed(&j(), Round::default());
    assert_eq!(rig.after(), after);
    assert!(rig.agent.agenda.head().unwrap() < Timestamp::now());
}

#[tokio::test]
async fn a_claim_in_the_future_is_a_problem_that_says_how_to_mend_it() {
    let mut rig = rig().await;
    rig.load(ONCE, false).await;
    let claim = |slot| ClaimRecord {
        slot,
        node: Name::new("127.0.0.8").unwrap(),
        run_id: RunId(uuid::Uuid::nil()),
        runs: 0,
        extra: BTreeMap::new(),
    };
    let far = Timestamp::now() + SignedDuration::from_hours(24 * 365);
    rig.agent.found_claimed(&j(), Some((claim(far), 1))).await;
    let problem = rig.status.borrow().problems[0].clone();
    assert_eq!(problem.subject, "/cron/lock/slot/j");
    assert!(problem.reason.contains("etcdctl del /cron/lock/slot/j"), "{}", problem.reason);
    assert!(rig.after() < far, "it goes on trying");
    rig.agent.found_claimed(&j(), Some((claim(Timestamp::now()), 2))).await;
    assert!(rig.status.borrow().problems.is_empty());
}

#[tokio::test]
async fn a_claim_of_the_last_life_that_never_began_is_lost() {
    let mut rig = rig().await;
    rig.load(ONCE, false).await;
    let slot = Timestamp::from_second(Timestamp::now().as_second() - 60).unwrap();
    let claim = ClaimRecord {
        slot,
        node: rig.agent.engine.node.clone(),
        run_id: RunId(uuid::Uuid::now_v7()),
        runs: 0,
        extra: BTreeMap::new(),
    };
    for _ in 0..2 {
        rig.agent.found_claimed(&j(), Some((claim.clone(), 7))).await;
    }
    let lost = rig.records().await;
    assert_eq!((lost.len(), lost[0].state, lost[0].fence), (1, RunState::Lost, Some(7)));
    assert_eq!((lost[0].run_id, lost[0].slot), (claim.run_id, slot));
}

/// Found by the model in `common/coord/model`: a claim that was sent before the worker died may
/// reach etcd after the next life has looked at it.
#[tokio::test]
async fn a_claim_of_the_last_life_that_arrives_late_is_lost() {
    let mut rig = rig().await;
    rig.load(ONCE, false).await;
    rig.agent.found_claimed(&j(), None).await;
    let slot = Timestamp::from_second(Timestamp::now().as_second() - 60).unwrap();
    let late = RunId(uuid::Uuid::now_v7());
    for _ in 0..2 {
        rig.agent.claimed_by_last_life(&j(), slot, late, 7).await;
    }
    let lost = rig.records().await;
    assert_eq!((lost.len(), lost[0].state, lost[0].fence), (1, RunState::Lost, Some(7)));
    assert_eq!((lost[0].run_id, lost[0].slot), (late, slot));
    // What this life has claimed is not.
    let id = rig.slot(1).await;
    rig.agent.claimed_by_last_life(&j(), slot, id, 8).await;
    assert_eq!(rig.records().await.len(), 1);
}
