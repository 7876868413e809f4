//! The contract with whoever uses nothing but etcdctl.

use crate::fleet::{Evidence, SOON, apply, clock_past, quick, runs, wait_runs};
use jiff::{SignedDuration, Timestamp};
use meepo_tests::{
    Cluster, Process, Spec, binary, eventually,
    flags::{self, WorkerFlags},
    free_port,
};
use serde_json::{Value, json};
use std::time::Instant;

/// The key's value, if it is there.
async fn value(cluster: &Cluster, key: &str) -> Option<String> {
    let out = cluster.etcd().ctl(&["get", key, "--print-value-only"]).await;
    let text = out.ok().trim_end_matches('\n');
    (!text.is_empty()).then(|| text.to_owned())
}

async fn put(cluster: &Cluster, key: &str, value: &str) {
    assert_eq!(cluster.etcd().ctl(&["put", "--", key, value]).await.ok(), "OK\n");
}

/// A worker for a node of any name, beside those of the cluster.
async fn worker(cluster: &Cluster, node: &str) -> Process {
    let name = format!("worker-{node}");
    let data_dir = cluster.dir().join(&name);
    let mut spec = Spec::new(&name, binary("meepo-worker"), &[], cluster.dir());
    spec.args = flags::worker(&WorkerFlags {
        etcd: &cluster.etcd().urls(),
        node,
        data_dir: &data_dir,
        metrics: free_port(),
        logs: None,
        labels: &[],
    });
    let process = Process::start(spec);
    process.wait_log("registered", SOON).await;
    process
}

#[tokio::test]
async fn the_lines_of_the_guide_do_what_it_says() {
    const KEY: &str = "/cron/jobs/127.0.0.1/hello";
    const RUNNING: &str = r#"{"cmd":"date","express":"*/5 * * * * *","task_id":"hello","status":"running","executor":"bash"}"#;
    let cluster = Cluster::builder().workers(0).start().await;
    let _worker = worker(&cluster, "127.0.0.1").await;
    let api = cluster.api();

    let started = Instant::now();
    put(&cluster, KEY, RUNNING).await;
    // The worker has taken it: the next slot is what remains to be waited for.
    eventually(SOON, "the worker holds it", async || {
        let (_, node) = api.get("/v1/nodes/127.0.0.1").await;
        if node["jobs"] == 1 { Ok(()) } else { Err(node.to_string()) }
    })
    .await;
    eprintln!("held {:?} after the put", started.elapsed());
    let first = &wait_runs(&api, "job=hello&state=success", 1).await[0];
    assert_eq!((&first["cmd"], &first["cause"]), (&json!("date"), &json!("schedule")));
    let slot: Timestamp = first["slot"].as_str().unwrap().parse().unwrap();
    assert_eq!(slot.as_second() % 5, 0);
    let out = cluster.cli(&["logs", first["run_id"].as_str().unwrap()]).await;
    assert!(out.ok().contains("20"), "a date: {out:?}");

    // Time passes for another job on the same worker.
    let clock = Evidence::new(cluster.dir(), "clock");
    let tick = json!({"cmd": clock.cmd(), "express": "* * * * * *"});
    put(&cluster, "/cron/jobs/127.0.0.1/clock", &tick.to_string()).await;
    let quiet = async |since: Timestamp| {
        // A slot that was due when the key changed may have started still.
        let after = since + SignedDuration::from_secs(1);
        clock.wait(6, |m| m.slot > since).await;
        let all = runs(&api, "job=hello").await;
        let late = |r: &&Value| r["slot"].as_str().unwrap().parse::<Timestamp>().unwrap() > after;
        assert_eq!(all.iter().find(late), None, "it ran after {since}");
    };
    put(&cluster, KEY, &RUNNING.replace("running", "pause")).await;
    quiet(Timestamp::now()).await;
    let listed = cluster.cli(&["job", "get", "hello"]).await;
    assert!(listed.ok().contains("paused"), "{listed:?}");

    let before = runs(&api, "job=hello").await.len();
    put(&cluster, KEY, RUNNING).await;
    wait_runs(&api, "job=hello", before + 1).await;
    assert_eq!(cluster.etcd().ctl(&["del", KEY]).await.ok(), "1\n");
    quiet(Timestamp::now()).await;
    assert_eq!(api.get("/v1/jobs/hello").await.0, 404);
}

