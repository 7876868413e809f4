use super::*;
use serde_json::json;

fn user(v: Value) -> Result<JobSpec, Invalid> {
    JobSpec::from_user(v)
}

#[test]
fn five_fields_are_a_valid_assignment() {
    let a = Assignment::from_etcd(
        br#"{"cmd":"/tmp/demo.sh","express":"* * * * *","task_id":"demo","status":"running","executor":"bash"}"#,
    )
    .unwrap();
    assert_eq!(a.task_id.as_ref().unwrap().as_str(), "demo");
    assert_eq!((a.status, a.executor), (JobStatus::Running, Executor::Bash));
    assert!(a.validate().unwrap().is_some());
    assert_eq!(a.spec_revision, None);
}

#[test]
fn an_assignment_keeps_unknown_fields() {
    let text =
        r#"{"cmd":"date","express":"","status":"pause","executor":"sh","from_the_future":{"a":1}}"#;
    let a = Assignment::from_etcd(text.as_bytes()).unwrap();
    let back: Value = serde_json::to_value(&a).unwrap();
    assert_eq!(back, serde_json::from_str::<Value>(text).unwrap());
}

#[test]
fn a_spec_survives_the_round_trip() {
    let mut full = json!({
        "name": "backup", "description": "d", "cmd": "x \"$1\"", "args": ["a"],
        "executor": "sh", "schedule": "0 3 * * *", "timezone": "Europe/London",
        "target": "all", "placement": "once", "status": "pause", "timeout": "5m",
        "concurrency": "queue(5)", "misfire": "all", "misfire_cap": 3,
        "starting_deadline": "1h", "env": {"A": "b"}, "cwd": "/tmp", "user": "root",
        "stdin": "x", "output_limit": 1024,
        "start_at": "2026-01-01T00:00:00Z", "end_at": "2026-12-31T00:00:00Z",
        "max_runs": 5, "jitter": "30s",
        "lock": {"name": "db", "permits": 2, "wait": "5m"},
        "group": "daemon", "umask": "0027", "nice": -5, "rlimits": {"nofile": 64, "cpu": "1m"},
        "session": true, "cgroup": {"memory": "512M", "cpu": 1.5, "tasks": 100},
        "kill_plan": ["INT 1s", "TERM 5s"],
        "retry": {"max": 3, "delay": "10s", "backoff": "fixed", "max_delay": "1m",
                  "jitter": "1s", "on": ["timed_out", "lost"]}
    });
    // One object with everything would be too long for the macro.
    full["output_keep"] = json!("both");
    full["survive_restart"] = json!(false);
    full["disabled"] = json!(true);
    full["on_node_loss"] = json!("fail");
    full["notify"] = json!({"on": ["failure", "long"], "to": ["ops"]});
    full["warn_after"] = json!("1m");
    full["expect_success_within"] = json!("26h");
    let mut fields: Vec<_> = full.as_object().unwrap().keys().map(String::as_str).collect();
    let mut known = JobSpec::FIELDS.to_vec();
    fields.push("http");
    fields.sort_unstable();
    known.sort_unstable();
    assert_eq!(fields, known, "FIELDS lists exactly what a spec has");
    let spec = user(full).unwrap();
    let again: JobSpec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);
}

