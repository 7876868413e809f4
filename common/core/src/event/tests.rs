use super::*;

fn id(text: &str) -> EventId {
    text.parse().unwrap()
}

#[test]
fn ids_are_in_the_order_of_what_happened() {
    let ordered = ["7.0", "7.1", "7.10", "7", "8.0", "8"].map(id);
    assert!(ordered.is_sorted());
    for text in ["7.0", "7", "9223372036854775807.3"] {
        assert_eq!(id(text).to_string(), text);
    }
    assert_eq!((id("7.1").complete(), id("7").complete()), (6, 7));
    for bad in ["", ".", "7.", ".7", "-1", "+7", "7.-1", "7.0.0", "7 ", "x", "9223372036854775808"]
    {
        let e = bad.parse::<EventId>().unwrap_err();
        assert!(e.field == "after" && e.expected.contains("4711.0"), "{bad}: {e}");
    }
}

#[test]
fn names_are_made_of_kind_and_happening() {
    for what in What::ALL {
        let name = what.as_str();
        assert_eq!(name.split('.').next(), Some(what.kind()));
        assert_eq!(serde_json::to_value(what).unwrap(), name);
    }
}

#[test]
fn an_event_keeps_only_what_applies() {
    let mut event = Event::new(What::NodeOffline).node(Name::new("10.0.0.7").ok());
    event.id = id("5.2");
    let json = serde_json::to_string(&event).unwrap();
    assert_eq!(json, r#"{"id":"5.2","type":"node.offline","node":"10.0.0.7"}"#);
    assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
}

#[test]
fn filters_are_joined_by_and_their_choices_by_or() {
    let name = |n| Name::new(n).ok();
    let event = |what, job, node| Event::new(what).job(job).node(node);
    let run = event(What::RunEnded, name("backup-db"), name("10.0.0.7"));
    let other = event(What::RunStarted, name("hello"), name("10.0.0.8"));
    let node = event(What::NodeOnline, None, name("10.0.0.7"));
    let gap = Event::new(What::Gap);
    let which = |kind, job, node_| {
        let filter = Filter::parse(kind, job, node_, None).unwrap();
        assert!(filter.matches(&gap), "a gap is never hidden");
        [&run, &other, &node].map(|e| filter.matches(e))
    };
    assert_eq!(which(None, None, None), [true; 3]);
    assert_eq!(which(Some("run"), None, None), [true, true, false]);
    assert_eq!(which(Some("run.ended, node"), None, None), [true, false, true]);
    assert_eq!(which(None, Some("back*,x"), None), [true, false, false]);
    assert_eq!(which(None, None, Some("10.0.0.?")), [true; 3]);
    assert_eq!(which(Some("run"), Some("*"), Some("*.8")), [false, true, false]);
    let tasks = Filter::parse(None, None, None, Some("*")).unwrap();
    assert!(!tasks.matches(&run), "it has no task");
    for bad in ["runs", "", "run,,job", "gap"] {
        assert_eq!(Filter::parse(Some(bad), None, None, None).unwrap_err().field, "kind", "{bad}");
    }
    let e = Filter::parse(Some("runs"), None, None, None).unwrap_err();
    assert!(e.expected.starts_with("job, task, run, node, leader, or"), "{e}");
}
