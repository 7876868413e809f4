//! The HTTP API of a real server.

use crate::shared::{NODE, apply, gated, open, server, trigger, wait_run};
use meepo_tests::{Api, TestDir, eventually, secs};
use reqwest::Response;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// An id that no token has.
const UNKNOWN: &str = "00000000000000000001";

/// What each operation of the document is called with here: path, body, status.
fn example(method: &str, path: &str, run: &str, task: &str) -> (String, Option<Value>, u16) {
    let spec = json!({"name": "every-path", "cmd": "echo x", "schedule": "@yearly"});
    let at = path.replace("{name}", "every-path");
    let exec = json!({"id": "1", "hosts": [NODE], "method": "sync.sh", "cmd": "echo x"});
    let stream = json!({"target": NODE, "cmd": "echo x"});
    let (at, body, status) = match (method, path) {
        ("post", "/v1/jobs") | ("put", "/v1/jobs/{name}") => (at, Some(spec), 200),
        ("post", "/v1/jobs/{name}/trigger") => (at, None, 202),
        ("post", "/v1/exec") => (at, Some(exec), 200),
        ("post", "/v1/exec/stream") => (at, Some(stream), 200),
        // It has ended.
        ("post", "/v1/runs/{id}/kill") => (path.replace("{id}", run), None, 409),
        (_, p) if p.starts_with("/v1/runs/{id}") => (p.replace("{id}", run), None, 200),
        ("post", "/v1/tasks") => (at, Some(json!({"target": NODE, "cmd": "true"})), 201),
        // It has ended, too.
        ("post", "/v1/tasks/{id}/{verb}") => (format!("/v1/tasks/{task}/cancel"), None, 409),
        (_, p) if p.starts_with("/v1/tasks/{id}") => (p.replace("{id}", task), None, 200),
        // Others use the node that is there.
        (_, "/v1/nodes/{id}/drain") => (path.replace("{id}", "no-such-node"), None, 404),
        (_, "/v1/events") => (format!("{path}?follow=false"), None, 200),
        (_, "/v1/nodes/{id}") => (path.replace("{id}", NODE), None, 200),
        ("patch", "/v1/nodes/{id}/labels") => {
            (path.replace("{id}", NODE), Some(json!({"labels": {"zone": "a"}})), 200)
        }
        (_, "/readyz/{part}") => (path.replace("{part}", "all"), None, 200),
        (_, "/v1/runs/search") => (format!("{path}?q=x"), None, 200),
        ("put", "/v1/notify/channels/{name}") => {
            (at, Some(json!({"webhook": {"url": "http://127.0.0.1:1/"}})), 200)
        }
        ("put", "/v1/notify/rules/{name}") => (at, Some(json!({"to": ["kept"]})), 200),
        (_, "/v1/cron/next") => (format!("{path}?expr=@daily"), None, 200),
        // There are no certificates to be had here.
        ("post", "/v1/join") => {
            (at, Some(json!({"token": "x", "node": NODE, "request": "x"})), 400)
        }
        ("post", "/v1/renew") => (at, Some(json!({"request": "x"})), 403),
        ("post", "/v1/join-tokens") => (at, Some(json!({})), 403),
        ("delete", "/v1/join-tokens/{id}") => (path.replace("{id}", UNKNOWN), None, 404),
        ("delete", "/v1/tokens/{id}") => (path.replace("{id}", UNKNOWN), None, 404),
        ("post", "/v1/login") => (at, Some(json!({"user": "kept", "password": "wrong"})), 401),
        // Nobody has logged in.
        ("post", "/v1/logout") => (at, None, 409),
        ("post", "/v1/tokens") => (at, Some(json!({"user": "kept"})), 201),
        ("put", "/v1/users/{name}") => (at, Some(json!({"roles": ["viewer"]})), 201),
        ("put", "/v1/users/{name}/password") => {
            (at, Some(json!({"password": "correct horse battery"})), 200)
        }
        ("put", "/v1/roles/{name}") => {
            (at, Some(json!({"grants": [{"permissions": ["job.read"]}]})), 201)
        }
        _ => (at, None, 200),
    };
    assert!(!at.contains('{'), "say here how to call {method} {path}");
    (at, body, status)
}

