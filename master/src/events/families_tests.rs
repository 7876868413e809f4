use super::*;
use serde_json::json;

/// What a row of values of one key tells, in words; `null` deletes.
fn told(key: &str, values: &[Value]) -> Vec<String> {
    let mut families = all();
    let mut said = Vec::new();
    for (i, value) in values.iter().enumerate() {
        let bytes = serde_json::to_vec(value).unwrap();
        let written = (!value.is_null()).then_some((bytes.as_slice(), 7));
        let events: Vec<Event> = families.iter_mut().flat_map(|f| f.change(key, written)).collect();
        said.extend(events.iter().map(|e| format!("{i} {}", e.what)));
    }
    said
}

#[test]
fn a_job_through_its_life() {
    let job = |cmd: &str, status: &str| json!({"name": "a", "cmd": cmd, "status": status, "x": 1});
    let values = [
        job("date", "running"),
        job("date", "running"),
        json!({"x": 1, "status": "running", "cmd": "date", "name": "a"}),
        job("date", "pause"),
        job("id", "running"),
        json!("of a newer version"),
        Value::Null,
        Value::Null,
    ];
    let want = [
        "0 job.created",
        "3 job.paused",
        "4 job.updated",
        "4 job.resumed",
        "5 job.updated",
        "6 job.deleted",
    ];
    assert_eq!(told("/meepo/jobs/a", &values), want);
    assert!(told("/meepo/jobs/a/b", &values).is_empty(), "a key that no job has");
    assert_eq!(told("/meepo/treejobs/a/shop/cart", &values), want);
}

#[test]
fn a_run_begins_and_ends_once() {
    let run = |id: u8, state: &str| {
        json!({"cronid": format!("01932f5e-0000-7000-8000-0000000000{id:02}"), "state": state,
            "slot": "2026-01-01T00:00:00Z"})
    };
    let values = [
        run(1, "running"),
        // Bound to another lease.
        run(1, "running"),
        run(1, "failed"),
        // Too brief to be seen running.
        run(2, "success"),
        run(3, "running"),
        Value::Null,
        run(3, "running"),
        run(3, "success"),
        // Forgotten after some minutes.
        Value::Null,
        json!({"cronid": "of the oldest form"}),
    ];
    let want = [
        "0 run.started",
        "2 run.ended",
        "3 run.ended",
        "4 run.started",
        "5 run.away",
        "6 run.started",
        "7 run.ended",
    ];
    assert_eq!(told("/cron/cronid/jobs/10.0.0.7/a", &values), want);
}

#[test]
fn a_heartbeat_tells_nothing() {
    let health = |instance: &str, group: &str, status: &str, load: f64| {
        json!({"status": status, "version": "1", "instance": instance, "labels": {"group": group},
            "facts": {"load1": load}, "jobs": 3})
    };
    let values = [
        health("x", "web", "Online", 0.1),
        health("x", "web", "Online", 7.5),
        health("x", "db", "Online", 0.1),
        health("x", "db", "Draining", 0.1),
        health("x", "db", "Drained", 0.1),
        health("x", "db", "Drained", 0.2),
        health("y", "db", "Online", 0.2),
        Value::Null,
        json!({"status": "Online"}),
    ];
    let want = [
        "0 node.online",
        "2 node.labels",
        "4 node.drained",
        "6 node.restarted",
        "7 node.offline",
        // Put by hand, unreadable to this version: there all the same.
        "8 node.online",
    ];
    assert_eq!(told("/agent/health/10.0.0.7", &values), want);
}

#[test]
fn nodes_are_drained_and_leaders_change() {
    let drain = |at: &str| json!({"requested_at": at});
    let (a, b) = (drain("2026-01-01T00:00:00Z"), drain("2026-01-01T00:00:01Z"));
    let values = [a, b, Value::Null];
    assert_eq!(told("/meepo/drain/n", &values), ["0 node.draining", "2 node.undrained"]);
    let values = [json!({"registered_at": "x"}), json!({}), Value::Null];
    assert_eq!(told("/meepo/nodes/n", &values), ["0 node.registered", "2 node.forgotten"]);
    let labels = |group: &str| json!({"labels": {"group": group}});
    let values = [labels("a"), labels("a"), labels("b"), Value::Null];
    let want = ["0 node.labels", "2 node.labels", "3 node.labels"];
    assert_eq!(told("/meepo/labels/n", &values), want);
    let leader = json!({"id": "1", "http": "http://a", "grpc": "http://a"});
    let values = [leader.clone(), leader, Value::Null];
    assert_eq!(told("/meepo/leader", &values), ["0 leader.elected", "2 leader.gone"]);
    assert!(told("/meepo/leaders", &values).is_empty());
}