#[test]
fn a_request_and_a_process_do_not_mix() {
    let hook = json!({
        "name": "hook", "cmd": "https://example.org/", "executor": "http",
        "http": {"method": "POST", "body": "x", "expect": [204]},
    });
    let spec = user(hook.clone()).unwrap();
    let assignment = serde_json::to_vec(&spec.assignment(None, Vec::new())).unwrap();
    assert_eq!(Assignment::from_etcd(&assignment).unwrap().http, spec.http);
    for (key, value, field) in [
        ("executor", json!("bash"), "http"),
        ("cmd", json!("date"), "cmd"),
        ("args", json!(["x"]), "args"),
        ("env", json!({"A": "b"}), "env"),
        ("cwd", json!("/tmp"), "cwd"),
        ("user", json!("root"), "user"),
        ("nice", json!(5), "nice"),
        ("session", json!(true), "session"),
        ("rlimits", json!({"nofile": 64}), "rlimits"),
        ("stdin", json!("x"), "stdin"),
        ("http", json!({"method": "post"}), "http.method"),
        ("http", json!({"methud": "POST"}), "http.methud"),
        ("http", json!({"expect": ["x"]}), "http.expect[0]"),
    ] {
        let mut bad = hook.clone();
        bad[key] = value;
        let e = user(bad).unwrap_err();
        assert_eq!(e.field, field, "{e}");
    }
}

#[test]
fn bad_input_names_field_problem_and_remedy() {
    let base = |k: &str, v: Value| {
        let mut o = json!({"name": "a", "cmd": "date"});
        o[k] = v;
        user(o).unwrap_err()
    };
    let cases = [
        ("schedul", json!("* * * * *"), "schedul", Code::UNKNOWN_FIELD),
        ("timeout", json!("soon"), "timeout", Code::BAD_VALUE),
        ("timeout", json!(5), "timeout", Code::BAD_VALUE),
        ("executor", json!("perl"), "executor", Code::UNKNOWN_EXECUTOR),
        ("name", json!("a/b"), "name", Code::BAD_NAME),
        ("cmd", json!("  "), "cmd", Code::EMPTY_COMMAND),
        ("schedule", json!("61 * * * *"), "schedule", Code::BAD_SCHEDULE),
        ("timezone", json!("Mars/Olympus"), "timezone", Code::BAD_SCHEDULE),
        ("target", json!("and and"), "target", Code::BAD_TARGET),
        ("target", json!("all prefer least-loaded"), "target", Code::BAD_TARGET),
        ("target", json!("load1 < 1 limit 1"), "target", Code::BAD_TARGET),
        ("env", json!({"A=B": "c"}), "env.A=B", Code::BAD_VALUE),
        ("cwd", json!("tmp"), "cwd", Code::BAD_VALUE),
        ("output_limit", json!(1 << 30), "output_limit", Code::BAD_VALUE),
        ("output_keep", json!("middle"), "output_keep", Code::BAD_VALUE),
        ("misfire_cap", json!(0), "misfire_cap", Code::BAD_VALUE),
        ("concurrency", json!("max(0)"), "concurrency", Code::BAD_VALUE),
        ("concurrency", json!("some"), "concurrency", Code::BAD_VALUE),
        ("max_runs", json!(0), "max_runs", Code::BAD_VALUE),
        ("jitter", json!("48h"), "jitter", Code::BAD_VALUE),
        ("start_at", json!("tomorrow"), "start_at", Code::BAD_VALUE),
        ("group", json!(""), "group", Code::BAD_VALUE),
        ("umask", json!("0999"), "umask", Code::BAD_VALUE),
        ("nice", json!(20), "nice", Code::BAD_VALUE),
        ("rlimits", json!({"nofile": "many"}), "rlimits.nofile", Code::BAD_VALUE),
        ("rlimits", json!({"rss": 1}), "rlimits.rss", Code::UNKNOWN_FIELD),
        ("session", json!("yes"), "session", Code::BAD_VALUE),
        ("cgroup", json!({"tasks": 0}), "cgroup.tasks", Code::BAD_VALUE),
        ("kill_plan", json!(["INT 1s", "KILL 1s"]), "kill_plan[1]", Code::BAD_VALUE),
        ("kill_plan", json!(["INT 2h"]), "kill_plan", Code::BAD_VALUE),
        ("lock", json!({"name": "db", "permits": 0}), "lock.permits", Code::BAD_VALUE),
        ("lock", json!({"name": "d/b"}), "lock.name", Code::BAD_VALUE),
        ("lock", json!({"name": "db", "permit": 1}), "lock.permit", Code::UNKNOWN_FIELD),
        ("retry", json!({"max": 0}), "retry.max", Code::BAD_VALUE),
        ("retry", json!({"max": 1, "delay": "60d"}), "retry.delay", Code::BAD_VALUE),
        ("retry", json!({"max": 1, "on": []}), "retry.on", Code::BAD_VALUE),
        ("retry", json!({"max": 1, "on": ["success"]}), "retry.on[0]", Code::BAD_VALUE),
    ];
    for (key, value, field, code) in cases {
        let e = base(key, value);
        assert_eq!((e.field.as_str(), e.code), (field, code), "{e}");
        assert!(!e.problem.is_empty() && !e.expected.is_empty());
    }
    let mut request = json!({"name": "a", "cmd": "http://h/", "executor": "http"});
    request["survive_restart"] = json!(true);
    assert_eq!(user(request).unwrap_err().field, "survive_restart");
    for with in [json!({"placement": "once"}), json!({"lock": {"name": "db"}})] {
        let mut spec = json!({"name": "a", "cmd": "date", "survive_restart": true});
        assert!(user(spec.clone()).is_ok());
        spec.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        let e = user(spec).unwrap_err();
        assert_eq!((e.field.as_str(), e.code), ("survive_restart", Code::BAD_VALUE));
        assert!(e.problem.contains(with.as_object().unwrap().keys().next().unwrap()), "{e}");
    }
    assert_eq!(base("schedul", json!("x")).expected, "perhaps `schedule`?");
    assert_eq!(user(json!([])).unwrap_err().code, Code::MALFORMED);
    let missing = user(json!({"name": "a"})).unwrap_err();
    assert_eq!((missing.field.as_str(), missing.problem.as_str()), ("cmd", "missing"));
}

