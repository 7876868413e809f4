//! `meepo runs`, `logs` and `kill`.

use crate::shared::{
    apply, gated, one_line, open, server, trigger, wait_gone, wait_run, wait_runs, wait_stdout,
};
use meepo_tests::{TestDir, secs};
use serde_json::json;

#[tokio::test]
async fn output_is_seen_while_the_process_runs() {
    let (server, dir) = (server().await, TestDir::new());
    let (api, gate) = (server.api(), dir.path().join("gate"));
    apply(&api, json!({"name": "live", "cmd": gated(&gate, "first", "last")})).await;
    let following = server.cli_start(&["job", "trigger", "live", "--follow"]);
    wait_stdout(&following, "first").await;
    let runs = wait_runs(&api, "live", "running", 1).await;
    let run = runs[0]["run_id"].as_str().unwrap().to_owned();
    let logs = server.cli_start(&["logs", &run, "-f"]);
    // Who comes later sees the beginning too.
    wait_stdout(&logs, "first\n").await;
    assert_eq!(wait_run(&api, &run, &["running"]).await["code"], 0);
    assert!(logs.is_running() && following.is_running());
    open(&gate);
    for process in [&logs, &following] {
        assert_eq!(process.wait_exit(secs(30)).await.code(), Some(0));
    }
    assert_eq!(logs.stdout(), "first\nlast\n");
    assert_eq!(following.stdout(), "127.0.0.1 | first\n127.0.0.1 | last\n");
    wait_run(&api, &run, &["success"]).await;
    assert_eq!(server.cli(&["logs", &run]).await.ok(), "first\nlast\n");
    let stamped = server.cli(&["logs", &run, "--timestamps"]).await;
    let lines: Vec<&str> = stamped.ok().lines().collect();
    assert!(lines.len() == 2 && lines[0].ends_with("first") && lines[0].len() > 10, "{lines:?}");
    // The end of a followed job is the command's own.
    apply(&api, json!({"name": "live", "cmd": "echo no >&2; exit 9"})).await;
    let output = server.cli(&["job", "trigger", "live", "--follow"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (9, ""), "{output:?}");
    assert!(output.stderr.contains("127.0.0.1 | no\n"), "{output:?}");
}

#[tokio::test]
async fn the_end_of_the_output_can_be_kept() {
    let server = server().await;
    let api = server.api();
    let cmd = "echo begin; head -c 10000000 /dev/zero; printf 'the end\n'";
    for (keep, shown) in [("tail", "nd\n"), ("both", "be\n")] {
        apply(&api, json!({"name": keep, "cmd": cmd, "output_limit": 3, "output_keep": keep}))
            .await;
        let run = trigger(&api, keep).await;
        let record = wait_run(&api, &run, &["success"]).await;
        let written = 6 + 10_000_000 + 8;
        assert_eq!(
            (&record["output_bytes"], &record["dropped_bytes"]),
            (&json!(written), &json!(written - 3)),
            "{record}"
        );
        let follow = server.cli(&["logs", &run, "-f"]).await;
        assert_eq!(follow.stdout, shown, "{keep}");
    }
}

#[tokio::test]
async fn a_run_is_killed_once() {
    let server = server().await;
    let api = server.api();
    apply(&api, json!({"name": "victim", "cmd": "echo up; exec sleep 300"})).await;
    let run = trigger(&api, "victim").await;
    let following = server.cli_start(&["logs", &run, "-f"]);
    wait_stdout(&following, "up").await;
    let pid = wait_run(&api, &run, &["running"]).await["pid"].to_string();
    server.cli(&["kill", &run]).await.ok();
    let record = wait_run(&api, &run, &["killed"]).await;
    assert_eq!(record["code"], 0x0103, "{record}");
    wait_gone(&pid).await;
    following.wait_exit(secs(30)).await;
    let output = server.cli(&["kill", &run]).await;
    assert!(one_line(&output, 5).contains("ended already: killed"), "{output:?}");
    // Any process of a script goes, and what ignores the first signals.
    let script = "trap '' INT TERM; sleep 300 & echo up; wait; while :; do sleep 0.1; done";
    apply(&api, json!({"name": "victim", "cmd": script})).await;
    let run = trigger(&api, "victim").await;
    let following = server.cli_start(&["logs", &run, "-f"]);
    wait_stdout(&following, "up").await;
    // An unambiguous beginning of the id will do, of a run in the history.
    wait_run(&api, &run, &["running"]).await;
    server.cli(&["kill", &run[..run.len() - 1]]).await.ok();
    assert_eq!(wait_run(&api, &run, &["killed"]).await["code"], 0x0103);
}

#[tokio::test]
async fn output_beyond_the_limit_is_cut_and_counted() {
    let server = server().await;
    let api = server.api();
    let cmd = "head -c 5000 /dev/zero | tr '\\0' a; head -c 5000 /dev/zero | tr '\\0' b";
    apply(&api, json!({"name": "flood", "cmd": cmd, "output_limit": 1000})).await;
    let run = trigger(&api, "flood").await;
    let record = wait_run(&api, &run, &["success"]).await;
    assert_eq!(
        (&record["output_bytes"], &record["dropped_bytes"]),
        (&10_000.into(), &9_000.into())
    );
    let output = server.cli(&["logs", &run]).await;
    assert_eq!(output.ok().trim_end().len(), 1000);
    assert!(output.stderr.contains("dropped"), "{output:?}");
}

#[tokio::test]
async fn stdin_reaches_the_process_and_bytes_survive() {
    let server = server().await;
    let api = server.api();
    let text = "one\n two % \\ \u{fc}\n";
    apply(&api, json!({"name": "reads", "cmd": "cat; printf '\\377'", "stdin": text})).await;
    let run = trigger(&api, "reads").await;
    wait_run(&api, &run, &["success"]).await;
    let (_, page) = api.get(&format!("/v1/runs/{run}/output")).await;
    let chunks = page["chunks"].as_array().unwrap();
    let readable: String = chunks.iter().filter_map(|c| c["text"].as_str()).collect();
    // Whether the last byte came together with the rest is up to the kernel.
    assert!(readable == text || chunks.len() == 1, "{page}");
    assert!(chunks.last().unwrap()["base64"].is_string(), "{page}");
    // Without `stdin` there is nothing to read, and nobody waits.
    apply(&api, json!({"name": "reads", "cmd": "wc -c"})).await;
    let run = trigger(&api, "reads").await;
    wait_run(&api, &run, &["success"]).await;
    assert_eq!(server.cli(&["logs", &run]).await.ok(), "0\n");
}

#[tokio::test]
async fn runs_are_found_by_job_node_state_and_time() {
    let server = server().await;
    let api = server.api();
    apply(&api, json!({"name": "found", "cmd": "exit 4"})).await;
    let (first, second) = (trigger(&api, "found").await, trigger(&api, "found").await);
    for run in [&first, &second] {
        wait_run(&api, run, &["failed", "skipped"]).await;
    }
    let ids = async |more: &[&str]| -> Vec<String> {
        let args = [&["runs", "--job", "found", "-o", "json"], more].concat();
        let runs = server.cli(&args).await.json();
        runs.as_array().unwrap().iter().map(|r| r["run_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&[]).await.len(), 2);
    assert_eq!(ids(&["-n", "1"]).await.len(), 1);
    assert!(ids(&["--state", "failed,skipped"]).await.contains(&second));
    assert_eq!(ids(&["--state", "success"]).await, [""; 0]);
    assert_eq!(ids(&["--node", "127.0.0.1", "--since", "1h"]).await.len(), 2);
    assert_eq!(ids(&["--node", "127.0.0.9"]).await, [""; 0]);
    assert_eq!(ids(&["--until", "1h"]).await, [""; 0]);
    let table = server.cli(&["runs", "--job", "found"]).await;
    assert!(table.ok().lines().any(|l| l.starts_with(&first)), "{table:?}");
}
