//! What `make run` starts.

use crate::shared::{NODE, apply, server, trigger, wait_run};
use meepo_tests::{Server, eventually, secs};
use serde_json::json;

#[tokio::test]
async fn a_new_server_says_what_to_type_and_has_the_examples() {
    let server = server().await;
    server.process().wait_log("meepo is ready.", secs(30)).await;
    let log = server.process().log();
    for text in [server.api().base(), &server.etcd_url(), "node list", "Ctrl-C"] {
        assert!(log.contains(text), "{text:?} in {log}");
    }
    let list = server.cli(&["node", "list"]).await;
    let line = list.ok().lines().find(|l| l.starts_with(NODE)).expect("a line of the node");
    assert!(line.contains("online"), "{line}");
    let nodes = server.cli(&["node", "list", "-o", "json"]).await.json();
    assert_eq!(nodes[0]["id"], NODE);
    assert_eq!(nodes[0]["connected"], true);
    assert_eq!(nodes[0]["problems"], json!([]));
    assert!(nodes[0]["facts"]["cpu_cores"].as_u64().unwrap() > 0);
    let node = server.cli(&["node", "get", NODE, "-o", "json"]).await.json();
    assert_eq!(node["id"], NODE);

    let jobs = server.cli(&["job", "list", "-o", "json"]).await.json();
    for name in ["disk-report", "hello", "nightly", "on-demand", "once-per-cluster"] {
        let job = jobs.as_array().unwrap().iter().find(|j| j["name"] == name);
        let job = job.unwrap_or_else(|| panic!("{name} in {jobs}"));
        assert_eq!(job["source"], "definition");
        assert_eq!(job["next"].is_null(), matches!(name, "nightly" | "on-demand"), "{job}");
    }
    let table = server.cli(&["job", "list"]).await;
    assert!(table.ok().lines().any(|l| l.starts_with("nightly") && l.contains("paused")));
    assert!(server.cli(&["version"]).await.ok().starts_with("meepo "));
}

#[tokio::test]
async fn ctrl_c_stops_everything_and_the_next_start_finds_its_data() {
    let server = Server::start(&[]).await;
    apply(&server.api(), json!({"name": "kept", "cmd": "echo kept"})).await;
    let run = trigger(&server.api(), "kept").await;
    wait_run(&server.api(), &run, &["success"]).await;
    server.process().interrupt();
    let status = server.process().wait_exit(secs(30)).await;
    assert_eq!(status.code(), Some(0));
    let etcd = server.etcd_url().replace("http://", "");
    assert!(std::net::TcpStream::connect(&etcd).is_err(), "etcd ends with it");
    server.process().restart();
    server.wait_ready().await;
    assert_eq!(server.cli(&["logs", &run]).await.ok(), "kept\n");
    eventually(secs(30), "the job runs again", async || {
        let output = server.cli(&["job", "trigger", "kept", "--follow"]).await;
        let fine = output.code == 0 && output.stdout.contains("kept");
        if fine { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .await;
}
