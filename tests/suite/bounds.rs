//! Schedules that begin or end: one instant, so many runs, up to a date.

use crate::fleet::{SOON, apply, clock_past, quick, runs, wait_runs};
use jiff::Timestamp;
use meepo_tests::{Api, Cluster, eventually, secs};
use serde_json::{Value, json};

/// An instant some seconds from now.
fn soon(seconds: i64) -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap()
}

async fn next(api: &Api, job: &str) -> Vec<Value> {
    let (status, slots) = api.get(&format!("/v1/jobs/{job}/next?n=5")).await;
    assert_eq!(status, 200, "{slots}");
    slots.as_array().unwrap().clone()
}

/// Waits until `GET /v1/jobs/{name}` announces no slot; answers it.
async fn wait_over(api: &Api, job: &str) -> Value {
    eventually(SOON, format!("{job} has no next slot"), async || {
        let (_, view) = api.get(&format!("/v1/jobs/{job}")).await;
        if view["next"].is_null() { Ok(view) } else { Err(view.to_string()) }
    })
    .await
}

#[tokio::test]
async fn an_instant_that_comes_before_a_worker_hears_of_it_is_a_missed_slot() {
    let cluster = Cluster::builder().start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).process());
    // The worker has been here before, and knows none of the jobs.
    apply(&api, json!({"name": "before", "cmd": "true", "schedule": "0 0 1 1 *"})).await;
    eventually(SOON, "the worker holds a job", async || {
        let (_, node) = api.get("/v1/nodes/127.0.0.2").await;
        if node["jobs"] == 1 { Ok(()) } else { Err(node.to_string()) }
    })
    .await;
    worker.kill9();
    let at = soon(8);
    for misfire in ["skip", "once"] {
        for (name, placement) in [("each", "each"), ("cluster", "once")] {
            apply(
                &api,
                json!({"name": format!("{name}-{misfire}"), "cmd": "true", "misfire": misfire,
                    "placement": placement, "schedule": format!("@at {at}")}),
            )
            .await;
        }
    }
    // Ten seconds late is on time still.
    clock_past(at + secs(11)).await;
    worker.restart();
    for name in ["each", "cluster"] {
        let missed = wait_runs(&api, &format!("job={name}-skip"), 1).await;
        assert_eq!((&missed[0]["state"], missed.len()), (&json!("missed"), 1), "{missed:?}");
        assert_eq!(missed[0]["slot"], json!(at.to_string()));
        let ran = wait_runs(&api, &format!("job={name}-once&state=success"), 1).await;
        assert_eq!((&ran[0]["cause"], ran.len()), (&json!("misfire"), 1), "{ran:?}");
        assert_eq!(ran[0]["slot"], json!(at.to_string()));
        assert!(next(&api, &format!("{name}-once")).await.is_empty());
    }
    // Once more it is down: what has run does not run again.
    worker.kill9();
    worker.restart();
    apply(&api, json!({"name": "after", "cmd": "true", "schedule": "* * * * * *"})).await;
    wait_runs(&api, "job=after&state=success", 2).await;
    for name in ["each-skip", "each-once", "cluster-skip", "cluster-once"] {
        assert_eq!(runs(&api, &format!("job={name}")).await.len(), 1, "{name}");
    }
}