#[tokio::test]
async fn what_stands_in_etcd_reads_like_documentation() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    // The oldest form: no id in the key, no field beyond the five.
    let oldest = r#"{"cmd":"echo oldest","express":"* * * * * *","task_id":"old","status":"running","executor":"sh"}"#;
    put(&cluster, "/cron/jobs/127.0.0.2/", oldest).await;
    let long = r#"{"cmd":"sleep 600","express":"* * * * * *","status":"running","executor":"bash","task_id":"long"}"#;
    put(&cluster, "/cron/jobs/127.0.0.2/long", long).await;
    apply(&api, json!({"name": "defined", "cmd": "date", "schedule": "@every 1s"})).await;
    wait_runs(&api, "job=old&node=127.0.0.2&state=success", 1).await;

    let parse = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let cronid = async |job: &str, state: &str| {
        let key = format!("/cron/cronid/jobs/127.0.0.2/{job}");
        eventually(SOON, format!("{key} says {state}"), async || {
            let there = value(&cluster, &key).await.ok_or("no such key")?;
            let v = parse(&there);
            if v["state"] == state { Ok(v) } else { Err(there) }
        })
        .await
    };
    // While it runs, under the worker's lease, and how it ended.
    let running = cronid("long", "running").await;
    let run = running["cronid"].as_str().unwrap().to_owned();
    assert!(running["started_at"].is_string() && running["ended_at"].is_null(), "{running}");
    put(&cluster, "/cron/jobs/127.0.0.2/long", &long.replace("running", "pause")).await;
    cluster.cli(&["kill", &run]).await.ok();
    let ended = cronid("long", "killed").await;
    assert_eq!((&ended["cronid"], &ended["code"]), (&json!(run), &json!(0x0103)));
    assert!(ended["ended_at"].is_string());
    assert_eq!(cronid("old", "success").await["code"], 0);
    wait_runs(&api, "job=defined&node=127.0.0.3&state=success", 1).await;

    for prefix in ["/cron", "/agent"] {
        let out = cluster.etcd().ctl(&["get", "--prefix", prefix]).await;
        let lines: Vec<&str> = out.ok().lines().collect();
        assert!(lines.len() >= 4, "{lines:?}");
        for pair in lines.chunks(2) {
            assert!(pair[0].starts_with(prefix), "{pair:?}");
            assert!(parse(pair[1]).is_object(), "{pair:?}");
        }
    }

    // Health: there while the worker is, gone at once when it ends, soon when it dies.
    for i in 0..2 {
        let key = format!("/agent/health/{}", cluster.worker(i).node());
        let health = parse(&value(&cluster, &key).await.unwrap());
        assert_eq!(health["status"], "Online");
        assert!(!health["version"].as_str().unwrap().is_empty());
        let process = cluster.worker(i).process();
        if i == 0 {
            process.term();
            assert!(process.wait_exit(SOON).await.success());
        } else {
            process.kill9();
        }
        eventually(SOON, format!("{key} is gone"), async || {
            value(&cluster, &key).await.map_or(Ok(()), Err)
        })
        .await;
    }
}