#[tokio::test]
async fn every_path_of_the_document_answers() {
    let server = server().await;
    let api = server.api();
    apply(&api, json!({"name": "every-run", "cmd": "echo x"})).await;
    let run = trigger(&api, "every-run").await;
    wait_run(&api, &run, &["success"]).await;
    let (status, task) = api.post("/v1/tasks", json!({"target": NODE, "cmd": "true"})).await;
    assert_eq!(status, 201, "{task}");
    let task = task["id"].as_str().unwrap();
    // The answer ends when the task has.
    assert_eq!(api.get(&format!("/v1/tasks/{task}/events")).await.0, 200);
    let (status, document) = api.get("/openapi.json").await;
    assert_eq!(status, 200);
    apply(&api, json!({"name": "every-path", "cmd": "echo x"})).await;
    for name in ["channels/kept", "channels/every-path", "rules/every-path"] {
        let path = format!("/v1/notify/{}/{{name}}", name.split('/').next().unwrap());
        let (_, body, _) = example("put", &path, &run, task);
        let (status, answer) = api.http("PUT", &format!("/v1/notify/{name}"), body.as_ref()).await;
        assert_eq!(status, 201, "{answer}");
    }
    let kept = json!({"roles": ["viewer"]});
    assert_eq!(api.http("PUT", "/v1/users/kept", Some(&kept)).await.0, 201);
    let mut operations: Vec<(&String, &String, &Value)> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().iter();
        operations.extend(methods.map(|(method, what)| (path, method, what)));
    }
    assert!(operations.len() >= 22, "{}", operations.len());
    operations.sort_by_key(|(path, method, _)| (*method == "delete", path.as_str()));
    for (path, method, what) in operations {
        let (at, body, want) = example(method, path, &run, task);
        let (status, answer) = api.http(&method.to_uppercase(), &at, body.as_ref()).await;
        assert_eq!(status, want, "{method} {at}: {answer}");
        assert!(what["responses"][want.to_string()].is_object(), "{method} {path}: {want}");
        assert!(what["description"].is_string() || what["summary"].is_string(), "{method} {path}");
    }
}

#[tokio::test]
async fn the_document_hangs_together() {
    let server = server().await;
    let (_, document) = server.api().get("/openapi.json").await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let mut refs = BTreeSet::new();
    collect_refs(&document, &mut refs);
    assert!(refs.len() > 20, "{refs:?}");
    for r in refs {
        let found = document.pointer(r.trim_start_matches('#'));
        assert!(found.is_some_and(Value::is_object), "{r} leads nowhere");
    }
    let schemas = &document["components"]["schemas"];
    for field in ["name", "cmd", "schedule", "timezone", "target", "concurrency", "output_limit"] {
        let property = &schemas["JobSpec"]["properties"][field];
        assert!(property.is_object(), "{field}");
    }
    assert_eq!(schemas["ExecRequest"]["required"], json!(["id", "hosts", "method", "cmd"]));
    for (name, schema) in schemas.as_object().unwrap() {
        assert!(schema["description"].is_string() || schema["oneOf"].is_array(), "{name}");
    }
}

fn collect_refs(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            into.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|v| collect_refs(v, into));
        }
        Value::Array(list) => list.iter().for_each(|v| collect_refs(v, into)),
        _ => {}
    }
}

