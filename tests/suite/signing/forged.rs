//! Somebody who may write everything in etcd, and has no key of a master.

use super::{Keys, content, counted, delete, each_second, metric, put, refused, value};
use crate::{
    fleet::{SOON, apply, wait_runs, wait_session},
    shared::{trigger, wait_run},
    terms::{fake, lead},
};
use meepo_proto::internal::{self as pb, master_frame::Frame};
use meepo_tests::{Cluster, eventually};
use serde_json::{Value, json};
use std::path::Path;

const NODE: &str = "127.0.0.2";

/// A command that leaves a trace of having run.
fn trace(file: &Path) -> String {
    format!("echo ran >> {}", file.display())
}

#[tokio::test]
async fn what_masters_have_signed_runs_in_every_way() {
    let keys = Keys::new();
    let cluster = keys.cluster().workers(2).start().await;
    let api = cluster.api();
    wait_session(&api, NODE).await;
    wait_session(&api, "127.0.0.3").await;
    apply(&api, each_second("often", "true")).await;
    wait_runs(&api, "job=often&state=success", 2).await;
    let mut once = each_second("once", "true");
    once["placement"] = "once".into();
    apply(&api, once).await;
    wait_runs(&api, "job=once&state=success", 1).await;
    apply(&api, json!({"name": "asked", "cmd": "sleep 600", "target": NODE})).await;
    let run = trigger(&api, "asked").await;
    wait_run(&api, &run, &["running"]).await;
    let (status, body) = api.post(&format!("/v1/runs/{run}/kill"), json!({})).await;
    assert!(status < 300, "{status} {body}");
    wait_run(&api, &run, &["killed"]).await;
    let (status, task) = api.post("/v1/tasks", json!({"target": "all", "cmd": "true"})).await;
    assert_eq!(status, 201, "{task}");
    let id = task["id"].as_str().unwrap();
    eventually(SOON, "the task is done", async || {
        let (_, task) = api.get(&format!("/v1/tasks/{id}")).await;
        if task["state"] == "success" { Ok(()) } else { Err(task.to_string()) }
    })
    .await;
    content(&cluster, NODE).await;
    // Nobody sees the signature of a definition: it is applied again as it is shown.
    let (_, job) = api.get("/v1/jobs/often").await;
    assert!(!job["spec"].to_string().contains("signature"), "{job}");
    let (status, again) = api.post("/v1/jobs", job["spec"].clone()).await;
    assert_eq!((status, &again["action"]), (200, &json!("unchanged")), "{again}");
}

#[tokio::test]
async fn an_assignment_put_by_hand_is_refused_where_people_look() {
    let keys = Keys::new();
    let cluster = keys.cluster().start().await;
    let api = cluster.api();
    let file = cluster.dir().join("evil");
    let key = format!("/cron/jobs/{NODE}/evil");
    let evil = json!({"cmd": trace(&file), "express": "* * * * * *", "task_id": "evil",
        "status": "running", "executor": "sh"});
    put(&cluster, &key, &evil).await;
    refused(&cluster, NODE, &key, "signature: missing").await;
    let (_, job) = api.get("/v1/jobs/evil").await;
    let problem = job["nodes"][0]["problem"].as_str().unwrap_or_default();
    assert!(problem.contains("signature: missing"), "{job}");
    let shown = cluster.cli(&["job", "get", "evil"]).await;
    assert!(shown.ok().contains("signature: missing"), "{shown:?}");
    let shown = cluster.cli(&["node", "get", NODE]).await;
    assert!(shown.ok().contains("signature: missing"), "{shown:?}");
    counted(&cluster, 0, &metric("assignment", "unsigned")).await;
    // A master asked to run it does not sign what anybody may have put there.
    let run = trigger(&api, "evil").await;
    let record = wait_run(&api, &run, &["failed"]).await;
    assert_eq!(record["code"], 0x020A, "{record}");
    assert!(record["message"].as_str().unwrap().contains("signature: missing"), "{record}");
    assert!(!file.exists());
    let log = cluster.worker(0).process().log();
    assert!(log.contains("assignment cannot be used") && log.contains(&key), "{log}");
}

/// Lets a test write to etcd while no master repairs what it does.
struct Stopped<'a>(&'a Cluster);

impl<'a> Stopped<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        cluster.master(0).process().stop();
        Self(cluster)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.master(0).process().cont();
    }
}