/// Malformed values: the rest of the key, the value, and a word of the reason.
const MALFORMED: &[(&str, &str, &str)] = &[
    ("not-json", "hello", "JSON"),
    ("cut-off", r#"{"cmd":"date","#, "JSON"),
    ("array", r#"["date"]"#, "object"),
    ("null", "null", "object"),
    ("number", "7", "object"),
    ("no-command", r#"{"express":"* * * * * *"}"#, "cmd"),
    ("empty-command", r#"{"cmd":"  ","express":"* * * * * *"}"#, "cmd"),
    ("command-type", r#"{"cmd":5,"express":"* * * * * *"}"#, "cmd"),
    ("executor", r#"{"cmd":"date","executor":"perl"}"#, "executor"),
    ("executor-type", r#"{"cmd":"date","executor":["bash"]}"#, "executor"),
    ("cron", r#"{"cmd":"date","express":"61 * * * * *"}"#, "schedule"),
    ("cron-words", r#"{"cmd":"date","express":"every now and then"}"#, "schedule"),
    ("cron-never", r#"{"cmd":"date","express":"0 0 30 2 *"}"#, "schedule"),
    ("cron-type", r#"{"cmd":"date","express":5}"#, "express"),
    ("status", r#"{"cmd":"date","status":"paused"}"#, "status"),
    ("zone", r#"{"cmd":"date","express":"* * * * *","timezone":"Mars/Phobos"}"#, "timezone"),
    ("timeout", r#"{"cmd":"date","timeout":"soon"}"#, "timeout"),
    ("task", r#"{"cmd":"date","task_id":"other"}"#, "task_id"),
    ("task-name", r#"{"cmd":"date","task_id":"a/b"}"#, "task_id"),
    ("nul", "{\"cmd\":\"a\\u0000b\"}", "cmd"),
    ("cwd", r#"{"cmd":"date","cwd":"here"}"#, "cwd"),
    ("env", r#"{"cmd":"date","env":{"A":1}}"#, "env"),
];

#[tokio::test]
async fn malformed_values_hurt_nothing_and_say_why() {
    let cluster = Cluster::builder().start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0));
    let clock = Evidence::new(cluster.dir(), "clock");
    let tick = json!({"cmd": clock.cmd(), "express": "* * * * * *"});
    let at = |rest: &str| format!("/cron/jobs/127.0.0.2/{rest}");
    put(&cluster, &at("clock"), &tick.to_string()).await;
    clock.wait(1, |_| true).await;
    let mut client = cluster.etcd().client().await;
    for (rest, value, _) in MALFORMED {
        client.put(at(rest), *value, None).await.unwrap();
    }
    // Keys that name no job, and one that is not even text.
    client.put(at("a b"), tick.to_string(), None).await.unwrap();
    client.put(at("a/b"), tick.to_string(), None).await.unwrap();
    client.put(at(""), r#"{"cmd":"date"}"#, None).await.unwrap();
    client.put(at("binary"), vec![0xff, 0xfe, 0], None).await.unwrap();
    client.put([at("key-").as_bytes(), &[0xff]].concat(), "x", None).await.unwrap();
    client.put(at("empty"), "", None).await.unwrap();
    let bad = MALFORMED.len() + 6;

    let node = eventually(SOON, "every problem is told", async || {
        let (_, node) = api.get("/v1/nodes/127.0.0.2").await;
        let n = node["problems"].as_array().map_or(0, Vec::len);
        if n == bad { Ok(node) } else { Err(format!("{n} of {bad}: {node}")) }
    })
    .await;
    let of_node = cluster.cli(&["node", "get", "127.0.0.2"]).await;
    for (rest, _, word) in MALFORMED {
        let key = at(rest);
        let told = node["problems"].as_array().unwrap().iter().find(|p| p["subject"] == *key);
        let reason = told.unwrap_or_else(|| panic!("{key}: {node}"))["reason"].as_str().unwrap();
        assert!(reason.contains(word) && reason.contains("expected"), "{key}: {reason}");
        assert!(of_node.ok().contains(&key), "{key}: {of_node:?}");
        let of_job = cluster.cli(&["job", "get", rest]).await;
        assert!(of_job.ok().contains("problems:") && of_job.stdout.contains(word), "{of_job:?}");
        let (_, view) = api.get(&format!("/v1/jobs/{rest}")).await;
        assert_eq!(view["nodes"][0]["problem"], reason, "the same words everywhere");
        let log = worker.process().log();
        let line = log.lines().find(|l| l.contains(&format!("{key} ")) || l.contains(&key));
        assert!(line.is_some_and(|l| l.contains("WARN")), "{key}: {line:?}");
    }
    // The other job goes on, and so does the worker.
    let now = Timestamp::now();
    clock.wait(2, |m| m.slot > now).await;
    assert!(worker.process().is_running());
    let healthy = api.get("/v1/jobs/clock").await.1;
    assert_eq!(healthy["nodes"][0]["problem"], Value::Null);

    // Corrected, it runs, and the problem is gone.
    let right = Evidence::new(cluster.dir(), "right");
    let value = json!({"cmd": right.cmd(), "express": "* * * * * *"}).to_string();
    put(&cluster, &at("cron"), &value).await;
    right.wait(1, |_| true).await;
    eventually(SOON, "one problem less", async || {
        let (_, node) = api.get("/v1/nodes/127.0.0.2").await;
        let n = node["problems"].as_array().map_or(0, Vec::len);
        if n == bad - 1 { Ok(()) } else { Err(format!("{n}")) }
    })
    .await;
    // And spoilt again it stops.
    put(&cluster, &at("cron"), "{").await;
    let spoilt = Timestamp::now() + SignedDuration::from_secs(1);
    clock.wait(3, |m| m.slot > spoilt).await;
    assert_eq!(right.marks().iter().find(|m| m.slot > spoilt), None);
    clock.distinct(false);
}

#[tokio::test]
async fn no_master_touches_what_was_put_by_hand() {
    let cluster = Cluster::builder().workers(2).start().await;
    let api = cluster.api();
    let mine = r#"{ "cmd" : "echo mine", "express":"* * * * * *", "note": "  by hand " }"#;
    let key = "/cron/jobs/127.0.0.2/same";
    put(&cluster, key, mine).await;
    let garbage = "/cron/jobs/127.0.0.2/garbage";
    put(&cluster, garbage, "{ not json").await;
    for job in ["same", "garbage"] {
        apply(&api, json!({"name": job, "cmd": "echo theirs", "schedule": "* * * * * *"})).await;
        let placed = format!("/cron/jobs/127.0.0.3/{job}");
        eventually(SOON, format!("{placed} is placed"), async || {
            value(&cluster, &placed).await.map(drop).ok_or("not yet".to_owned())
        })
        .await;
    }
    // Placing goes on for others after that, so the master has seen and left both.
    apply(&api, json!({"name": "later", "cmd": "date", "schedule": "* * * * * *"})).await;
    wait_runs(&api, "job=later&node=127.0.0.2&state=success", 1).await;
    let theirs = wait_runs(&api, "job=same&node=127.0.0.3&state=success", 1).await;
    assert_eq!(theirs[0]["cmd"], "echo theirs");
    assert!(runs(&api, "job=same&node=127.0.0.2").await.iter().all(|r| r["cmd"] == "echo mine"));
    assert_eq!(value(&cluster, key).await.as_deref(), Some(mine));
    assert_eq!(value(&cluster, garbage).await.as_deref(), Some("{ not json"));

    // The definition goes; what was put by hand stays and goes on.
    for job in ["same", "garbage"] {
        cluster.cli(&["job", "delete", job]).await.ok();
        let placed = format!("/cron/jobs/127.0.0.3/{job}");
        eventually(SOON, format!("{placed} is gone"), async || {
            value(&cluster, &placed).await.map_or(Ok(()), Err)
        })
        .await;
    }
    assert_eq!(value(&cluster, key).await.as_deref(), Some(mine));
    assert_eq!(value(&cluster, garbage).await.as_deref(), Some("{ not json"));
    let now = Timestamp::now();
    clock_past(now + SignedDuration::from_secs(1)).await;
    let since = format!("job=same&node=127.0.0.2&since={now}");
    assert_eq!(wait_runs(&api, &since, 1).await[0]["cmd"], "echo mine");
}
