//! Everything a user can get wrong, with the answer it must get: which field, what was
//! wrong, what would be right, and the fitting HTTP status and exit code. What gRPC
//! answers stands in `grpc`.

mod settings;

use crate::shared::{apply, one_line, server, trigger, wait_run};
use meepo_tests::{Api, TestDir};
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use std::fs;

/// A refusal as it must be: status, code, field and a part of what is expected.
type Refusal<'a> = (u16, u16, &'a str, &'a str);

#[track_caller]
fn check(what: &str, status: u16, body: &Value, want: Refusal<'_>) {
    let error = &body["error"];
    let (want_status, code, field, expected) = want;
    assert_eq!(status, want_status, "{what}: {body}");
    assert_eq!(error["code"], code, "{what}: {body}");
    assert_eq!(error["field"].as_str().unwrap_or_default(), field, "{what}: {body}");
    let said = error["expected"].as_str().unwrap_or_default();
    assert!(said.contains(expected), "{what}: {body}");
    assert!(!error["message"].as_str().unwrap().is_empty(), "{what}: {body}");
    assert!(!error["name"].as_str().unwrap().is_empty(), "{what}: {body}");
    assert_eq!(error["retry"], false, "{what}: {body}");
}

async fn still_works(api: &Api) {
    assert_eq!(api.get("/readyz").await.0, 200);
    let hosts = json!({"id": "1", "hosts": ["127.0.0.1"], "method": "sync.sh", "cmd": "echo x"});
    let (_, answer) = api.post("/v1/exec", hosts).await;
    assert_eq!(answer["response"][0]["data"], "x\n", "{answer}");
}

/// Changes of a valid definition that make it invalid.
fn definitions() -> Vec<(Value, u16, &'static str, &'static str)> {
    let long = "x".repeat(129);
    vec![
        (json!({"scedule": "@daily"}), 0x0301, "scedule", "`schedule`"),
        (json!({"nonsense": 1}), 0x0301, "nonsense", "schedule, target"),
        (json!({"cmd": 5}), 0x0302, "cmd", "a string"),
        (json!({"cmd": null}), 0x0302, "cmd", "a string"),
        (json!({"args": "a"}), 0x0302, "args", "a sequence"),
        (json!({"env": {"A": 1}}), 0x0302, "env.A", "a string"),
        (json!({"env": {"A=B": "x"}}), 0x0302, "env.A=B", "without '='"),
        (json!({"stdin": 7}), 0x0302, "stdin", "a string"),
        (json!({"cmd": "a\0b"}), 0x0302, "cmd", "without NUL"),
        (json!({"schedule": "61 * * * *"}), 0x0303, "schedule", "0-59"),
        (json!({"schedule": "* * *"}), 0x0303, "schedule", "5 fields"),
        (json!({"schedule": "0 0 30 2 *"}), 0x0303, "schedule", "a day that exists"),
        (json!({"schedule": "@fortnightly"}), 0x0303, "schedule", "@daily"),
        (json!({"schedule": "@every soon"}), 0x0303, "schedule", ""),
        (json!({"timezone": "Mars/Base"}), 0x0303, "timezone", "Europe/London"),
        (json!({"executor": "perl"}), 0x0304, "executor", "python"),
        (json!({"cmd": ""}), 0x0305, "cmd", "date -u"),
        (json!({"cmd": " \n\t"}), 0x0305, "cmd", "date -u"),
        (json!({"name": "a/b"}), 0x0306, "name", "letters, digits"),
        (json!({"name": ""}), 0x0306, "name", "letters, digits"),
        (json!({"name": ".."}), 0x0306, "name", "letters, digits"),
        (json!({"name": "a b"}), 0x0306, "name", "letters, digits"),
        (json!({"name": "na\u{ef}ve"}), 0x0306, "name", "letters, digits"),
        (json!({"name": long}), 0x0306, "name", "1 to 128"),
        (json!({"target": "role="}), 0x0307, "target", "a value"),
        (json!({"target": "(all"}), 0x0307, "target", ")"),
        (json!({"target": ""}), 0x0307, "target", "`all`"),
        (json!({"placement": "twice"}), 0x0302, "placement", "once"),
        (json!({"status": "stopped"}), 0x0302, "status", "pause"),
        (json!({"concurrency": "maybe"}), 0x0302, "concurrency", "forbid"),
        (json!({"misfire": "never"}), 0x0302, "misfire", "skip"),
        (json!({"misfire_cap": 0}), 0x0302, "misfire_cap", "1 to 1000"),
        (json!({"timeout": "soon"}), 0x0302, "timeout", "30s, 5m or 1h30m"),
        (json!({"timeout": "0s"}), 0x0302, "timeout", "positive"),
        (json!({"timeout": 30}), 0x0302, "timeout", "30s"),
        (json!({"starting_deadline": "-1s"}), 0x0302, "starting_deadline", "30s"),
        (json!({"cwd": "here"}), 0x0302, "cwd", "starts with '/'"),
        (json!({"user": ""}), 0x0302, "user", "a user"),
        (json!({"output_limit": 1 << 30}), 0x0302, "output_limit", "16777216"),
        (json!({"output_limit": -1}), 0x0302, "output_limit", "u64"),
    ]
}

