use super::*;
use crate::{id::Name, job::JobSpec};
use jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::json;

fn at(s: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + s).unwrap()
}

fn signature(term: i64, issued: i64, lives: i64) -> Signature {
    Signature {
        key: "0123456789abcdef".into(),
        term,
        issued_at: at(issued),
        expires_at: Some(at(issued + lives)),
        sig: String::new(),
    }
}

fn node() -> NodeId {
    Name::new("127.0.0.2").unwrap()
}

/// These bytes are a promise: a change of them makes every signature of a fleet worthless.
#[test]
fn the_signed_bytes_are_fixed() {
    let text = r#"{"status":"running","executor":"bash","cmd":"echo \"é\"\n","express":"@hourly",
        "env":{"B":"2","A":"1"},"timeout":"90s","spec_revision":7,"task_id":"hello","later":{"x":[1]}}"#;
    let assignment = Assignment::from_etcd(text.as_bytes()).unwrap();
    let value = canonical(&assignment.covered());
    assert_eq!(
        value,
        r#"{"cmd":"echo \"é\"\n","env":{"A":"1","B":"2"},"executor":"bash","express":"@hourly","spec_revision":7,"status":"running","task_id":"hello","timeout":"1m 30s"}"#
    );
    let node = node();
    let key = "/cron/jobs/127.0.0.2/hello";
    let place = Place { kind: Kind::Assignment, node: Some(&node), key };
    let signed = String::from_utf8(message(place, &signature(3, 0, 60), &value)).unwrap();
    let want = "meepo-signature-1\n{\"expires_at\":\"2027-01-15T08:01:00Z\",\"issued_at\":\
                \"2027-01-15T08:00:00Z\",\"key\":\"/cron/jobs/127.0.0.2/hello\",\"kind\":\"assignment\",\
                \"node\":\"127.0.0.2\",\"signer\":\"0123456789abcdef\",\"term\":3,\"value\":";
    assert_eq!(signed, format!("{want}{value}}}"));
}

#[test]
fn another_place_time_term_or_value_are_other_bytes() {
    let (a, b) = (node(), Name::new("127.0.0.3").unwrap());
    let place = Place { kind: Kind::Assignment, node: Some(&a), key: "/k" };
    let header = signature(1, 0, 60);
    let of = |place, header: &Signature, value| message(place, header, value);
    let all = [
        of(place, &header, "1"),
        of(Place { node: Some(&b), ..place }, &header, "1"),
        of(Place { node: None, ..place }, &header, "1"),
        of(Place { key: "/l", ..place }, &header, "1"),
        of(Place { kind: Kind::Trigger, ..place }, &header, "1"),
        of(place, &signature(2, 0, 60), "1"),
        of(place, &signature(1, 1, 59), "1"),
        of(place, &signature(1, 0, 61), "1"),
        of(place, &Signature { expires_at: None, ..header.clone() }, "1"),
        of(place, &Signature { key: "0".into(), ..header.clone() }, "1"),
        of(place, &header, "2"),
    ];
    let different: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(different.len(), all.len());
}

#[test]
fn an_order_is_covered_but_for_what_its_worker_writes() {
    let order: Order = serde_json::from_value(json!({
        "run_id": uuid::Uuid::nil(), "command": {"cmd": "true"}, "submitted_at": at(0),
        "policy": {"priority": 1, "ttr": "1m", "on_failure": "fail"}, "task_revision": 1,
        "part": {"state": "reserved", "since": at(1), "attempt": 1},
    }))
    .unwrap();
    let mut begun = order.clone();
    begun.part.begun_at = Some(at(5));
    begun.task_revision = 9;
    begun.extra.insert("traceparent".into(), "x".into());
    assert_eq!(order.covered(), begun.covered());
    for change in [
        |o: &mut Order| o.command.cmd = "false".into(),
        |o: &mut Order| o.command.user = Some("root".into()),
        |o: &mut Order| o.part.attempt = 2,
        |o: &mut Order| o.queued = true,
    ] {
        let mut other = order.clone();
        change(&mut other);
        assert_ne!(order.covered(), other.covered());
    }
}

#[test]
fn a_signature_is_read_or_the_reason_told() {
    let mut extra = BTreeMap::new();
    assert_eq!(Signature::among(&extra), Err(Refusal::Unsigned));
    extra.insert(FIELD.into(), json!({"key": "a", "term": "x"}));
    assert!(matches!(Signature::among(&extra), Err(Refusal::Unreadable(_))));
    let signature = signature(1, 0, 60);
    extra.insert(FIELD.into(), serde_json::to_value(&signature).unwrap());
    assert_eq!(Signature::among(&extra), Ok(signature));
}

/// Accepts what may be accepted, as a node does.
fn accept(
    floor: &mut Option<Floor>,
    signature: &Signature,
    now: i64,
) -> Result<bool, &'static str> {
    match stand(Kind::Assignment, signature, floor.as_ref(), at(now)) {
        Ok(Standing::New(new)) => {
            *floor = Some(new);
            Ok(true)
        }
        Ok(Standing::Known { .. }) => Ok(false),
        Err(e) => Err(e.name()),
    }
}

