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
    let full = json!({
        "name": "backup", "description": "d", "cmd": "x \"$1\"", "args": ["a"],
        "executor": "sh", "schedule": "0 3 * * *", "timezone": "Europe/London",
        "target": "all", "placement": "once", "status": "pause", "timeout": "5m",
        "concurrency": "queue", "misfire": "all", "misfire_cap": 3,
        "starting_deadline": "1h", "env": {"A": "b"}, "cwd": "/tmp", "user": "root",
        "stdin": "x", "output_limit": 1024
    });
    let mut fields: Vec<_> = full.as_object().unwrap().keys().map(String::as_str).collect();
    let mut known = JobSpec::FIELDS.to_vec();
    fields.sort_unstable();
    known.sort_unstable();
    assert_eq!(fields, known, "FIELDS lists exactly what a spec has");
    let spec = user(full).unwrap();
    let again: JobSpec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);
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
        ("env", json!({"A=B": "c"}), "env.A=B", Code::BAD_VALUE),
        ("cwd", json!("tmp"), "cwd", Code::BAD_VALUE),
        ("output_limit", json!(1 << 30), "output_limit", Code::BAD_VALUE),
        ("misfire_cap", json!(0), "misfire_cap", Code::BAD_VALUE),
    ];
    for (key, value, field, code) in cases {
        let e = base(key, value);
        assert_eq!((e.field.as_str(), e.code), (field, code), "{e}");
        assert!(!e.problem.is_empty() && !e.expected.is_empty());
    }
    assert_eq!(base("schedul", json!("x")).expected, "perhaps `schedule`?");
    assert_eq!(user(json!([])).unwrap_err().code, Code::MALFORMED);
    let missing = user(json!({"name": "a"})).unwrap_err();
    assert_eq!((missing.field.as_str(), missing.problem.as_str()), ("cmd", "missing"));
}