#[tokio::test]
async fn definitions_are_refused_by_the_server_and_by_the_command() {
    let (server, dir) = (server().await, TestDir::new());
    let api = server.api();
    let file = dir.path().join("job.json");
    for (change, code, field, expected) in definitions() {
        let mut spec = json!({"name": "bad", "cmd": "true", "schedule": "@daily"});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let what = change.to_string();
        let (status, body) = api.post("/v1/jobs", spec.clone()).await;
        check(&what, status, &body, (400, code, field, expected));
        fs::write(&file, spec.to_string()).unwrap();
        let output = server.cli(&["job", "apply", "-f", file.to_str().unwrap()]).await;
        let line = one_line(&output, 2);
        assert!(line.contains("job.json") && line.contains(&format!("{field}: ")), "{line}");
        assert!(line.contains("; expected ") && line.contains(expected), "{line}");
    }
    for missing in ["name", "cmd"] {
        let mut spec = json!({"name": "bad", "cmd": "true"});
        spec.as_object_mut().unwrap().remove(missing);
        let (status, body) = api.post("/v1/jobs", spec).await;
        check(missing, status, &body, (400, 0x0302, missing, "a value"));
    }
    assert_eq!(api.get("/v1/jobs/bad").await.0, 404, "nothing of it was kept");
    still_works(&api).await;
}