#[tokio::test]
async fn no_slot_is_announced_that_will_not_run() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    let job = |name: &str, placement: &str| {
        json!({"name": name, "cmd": "true", "schedule": "* * * * * *", "placement": placement,
            "max_runs": 3, "concurrency": "allow"})
    };
    apply(
        &api,
        json!({"name": "dated", "cmd": "true", "schedule": "* * * * * *",
        "end_at": soon(3).to_string()}),
    )
    .await;
    for (name, placement) in [("each", "each"), ("cluster", "once")] {
        let spec = json!({"max_runs": 30, "status": "pause"});
        let mut spec = spec.as_object().unwrap().clone();
        let whole = job(name, placement);
        let fields = whole.as_object().unwrap().clone().into_iter();
        fields.for_each(|(k, v)| _ = spec.entry(k).or_insert(v));
        apply(&api, Value::Object(spec)).await;
        assert!(next(&api, name).await.is_empty(), "it is paused");
        apply(&api, job(name, placement)).await;
        let announced = next(&api, name).await.len();
        assert!(announced <= 3, "{announced}");
    }
    // Put by hand, it counts all the same.
    let by_hand = r#"{"cmd":"true","express":"* * * * * *","max_runs":1}"#;
    cluster.etcd().ctl(&["put", "/cron/jobs/127.0.0.3/hand", by_hand]).await.ok();
    wait_over(&api, "dated").await;
    wait_runs(&api, "job=hand", 1).await;
    wait_over(&api, "hand").await;
    for name in ["each", "cluster"] {
        let view = wait_over(&api, name).await;
        let spent = view["nodes"].as_array().unwrap().iter().filter(|n| n["spent"] == true);
        assert_eq!(spent.count(), 2, "{view}");
        assert!(next(&api, name).await.is_empty());
    }
    let (_, all) = api.get("/v1/jobs").await;
    assert!(all["jobs"].as_array().unwrap().iter().all(|j| j["next"].is_null()), "{all}");
    let out = cluster.cli(&["job", "next", "each"]).await;
    assert!(out.code == 0 && out.stderr.contains("its schedule has ended"), "{out:?}");
    assert!(out.stdout.trim().is_empty(), "{out:?}");
    // As etcd tells it, also of a node whose worker is away, and over its restart.
    let key = "/meepo/spent/127.0.0.2/each";
    assert_eq!(
        cluster.etcd().ctl(&["get", "--print-value-only", key]).await.ok().trim(),
        r#"{"runs":3}"#
    );
    let worker = cluster.worker(0).process();
    worker.kill9();
    assert!(next(&api, "each").await.is_empty());
    worker.restart();
    cluster.wait_online(0).await;
    assert!(next(&api, "each").await.is_empty());
    // More may run: it goes on, and is announced.
    let mut more = job("each", "each");
    more["max_runs"] = json!(100_000);
    apply(&api, more).await;
    eventually(SOON, "it is announced again", async || {
        let slots = next(&api, "each").await.len();
        let there = cluster.etcd().ctl(&["get", key]).await.ok().to_owned();
        if slots == 5 && there.is_empty() { Ok(()) } else { Err(format!("{slots} {there}")) }
    })
    .await;
    // With the job goes the key.
    apply(&api, job("each", "each")).await;
    wait_over(&api, "each").await;
    assert_eq!(api.http("DELETE", "/v1/jobs/each", None).await.0, 200);
    cluster.etcd().ctl(&["del", "/cron/jobs/127.0.0.3/hand"]).await.ok();
    eventually(SOON, "its keys are gone", async || {
        let there = cluster.etcd().ctl(&["get", "--prefix", "/meepo/spent/"]).await.ok().to_owned();
        if there.is_empty() { Ok(()) } else { Err(there) }
    })
    .await;
}

#[tokio::test]
async fn what_would_fire_at_reboot_once_in_the_cluster_is_refused_and_says_why() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let spec = json!({"name": "boot", "cmd": "true", "schedule": "@reboot", "placement": "once"});
    let (status, body) = api.post("/v1/jobs", spec).await;
    assert_eq!((status, &body["error"]["field"]), (400, &json!("placement")), "{body}");
    // Put by hand, it is a problem of the node.
    let value = r#"{"cmd":"true","express":"@reboot","once":["127.0.0.2"]}"#;
    cluster.etcd().ctl(&["put", "/cron/jobs/127.0.0.2/boot", value]).await.ok();
    eventually(SOON, "the node names the problem", async || {
        let (_, node) = api.get("/v1/nodes/127.0.0.2").await;
        let text = node["problems"].to_string();
        if text.contains("hosts start at different times") { Ok(()) } else { Err(text) }
    })
    .await;
}
