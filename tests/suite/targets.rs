//! Which nodes are meant: labels, facts of the moment, probes; asked at any master.

use crate::fleet::{SOON, apply, wait_session};
use jiff::Timestamp;
use meepo_core::digest::{self, Digest};
use meepo_tests::{Api, Builder, Cluster, Output, Spec, binary, eventually, run, secs};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const A: &str = "127.0.0.2";
const B: &str = "127.0.0.3";
const C: &str = "127.0.0.4";

/// Workers that tell every second how they are.
fn lively() -> Builder {
    Cluster::builder().worker_arg("--heartbeat").worker_arg("1s")
}

/// The APIs of the leader and of the other one of two masters, and the leader's number.
async fn roles(cluster: &Cluster) -> (usize, Api, Api) {
    let out = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await;
    let leads = |i: usize| out.json()["http"] == cluster.master(i).api().base();
    let leader = usize::from(!leads(0));
    assert!(leads(leader), "{out:?}");
    (leader, cluster.master(leader).api(), cluster.master(1 - leader).api())
}

async fn cli(cluster: &Cluster, name: &str, api: &Api, args: &[&str]) -> Output {
    let mut spec = Spec::new(name, binary("meepo"), args, cluster.dir());
    spec.env.push(("MEEPO_MASTER".into(), api.base().into()));
    spec.split_output = true;
    run(spec).await
}

/// The nodes that have an assignment of a job.
async fn holders(cluster: &Cluster, job: &str) -> BTreeSet<String> {
    let out = cluster.etcd().ctl(&["get", "--prefix", "/cron/jobs/", "--keys-only"]).await;
    let node = |line: &str| {
        let (node, name) = line.strip_prefix("/cron/jobs/")?.split_once('/')?;
        (name == job).then(|| node.to_owned())
    };
    out.ok().lines().filter_map(node).collect()
}

async fn wait_holders(cluster: &Cluster, job: &str, want: &[&str]) {
    let want: BTreeSet<String> = want.iter().map(|n| (*n).to_owned()).collect();
    eventually(SOON, format!("{want:?} hold {job}"), async || {
        let held = holders(cluster, job).await;
        if held == want { Ok(()) } else { Err(format!("{held:?}")) }
    })
    .await;
}

