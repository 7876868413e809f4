//! Output and records on their way to MongoDB, which hangs, dies, or has no room; workers
//! that die on the way; spools that are full. What jobs wrote is compared with what is stored:
//! nothing is lost but what was dropped and counted, nothing is there twice, all is in order.

mod intake;
mod lines;
pub(crate) mod master;
mod mongod;

use crate::fleet::{SOON, apply, quick, runs, wait_runs, wait_session};
use futures::StreamExt;
use lines::{Lines, metric, wait_metric};
use meepo_tests::{Logs, eventually, millis, secs};
use mongod::SmallDisk;
use serde_json::json;
use std::time::Duration;

/// `MEEPO_TEST_PIPELINE=60` makes each outage that many seconds long; the figures of
/// `docs/benchmarks.md` come from that.
fn outage() -> Duration {
    let given = std::env::var("MEEPO_TEST_PIPELINE").ok().map(|s| s.parse().unwrap());
    given.map_or(secs(3), secs)
}

/// Waits until lines have been written for so long; how many is not the point.
async fn flow(lines: &Lines, span: Duration) {
    let before = lines.written();
    tokio::time::sleep(span).await;
    eventually(SOON, "jobs write lines", async || {
        let now = lines.written();
        if now > before { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn what_is_written_while_mongodb_hangs_and_dies_is_stored_once_and_in_order() {
    let cluster = quick().workers(2).logs(Logs::OwnMongo).start().await;
    let lines = Lines::start(&cluster, 3).await;
    flow(&lines, secs(1)).await;
    // It accepts connections and says nothing.
    cluster.mongo().pause();
    flow(&lines, outage()).await;
    cluster.mongo().resume();
    flow(&lines, secs(1)).await;
    // It dies in the middle of a batch.
    cluster.mongo().kill();
    flow(&lines, outage()).await;
    // A worker dies while its spool holds what nobody has.
    let kept = lines.snapshot();
    let cursor = lines.written();
    eventually(SOON, "lines later than the snapshot are there", async || {
        let now = lines.written();
        if now > cursor + 20 { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    cluster.worker(1).process().kill9();
    cluster.mongo().restart().await;
    cluster.worker(1).process().restart();
    flow(&lines, secs(1)).await;
    let found = lines.settle(&cluster).await;
    found.check(&kept);
    assert_eq!(found.dropped, 0, "there was room for all");
    println!("{found}");
}

#[tokio::test]
async fn what_is_written_while_the_disk_of_mongodb_is_full_is_stored_later() {
    let mut disk = SmallDisk::start().await;
    let cluster = quick().workers(2).logs(Logs::Uri(disk.uri())).start().await;
    let lines = Lines::start(&cluster, 3).await;
    flow(&lines, secs(1)).await;
    disk.fill();
    flow(&lines, outage()).await;
    eventually(SOON, "nothing is taken", async || {
        match metric(&cluster, 0, "delivery_errors_total").await {
            0 => Err("no batch was refused".to_owned()),
            n => Ok(n),
        }
    })
    .await;
    disk.free().await;
    let kept = lines.snapshot();
    let found = lines.settle(&cluster).await;
    found.check(&kept);
    assert_eq!(found.dropped, 0, "there was room for all");
    println!("{found}");
}

#[tokio::test]
async fn a_full_spool_drops_output_and_counts_it_and_keeps_every_record() {
    let limit = "100000";
    let build = quick().logs(Logs::OwnMongo).worker_arg("--spool-limit").worker_arg(limit);
    let cluster = build.start().await;
    let api = cluster.api();
    cluster.mongo().pause();
    let lines = Lines::start(&cluster, 3).await;
    eventually(SOON, "output is dropped", async || {
        match metric(&cluster, 0, "spool_dropped_bytes_total").await {
            0..50_000 => Err("not much yet".to_owned()),
            n => Ok(n),
        }
    })
    .await;
    // In words, where one looks. The API serves nodes without the log store.
    let said = eventually(SOON, "the node tells of it", async || {
        let shown = cluster.cli(&["node", "get", "127.0.0.2"]).await;
        match shown.stdout.contains("output is dropped and counted") {
            true => Ok(shown.stdout),
            false => Err(format!("{shown:?}")),
        }
    })
    .await;
    assert!(said.contains("records of runs are kept"), "{said}");
    lines.stop(&api).await;
    cluster.mongo().resume();
    let found = lines.settle(&cluster).await;
    found.check(&lines.snapshot());
    assert!(found.dropped > 0);
    let counted = metric(&cluster, 0, "spool_dropped_bytes_total").await;
    assert_eq!(found.dropped, counted as u64, "each byte in its run's record");
    assert_eq!(metric(&cluster, 0, "spool_dropped_records_total").await, 0);
    println!("{found}");
}

#[tokio::test]
async fn output_that_is_too_old_is_dropped_and_counted() {
    let build = quick().logs(Logs::OwnMongo).worker_arg("--spool-max-age").worker_arg("4s");
    let cluster = build.start().await;
    let api = cluster.api();
    cluster.mongo().pause();
    let lines = Lines::start(&cluster, 2).await;
    wait_metric(&cluster, 0, "spool_dropped_bytes_total", |n| n > 0).await;
    lines.stop(&api).await;
    cluster.mongo().resume();
    let found = lines.settle(&cluster).await;
    found.check(&lines.snapshot());
    assert!(found.dropped > 0);
    assert_eq!(found.dropped, metric(&cluster, 0, "spool_dropped_bytes_total").await as u64);
}

#[tokio::test]
async fn new_results_do_not_wait_for_a_backlog() {
    // All that a worker finds when it starts; it takes twenty seconds.
    backlog(400, "20", true).await;
}

/// What piles up while the log store is away is a backlog, too, if it is more than a batch.
#[tokio::test]
async fn new_results_do_not_wait_for_the_backlog_of_an_outage() {
    backlog(2_300, "100", false).await;
}

async fn backlog(count: usize, rate: &str, restarts: bool) {
    let build = quick().logs(Logs::OwnMongo);
    let rate = ["--catchup-rate", rate];
    let cluster = rate.iter().fold(build, |b, arg| b.worker_arg(arg)).start().await;
    let api = cluster.api();
    let brief = json!({"name": "brief", "cmd": "echo something", "concurrency": "allow"});
    apply(&api, brief).await;
    apply(&api, json!({"name": "new", "cmd": "echo new"})).await;
    cluster.mongo().pause();
    let trigger = async |name: &str| {
        let (status, body) = api.post(&format!("/v1/jobs/{name}/trigger"), json!({})).await;
        assert_eq!(status, 202, "{body}");
    };
    let all = futures::stream::iter(0..count).for_each_concurrent(8, async |_| {
        trigger("brief").await;
    });
    all.await;
    // A record each, and output.
    wait_metric(&cluster, 0, "spool_items", |n| n >= count as i64).await;
    if restarts {
        cluster.worker(0).process().restart();
        cluster.wait_online(0).await;
    }
    cluster.mongo().resume();
    wait_session(&api, "127.0.0.2").await;
    if !restarts {
        wait_metric(&cluster, 0, "spool_backlog_items", |n| n > 0).await;
    }
    trigger("new").await;
    wait_runs(&api, "job=new&state=success", 1).await;
    let left = metric(&cluster, 0, "spool_backlog_items").await;
    assert!(left > 100, "the new run was stored when {left} items of the backlog were left");
    let id = runs(&api, "job=new").await[0]["run_id"].as_str().unwrap().to_owned();
    let (_, page) = api.get(&format!("/v1/runs/{id}/output")).await;
    assert_eq!(page["chunks"][0]["text"], "new\n");
    wait_metric(&cluster, 0, "spool_backlog_items", |n| n == 0).await;
    // Some may have run when their worker was killed.
    assert_eq!(runs(&api, "job=brief&state=success,lost").await.len(), count);
}

#[tokio::test]
async fn workers_that_deliver_through_masters_lose_nothing_when_the_leader_dies() {
    let args = ["--logs-via", "master"];
    let build = quick().masters(2).workers(2).logs(Logs::OwnMongo).through_master();
    let cluster = args.iter().fold(build, |b, arg| b.worker_arg(arg)).start().await;
    let lines = Lines::start(&cluster, 3).await;
    flow(&lines, secs(1)).await;
    for _ in 0..2 {
        let leader = master::leader(&cluster).await;
        // In the middle of batches: the store is slow to answer.
        cluster.mongo().pause();
        tokio::time::sleep(millis(300)).await;
        cluster.master(leader).process().kill9();
        cluster.mongo().resume();
        flow(&lines, outage()).await;
        cluster.master(leader).process().restart();
        cluster.master(leader).wait_ready().await;
    }
    let kept = lines.snapshot();
    let found = lines.settle(&cluster).await;
    found.check(&kept);
    assert_eq!(found.dropped, 0);
    for i in 0..2 {
        assert!(metric(&cluster, i, "delivery_errors_total").await > 0, "nothing happened");
    }
    println!("{found}");
}
