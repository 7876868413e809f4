//! Further attempts, locks over the cluster, bounds of schedules, runs that are put off.

use crate::fleet::{SOON, apply, quick, runs, wait_runs};
use jiff::{SignedDuration, Timestamp};
use meepo_tests::{Api, Cluster, eventually};
use serde_json::{Value, json};

async fn trigger(api: &Api, job: &str, body: Value) -> Vec<String> {
    let (status, answer) = api.post(&format!("/v1/jobs/{job}/trigger"), body).await;
    assert_eq!(status, 202, "{answer}");
    let ids = answer["runs"].as_array().unwrap().iter().map(|r| r["run_id"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

fn instant(run: &Value, field: &str) -> Timestamp {
    run[field].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_further_attempt_waits_over_a_crash_of_the_worker() {
    let cluster = Cluster::builder().start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).process());
    // Fails until the file is there; tells which attempt it is.
    let gate = cluster.dir().join("gate");
    let cmd = format!("echo attempt $MEEPO_ATTEMPT; test -e {}", gate.display());
    let retry = json!({"max": 5, "delay": "4s", "backoff": "fixed"});
    apply(&api, json!({"name": "flaky", "cmd": cmd, "retry": retry})).await;
    trigger(&api, "flaky", json!({})).await;
    let first = wait_runs(&api, "job=flaky&state=failed", 1).await;
    assert_eq!(first[0]["attempt"], 1);
    worker.kill9();
    std::fs::write(&gate, "").unwrap();
    worker.restart();
    let second = wait_runs(&api, "job=flaky&state=success", 1).await;
    assert_eq!((&second[0]["attempt"], &second[0]["slot"]), (&json!(2), &first[0]["slot"]));
    let waited = instant(&second[0], "started_at") - instant(&first[0], "ended_at");
    assert!(waited.total(jiff::Unit::Second).unwrap() >= 3.9, "{waited}");
    let run = second[0]["run_id"].as_str().unwrap();
    let (_, output) = api.get(&format!("/v1/runs/{run}/output")).await;
    assert!(output.to_string().contains("attempt 2"), "{output}");
    assert_eq!(runs(&api, "job=flaky").await.len(), 2);
}

#[tokio::test]
async fn a_lock_keeps_runs_of_two_nodes_apart_and_falls_free_with_its_node() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    let log = cluster.dir().join("inside");
    let cmd = format!("echo in >> {0}; sleep 0.3; echo out >> {0}", log.display());
    let lock = json!({"name": "press", "wait": "60s"});
    apply(&api, json!({"name": "press", "cmd": cmd, "lock": lock, "concurrency": "queue(9)"}))
        .await;
    for _ in 0..3 {
        assert_eq!(trigger(&api, "press", json!({})).await.len(), 2);
    }
    let done = wait_runs(&api, "job=press&state=success", 6).await;
    let text = std::fs::read_to_string(&log).unwrap();
    assert_eq!(text, "in\nout\n".repeat(6), "never two at once");
    let mut fences: Vec<_> = done.iter().map(|r| r["fence"].as_i64().unwrap()).collect();
    fences.sort_unstable();
    fences.dedup();
    assert_eq!(fences.len(), 6, "each has a token of its own");

    // One holds it for ever; another gives up waiting; when the node dies it is free.
    let hold = json!({"name": "hold", "cmd": "sleep 600", "lock": {"name": "press"}, "target": "127.0.0.3"});
    apply(&api, hold).await;
    trigger(&api, "hold", json!({})).await;
    wait_runs(&api, "job=hold&state=running", 1).await;
    let short = json!({"name": "short", "cmd": "true", "target": "127.0.0.2",
        "lock": {"name": "press", "wait": "300ms"}});
    apply(&api, short).await;
    trigger(&api, "short", json!({})).await;
    let skipped = wait_runs(&api, "job=short&state=skipped", 1).await;
    assert_eq!(skipped[0]["code"], 0x0208, "{skipped:?}");
    cluster.worker(1).process().kill9();
    trigger(&api, "press", json!({"target": "127.0.0.2"})).await;
    wait_runs(&api, "job=press&state=success", 7).await;
}

#[tokio::test]
async fn a_schedule_ends_after_so_many_runs_on_each_node_or_in_the_cluster() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    let job = |name: &str, placement: &str| {
        json!({"name": name, "cmd": "true", "schedule": "* * * * * *", "placement": placement,
            "max_runs": 3, "concurrency": "allow"})
    };
    apply(&api, job("each", "each")).await;
    apply(&api, job("once", "once")).await;
    wait_runs(&api, "job=each&state=success", 6).await;
    wait_runs(&api, "job=once&state=success", 3).await;
    // An on-demand run does not count and is not kept from running.
    apply(&api, json!({"name": "later", "cmd": "true"})).await;
    trigger(&api, "each", json!({})).await;
    trigger(&api, "later", json!({"delay": "3s"})).await;
    let later = wait_runs(&api, "job=later&state=success", 2).await;
    assert!(
        instant(&later[0], "started_at") - SignedDuration::from_millis(2990)
            > instant(&later[0], "slot")
    );
    assert_eq!(runs(&api, "job=each").await.len(), 8, "three seconds on, nothing more");
    assert_eq!(runs(&api, "job=once").await.len(), 3);
}