#[tokio::test]
async fn exec_takes_and_answers_the_shape_it_always_had() {
    let server = server().await;
    let api = server.api();
    let ask = async |hosts: &[&str], method: &str, cmd: &str| {
        let body = json!({"id": "req-7", "hosts": hosts, "method": method, "cmd": cmd});
        let (status, answer) = api.post("/v1/exec", body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let success = json!({"host": NODE, "resp": "success", "retcode": 0, "message": "success",
        "data": "out\n"});
    let unknown = json!({"host": "10.9.9.9", "resp": "failed", "retcode": 0x0200,
        "message": "no such host"});
    let failed = json!({"host": NODE, "resp": "failed", "retcode": 0x0101,
        "message": "exit status 3", "data": "out\nerr\n"});
    // In the order asked.
    assert_eq!(
        ask(&["10.9.9.9", NODE], "sync.bash", "echo out").await,
        json!({"id": "req-7", "response": [unknown, success]})
    );
    let cmd = "echo out; sleep 0.05; echo err >&2; exit 3";
    assert_eq!(ask(&[NODE], "sync.sh", cmd).await, json!({"id": "req-7", "response": [failed]}));
    for (method, cmd, data) in [
        ("sync.python", "print(1 + 1)", "2\n"),
        ("sync.exec", "/bin/true", ""),
        ("sync.bash", "printf '\\377'", "\u{fffd}"),
    ] {
        let answer = ask(&[NODE], method, cmd).await;
        assert_eq!(answer["response"][0]["data"], data, "{method} {cmd}: {answer}");
    }
    let body = json!({"id": "", "hosts": [NODE], "method": "sync.bash", "cmd": "sleep 300",
        "timeout": "200ms"});
    let (_, answer) = api.post("/v1/exec", body).await;
    let host = &answer["response"][0];
    assert_eq!((&host["retcode"], &host["resp"]), (&0x0100.into(), &"failed".into()), "{answer}");
}

/// The next line of a stream.
async fn line(response: &mut Response, buffer: &mut String) -> Option<Value> {
    loop {
        if let Some((line, rest)) = buffer.split_once('\n') {
            let value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            *buffer = rest.to_owned();
            return Some(value);
        }
        match tokio::time::timeout(secs(30), response.chunk()).await.unwrap().unwrap() {
            Some(bytes) => buffer.push_str(std::str::from_utf8(&bytes).unwrap()),
            None => return None,
        }
    }
}

fn is_ndjson(response: &Response) -> bool {
    response.status() == 200 && response.headers()["content-type"] == "application/x-ndjson"
}

#[tokio::test]
async fn exec_streams_a_line_an_event_as_it_goes() {
    let (server, dir) = (server().await, TestDir::new());
    let gate = dir.path().join("gate");
    let body = json!({"target": NODE, "cmd": gated(&gate, "first", "last")});
    let url = format!("{}/v1/exec/stream", server.api().base());
    let mut response = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
    assert!(is_ndjson(&response), "{response:?}");
    let mut buffer = String::new();
    let start = line(&mut response, &mut buffer).await.unwrap();
    assert_eq!((&start["type"], &start["hosts"][0]["host"]), (&"start".into(), &NODE.into()));
    let first = line(&mut response, &mut buffer).await.unwrap();
    assert_eq!((&first["type"], &first["text"]), (&"output".into(), &"first\n".into()));
    // It came while the process waits for us.
    open(&gate);
    let last = line(&mut response, &mut buffer).await.unwrap();
    assert_eq!((&last["text"], &last["seq"]), (&"last\n".into(), &1.into()));
    let end = line(&mut response, &mut buffer).await.unwrap();
    assert_eq!((&end["type"], &end["retcode"]), (&"end".into(), &0.into()), "{end}");
    assert_eq!(line(&mut response, &mut buffer).await, None);
}

#[tokio::test]
async fn output_is_paged_and_followed() {
    let (server, dir) = (server().await, TestDir::new());
    let (api, gate) = (server.api(), dir.path().join("gate"));
    apply(&api, json!({"name": "pages", "cmd": gated(&gate, "first", "last")})).await;
    let run = trigger(&api, "pages").await;
    wait_run(&api, &run, &["running"]).await;
    let path = format!("/v1/runs/{run}/output");
    let mut follow = api.stream(&format!("{path}?follow=true")).await;
    assert!(is_ndjson(&follow), "{follow:?}");
    let mut buffer = String::new();
    let first = line(&mut follow, &mut buffer).await.unwrap();
    assert_eq!((&first["type"], &first["text"]), (&"output".into(), &"first\n".into()));
    open(&gate);
    assert_eq!(line(&mut follow, &mut buffer).await.unwrap()["text"], "last\n");
    let end = line(&mut follow, &mut buffer).await.unwrap();
    assert_eq!(
        (&end["type"], &end["state"], &end["run_id"]),
        (&"end".into(), &"success".into(), &json!(run))
    );
    assert_eq!(line(&mut follow, &mut buffer).await, None);
    wait_run(&api, &run, &["success"]).await;
    let (_, page) = api.get(&format!("{path}?limit=1")).await;
    assert_eq!((&page["chunks"][0]["text"], &page["next_after"]), (&"first\n".into(), &0.into()));
    assert_eq!(page["complete"], false, "{page}");
    let (_, page) = api.get(&format!("{path}?after=0")).await;
    assert_eq!(
        (page["chunks"].as_array().unwrap().len(), &page["chunks"][0]["seq"]),
        (1, &1.into())
    );
    let (_, page) = api.get(&format!("{path}?after=1")).await;
    assert_eq!((&page["chunks"], &page["complete"]), (&json!([]), &true.into()));
    // Who follows late begins where they want.
    let mut follow = api.stream(&format!("{path}?follow=true&after=0")).await;
    let late = line(&mut follow, &mut String::new()).await.unwrap();
    assert_eq!(late["text"], "last\n");
}

#[tokio::test]
async fn runs_are_listed_in_pages() {
    let server = server().await;
    let api = server.api();
    apply(&api, json!({"name": "listed", "cmd": "true", "concurrency": "allow"})).await;
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(trigger(&api, "listed").await);
    }
    for run in &runs {
        wait_run(&api, run, &["success"]).await;
    }
    let (mut cursor, mut found) = (String::new(), Vec::new());
    loop {
        let (status, page) = api.get(&format!("/v1/runs?job=listed&limit=2{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        let ids = page["runs"].as_array().unwrap().iter();
        found.extend(ids.map(|r| r["run_id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found.len(), 3, "each once");
    found.sort();
    runs.sort();
    assert_eq!(found, runs);
}

#[tokio::test]
async fn a_job_goes_through_its_life() {
    let server = server().await;
    let api = server.api();
    let spec = json!({"cmd": "echo x", "schedule": "0 0 1 1 *"});
    let put = async |spec: &Value| api.http("PUT", "/v1/jobs/rest-life", Some(spec)).await;
    let (status, applied) = put(&spec).await;
    assert_eq!((status, &applied["action"]), (201, &"created".into()));
    let (status, same) = put(&spec).await;
    assert_eq!((status, &same["action"]), (200, &"unchanged".into()));
    assert_eq!(same["revision"], applied["revision"], "nothing was written");
    let (_, changed) = put(&json!({"cmd": "echo y", "schedule": "0 0 1 1 *"})).await;
    assert_eq!(changed["action"], "updated");
    assert!(changed["revision"].as_i64() > applied["revision"].as_i64());
    let (_, job) = api.get("/v1/jobs/rest-life").await;
    assert!(job["next"].as_str().unwrap().ends_with("-01-01T00:00:00Z"), "{job}");
    for (action, state) in [("pause", "pause"), ("resume", "running")] {
        let (status, answer) =
            api.http("POST", &format!("/v1/jobs/rest-life/{action}"), None).await;
        assert_eq!((status, &answer["action"]), (200, &"updated".into()));
        eventually(secs(10), "the node has it", async || {
            let (_, job) = api.try_http("GET", "/v1/jobs/rest-life", None).await?;
            assert_eq!(job["spec"]["status"], state);
            let there = job["nodes"][0]["status"] == state;
            if there { Ok(()) } else { Err(job.to_string()) }
        })
        .await;
    }
    let trigger = json!({"target": NODE, "ttl": "5m"});
    let (status, triggered) = api.post("/v1/jobs/rest-life/trigger", trigger).await;
    assert_eq!((status, &triggered["runs"][0]["node"]), (202, &NODE.into()));
    let run = triggered["runs"][0]["run_id"].as_str().unwrap();
    assert_eq!(wait_run(&api, run, &["success"]).await["cause"], "trigger");
    let (_, job) = api.get("/v1/jobs/rest-life").await;
    assert_eq!(job["last_run"]["run_id"], run);
    let (status, gone) = api.http("DELETE", "/v1/jobs/rest-life", None).await;
    assert_eq!((status, &gone["action"]), (200, &"deleted".into()));
    assert_eq!(api.get("/v1/jobs/rest-life").await.0, 404);
}

#[tokio::test]
async fn health_and_metrics_are_for_machines() {
    let server = server().await;
    let api: Api = server.api();
    for (path, want) in [("/healthz", "ok\n"), ("/readyz", "ready\n"), ("/readyz/all", "ready\n")] {
        assert_eq!(api.get(path).await, (200, want.into()), "{path}");
    }
    api.get("/v1/nodes").await;
    let response = api.stream("/metrics").await;
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = response.text().await.unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(["meepo_", "process_"].iter().any(|p| name.starts_with(p)), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    let counted = |l: &&str| l.contains("method=\"GET\"") && l.contains("status=\"200\"");
    assert!(text.lines().any(|l| counted(&l)), "requests are counted: {text}");
}

#[tokio::test]
async fn what_a_web_page_sends_is_refused() {
    let server = server().await;
    let base = server.api().base().to_owned();
    let client = reqwest::Client::new();
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("sec-fetch-site", "same-origin"),
        ("host", "evil.example:7600"),
    ] {
        for request in [
            client.get(format!("{base}/v1/jobs")),
            client.post(format!("{base}/v1/exec")).json(&json!({
                "id": "1", "hosts": [NODE], "method": "sync.sh", "cmd": "echo x"
            })),
        ] {
            let response = request.header(name, value).send().await.unwrap();
            assert_eq!(response.status(), 403, "{name}: {value}");
            let body: Value = response.json().await.unwrap();
            assert_eq!(body["error"]["name"], "forbidden");
        }
    }
    let port = base.rsplit(':').next().unwrap();
    let named = client.get(format!("{base}/healthz")).header("host", format!("localhost:{port}"));
    assert_eq!(named.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_run_can_be_ended_from_the_moment_it_was_asked_for() {
    let server = server().await;
    let api = server.api();
    apply(&api, json!({"name": "cut-short", "cmd": "sleep 600"})).await;
    for _ in 0..3 {
        let run = trigger(&api, "cut-short").await;
        let (status, answer) = api.http("POST", &format!("/v1/runs/{run}/kill"), None).await;
        assert_eq!((status, &answer["run_id"]), (202, &json!(run)), "{answer}");
        wait_run(&api, &run, &["killed"]).await;
    }
}
