//! How long things are kept, whoever leads.

use super::{ids, some_runs};
use crate::{
    fleet::{SOON, quick, wait_session},
    pipeline::master::leader,
};
use meepo_tests::{Api, eventually};

async fn wait_gone(api: &Api, run: &str) {
    eventually(SOON, format!("run {run} is gone"), async || {
        match api.try_http("GET", &format!("/v1/runs/{run}"), None).await? {
            (404, _) => Ok(()),
            (status, run) => Err(format!("{status} {run}")),
        }
    })
    .await;
}

/// Texts of what is kept of a run's output.
async fn kept(api: &Api, run: &str) -> Result<String, String> {
    let path = format!("/v1/runs/{run}/output");
    let (status, page) = api.try_http("GET", &path, None).await?;
    if status != 200 {
        return Err(format!("{status} {page}"));
    }
    let chunks = page["chunks"].as_array().into_iter().flatten();
    Ok(chunks.filter_map(|c| c["text"].as_str()).collect())
}

#[tokio::test]
async fn the_next_leader_goes_on_removing_what_is_old() {
    let cluster = quick()
        .masters(2)
        .master_arg("--retention")
        .master_arg("success=3s,failed=forever")
        .start()
        .await;
    let first = leader(&cluster).await;
    let api = cluster.master(1 - first).api();
    wait_session(&api, "127.0.0.2").await;
    let [good, bad, _] = some_runs(&api, "ages-one").await;
    wait_gone(&api, &good).await;
    cluster.master(first).process().kill9();
    let now = leader_other_than(&cluster, first).await;
    assert_eq!(now, 1 - first);
    wait_session(&api, "127.0.0.2").await;
    let [good, bad_too, slow] = some_runs(&api, "ages-two").await;
    for run in [&good, &slow] {
        wait_gone(&api, run).await;
    }
    for run in [&bad, &bad_too] {
        assert_eq!(api.get(&format!("/v1/runs/{run}")).await.0, 200);
    }
    let (_, left) = api.get("/v1/runs?job=ages-*").await;
    assert_eq!(ids(&left), [bad_too, bad]);
}

async fn leader_other_than(cluster: &meepo_tests::Cluster, gone: usize) -> usize {
    eventually(SOON, "another master leads", async || match leader(cluster).await {
        new if new != gone => Ok(new),
        _ => Err("not yet".to_owned()),
    })
    .await
}

#[tokio::test]
async fn output_may_go_before_its_run() {
    let cluster = quick()
        .master_arg("--retention")
        .master_arg("success=forever,failed=forever,output=3s")
        .start()
        .await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    let [good, bad, _] = some_runs(&api, "brief-output").await;
    for run in [&good, &bad] {
        eventually(SOON, format!("the output of {run} is gone"), async || {
            let text = kept(&api, run).await?;
            if text.is_empty() { Ok(()) } else { Err(text) }
        })
        .await;
        // The record is whole, and still says how much there was.
        let (status, record) = api.get(&format!("/v1/runs/{run}")).await;
        assert_eq!(status, 200, "{record}");
        assert!(record["output_bytes"].as_u64().unwrap() > 0, "{record}");
    }
    let (_, page) = api.get("/v1/runs/search?q=needle&job=brief-output").await;
    assert_eq!(page["hits"].as_array().unwrap().len(), 0, "{page}");
    let metrics = api.get("/metrics").await.1;
    let line = "meepo_master_retention_removed_total{what=\"output\"}";
    assert!(metrics.as_str().unwrap().contains(line), "{metrics}");
}
