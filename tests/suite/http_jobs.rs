//! Jobs with `executor: http`, from the definition to the record.

use crate::shared::{apply, server, trigger, wait_run, wait_runs};
use axum::{
    Router,
    http::{HeaderMap, StatusCode},
    routing::any,
};
use meepo_tests::{eventually, secs};
use serde_json::json;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Serves `/told`, which says what meepo tells of the run, `/fails` and `/hangs`.
async fn target() -> SocketAddr {
    let told = async |headers: HeaderMap, body: String| {
        let names = ["meepo-run-id", "meepo-slot", "meepo-job", "x-key"];
        let told = names.map(|name| headers.get(name).map_or("-", |v| v.to_str().unwrap()));
        format!("{} {body}", told.join(" "))
    };
    let app = Router::new()
        .route("/told", any(told))
        .route("/fails", any(async || (StatusCode::SERVICE_UNAVAILABLE, "not today")))
        .route("/hangs", any(async || std::future::pending::<()>().await));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    addr
}

#[tokio::test]
async fn a_scheduled_request_leaves_its_answer_and_its_record() {
    let (server, addr) = (server().await, target().await);
    let api = server.api();
    let spec = json!({
        "name": "web-told", "executor": "http", "cmd": format!("http://{addr}/told"),
        "schedule": "* * * * * *",
        "http": {"method": "POST", "headers": {"X-Key": "k"}, "body": "hello"},
    });
    apply(&api, spec).await;
    let run = wait_runs(&api, "web-told", "success", 1).await.remove(0);
    api.http("DELETE", "/v1/jobs/web-told", None).await;
    let shown = ["executor", "exit_code", "code", "pid", "cause"].map(|field| &run[field]);
    assert_eq!(json!(shown), json!(["http", 200, 0, null, "schedule"]));
    let text = |field: &str| run[field].as_str().unwrap().to_owned();
    let want = format!("{} {} web-told k hello", text("run_id"), text("slot"));
    let output = eventually(secs(30), "the output is stored", async || {
        let output = server.cli(&["logs", &text("run_id")]).await;
        if output.stdout.is_empty() { Err(format!("{output:?}")) } else { Ok(output) }
    })
    .await;
    assert_eq!(output.stdout, want);
    assert!(output.stderr.starts_with("HTTP/1.1 200 OK in "), "{output:?}");
}

#[tokio::test]
async fn a_status_fails_the_run_and_a_kill_ends_it() {
    let (server, addr) = (server().await, target().await);
    let api = server.api();
    for path in ["fails", "hangs"] {
        let spec = json!({
            "name": format!("web-{path}"), "executor": "http",
            "cmd": format!("http://{addr}/{path}"),
        });
        apply(&api, spec).await;
    }
    let run = wait_run(&api, &trigger(&api, "web-fails").await, &["failed"]).await;
    assert_eq!((&run["code"], &run["exit_code"]), (&0x0107.into(), &503.into()));
    assert_eq!(run["message"], "HTTP/1.1 503 Service Unavailable");
    let id = trigger(&api, "web-hangs").await;
    wait_run(&api, &id, &["running"]).await;
    let killed = server.cli(&["kill", &id]).await;
    assert_eq!(killed.code, 0, "{killed:?}");
    let run = wait_run(&api, &id, &["killed"]).await;
    assert_eq!((&run["code"], &run["exit_code"]), (&0x0103.into(), &json!(null)));
    // The same way a command is run.
    for (path, code, stdout) in [("told", 0, " - - "), ("fails", 1, "not today")] {
        let url = format!("http://{addr}/{path}");
        let args = ["run", "-t", "all", "--no-prefix", "--executor", "http", "--", &url];
        let output = server.cli(&args).await;
        assert!(output.code == code && output.stdout.contains(stdout), "{output:?}");
    }
}