#[tokio::test]
async fn a_job_fires_at_its_instant_and_a_request_that_is_put_off_can_be_killed() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let at = Timestamp::from_second(Timestamp::now().as_second() + 3).unwrap();
    apply(&api, json!({"name": "at", "cmd": "true", "schedule": format!("@at {at}")})).await;
    let ran = wait_runs(&api, "job=at&state=success", 1).await;
    assert_eq!(instant(&ran[0], "slot"), at);
    // One whose instant has passed would never fire: it is refused.
    let gone = json!({"name": "gone", "cmd": "true", "schedule": "@at 2026-01-01T00:00:00Z"});
    let (status, refused) = api.post("/v1/jobs", gone).await;
    assert_eq!((status, &refused["error"]["field"]), (400, &json!("schedule")), "{refused}");

    let run = trigger(&api, "at", json!({"delay": "1h"})).await.remove(0);
    let out = eventually(SOON, "the worker knows it", async || {
        let out = cluster.cli(&["kill", &run]).await;
        let killed = runs(&api, "job=at&state=killed").await;
        if killed.len() == 1 { Ok(killed) } else { Err(format!("{out:?}")) }
    })
    .await;
    assert_eq!(out[0]["run_id"], json!(run));
    let out = cluster.cli(&["job", "trigger", "at", "--delay", "60d"]).await;
    assert!(out.code != 0 && format!("{out:?}").contains("30 days"), "{out:?}");
}

/// Most runs at the same time.
fn together(runs: &[Value]) -> usize {
    let spans: Vec<_> =
        runs.iter().map(|r| (instant(r, "started_at"), instant(r, "ended_at"))).collect();
    let at = |t: Timestamp| spans.iter().filter(|(from, to)| *from <= t && t < *to).count();
    spans.iter().map(|(from, _)| at(*from)).max().unwrap_or(0)
}

#[tokio::test]
async fn slots_requests_and_further_attempts_meet_the_same_policy() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let policies = [("replace", 1), ("queue(2)", 1), ("max(2)", 2), ("forbid", 1)];
    let name = |policy: &str| policy.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    for (policy, _) in policies {
        apply(
            &api,
            json!({"name": name(policy), "cmd": "sleep 0.7; exit 1", "schedule": "* * * * * *",
                "concurrency": policy, "max_runs": 8,
                "retry": {"max": 1, "delay": "1s", "backoff": "fixed"}}),
        )
        .await;
    }
    for (policy, most) in policies {
        let job = name(policy);
        let found = eventually(SOON, format!("{job} was started in every way"), async || {
            let found = runs(&api, &format!("job={job}&state=failed,killed")).await;
            let has = |what: &str| match what {
                "retry" => found.iter().any(|r| r["attempt"] == 2),
                cause => found.iter().any(|r| r["cause"] == cause),
            };
            let turned_down = match policy {
                "replace" => found.iter().any(|r| r["code"] == 0x0104),
                _ => !runs(&api, &format!("job={job}&state=skipped")).await.is_empty(),
            };
            if !turned_down || !has("trigger") {
                // More than any of them lets in.
                for _ in 0..4 {
                    trigger(&api, &job, json!({})).await;
                }
            }
            match ["schedule", "trigger", "retry"].into_iter().find(|what| !has(what)) {
                None if turned_down => Ok(found),
                missing => Err(format!("{missing:?} and {turned_down} of {}", found.len())),
            }
        })
        .await;
        let started: Vec<Value> =
            found.into_iter().filter(|r| !r["started_at"].is_null()).collect();
        assert!(together(&started) <= most, "{policy}: {} at once", together(&started));
    }
}