#[test]
fn concurrency_policies_are_written_as_they_are_read() {
    for text in ["forbid", "allow", "replace", "queue", "queue(7)", "max(3)"] {
        assert_eq!(text.parse::<Concurrency>().unwrap().to_string(), text);
    }
    assert_eq!("queue(1)".parse::<Concurrency>().unwrap().to_string(), "queue");
    for text in ["queue()", "max", "max(1001)", "max(-1)", "Forbid", "allow(2)", "queue(1"] {
        assert!(text.parse::<Concurrency>().is_err(), "{text}");
    }
}

#[test]
fn dates_bound_a_schedule() {
    let t = |s: &str| s.parse::<jiff::Timestamp>().unwrap();
    let value = json!({"name": "a", "cmd": "date", "schedule": "0 * * * *",
        "start_at": "2026-03-01T10:00:00Z", "end_at": "2026-03-01T12:00:00Z"});
    let when = user(value).unwrap().assignment(None, vec![]).validate().unwrap().unwrap();
    let slots: Vec<_> = when.iter_after(t("2026-01-01T00:00:00Z")).collect();
    let hours = ["10", "11", "12"].map(|h| t(&format!("2026-03-01T{h}:00:00Z")));
    assert_eq!(slots, hours, "both ends count");
    let wrong = json!({"name": "a", "cmd": "date",
        "start_at": "2026-03-02T00:00:00Z", "end_at": "2026-03-01T00:00:00Z"});
    assert_eq!(user(wrong).unwrap_err().field, "end_at");
}

#[test]
fn reboot_has_no_slot_that_one_node_could_claim() {
    let spec = json!({"name": "a", "cmd": "x", "schedule": "@reboot", "placement": "once"});
    assert_eq!(user(spec).and_then(|s| s.validate()).unwrap_err().field, "placement");
    let by_hand = |rest: &str| {
        let text = format!(r#"{{"cmd":"x","express":"@reboot"{rest}}}"#);
        Assignment::read(text.as_bytes()).map(drop)
    };
    assert_eq!(by_hand(r#","once":["n"]"#).unwrap_err().field, "once");
    assert!(by_hand("").is_ok());
}
