//! One running `meepo --server` for all tests that leave each other alone: each uses
//! job names and files of its own.

use meepo_tests::{Api, Output, Process, Server, eventually, secs, workspace_root};
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{Arc, Weak},
};
use tokio::sync::Mutex;

/// The node id of the server's own worker.
pub(crate) const NODE: &str = "127.0.0.1";

/// A running server with the example jobs, shared with the tests that run at the same
/// time and started anew when the last of them has let it go.
pub(crate) async fn server() -> Arc<Server> {
    static RUNNING: Mutex<Weak<Server>> = Mutex::const_new(Weak::new());
    let mut running = RUNNING.lock().await;
    if let Some(server) = running.upgrade() {
        return server;
    }
    let examples = workspace_root().join("deploy/examples");
    let server = Arc::new(Server::start(&["--jobs", examples.to_str().unwrap()]).await);
    *running = Arc::downgrade(&server);
    server
}

/// Applies a definition; panics where it is refused.
pub(crate) async fn apply(api: &Api, spec: Value) -> Value {
    let (status, body) = api.post("/v1/jobs", spec).await;
    assert!(matches!(status, 200 | 201), "{status} {body}");
    body
}

/// Triggers a job; answers the id of its run.
pub(crate) async fn trigger(api: &Api, job: &str) -> String {
    let (status, body) = api.post(&format!("/v1/jobs/{job}/trigger"), json!({})).await;
    assert_eq!(status, 202, "{body}");
    body["runs"][0]["run_id"].as_str().unwrap().to_owned()
}

/// Waits until the record of a run says one of `states` and answers it.
pub(crate) async fn wait_run(api: &Api, run: &str, states: &[&str]) -> Value {
    eventually(secs(30), format!("run {run} is {states:?}"), async || {
        let (status, record) = api.try_http("GET", &format!("/v1/runs/{run}"), None).await?;
        let state = record["state"].as_str().unwrap_or("without a state");
        let there = status == 200 && states.contains(&state);
        if there { Ok(record) } else { Err(format!("{status} {record}")) }
    })
    .await
}

/// Waits until `job` has at least `n` runs in `state` and answers them, newest first.
pub(crate) async fn wait_runs(api: &Api, job: &str, state: &str, n: usize) -> Vec<Value> {
    eventually(secs(30), format!("{n} runs of {job} are {state}"), async || {
        let path = format!("/v1/runs?job={job}&state={state}&limit=1000");
        let (status, body) = api.try_http("GET", &path, None).await?;
        let runs = body["runs"].as_array().cloned().unwrap_or_default();
        let enough = status == 200 && runs.len() >= n;
        if enough { Ok(runs) } else { Err(format!("{status} {body}")) }
    })
    .await
}

/// Waits until a running command has printed `text` to its standard output.
pub(crate) async fn wait_stdout(process: &Process, text: &str) -> String {
    eventually(secs(30), format!("it prints {text:?}"), async || {
        let stdout = process.stdout();
        if stdout.contains(text) {
            return Ok(stdout);
        }
        assert!(process.is_running(), "it ended without printing {text:?}: {stdout}");
        Err(stdout)
    })
    .await
}

/// Waits until no process with this id is there.
pub(crate) async fn wait_gone(pid: &str) {
    eventually(secs(30), format!("process {pid} is gone"), async || {
        let there = Path::new("/proc").join(pid).exists();
        if there { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
}

/// A script that prints `before`, waits until the file `gate` is there and prints
/// `after`.
pub(crate) fn gated(gate: &Path, before: &str, after: &str) -> String {
    let gate = gate.display();
    format!("echo {before}; while [ ! -e {gate} ]; do sleep 0.05; done; echo {after}")
}

/// Opens the gate of [`gated`].
pub(crate) fn open(gate: &Path) {
    std::fs::write(gate, "").unwrap();
}

/// The only line of standard error of a command that ended with `code`.
#[track_caller]
pub(crate) fn one_line(output: &Output, code: i32) -> &str {
    assert_eq!(output.code, code, "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    assert!(output.stderr.starts_with("error: "), "{output:?}");
    output.stderr.trim_end()
}
