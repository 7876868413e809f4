//! What a worker does with the parts it is given: begin, leave alone, or give back.

use super::{SOON, act, get, noted, put, wait, wait_noted, wait_part};
use meepo_tests::{Api, Cluster, Process, Spec, binary, eventually, flags, free_port};
use serde_json::{Value, json};

const NODE: &str = "127.0.0.2";

/// A command that notes that it ran.
fn note(cluster: &Cluster) -> String {
    format!(
        "echo \"$MEEPO_JOB $MEEPO_ATTEMPT $MEEPO_NODE\" >> {}",
        cluster.dir().join("ran").display()
    )
}

/// Waits until a part is reserved, whether or not it has begun.
async fn wait_reserved(api: &Api, id: &str) -> Value {
    eventually(SOON, format!("{id} is reserved"), async || {
        let task = get(api, id).await;
        if task["parts"][0]["state"] == "reserved" { Ok(task) } else { Err(task.to_string()) }
    })
    .await
}

/// The health record of the node.
async fn health(cluster: &Cluster) -> Value {
    let key = format!("/agent/health/{NODE}");
    cluster.etcd().ctl(&["get", &key, "--print-value-only"]).await.json()
}

/// A worker that finds its node id taken sees the same orders, and leaves them alone until
/// the other one has gone.
#[tokio::test]
async fn two_workers_under_one_id_run_each_part_once() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let etcd = cluster.etcd().urls();
    let data = cluster.dir().join("second");
    let worker = flags::worker(&flags::WorkerFlags {
        etcd: &etcd,
        node: NODE,
        data_dir: &data,
        metrics: free_port(),
        logs: None,
        labels: &[],
    });
    let args: Vec<&str> = worker.iter().map(String::as_str).collect();
    let second = Process::start(Spec::new("second", binary("meepo-worker"), &args, cluster.dir()));
    second.wait_log("another worker is registered", SOON).await;
    let cmd = note(&cluster);
    for _ in 0..10 {
        let id = put(&api, json!({"hosts": [NODE], "cmd": cmd})).await;
        wait(&api, &id, "success").await;
    }
    let ran = noted(&cluster.dir().join("ran"));
    assert_eq!(ran.len(), 10, "{ran:?}");
    // It takes over.
    cluster.worker(0).process().term();
    second.wait_log("registered", SOON).await;
    let id = put(&api, json!({"hosts": [NODE], "cmd": cmd})).await;
    wait(&api, &id, "success").await;
    assert_eq!(noted(&cluster.dir().join("ran")).len(), 11);
}

/// Its worker died after the mark and before its journal had it. As far as anybody knows it
/// has run: what is wanted of it meanwhile counts, and the same attempt is not begun again.
#[tokio::test]
async fn a_part_that_is_found_begun_is_not_begun_again() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let worker = cluster.worker(0).process();
    let (file, cmd) = (cluster.dir().join("ran"), note(&cluster));
    for (stopped, on_loss, state) in
        [(true, "release", "failed"), (false, "fail", "failed"), (false, "release", "success")]
    {
        worker.restart_with(&[("MEEPO_FAILPOINT", "decided")]);
        worker.wait_log("registered", SOON).await;
        let id = put(&api, json!({"hosts": [NODE], "cmd": cmd, "on_loss": on_loss})).await;
        wait_part(&api, &id, 1, "reserved").await;
        if stopped {
            let (status, body) = act(&api, &id, "stop").await;
            assert_eq!(status, 200, "{body}");
        }
        worker.restart();
        let task = wait(&api, &id, state).await;
        let ran: Vec<_> = noted(&file).into_iter().map(|[_, attempt, _]| attempt).collect();
        let want: &[&str] = if state == "success" { &["2"] } else { &[] };
        assert_eq!(ran, want, "{task}");
    }
}

/// Reserved is not begun: a pause holds it.
#[tokio::test]
async fn a_pause_holds_what_is_reserved_and_has_not_begun() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let worker = cluster.worker(0).process();
    worker.stop();
    let id = put(&api, json!({"hosts": [NODE], "cmd": note(&cluster)})).await;
    wait_reserved(&api, &id).await;
    let (status, body) = act(&api, &id, "pause").await;
    assert_eq!(status, 200, "{body}");
    worker.cont();
    let part = wait_part(&api, &id, 1, "ready").await;
    assert_eq!((&part["attempt"], noted(&cluster.dir().join("ran")).len()), (&json!(0), 0));
    let (status, body) = act(&api, &id, "resume").await;
    assert_eq!(status, 200, "{body}");
    wait(&api, &id, "success").await;
}

/// The leader has given a part away again while its run here goes on: the next attempt
/// begins when that has ended.
#[tokio::test]
async fn a_new_attempt_waits_for_the_old_one_to_end() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let file = cluster.dir().join("ran");
    let cmd = format!(
        "trap '' INT; echo begin 1 1 >> {0}; n=0; while [ $n -lt 20 ]; do sleep 0.1; n=$((n+1)); \
         done; echo end 1 1 >> {0}",
        file.display()
    );
    let request = json!({"hosts": [NODE], "cmd": cmd, "executor": "sh", "kill_plan": ["INT 30s"]});
    let id = put(&api, request).await;
    wait_noted(&file, 1).await;
    wait_part(&api, &id, 1, "reserved").await;
    let key = format!("/meepo/parts/{id}/1");
    let etcd = cluster.etcd();
    let mut part = etcd.ctl(&["get", &key, "--print-value-only"]).await.json();
    part["state"] = json!("ready");
    part.as_object_mut().unwrap().remove("begun_at");
    etcd.ctl(&["del", &format!("/cron/tasks/{NODE}/{id}.1")]).await.ok();
    etcd.ctl(&["put", &key, &part.to_string()]).await.ok();
    let done = wait(&api, &id, "success").await;
    assert_eq!(done["parts"][0]["attempt"], 2, "{done}");
    let order: Vec<String> = noted(&file).into_iter().map(|[what, ..]| what).collect();
    assert_eq!(order, ["begin", "end", "begin", "end"]);
}

/// A node that is about to end or is drained offers no slots, and says how long its lease is.
#[tokio::test]
async fn a_node_that_takes_nothing_offers_no_slots() {
    let cluster = Cluster::builder().worker_arg("--lease-ttl").worker_arg("7s").start().await;
    let api = cluster.api();
    let before = health(&cluster).await;
    assert!(before["task_slots"].as_u64() > Some(0), "{before}");
    assert_eq!(before["lease_ttl"], "7s", "{before}");
    let offers = async |some: bool| {
        eventually(SOON, format!("slots are offered: {some}"), async || {
            let now = health(&cluster).await;
            if (now["task_slots"] != 0) == some { Ok(()) } else { Err(now.to_string()) }
        })
        .await
    };
    api.post(&format!("/v1/nodes/{NODE}/drain"), json!({})).await;
    offers(false).await;
    let (status, body) = api.http("DELETE", &format!("/v1/nodes/{NODE}/drain"), None).await;
    assert_eq!(status, 200, "{body}");
    offers(true).await;
}
