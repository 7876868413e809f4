use super::*;
use crate::view::tests::{change, empty};
use meepo_core::id::Name;

const HEALTH: &str = r#"{"status":"Online","version":"1","instance":"a"}"#;

fn run(n: u128) -> RunId {
    RunId(Uuid::from_u128(n))
}

fn key(node: &str, n: u128) -> Key {
    (Name::new(node).unwrap(), run(n))
}

/// A view with a run that has a key.
fn view_with(n: u128, view: &View, revision: i64) {
    let record = r#"{"job":"j","slot":"2026-01-01T00:00:00Z","attempt":1,"instance":"a",
        "lease_ttl":"10s"}"#;
    change(view, &format!("/meepo/rerun/n/{}", run(n)), Some(record), revision);
}

/// Everything that is due, once.
fn due(open: &mut Open, view: &View, now: Instant) -> Vec<RunId> {
    open.look(view, view.changes().borrow().news, now);
    std::iter::from_fn(|| open.pop(now)).map(|(_, run)| run).collect()
}

#[tokio::test]
async fn a_run_is_looked_at_when_it_has_something_new_or_its_time_has_come() {
    let (view, mut open, now) = (empty(), Open::default(), Instant::now());
    change(&view, "/agent/health/n", Some(HEALTH), 2);
    view_with(1, &view, 3);
    assert_eq!(due(&mut open, &view, now), [run(1)]);
    assert!(due(&mut open, &view, now).is_empty(), "once");
    // Another one: only that.
    view_with(2, &view, 4);
    assert_eq!(due(&mut open, &view, now), [run(2)]);
    // Assignments and facts are no news.
    change(&view, "/cron/jobs/n/x", Some(r#"{"cmd":"x"}"#), 5);
    change(&view, "/agent/health/n", Some(HEALTH), 6);
    assert!(due(&mut open, &view, now).is_empty());
    // Its time.
    open.set(&key("n", 2), Some(now + Duration::from_secs(9)), false);
    assert_eq!(open.next(), Some(now + Duration::from_secs(9)));
    assert!(due(&mut open, &view, now).is_empty());
    assert_eq!(due(&mut open, &view, now + Duration::from_secs(9)), [run(2)]);
    // Any news, for one that nobody could take.
    open.set(&key("n", 1), Some(now + Duration::from_secs(60)), true);
    change(&view, "/meepo/jobs/j", Some(r#"{"name":"j","cmd":"x"}"#), 7);
    assert_eq!(due(&mut open, &view, now), [run(1)]);
    // Its node is lost: both.
    change(&view, "/agent/health/n", None, 8);
    assert_eq!(due(&mut open, &view, now), [run(1), run(2)]);
    assert_eq!(open.away.get(&key("n", 1).0), Some(&now));
    // What is gone leaves nothing.
    open.set(&key("n", 1), Some(now), false);
    for n in [1, 2] {
        change(&view, &format!("/meepo/rerun/n/{}", run(n)), None, 9);
    }
    assert!(due(&mut open, &view, now).is_empty());
    assert!(open.runs.is_empty() && open.due.is_empty());
}

/// Found by the model in `common/coord/model`: while a node is away, a key may be written by
/// its worker, which has come back and has not yet shown itself.
#[tokio::test]
async fn a_node_is_waited_for_from_when_the_key_was_seen() {
    let (view, mut open, gone) = (empty(), Open::default(), Instant::now());
    view_with(1, &view, 2);
    assert_eq!(due(&mut open, &view, gone), [run(1)]);
    assert_eq!(open.since(&key("n", 1)), Some(gone), "as long as this master has seen");
    let later = gone + Duration::from_secs(60);
    view_with(2, &view, 3);
    due(&mut open, &view, later);
    assert_eq!((open.since(&key("n", 1)), open.since(&key("n", 2))), (Some(gone), Some(later)));
    // Its worker has found out only now that the claim was its own.
    view_with(1, &view, 4);
    due(&mut open, &view, later);
    assert_eq!(open.since(&key("n", 1)), Some(later));
    // What it says of the end of a run makes nobody wait longer.
    let ended = r#"{"job":"j","slot":"2026-01-01T00:00:00Z","attempt":1,"instance":"a",
        "lease_ttl":"10s","ended":true}"#;
    change(&view, &format!("/meepo/rerun/n/{}", run(2)), Some(ended), 5);
    due(&mut open, &view, later + Duration::from_secs(1));
    assert_eq!(open.since(&key("n", 2)), Some(later));
    change(&view, "/agent/health/n", Some(HEALTH), 6);
    due(&mut open, &view, later);
    assert_eq!(open.since(&key("n", 1)), None);
}

/// Found by the model, too: a view that is behind may show a node as away that is back.
#[test]
fn a_run_is_moved_only_if_its_node_is_still_away() {
    let shown = |away| format!("{:?}", unchanged(7, &key("n", 1), 3, away));
    // As text, for the comparisons show nothing of what they compare.
    let health = format!("{:?}", keys::health(&key("n", 1).0).into_bytes());
    assert!(shown(true).contains(&health), "{}", shown(true));
    assert!(!shown(false).contains(&health));
}

#[test]
fn what_is_done_about_a_lost_run_depends_on_its_job_as_it_is_now() {
    let view = empty();
    let node = Name::new("n").unwrap();
    let slot = Timestamp::now();
    let record = |job: &str, reruns, slot| -> RerunRecord {
        let json = serde_json::json!({"job": job, "slot": slot, "attempt": 1, "reruns": reruns,
            "instance": "a", "lease_ttl": "10s"});
        serde_json::from_value(json).unwrap()
    };
    let define = |job: &str, more: &str, revision| {
        let spec =
            format!(r#"{{"name":"{job}","cmd":"x","schedule":"@daily","placement":"once"{more}}}"#);
        change(&view, &format!("/meepo/jobs/{job}"), Some(&spec), revision);
    };
    define("good", r#","on_node_loss":"rerun""#, 2);
    define("off", r#","on_node_loss":"rerun","disabled":true"#, 3);
    define("other", "", 4);
    change(&view, "/meepo/treejobs/below/shop", Some(r#"{"cmd":"x"}"#), 5);
    let why = |record: &RerunRecord| match decide(&view, &node, record, Instant::now()) {
        Step::GiveUp(why) => why,
        Step::Nobody(_) => "nobody",
        Step::Move(..) => "moved",
        _ => "something else",
    };
    let old = slot - SignedDuration::from_hours(25);
    for (record, want) in [
        (record("good", 0, slot), "nobody"),
        (record("good", 3, slot), "it was run again often enough"),
        (record("good", 0, old), "its slot is more than a day ago"),
        (record("off", 0, slot), "its job is switched off"),
        (record("other", 0, slot), "its job does not ask for it any more"),
        (record("below", 0, slot), "the definition it ran by is gone"),
        (record("none", 0, slot), "its job is gone"),
    ] {
        assert_eq!(why(&record), want, "{}", record.job);
    }
    change(&view, "/agent/health/m", Some(HEALTH), 6);
    assert_eq!(why(&record("good", 0, slot)), "moved");
}

#[test]
fn the_record_of_what_is_not_run_again_is_the_same_each_time() {
    let view = empty();
    let of: RerunRecord = serde_json::from_value(serde_json::json!({"job": "j", "attempt": 4,
        "slot": "2026-01-01T00:00:00Z", "instance": "a", "lease_ttl": "10s"}))
    .unwrap();
    let at = key("n", 8);
    let [one, other] = [(); 2].map(|()| not_again(&view, &at, &of, None, "of this"));
    assert_eq!(one.run_id, other.run_id);
    assert_ne!(one.run_id, at.1);
    assert_eq!((one.state, one.attempt, one.slot), (RunState::Missed, 5, of.slot));
    assert!(one.message.unwrap().ends_with("is not run again: of this"));
}
