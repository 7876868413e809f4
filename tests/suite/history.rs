//! Questions about what was, asked of real servers; and what is removed with time.

use crate::shared::{NODE, apply, server, trigger, wait_run};
use meepo_tests::{Cluster, eventually, secs};
use serde_json::{Value, json};
use std::collections::BTreeSet;

mod ages;
mod once;

fn ids(list: &Value) -> Vec<String> {
    let runs = list["runs"].as_array().unwrap_or_else(|| panic!("{list}"));
    runs.iter().map(|r| r["run_id"].as_str().unwrap().to_owned()).collect()
}

/// Three runs of `job`: one that succeeds and says `needle`, one that fails, one that sleeps.
async fn some_runs(api: &meepo_tests::Api, job: &str) -> [String; 3] {
    let cmds =
        ["printf 'a nee'; sleep 0.2; echo 'dle in hay'", "echo other >&2; exit 3", "sleep 1.1"];
    let mut runs = Vec::new();
    for cmd in cmds {
        apply(api, json!({"name": job, "cmd": cmd})).await;
        let run = trigger(api, job).await;
        wait_run(api, &run, &["success", "failed"]).await;
        runs.push(run);
    }
    runs.try_into().unwrap()
}

#[tokio::test]
async fn runs_are_found_by_what_is_known_of_them() {
    let server = server().await;
    let api = server.api();
    let [good, bad, slow] = some_runs(&api, "ask-one").await;
    for (query, want) in [
        ("job=ask-one", vec![&slow, &bad, &good]),
        ("job=ask-*", vec![&slow, &bad, &good]),
        ("job=ask-?ne,nobody", vec![&slow, &bad, &good]),
        ("job=ask-one&code=exit_status", vec![&bad]),
        ("job=ask-one&code=run", vec![&bad]),
        ("job=ask-one&code=0x0101,0x0100", vec![&bad]),
        ("job=ask-one&code=0", vec![&slow, &good]),
        ("job=ask-one&min_duration=1s", vec![&slow]),
        ("job=ask-one&max_duration=1s", vec![&bad, &good]),
        ("job=ask-one&cause=trigger&state=success", vec![&slow, &good]),
        ("job=ask-one&cause=schedule", vec![]),
        ("job=ask-one&user=nobody", vec![]),
        ("job=ask-one&since=2026-01-01T00:00:00Z", vec![&slow, &bad, &good]),
        ("job=ask-one&until=2026-01-01T00:00:00Z", vec![]),
    ] {
        let (status, list) = api.get(&format!("/v1/runs?{query}")).await;
        assert_eq!(status, 200, "{query}: {list}");
        assert_eq!(ids(&list).iter().collect::<Vec<_>>(), want, "{query}");
    }
    for (query, field) in [
        ("job=no-such-*", "job"),
        ("job=a,,b", "job"),
        ("code=nope", "code"),
        ("cause=nope", "cause"),
        ("min_duration=5", "min_duration"),
        ("q=x", "q"),
        ("task=x", "task"),
    ] {
        let (status, answer) = api.get(&format!("/v1/runs?{query}")).await;
        assert_eq!(status, 400, "{query}: {answer}");
        assert_eq!(answer["error"]["field"], field, "{query}: {answer}");
    }
}

#[tokio::test]
async fn runs_of_a_task_are_found() {
    let server = server().await;
    let api = server.api();
    let task = json!({"target": NODE, "commands": [{"cmd": "echo one"}, {"cmd": "echo two"}]});
    let (status, task) = api.post("/v1/tasks", task).await;
    assert_eq!(status, 201, "{task}");
    let id = task["id"].as_str().unwrap();
    let both = async || {
        let (_, list) = api.get(&format!("/v1/runs?task={id}&state=success")).await;
        if ids(&list).len() == 2 { Ok(list) } else { Err(list.to_string()) }
    };
    let list = eventually(secs(60), "both parts are in the log store", both).await;
    let jobs: BTreeSet<&str> =
        list["runs"].as_array().unwrap().iter().map(|r| r["job"].as_str().unwrap()).collect();
    assert_eq!(jobs, BTreeSet::from([&*format!("{id}.1"), &*format!("{id}.2")]));
}

#[tokio::test]
async fn text_in_output_is_found_and_shown() {
    let server = server().await;
    let api = server.api();
    let [good, ..] = some_runs(&api, "grep-one").await;
    let (status, page) = api.get("/v1/runs/search?q=a%20needle%20in&job=grep-one").await;
    assert_eq!(status, 200, "{page}");
    assert_eq!(page["hits"][0]["run"]["run_id"], *good, "{page}");
    assert_eq!(page["hits"][0]["matches"][0]["text"], "a needle in hay", "{page}");
    assert_eq!((&page["looked_at"], &page["hits"][1]), (&json!(3), &Value::Null), "{page}");
    let (status, answer) = api.get("/v1/runs/search?job=grep-one").await;
    assert_eq!((status, &answer["error"]["field"]), (400, &json!("q")), "{answer}");

    let text = server.cli(&["runs", "--grep", "needle", "--job", "grep-one"]).await.ok().to_owned();
    assert!(text.contains(&good) && text.contains("\n  a needle in hay\n"), "{text}");
    assert!(!text.contains('\x1b'), "colours in a pipe: {text:?}");
    let text =
        server.cli(&["runs", "--grep", "no such", "--job", "grep-one"]).await.ok().to_owned();
    assert_eq!(text, "no runs\n");
}