#[test]
fn what_is_old_withdrawn_run_out_or_endless_is_refused() {
    let mut floor = None;
    assert_eq!(accept(&mut floor, &signature(5, 0, 100), 10), Ok(true));
    assert_eq!(accept(&mut floor, &signature(5, 0, 100), 20), Ok(false), "the same again");
    assert_eq!(accept(&mut floor, &signature(5, -1, 100), 20), Err("replayed"));
    assert_eq!(accept(&mut floor, &signature(4, 15, 100), 20), Err("replayed"), "an older term");
    assert_eq!(accept(&mut floor, &signature(6, -9, 100), 20), Ok(true), "a clock that is behind");
    assert_eq!(accept(&mut floor, &signature(6, 20, 100), 120), Err("expired"));
    assert_eq!(accept(&mut floor, &signature(6, 1000, 100), 20), Err("early"));
    assert_eq!(accept(&mut floor, &signature(6, 300, 100), 20), Ok(true), "clocks may differ");
    let forever = Signature { expires_at: None, ..signature(7, 0, 0) };
    assert_eq!(accept(&mut floor, &forever, 20), Err("too_long"));
    let longest = LONGEST.as_secs();
    assert_eq!(accept(&mut floor, &signature(7, 0, longest + 1), 20), Err("too_long"));
    assert_eq!(accept(&mut floor, &signature(7, 0, longest), 20), Ok(true));
    let known = stand(Kind::Assignment, &signature(7, 0, 5), floor.as_ref(), at(20));
    assert_eq!(known, Ok(Standing::Known { expired: true }), "the caller decides");
    floor.as_mut().unwrap().closed = true;
    assert_eq!(accept(&mut floor, &signature(7, 0, longest), 20), Err("withdrawn"));
    assert_eq!(accept(&mut floor, &signature(7, 21, longest), 21), Ok(true));
    assert!(stand(Kind::Definition, &forever, None, at(20)).is_ok());
}

/// A value with the fields of every object shuffled, as text.
fn shuffled(value: &Value, seed: &mut u64) -> String {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            for i in (1..fields.len()).rev() {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                fields.swap(i, (*seed >> 33) as usize % (i + 1));
            }
            let field = |(k, v): (&String, &Value)| {
                format!(" {}:\n {}", Value::from(k.as_str()), shuffled(v, seed))
            };
            format!("{{{}}}", fields.into_iter().map(field).collect::<Vec<_>>().join(" ,"))
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|v| shuffled(v, seed)).collect();
            format!("[ {} ]", items.join(", "))
        }
        plain => plain.to_string(),
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "[a-zé\"\\\\\n/\u{1}]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-c\"é]{0,3}", inner, 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn one_value_has_one_text_and_one_text_one_value(a in json_value(), b in json_value(), mut seed: u64) {
        let text = canonical(&a);
        let back: Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&back, &a);
        let again: Value = serde_json::from_str(&shuffled(&a, &mut seed)).unwrap();
        prop_assert_eq!(canonical(&again), text.clone());
        prop_assert_eq!(canonical(&b) == text, a == b);
    }

    #[test]
    fn order_and_unknown_fields_of_an_assignment_do_not_matter_and_all_else_does(
        cmd in "[ -~]{1,20}", args in prop::collection::vec("[a-z]{0,3}", 0..3),
        user in prop::option::of("[a-z]{1,4}"), unknown in json_value(), mut seed: u64,
    ) {
        let mut spec = JobSpec::new(Name::new("a").unwrap(), cmd);
        (spec.args, spec.user) = (args, user);
        let assignment = spec.assignment(Some(3), vec![node()]);
        let value = serde_json::to_value(&assignment).unwrap();
        let mut more = value.clone();
        more.as_object_mut().unwrap().insert("not_known".into(), unknown);
        let read: Assignment = serde_json::from_str(&shuffled(&more, &mut seed)).unwrap();
        let text = canonical(&assignment.covered());
        prop_assert_eq!(canonical(&read.covered()), text.clone());
        // Each field that is there counts.
        for field in value.as_object().unwrap().keys() {
            let mut less = value.clone();
            less.as_object_mut().unwrap().remove(field);
            if let Ok(less) = serde_json::from_value::<Assignment>(less) {
                let same = less == assignment;
                prop_assert_eq!(canonical(&less.covered()) == text, same, "{}", field);
            }
        }
    }

    #[test]
    fn whatever_comes_only_newer_ones_replace_the_newest(
        offers in prop::collection::vec((0i64..4, -50i64..50, 1i64..200, any::<bool>()), 1..30)
    ) {
        let (mut floor, mut newest) = (None, (i64::MIN, i64::MIN));
        for (now, (term, issued, lives, close)) in offers.into_iter().enumerate() {
            let now = now as i64;
            let before = floor;
            match accept(&mut floor, &signature(term, issued, lives), now) {
                Ok(true) => {
                    prop_assert!((term, issued) > newest && issued + lives > now);
                    newest = (term, issued);
                    let kept = floor.unwrap().keep_until;
                    // No older one can hold by then.
                    prop_assert!(kept >= at(issued).checked_add(LONGEST).unwrap());
                }
                Ok(false) => prop_assert_eq!((term, issued), newest),
                Err(_) => prop_assert_eq!(floor, before),
            }
            if close && let Some(floor) = &mut floor {
                floor.closed = true;
            }
        }
    }
}

#[test]
fn what_is_refused_says_why_and_what_would_be_right() {
    let refusals = [
        Refusal::Unsigned,
        Refusal::UnknownKey { key: "ab".into(), trusted: vec!["cd".into()] },
        Refusal::Forged { unknown: vec!["sandbox".into()] },
        Refusal::Expired(at(0)),
        Refusal::Early(at(0)),
        Refusal::TooLong,
        Refusal::Replayed { is: (1, at(0)), newest: (1, at(1)) },
        Refusal::Withdrawn,
    ];
    let texts: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    assert!(texts.iter().all(|t| t.starts_with("signature: ") && t.contains("; expected ")));
    assert!(texts[1].contains("ab") && texts[1].contains("cd"), "{}", texts[1]);
    assert!(texts[2].contains("sandbox"), "{}", texts[2]);
    let spans = [SKEW, LONGEST, LONGEST_REQUEST];
    assert!(spans.windows(2).all(|w| w[0] < w[1]) && SKEW > SignedDuration::ZERO);
}
