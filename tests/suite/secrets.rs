//! Secrets of jobs: the worker knows them for the length of a run, and nobody else ever does.

use crate::fleet::{SOON, apply, wait_runs, wait_session};
use meepo_tests::{Api, Builder, Cluster, TestDir, eventually};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

const VALUE: &str = "correct-horse-battery";
/// A key of several lines.
const KEY: &str = "-----BEGIN-----\nbGluZS1vbmUtb2Yta2V5\nbGluZS10d28tb2Yta2V5\n-----END-----\n";

fn put(dir: &Path, name: &str, text: &str, mode: u32) {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A cluster whose worker has secrets in a directory, and by a command.
fn builder(dir: &TestDir) -> Builder {
    put(dir.path(), "db", &format!("{VALUE}\n"), 0o600);
    put(dir.path(), "key", KEY, 0o400);
    put(dir.path(), "open", "everybody-reads-this", 0o644);
    let vault = dir.path().join("vault");
    put(dir.path(), "vault", "#!/bin/sh\ntest \"$1\" = api && echo token-of-the-vault\n", 0o700);
    Cluster::builder()
        .worker_arg("--secrets-dir")
        .worker_arg(&dir.path().display().to_string())
        .worker_arg("--secrets-command")
        .worker_arg(&vault.display().to_string())
}

/// Runs a job on request and answers its record.
async fn run_job(api: &Api, job: Value) -> Value {
    let name = job["name"].as_str().unwrap().to_owned();
    apply(api, job).await;
    let (status, body) = api.post(&format!("/v1/jobs/{name}/trigger"), json!({})).await;
    assert_eq!(status, 202, "{body}");
    let id = body["runs"][0]["run_id"].as_str().unwrap().to_owned();
    eventually(SOON, format!("{name} has ended"), async || {
        let (_, record) = api.get(&format!("/v1/runs/{id}")).await;
        let over = record["ended_at"].is_string();
        if over { Ok(record) } else { Err(record.to_string()) }
    })
    .await
}

async fn output(cluster: &Cluster, record: &Value) -> String {
    let id = record["run_id"].as_str().unwrap();
    eventually(SOON, "the output is kept", async || {
        let out = cluster.cli(&["logs", id]).await;
        let text = format!("{}{}", out.stdout, out.stderr);
        if text.is_empty() { Err("nothing yet".to_owned()) } else { Ok(text) }
    })
    .await
}

/// No file below `dir` holds the value.
fn nowhere(dir: &Path, value: &str) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            nowhere(&path, value);
        } else if let Ok(bytes) = fs::read(&path) {
            let found = bytes.windows(value.len()).any(|w| w == value.as_bytes());
            assert!(!found, "{} holds a secret", path.display());
        }
    }
}

#[tokio::test]
async fn a_run_has_the_secret_and_nobody_else() {
    let dir = TestDir::new();
    let mut cluster = builder(&dir).start().await;
    let api = cluster.api();
    // It proves that it has the values without saying them.
    let proof = cluster.dir().join("proof");
    let script = format!(
        "printf '%s|%s|%s' \"$URL\" \"$TOKEN\" \"$(cat)\" | sha256sum | cut -c1-64 > {}; \
         echo \"url $URL and $TOKEN\"; echo \"$URL\" >&2; cat /proc/self/environ | tr '\\0' '\\n'; \
         exit 4",
        proof.display()
    );
    let job = json!({"name": "all", "cmd": script, "stdin": "in ${secret:db}", "env": {
        "URL": "p://app:${secret:db}@host/x", "TOKEN": "${secret:api}"}});
    let record = run_job(&api, job).await;
    assert_eq!(record["exit_code"], 4, "{record}");
    let said = output(&cluster, &record).await;
    assert!(said.contains("url p://app:***@host/x and ***"), "{said}");
    assert!(said.contains("URL=p://app:***@host/x"), "also what it prints of itself: {said}");
    let want = format!("p://app:{VALUE}@host/x|token-of-the-vault|in {VALUE}");
    let script = format!("printf '%s' '{want}' | sha256sum | cut -c1-64");
    let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(fs::read(&proof).unwrap(), out.stdout, "it had other values");
    // A synchronous command, followed as it comes.
    wait_session(&api, "127.0.0.2").await;
    let ran = cluster
        .cli(&["run", "-t", "127.0.0.2", "--env", "P=${secret:db}", "--", "echo got $P"])
        .await;
    assert!(ran.ok().contains("got ***"), "{ran:?}");
    // A task.
    let (status, body) = api
        .post("/v1/tasks", json!({"target": "all", "cmd": "echo $P", "env": {"P": "${secret:db}"}}))
        .await;
    assert_eq!(status, 201, "{body}");
    wait_runs(&api, "cause=task&state=success", 1).await;
    // What is stored and shown are references.
    let (_, shown) = api.get("/v1/jobs/all").await;
    assert!(shown.to_string().contains("${secret:db}"), "{shown}");
    for path in ["/v1/jobs", "/v1/runs", "/v1/audit", "/v1/nodes", "/v1/tasks"] {
        let (_, all) = api.get(path).await;
        assert!(!all.to_string().contains(VALUE), "{path}: {all}");
    }
    let kept = cluster.etcd().client().await;
    let all = etcd_client::GetOptions::new().with_all_keys();
    for kv in kept.clone().get("", Some(all)).await.unwrap().kvs() {
        let value = kv.value_str().unwrap();
        assert!(!value.contains(VALUE), "{}: {value}", kv.key_str().unwrap());
    }
    nowhere(cluster.dir(), VALUE);
    nowhere(cluster.dir(), "token-of-the-vault");
    // Neither does a worker that ends and starts again write it anywhere.
    let worker = cluster.worker(0).process();
    worker.term();
    worker.wait_exit(SOON).await;
    nowhere(cluster.dir(), VALUE);
    cluster.add_worker().await;
}

