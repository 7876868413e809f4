use super::*;

/// A view of a fleet in which nothing has been written yet.
pub(crate) fn empty() -> View {
    let view = View::new();
    view.apply(Batch::Reset { entries: Vec::new(), revision: 1 });
    view
}

/// A key is written, or with `None` deleted, at a revision.
pub(crate) fn change(view: &View, key: &str, value: Option<&str>, revision: i64) {
    let change = match value {
        Some(value) => Change::Put(Entry {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            mod_revision: revision,
            create_revision: revision,
        }),
        None => Change::Delete { key: key.to_owned(), revision },
    };
    view.apply(Batch::Changes(vec![change]));
}

fn version(view: &View) -> Version {
    *view.changes().borrow()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

const HEALTH: &str = r#"{"status":"Online","version":"1","instance":"a"}"#;

#[test]
fn what_was_put_by_hand_is_known_with_what_is_wrong_with_it() {
    let view = empty();
    let right = r#"{"cmd":"date","express":"@daily"}"#;
    let other = r#"{"cmd":"date","task_id":"x"}"#;
    change(&view, "/cron/jobs/n1/x", Some(right), 2);
    change(&view, "/cron/jobs/n2/x", Some(right), 3);
    change(&view, "/cron/jobs/n3/x", Some("nonsense"), 4);
    // The same bytes are right for one key and wrong for another.
    change(&view, "/cron/jobs/n4/x", Some(other), 5);
    change(&view, "/cron/jobs/n4/y", Some(other), 6);
    // Of a master.
    change(&view, "/cron/jobs/n5/x", Some(r#"{"cmd":"date","spec_revision":1}"#), 7);
    // The oldest form.
    change(&view, "/cron/jobs/n6/", Some(other), 8);
    let seen = |job: &str| -> Vec<(String, bool)> {
        let data = view.read();
        let nodes = data.by_hand.get(&name(job)).into_iter().flatten();
        nodes.map(|(node, b)| (node.to_string(), b.broken)).collect()
    };
    let want = |all: &[(&str, bool)]| -> Vec<(String, bool)> {
        all.iter().map(|(node, broken)| ((*node).to_owned(), *broken)).collect()
    };
    let x = [("n1", false), ("n2", false), ("n3", true), ("n4", false), ("n6", false)];
    assert_eq!(seen("x"), want(&x));
    assert_eq!(seen("y"), want(&[("n4", true)]));
    // A master takes one over, one goes, and one names another job.
    change(&view, "/cron/jobs/n1/x", Some(r#"{"cmd":"date","spec_revision":1}"#), 9);
    change(&view, "/cron/jobs/n3/x", None, 10);
    change(&view, "/cron/jobs/n6/", Some(r#"{"cmd":"date","task_id":"z"}"#), 11);
    assert_eq!(seen("x"), want(&[("n2", false), ("n4", false)]));
    assert_eq!(seen("z"), want(&[("n6", false)]));
    change(&view, "/cron/jobs/n6/", None, 12);
    change(&view, "/cron/jobs/n4/y", None, 13);
    assert!(seen("z").is_empty() && !view.read().by_hand.contains_key(&name("y")));
}

#[test]
fn nodes_change_by_what_they_are_and_not_by_how_they_get_on() {
    let view = empty();
    let steps = [
        ("/agent/health/n", Some(HEALTH), true),
        ("/agent/health/n", Some(HEALTH), false),
        (
            "/agent/health/n",
            Some(r#"{"status":"Online","version":"1","instance":"a","jobs":9}"#),
            false,
        ),
        ("/agent/health/n", Some(r#"{"status":"Draining","version":"1","instance":"a"}"#), true),
        ("/agent/health/n", Some(r#"{"status":"Draining","version":"1","instance":"b"}"#), true),
        ("/cron/jobs/n/x", Some(r#"{"cmd":"date"}"#), false),
        ("/meepo/labels/n", Some(r#"{"labels":{"a":"b"}}"#), true),
        ("/agent/health/n", None, true),
    ];
    for (i, (key, value, counts)) in steps.into_iter().enumerate() {
        let before = version(&view);
        change(&view, key, value, 10 + i as i64);
        let after = version(&view);
        assert_eq!(after.nodes > before.nodes, counts, "{i}: {key}");
        assert_eq!(after.news > before.news, counts, "{i}: {key}");
    }
    let before = version(&view);
    change(&view, "/meepo/jobs/j", Some(r#"{"name":"j","cmd":"x"}"#), 30);
    let after = version(&view);
    assert_eq!((after.nodes, after.news), (before.nodes, before.news + 1));
    assert_eq!(after.defined, [30, 1], "those below have a watch of their own");
    change(&view, "/meepo/treejobs/j/shop", Some(r#"{"cmd":"y"}"#), 31);
    assert_eq!(version(&view).defined, [30, 31]);
}

#[test]
fn who_is_away_and_who_is_drained_whatever_stands_there() {
    let view = empty();
    let record = r#"{"registered_at":"2026-01-01T00:00:00Z","version":"1"}"#;
    change(&view, "/meepo/nodes/n", Some(record), 2);
    let away = || view.read().away.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(away(), ["n"]);
    change(&view, "/agent/health/n", Some(HEALTH), 3);
    assert!(away().is_empty());
    let drained = || view.read().node(&name("n")).unwrap().drained;
    change(&view, "/meepo/drain/n", Some("yes"), 4);
    assert!(drained(), "the worker takes it for a drain as well");
    change(&view, "/meepo/drain/n", None, 5);
    assert!(!drained());
    change(&view, "/agent/health/n", None, 6);
    assert_eq!(away(), ["n"]);
    change(&view, "/meepo/nodes/n", None, 7);
    assert!(away().is_empty());
}