#[tokio::test]
async fn bodies_that_cannot_be_read() {
    let server = server().await;
    let api = server.api();
    let long = format!(r#"{{"name": "large", "cmd": "{}"}}"#, "x".repeat(1 << 20));
    let deep = "[".repeat(100_000);
    let json_type = "application/json";
    for (kind, body, want) in [
        (json_type, "{not json", (400, 0x0300, "(document)", "JSON")),
        (json_type, "[]", (400, 0x0300, "(document)", "an object")),
        (json_type, "\"text\"", (400, 0x0300, "(document)", "an object")),
        (json_type, "{} {}", (400, 0x0300, "(document)", "JSON")),
        (json_type, deep.as_str(), (400, 0x0300, "(document)", "JSON")),
        (json_type, long.as_str(), (413, 0x0308, "", "")),
        ("text/yaml", "name: x", (415, 0x030B, "Content-Type", json_type)),
        ("application/x-www-form-urlencoded", "name=x", (415, 0x030B, "Content-Type", json_type)),
    ] {
        for path in ["/v1/jobs", "/v1/exec", "/v1/exec/stream", "/v1/jobs/hello/trigger"] {
            let request = reqwest::Client::new().post(format!("{}{path}", api.base()));
            let request = request.header(CONTENT_TYPE, kind).body(body.to_owned());
            let response = request.send().await.unwrap();
            let status = response.status().as_u16();
            let answer = response.json().await.unwrap();
            check(&format!("{path} {kind} {body:.20}"), status, &answer, want);
        }
    }
    // Bytes that are no text.
    for (kind, status) in [(Some(json_type), 400), (None, 415)] {
        let mut request = reqwest::Client::new().post(format!("{}/v1/jobs", api.base()));
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        let response = request.body(vec![0xff, 0xfe]).send().await.unwrap();
        assert_eq!(response.status(), status, "{kind:?}");
    }
    still_works(&api).await;
}

const NO_RUN: &str = "/v1/runs/01932f5e-0000-7000-8000-000000000001";

#[tokio::test]
async fn paths_and_parameters() {
    let server = server().await;
    let api = server.api();
    let spec = json!({"cmd": "true"});
    for (method, path, body, want) in [
        ("GET", "/v1/nothing", None, (404, 0x0309, "", "")),
        ("GET", "/", None, (404, 0x0309, "", "")),
        ("GET", "/v1/jobs/", None, (404, 0x0309, "", "")),
        ("PATCH", "/v1/jobs", None, (405, 0x030B, "", "")),
        ("DELETE", "/v1/exec", None, (405, 0x030B, "", "")),
        ("GET", "/v1/exec/stream", None, (405, 0x030B, "", "")),
        // Names that would break a key.
        ("PUT", "/v1/jobs/a%2Fb", Some(&spec), (400, 0x0306, "name", "letters")),
        ("PUT", "/v1/jobs/%00", Some(&spec), (400, 0x0306, "name", "letters")),
        ("PUT", "/v1/jobs/%FF", Some(&spec), (400, 0x0306, "(path)", "a name")),
        ("GET", "/v1/nodes/a%2Fb", None, (400, 0x0306, "name", "letters")),
        (
            "PUT",
            "/v1/jobs/a",
            Some(&json!({"name": "b", "cmd": "x"})),
            (400, 0x0306, "name", "\"a\""),
        ),
        // Query parameters.
        ("GET", "/v1/runs?colour=red", None, (400, 0x0301, "colour", "`cursor`")),
        ("GET", "/v1/runs?limit=x", None, (400, 0x0302, "limit", "a whole number")),
        ("GET", "/v1/runs?limit=-1", None, (400, 0x0302, "limit", "a whole number")),
        ("GET", "/v1/runs?limit=1&limit=2", None, (400, 0x0302, "limit", "once")),
        ("GET", "/v1/runs?state=done", None, (400, 0x0302, "state", "running, success")),
        ("GET", "/v1/runs?cursor=zzz", None, (400, 0x0302, "cursor", "`next`")),
        ("GET", "/v1/runs?since=yesterday", None, (400, 0x0302, "since", "2026-03-29T01:00:00Z")),
        ("GET", "/v1/runs?until=1h", None, (400, 0x0302, "until", "2026-03-29T01:00:00Z")),
        ("GET", "/v1/runs?job=a%2Fb", None, (400, 0x0306, "job", "letters")),
        ("GET", "/v1/runs?node=a%20b", None, (400, 0x0306, "node", "letters")),
        ("GET", "/v1/jobs/hello/next?n=x", None, (400, 0x0302, "n", "a whole number")),
        ("GET", "/v1/cron/next", None, (400, 0x0302, "expr", "a value")),
        ("GET", "/v1/cron/next?expr=bad", None, (400, 0x0303, "expr", "5 fields")),
        ("GET", "/v1/cron/next?expr=@daily&tz=X/Y", None, (400, 0x0303, "tz", "Europe/London")),
        (
            "GET",
            "/v1/cron/next?expr=@daily&from=now",
            None,
            (400, 0x0302, "from", "2026-03-29T01:00:00Z"),
        ),
        (
            "GET",
            &format!("{NO_RUN}/output?follow=maybe"),
            None,
            (400, 0x0302, "follow", "true or false"),
        ),
        (
            "GET",
            &format!("{NO_RUN}/output?after=-1"),
            None,
            (400, 0x0302, "after", "a whole number"),
        ),
        // What is not there.
        ("GET", "/v1/jobs/nope", None, (404, 0x0309, "", "")),
        ("DELETE", "/v1/jobs/nope", None, (404, 0x0309, "", "")),
        ("POST", "/v1/jobs/nope/pause", None, (404, 0x0309, "", "")),
        ("POST", "/v1/jobs/nope/resume", None, (404, 0x0309, "", "")),
        ("POST", "/v1/jobs/nope/trigger", None, (404, 0x0309, "", "")),
        ("GET", "/v1/jobs/nope/next", None, (404, 0x0309, "", "")),
        ("GET", "/v1/nodes/nope", None, (404, 0x0309, "", "")),
        ("GET", NO_RUN, None, (404, 0x0309, "", "")),
        ("GET", &format!("{NO_RUN}/output"), None, (404, 0x0309, "", "")),
        ("GET", &format!("{NO_RUN}/output?follow=true"), None, (404, 0x0309, "", "")),
        ("POST", &format!("{NO_RUN}/kill"), None, (404, 0x0309, "", "")),
        ("GET", "/v1/runs/zzz", None, (400, 0x0306, "run_id", "UUID")),
        ("GET", "/v1/runs/zzz/output", None, (400, 0x0306, "run_id", "UUID")),
        ("POST", "/v1/runs/zzz/kill", None, (400, 0x0306, "run_id", "UUID")),
    ] {
        let (status, answer) = api.http(method, path, body).await;
        check(&format!("{method} {path}"), status, &answer, want);
    }
    // Which methods would be right stands where HTTP wants it.
    let patch = reqwest::Client::new().patch(format!("{}/v1/jobs", api.base())).send();
    let allow = patch.await.unwrap().headers()["allow"].to_str().unwrap().to_owned();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    still_works(&api).await;
}

#[tokio::test]
async fn commands_and_triggers() {
    let server = server().await;
    let api = server.api();
    let exec = |change: Value| {
        let mut body =
            json!({"id": "1", "hosts": ["127.0.0.1"], "method": "sync.sh", "cmd": "true"});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        ("/v1/exec", body)
    };
    let stream = |change: Value| {
        let mut body = json!({"target": "all", "cmd": "true"});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        ("/v1/exec/stream", body)
    };
    let trigger_hello = |body: Value| ("/v1/jobs/hello/trigger", body);
    for ((path, body), want) in [
        (exec(json!({"method": "sync.perl"})), (400, 0x0304, "method", "sync.python")),
        (exec(json!({"method": "bash"})), (400, 0x0304, "method", "sync.bash")),
        (exec(json!({"hosts": []})), (400, 0x0302, "hosts", "at least one")),
        (exec(json!({"hosts": "127.0.0.1"})), (400, 0x0302, "hosts", "a sequence")),
        (exec(json!({"cmd": ""})), (400, 0x0305, "cmd", "date -u")),
        (exec(json!({"id": 1})), (400, 0x0302, "id", "a string")),
        (exec(json!({"timeout": "x"})), (400, 0x0302, "timeout", "30s")),
        (exec(json!({"user": "root"})), (400, 0x0301, "user", "`hosts`")),
        (stream(json!({"target": "all and"})), (400, 0x0307, "target", "`all`")),
        (stream(json!({"target": "group=none"})), (422, 0x0207, "", "")),
        (stream(json!({"cmd": "\t"})), (400, 0x0305, "cmd", "date -u")),
        (stream(json!({"executor": "perl"})), (400, 0x0304, "executor", "python")),
        (stream(json!({"env": {"A=": "b"}})), (400, 0x0302, "env.A=", "without '='")),
        (stream(json!({"cwd": "here"})), (400, 0x0302, "cwd", "starts with '/'")),
        (stream(json!({"timeout": "0s"})), (400, 0x0302, "timeout", "positive")),
        (trigger_hello(json!({"target": "("})), (400, 0x0307, "target", "`all`")),
        (trigger_hello(json!({"target": "group=none"})), (422, 0x0207, "", "")),
        (trigger_hello(json!({"ttl": "x"})), (400, 0x0302, "ttl", "30s")),
        (trigger_hello(json!({"nodes": "x"})), (400, 0x0301, "nodes", "`target`")),
    ] {
        let (status, answer) = api.post(path, body.clone()).await;
        check(&format!("{path} {body}"), status, &answer, want);
    }
    apply(&api, json!({"name": "nowhere", "cmd": "true", "target": "group=none"})).await;
    let (status, answer) = api.post("/v1/jobs/nowhere/trigger", json!({})).await;
    check("a job without a node", status, &answer, (422, 0x0207, "", ""));
    apply(&api, json!({"name": "ended", "cmd": "true"})).await;
    let run = trigger(&api, "ended").await;
    wait_run(&api, &run, &["success"]).await;
    let (status, answer) = api.http("POST", &format!("/v1/runs/{run}/kill"), None).await;
    check("a run that ended", status, &answer, (409, 0x030A, "", ""));
    assert!(answer["error"]["message"].as_str().unwrap().contains("ended already"), "{answer}");

    // The same through the command.
    for (args, code, words) in [
        (&["job", "trigger", "nowhere"][..], 3, "no node holds job nowhere"),
        (&["kill", &run], 5, "has ended already: success"),
        (&["kill", "zzz"], 2, "not a run id"),
        (&["kill", &NO_RUN[9..]], 3, "no run"),
        (&["logs", &NO_RUN[9..]], 3, "no run"),
        (&["job", "get", "nope"], 3, "no job nope"),
        (&["job", "pause", "nope"], 3, "no job nope"),
        (&["job", "delete", "nope"], 3, "no job nope"),
        (&["job", "trigger", "nope"], 3, "no job nope"),
        (&["node", "get", "nope"], 3, "no node nope"),
        (&["runs", "--since", "bogus"], 2, "a duration such as 1h, or a time"),
        (&["run", "-t", "all and", "--", "true"], 2, "target: column 8"),
        (&["run", "-t", "all", "--", " "], 2, "cmd: empty command"),
        (&["run", "-t", "all", "--cwd", "here", "--", "true"], 2, "starts with '/'"),
        (&["job", "apply", "-f", "/no/such/file"], 2, "/no/such/file"),
        (&["cron", "import", "/no/such/file"], 2, "/no/such/file"),
        (&["--master", "http://127.0.0.1:1", "job", "list"], 4, "meepo --server"),
    ] {
        let output = server.cli(args).await;
        let line = one_line(&output, code);
        assert!(line.contains(words), "{args:?}: {line}");
    }
    still_works(&api).await;
}