#[tokio::test]
async fn statistics_add_up_and_exports_are_complete() {
    let server = server().await;
    let api = server.api();
    let runs = some_runs(&api, "stats-one").await;
    let (status, stats) = api.get("/v1/jobs/stats-one/stats").await;
    assert_eq!(status, 200, "{stats}");
    assert_eq!(stats["by_state"], json!({"failed": 1, "success": 2}), "{stats}");
    assert_eq!((&stats["runs"], &stats["complete"]), (&json!(3), &json!(true)), "{stats}");
    assert!((stats["success_rate"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-9, "{stats}");
    assert!(stats["took"]["max_ms"].as_i64().unwrap() >= 1_100, "{stats}");
    assert!(stats["took"]["p99_ms"].as_i64() <= stats["took"]["max_ms"].as_i64(), "{stats}");
    assert_eq!(stats["last_success"]["run_id"], *runs[2], "{stats}");
    assert_eq!(stats["last_failure"]["run_id"], *runs[1], "{stats}");
    let days = stats["days"].as_array().unwrap();
    assert_eq!(days.iter().map(|d| d["runs"].as_u64().unwrap()).sum::<u64>(), 3, "{stats}");

    let text = server.cli(&["job", "stats", "stats-one"]).await.ok().to_owned();
    assert!(text.contains("success rate:      66.6 %"), "{text}");
    let text = server.cli(&["job", "get", "stats-one"]).await.ok().to_owned();
    assert!(text.contains("last 30 days:") && text.contains("66.6 %"), "{text}");
    let args = ["runs", "--job", "stats-one", "--export", "jsonl"];
    let lines = server.cli(&args).await.ok().to_owned();
    let got: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let got: Vec<&str> = got.iter().map(|r| r["run_id"].as_str().unwrap()).collect();
    assert_eq!(got, [&*runs[2], &*runs[1], &*runs[0]]);
    let args = ["runs", "--job", "stats-one", "--code", "exit_status", "-o", "json"];
    let listed: Value = server.cli(&args).await.json();
    assert_eq!(listed[0]["run_id"], *runs[1]);
}

/// A worker that was away misses slots; those are told, also the ones of which there is no
/// record at all.
#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_run_is_told() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let job = json!({"name": "gappy", "cmd": "true", "schedule": "* * * * * *"});
    apply(&api, job).await;
    let ran = async || {
        let (_, list) = api.get("/v1/runs?job=gappy&state=success&limit=1000").await;
        if ids(&list).len() >= 3 { Ok(list) } else { Err(list.to_string()) }
    };
    let list = eventually(secs(60), "it runs every second", ran).await;
    let first = list["runs"].as_array().unwrap().last().unwrap()["slot"].clone();
    cluster.worker(0).process().term();
    cluster.worker(0).process().wait_exit(secs(30)).await;
    let (_, list) = api.get("/v1/runs?job=gappy&limit=1").await;
    let last = list["runs"][0]["slot"].as_str().unwrap().to_owned();
    // A slot counts a minute after its time.
    let absent = async || {
        let path = format!("/v1/jobs/gappy/gaps?since={}", first.as_str().unwrap());
        let (status, gaps) = api.get(&path).await;
        assert_eq!(status, 200, "{gaps}");
        let some = gaps["gaps"].as_array().unwrap().iter().any(|g| g["kind"] == "absent");
        if some { Ok(gaps) } else { Err(gaps.to_string()) }
    };
    let gaps = eventually(secs(150), "slots are missing", absent).await;
    for gap in gaps["gaps"].as_array().unwrap() {
        let late = gap["slot"].as_str().unwrap() > last.as_str();
        assert!(late || gap["kind"] != "absent", "{gap}: {gaps}");
    }
    assert!(gaps["ran"].as_u64().unwrap() >= 2, "{gaps}");
    let text = cluster.cli(&["job", "gaps", "gappy"]).await.ok().to_owned();
    assert!(text.contains("no record of it") && text.contains(" slots ran from "), "{text}");
}

/// The leader removes what is old, output with its run, and only that.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_is_removed() {
    let cluster = Cluster::builder()
        .master_arg("--retention")
        .master_arg("success=3s,failed=forever")
        .start()
        .await;
    let api = cluster.api();
    let [good, bad, _] = some_runs(&api, "ages").await;
    let gone = async || match api.get(&format!("/v1/runs/{good}")).await {
        (404, _) => Ok(()),
        (status, run) => Err(format!("{status} {run}")),
    };
    eventually(secs(60), "the run that succeeded is gone", gone).await;
    let (status, output) = api.get(&format!("/v1/runs/{good}/output")).await;
    assert_eq!(status, 404, "{output}");
    assert_eq!(api.get(&format!("/v1/runs/{bad}")).await.0, 200);
    let (_, metrics) = api.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("meepo_master_retention_removed_total{what=\"runs\"}"), "{metrics}");
}