#[tokio::test]
async fn a_signed_assignment_that_is_changed_moved_stripped_or_put_back_is_refused() {
    let keys = Keys::new();
    let cluster = keys.cluster().workers(2).start().await;
    let api = cluster.api();
    let file = cluster.dir().join("evil");
    let other = cluster.dir().join("other");
    // The first form of the job is what is put back later.
    let mut first = each_second("a", &trace(&file));
    first["target"] = NODE.into();
    first["schedule"] = "0 0 1 1 *".into();
    apply(&api, first.clone()).await;
    let (key, moved) = (format!("/cron/jobs/{NODE}/a"), "/cron/jobs/127.0.0.3/a");
    let old = value(&cluster, &key).await;
    assert!(old["signature"]["sig"].is_string(), "{old}");
    let mut now = each_second("a", &trace(&other));
    now["target"] = NODE.into();
    apply(&api, now.clone()).await;
    wait_runs(&api, "job=a&state=success", 1).await;
    let current = value(&cluster, &key).await;
    {
        let _stopped = Stopped::new(&cluster);
        let change = |field: &str, to: Value| {
            let mut changed = current.clone();
            changed[field] = to;
            changed
        };
        let mut stripped = current.clone();
        stripped.as_object_mut().unwrap().remove("signature");
        let mut older = current.clone();
        older["signature"]["term"] = 1.into();
        let mut longer = current.clone();
        longer["signature"]["expires_at"] = "2100-01-01T00:00:00Z".into();
        let mut strange = current.clone();
        strange["signature"]["key"] = "0000000000000000".into();
        for (what, value, why) in [
            ("put back", old.clone(), "was accepted before"),
            ("changed", change("cmd", trace(&file).into()), "does not fit"),
            ("as root", change("user", "root".into()), "does not fit"),
            ("another schedule", change("express", "* * * * *".into()), "does not fit"),
            ("stripped", stripped, "missing"),
            ("older term", older, "does not fit"),
            ("longer", longer, "does not fit"),
            ("another key", strange, "not trusted"),
            ("no signature at all", change("signature", "yes".into()), "unreadable"),
        ] {
            put(&cluster, &key, &value).await;
            refused(&cluster, NODE, &key, why).await;
            // The right one is taken again: nothing is broken by what was refused.
            put(&cluster, &key, &current).await;
            content(&cluster, NODE).await;
            assert!(!file.exists(), "{what}");
        }
        // Fields that nobody knows, and their order, change nothing.
        put(&cluster, &key, &change("not_known", json!([1]))).await;
        content(&cluster, NODE).await;
        // For another node, and for another job of this one.
        put(&cluster, moved, &current).await;
        refused(&cluster, "127.0.0.3", moved, "does not fit").await;
        delete(&cluster, moved).await;
        let renamed = format!("/cron/jobs/{NODE}/b");
        let mut as_b = current.clone();
        as_b["task_id"] = "b".into();
        put(&cluster, &renamed, &as_b).await;
        refused(&cluster, NODE, &renamed, "does not fit").await;
        delete(&cluster, &renamed).await;
        // Taken away, which anybody may, and put back as it was.
        delete(&cluster, &key).await;
        content(&cluster, NODE).await;
        put(&cluster, &key, &current).await;
        refused(&cluster, NODE, &key, "taken away since").await;
        // Also over a restart of the worker.
        cluster.worker(0).process().kill9();
        cluster.worker(0).process().restart();
        cluster.wait_online(0).await;
        refused(&cluster, NODE, &key, "taken away since").await;
        put(&cluster, &key, &old).await;
        refused(&cluster, NODE, &key, "was accepted before").await;
    }
    // The master sees what was done and signs anew.
    eventually(SOON, "the job is right again", async || {
        let now = value(&cluster, &key).await;
        if now["cmd"] == trace(&other) { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    content(&cluster, NODE).await;
    let before = wait_runs(&api, "job=a&state=success", 1).await.len();
    wait_runs(&api, "job=a&state=success", before + 1).await;
    assert!(!file.exists());
}

#[tokio::test]
async fn requests_parts_and_kills_that_no_master_has_signed_are_refused_and_recorded() {
    let keys = Keys::new();
    let cluster = keys.cluster().workers(2).start().await;
    let api = cluster.api();
    wait_session(&api, NODE).await;
    let file = cluster.dir().join("ran");
    apply(&api, json!({"name": "a", "cmd": trace(&file), "target": NODE, "executor": "sh"})).await;
    // A request that waits for its node can be read before it is taken.
    let away = cluster.worker(0).process();
    away.term();
    away.wait_exit(SOON).await;
    let run = trigger(&api, "a").await;
    let key = format!("/cron/trigger/{NODE}/{run}");
    let asked = value(&cluster, &key).await;
    away.restart();
    wait_run(&api, &run, &["success"]).await;
    let ran = || std::fs::read_to_string(&file).unwrap_or_default().lines().count();
    assert_eq!(ran(), 1);
    let fresh = || uuid::Uuid::now_v7().to_string();
    let is_refused = async |run: &str| {
        let record = wait_run(&api, run, &["failed"]).await;
        assert_eq!(record["code"], 0x020A, "{record}");
        record["message"].as_str().unwrap().to_owned()
    };
    // Once more, under another id, on another node, without a signature.
    put(&cluster, &key, &asked).await;
    let (again, there, bare) = (fresh(), fresh(), fresh());
    put(&cluster, &format!("/cron/trigger/{NODE}/{again}"), &asked).await;
    assert!(is_refused(&again).await.contains("does not fit"));
    put(&cluster, &format!("/cron/trigger/127.0.0.3/{there}"), &asked).await;
    assert!(is_refused(&there).await.contains("does not fit"));
    let mut unsigned = asked.clone();
    unsigned.as_object_mut().unwrap().remove("signature");
    put(&cluster, &format!("/cron/trigger/{NODE}/{bare}"), &unsigned).await;
    assert!(is_refused(&bare).await.contains("missing"));
    eventually(SOON, "no request is left", async || {
        let left = cluster.etcd().ctl(&["get", "--prefix", "/cron/trigger/"]).await;
        if left.ok().is_empty() { Ok(()) } else { Err(left.stdout) }
    })
    .await;
    assert_eq!(ran(), 1, "the request that came again started nothing");
    // A part of a task that nobody has handed in.
    let (task, run) = (fresh(), fresh());
    let now = jiff::Timestamp::now();
    let order = json!({
        "run_id": run, "command": {"cmd": trace(&file)}, "submitted_at": now, "task_revision": 1,
        "policy": {"priority": 1, "ttr": "1m", "on_failure": "fail"},
        "part": {"state": "reserved", "since": now, "attempt": 1, "node": NODE,
            "runs": [{"run_id": run, "node": NODE, "attempt": 1}]},
    });
    put(&cluster, &format!("/cron/tasks/{NODE}/{task}.1"), &order).await;
    assert!(is_refused(&run).await.contains("missing"));
    counted(&cluster, 0, &metric("order", "unsigned")).await;
    // A run does not end because somebody says so in etcd.
    apply(&api, json!({"name": "long", "cmd": "sleep 600", "target": NODE})).await;
    let long = trigger(&api, "long").await;
    wait_run(&api, &long, &["running"]).await;
    let kill = format!("/cron/kill/{NODE}/{long}");
    put(&cluster, &kill, &json!({"requested_at": now})).await;
    counted(&cluster, 0, &metric("kill", "unsigned")).await;
    assert_eq!(wait_run(&api, &long, &["running"]).await["state"], "running");
    let (status, _) = api.post(&format!("/v1/runs/{long}/kill"), json!({})).await;
    assert!(status < 300);
    wait_run(&api, &long, &["killed"]).await;
    assert_eq!(ran(), 1);
}

#[tokio::test]
async fn whoever_makes_himself_the_leader_in_etcd_orders_nothing() {
    let keys = Keys::new();
    let cluster = keys.cluster().masters(0).start().await;
    let (_server, url, mut sessions) = fake().await;
    let term = lead(&cluster, &url).await;
    let mut session = tokio::time::timeout(SOON, sessions.recv()).await.unwrap().unwrap();
    let file = cluster.dir().join("evil");
    let run = session.exec(term, &trace(&file)).await;
    let record = session.ended(run).await;
    assert_eq!((&record["state"], &record["code"]), (&json!("failed"), &json!(0x020A)));
    assert!(record["message"].as_str().unwrap().contains("signature: missing"), "{record}");
    assert!(!file.exists());
    let kill = pb::Kill { run_id: run.to_string(), ..pb::Kill::default() };
    session.order(term, Frame::Kill(kill)).await;
    counted(&cluster, 0, &metric("kill", "unsigned")).await;
}