#[tokio::test]
async fn a_secret_is_masked_however_it_is_cut() {
    let dir = TestDir::new();
    let cluster = builder(&dir).start().await;
    let api = cluster.api();
    // Two writes with a pause in the middle of the value; over two lines; line by line.
    let script = "printf 'a correct-horse'; sleep 0.3; printf -- '-battery b\\n'; \
                  printf 'correct-\\nhorse-battery\\n'; echo \"$P\" | fold -w 7; \
                  echo \"$K\" | sed 's/^/  > /'; echo end";
    let env = json!({"P": "${secret:db}", "K": "${secret:key}"});
    let record = run_job(&api, json!({"name": "cut", "cmd": script, "env": env})).await;
    let said = output(&cluster, &record).await;
    for piece in ["horse", "battery", "correct", "bGluZS1", "BEGIN"] {
        assert!(!said.contains(piece), "{piece}: {said}");
    }
    assert!(said.starts_with("a *** b\n") && said.contains("  > ***\n"), "{said}");
    assert!(said.ends_with("end\n"), "what is no secret is there: {said}");
    // The tail that a notification would quote is cut from the same.
    let (_, node) = api.get("/v1/nodes/127.0.0.2").await;
    assert!(!node.to_string().contains("horse"), "{node}");
}

#[tokio::test]
async fn a_secret_that_cannot_be_used_is_explained_and_nothing_starts() {
    let dir = TestDir::new();
    let cluster = builder(&dir).start().await;
    let api = cluster.api();
    let mark = cluster.dir().join("started");
    for (name, want) in [("none", "ended with exit status"), ("open", "mode 600")] {
        let job = json!({"name": name, "cmd": format!("touch {}", mark.display()),
                         "env": {"P": format!("${{secret:{name}}}")}});
        let record = run_job(&api, job).await;
        let message = record["message"].as_str().unwrap();
        assert_eq!(
            (&record["state"], &record["code"]),
            (&json!("failed"), &json!(0x0105)),
            "{record}"
        );
        assert!(message.contains(&format!("secret {name}")) && message.contains(want), "{message}");
        assert!(!message.contains("everybody-reads"), "{message}");
    }
    assert!(!mark.exists());
    // Where others would see it, a reference is refused before anything is stored.
    let bad = json!({"name": "bad", "cmd": "true", "args": ["${secret:db}"]});
    let (status, body) = api.post("/v1/jobs", bad).await;
    assert_eq!((status, &body["error"]["field"]), (400, &json!("args")), "{body}");
    let bad = json!({"name": "bad", "cmd": "true", "env": {"P": "${secret:../x}"}});
    let (status, body) = api.post("/v1/jobs", bad).await;
    assert_eq!((status, &body["error"]["field"]), (400, &json!("env.P")), "{body}");
}

#[tokio::test]
async fn a_run_that_survives_its_worker_keeps_its_secret_to_itself() {
    let dir = TestDir::new();
    let cluster = builder(&dir).start().await;
    let api = cluster.api();
    let gate = cluster.dir().join("gate");
    let script = format!(
        "echo \"is $P\"; until [ -e {} ]; do sleep 0.02; done; echo \"was $P\"",
        gate.display()
    );
    apply(
        &api,
        json!({"name": "long", "cmd": script, "survive_restart": true,
                       "env": {"P": "${secret:db}"}}),
    )
    .await;
    let (status, body) = api.post("/v1/jobs/long/trigger", json!({})).await;
    assert_eq!(status, 202, "{body}");
    let running = wait_runs(&api, "job=long&state=running", 1).await;
    nowhere(cluster.dir(), VALUE);
    let worker = cluster.worker(0).process();
    worker.kill9();
    worker.restart();
    cluster.wait_online(0).await;
    fs::write(&gate, "").unwrap();
    let ended = wait_runs(&api, "job=long&state=success", 1).await;
    assert_eq!(ended[0]["run_id"], running[0]["run_id"]);
    assert_eq!(output(&cluster, &ended[0]).await, "is ***\nwas ***\n");
    nowhere(cluster.dir(), VALUE);
}

#[tokio::test]
async fn a_request_sends_the_secret_and_shows_no_trace_of_it() {
    use axum::{Router, http::HeaderMap, routing::post};
    let dir = TestDir::new();
    let cluster = builder(&dir).start().await;
    let api = cluster.api();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    // It says back what it was sent, and where it came from.
    let echo = |headers: HeaderMap, body: String| async move {
        let sent = headers["authorization"].to_str().unwrap().to_owned();
        let right = sent == format!("Bearer {VALUE}") && body == format!("pw={VALUE}");
        let status = if right { 200 } else { 403 };
        let location = format!("/{VALUE}");
        (axum::http::StatusCode::from_u16(status).unwrap(), [("Location", location)], sent + &body)
    };
    let app = Router::new().route("/hook", post(echo));
    let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let job = json!({"name": "hook", "executor": "http", "cmd": url, "http": {"method": "POST",
        "headers": {"Authorization": "Bearer ${secret:db}"}, "body": "pw=${secret:db}"}});
    let record = run_job(&api, job).await;
    serving.abort();
    assert_eq!(
        (&record["state"], &record["exit_code"]),
        (&json!("success"), &json!(200)),
        "{record}"
    );
    let said = output(&cluster, &record).await;
    assert!(said.contains("Bearer ***pw=***") && said.contains("location: /***"), "{said}");
    nowhere(cluster.dir(), VALUE);
}