/// What `GET /v1/nodes` answers for a target.
async fn nodes(api: &Api, target: &str) -> Value {
    let escaped: String = target.bytes().map(|b| format!("%{b:02X}")).collect();
    let (status, answer) = api.get(&format!("/v1/nodes?target={escaped}")).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["nodes"].as_array().unwrap().iter().map(|n| n["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn labels_set_by_the_api_win_and_jobs_follow() {
    let cluster =
        Cluster::builder().workers(2).label(0, "zone=a").label(0, "tree=shop/cart").start().await;
    let api = cluster.api();
    apply(&api, json!({"name": "zoned", "cmd": "true", "target": "zone=a"})).await;
    wait_holders(&cluster, "zoned", &[A]).await;
    let out = cluster.cli(&["node", "label", B, "zone=a", "tree=shop/cart/web"]).await;
    assert_eq!(out.ok(), "tree=shop/cart/web (set by the API)\nzone=a (set by the API)\n");
    wait_holders(&cluster, "zoned", &[A, B]).await;
    cluster.cli(&["node", "label", A, "zone=b"]).await.ok();
    wait_holders(&cluster, "zoned", &[B]).await;
    let out = cluster.cli(&["node", "label", A]).await;
    assert!(out.ok().contains("zone=b (set by the API, over a)"), "{out:?}");
    for (target, want) in [
        ("tree=shop/*", &[A][..]),
        ("tree=shop/**", &[A, B]),
        ("zone in (b, c)", &[A]),
        ("zone not in (b, c)", &[B]),
    ] {
        assert_eq!(ids(&nodes(&api, target).await), want, "{target}");
    }

    // Taken away, the worker's own counts again; that one cannot be taken away here.
    cluster.cli(&["node", "label", A, "zone-"]).await.ok();
    wait_holders(&cluster, "zoned", &[A, B]).await;
    let left = cluster.etcd().ctl(&["get", "--prefix", "/meepo/labels/", "--keys-only"]).await;
    assert_eq!(left.ok().trim(), format!("/meepo/labels/{B}"));
    let out = cluster.cli(&["node", "label", A, "zone-"]).await;
    assert_eq!(out.code, 2, "{out:?}");
    let path = format!("/v1/nodes/{A}/labels");
    for (body, status, word) in [
        (json!({"labels": {"zone": null}}), 400, "worker's configuration"),
        (json!({"labels": {"a b": "c"}}), 400, "cannot be the key"),
        (json!({"labels": {}}), 400, "at least one label"),
        (json!({"label": {"a": "b"}}), 400, "unknown field"),
    ] {
        let (got, answer) = api.try_http("PATCH", &path, Some(&body)).await.unwrap();
        assert_eq!(got, status, "{answer}");
        assert!(answer.to_string().contains(word), "{answer}");
    }
    let unknown = json!({"labels": {"a": "b"}});
    let (got, _) =
        api.try_http("PATCH", "/v1/nodes/10.9.9.9/labels", Some(&unknown)).await.unwrap();
    assert_eq!(got, 404);
    // A target that would move the job with the load is refused.
    let body =
        json!({"name": "restless", "cmd": "true", "target": "all prefer least-loaded limit 1"});
    let (got, answer) = api.post("/v1/jobs", body).await;
    assert!(got == 400 && answer.to_string().contains("moment to moment"), "{answer}");
}

#[tokio::test]
async fn any_master_answers_from_facts_of_the_moment_and_says_when_it_cannot() {
    let cluster = lively().masters(2).workers(2).start().await;
    let (number, leader, follower) = roles(&cluster).await;
    for node in [A, B] {
        wait_session(&leader, node).await;
    }
    let busy = cluster.cli_start(&["run", "-t", B, "--timeout", "5m", "--", "sleep 300"]);
    for api in [&leader, &follower] {
        // The records in etcd do not know what runs now.
        eventually(SOON, "the busy node is found", async || {
            let answer = nodes(api, "running >= 1").await;
            if ids(&answer) == [B] { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
        assert_eq!(ids(&nodes(api, "all prefer least-loaded").await).len(), 2);
        let (status, answer) = api.get("/v1/nodes?target=running%20%3E").await;
        assert!(status == 400 && answer.to_string().contains("column 10"), "{answer}");
    }
    let told = |answer: &Value| -> Timestamp {
        answer["nodes"][0]["facts_at"].as_str().unwrap_or_default().parse().unwrap_or_default()
    };
    let before = told(&nodes(&follower, B).await);
    assert!(before > Timestamp::UNIX_EPOCH);
    let live = eventually(SOON, "a later heartbeat counts", async || {
        let answer = nodes(&follower, B).await;
        let cpu = &answer["nodes"][0]["facts"]["cpu_use"];
        if told(&answer) > before && cpu.is_number() { Ok(answer) } else { Err(answer.to_string()) }
    })
    .await;
    assert_eq!(live["stale"], Value::Null);
    assert_eq!(live["nodes"][0]["connected"], true);
    let out = cli(&cluster, "facts", &follower, &["node", "facts", "-t", "running = 0"]).await;
    assert!(out.ok().contains(A) && out.ok().contains("ago") && !out.ok().contains(B), "{out:?}");
    // Commands choose by the same facts.
    let out =
        cli(&cluster, "idle", &follower, &["run", "-t", "running = 0", "--", "echo $MEEPO_NODE"])
            .await;
    assert!(out.ok().contains(A) && !out.ok().contains(B), "{out:?}");

    cluster.master(number).process().kill9();
    let answer = nodes(&follower, "all").await;
    assert_eq!(ids(&answer), [A, B]);
    let stale = answer["stale"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert!(stale.contains("last wrote to etcd"), "{stale}");
    assert_eq!(
        (&answer["nodes"][1]["facts_at"], &answer["nodes"][1]["connected"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(ids(&nodes(&follower, "running >= 0").await), Vec::<&str>::new());
    drop(busy);
}

#[tokio::test]
async fn a_probe_selects_by_its_exit_code() {
    let cluster = Cluster::builder().masters(2).workers(3).start().await;
    let (_, leader, follower) = roles(&cluster).await;
    for node in [A, B, C] {
        wait_session(&leader, node).await;
    }
    let not_a = format!("echo at $MEEPO_NODE; test $MEEPO_NODE != {A}");
    for (name, api) in [("leader", &leader), ("follower", &follower)] {
        let run = |n: &str, args: &[&str]| {
            let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
            let (cluster, n) = (&cluster, format!("{name}-{n}"));
            async move {
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                cli(cluster, &n, api, &args).await
            }
        };
        let out = run("all", &["run", "-t", "all", "--probe", &not_a, "--", "echo ran"]).await;
        assert!(!out.ok().contains(A) && out.ok().contains(B) && out.ok().contains(C), "{out:?}");
        assert!(out.stderr.contains("probe: 2 of 3 nodes passed"), "{out:?}");
        let one = ["run", "-t", "all limit 1", "--probe", &not_a, "--", "echo ran on $MEEPO_NODE"];
        let out = run("one", &one).await;
        assert!(out.ok().contains(&format!("ran on {B}")) && !out.ok().contains(C), "{out:?}");
        // Alone it tells who passed, and what it said.
        let out = run("alone", &["run", "-t", "all", "--probe", &not_a]).await;
        assert!(out.ok().contains(&format!("at {C}")) && !out.ok().contains(A), "{out:?}");
        let out = run("none", &["run", "-t", "all", "--probe", "false", "--", "echo ran"]).await;
        assert!(out.code == 3 && !out.stdout.contains("ran"), "{out:?}");
        let out = run("nobody", &["run", "-t", "all", "--probe", "exit 7"]).await;
        assert_eq!(out.code, 3, "{out:?}");
        // A node that cannot be asked did not pass, and that is said.
        let target = format!("{B},10.9.9.9");
        let out = run("gone", &["run", "-t", &target, "--probe", "true"]).await;
        assert!(out.ok().contains(B) && out.stderr.contains("10.9.9.9"), "{out:?}");
    }
    let body = json!({"target": "all", "cmd": "true", "probe": " "});
    let (status, answer) = follower.post("/v1/exec/stream", body).await;
    assert!(status == 400 && answer["error"]["field"] == "probe", "{answer}");
    let body = json!({"target": "all", "cmd": "true", "probe": "true", "executor": "perl"});
    assert_eq!(follower.post("/v1/exec/stream", body).await.0, 400);
}

#[tokio::test]
async fn every_host_has_an_answer_even_when_the_leader_dies_meanwhile() {
    let cluster = lively().masters(2).start().await;
    let (number, leader, follower) = roles(&cluster).await;
    wait_session(&leader, A).await;
    let body =
        json!({"id": "7", "hosts": [A, "10.9.9.9"], "method": "sync.bash", "cmd": "sleep 20"});
    let asking = tokio::spawn(async move { follower.post("/v1/exec", body).await });
    eventually(SOON, "the command runs", async || {
        let answer = nodes(&leader, "running = 1").await;
        if ids(&answer) == [A] { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    cluster.master(number).process().kill9();
    let (status, answer) = asking.await.unwrap();
    let code = |i: usize| answer["response"][i]["retcode"].as_u64();
    assert_eq!((status, code(0), code(1)), (200, Some(0x0404), Some(0x0200)), "{answer}");
}

#[tokio::test]
async fn the_digest_is_of_what_stands_in_etcd() {
    let cluster = lively().start().await;
    let (api, etcd) = (cluster.api(), cluster.etcd());
    apply(&api, json!({"name": "good", "cmd": "true"})).await;
    wait_holders(&cluster, "good", &[A]).await;
    etcd.ctl(&["put", &format!("/cron/jobs/{A}/bad"), "no json"]).await.ok();
    etcd.ctl(&["put", &format!("/cron/jobs/{A}/"), r#"{"cmd":"true","task_id":"old"}"#]).await.ok();
    let prefix = format!("/cron/jobs/{A}/");
    let mut want = Digest::default();
    for rest in ["good", "bad", ""] {
        let key = format!("{prefix}{rest}");
        let value = etcd.ctl(&["get", &key, "--print-value-only"]).await;
        let value = value.ok().strip_suffix('\n').unwrap();
        want.add(digest::pair(rest, value.as_bytes()));
    }
    eventually(secs(60), format!("the health record has {want}"), async || {
        let health = etcd.ctl(&["get", &format!("/agent/health/{A}"), "--print-value-only"]).await;
        let digest = health.json()["digest"].clone();
        if digest == want.to_string() { Ok(()) } else { Err(digest.to_string()) }
    })
    .await;
}
