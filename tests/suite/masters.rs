//! Two masters: either serves, one leads, and the other takes its place.

use crate::fleet::{Evidence, SOON, apply, quick, runs, seconds, wait_runs, wait_session};
use jiff::Timestamp;
use meepo_tests::{Api, Cluster, Output, Process, Spec, binary, eventually, run, secs};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Instant};

/// The numbers of the leader and of the other one.
async fn roles(cluster: &Cluster) -> (usize, usize) {
    let out = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await;
    let leader = out.json();
    let leads = |i: usize| leader["http"] == cluster.master(i).api().base();
    assert!(leads(0) != leads(1), "{leader}");
    if leads(0) { (0, 1) } else { (1, 0) }
}

fn cli_spec(cluster: &Cluster, name: &str, api: &Api, args: &[&str]) -> Spec {
    let mut spec = Spec::new(name, binary("meepo"), args, cluster.dir());
    spec.env.push(("MEEPO_MASTER".into(), api.base().into()));
    spec.split_output = true;
    spec
}

async fn cli(cluster: &Cluster, name: &str, api: &Api, args: &[&str]) -> Output {
    run(cli_spec(cluster, name, api, args)).await
}

/// A command on a node, under way; its run and the answer that still comes.
async fn begun(api: &Api, node: &str, cmd: &str) -> (String, reqwest::Response) {
    let url = format!("{}/v1/exec/stream", api.base());
    let body = json!({"target": node, "cmd": cmd});
    let mut answer = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
    let first = answer.chunk().await.unwrap().unwrap();
    let line = first.split(|b| *b == b'\n').next().unwrap();
    let start: Value = serde_json::from_slice(line).unwrap();
    (start["hosts"][0]["run_id"].as_str().unwrap().to_owned(), answer)
}

#[tokio::test]
async fn any_master_ends_a_command_before_anybody_has_been_told_of_it() {
    let cluster = Cluster::builder().masters(2).start().await;
    let (leader, follower) = roles(&cluster).await;
    let (leader, follower) = (cluster.master(leader).api(), cluster.master(follower).api());
    wait_session(&leader, "127.0.0.2").await;
    for api in [&leader, &follower] {
        let (run, answer) = begun(&leader, "127.0.0.2", "sleep 600").await;
        let (status, body) = api.post(&format!("/v1/runs/{run}/kill"), json!({})).await;
        assert_eq!((status, &body["node"]), (202, &json!("127.0.0.2")), "{body}");
        let rest = answer.text().await.unwrap();
        assert!(
            rest.contains(r#""state":"killed""#) || rest.contains("killed on request"),
            "{rest}"
        );
        // What nobody ever heard of is not found, also where it might just have begun.
        let unknown = format!("/v1/runs/{}/kill", uuid::Uuid::now_v7());
        assert_eq!(api.post(&unknown, json!({})).await.0, 404);
    }
}

#[tokio::test]
async fn a_follower_serves_everything() {
    let cluster = Cluster::builder().masters(2).workers(2).start().await;
    let (leader, follower) = roles(&cluster).await;
    let (leader, api) = (cluster.master(leader).api(), cluster.master(follower).api());
    for node in ["127.0.0.2", "127.0.0.3"] {
        wait_session(&leader, node).await;
    }
    let out = cli(&cluster, "run", &api, &["run", "-t", "all", "--", "echo $MEEPO_NODE"]).await;
    for node in ["127.0.0.2", "127.0.0.3"] {
        assert!(out.ok().contains(node), "{out:?}");
    }
    let failing = cli(&cluster, "fails", &api, &["run", "-t", "all", "--", "exit 3"]).await;
    assert_ne!(failing.code, 0);
    let absent = cli(&cluster, "absent", &api, &["run", "-t", "10.9.8.7", "--", "true"]).await;
    assert_ne!(absent.code, 0);

    // What is applied at one is seen at the other.
    apply(&api, json!({"name": "tick", "cmd": "date", "schedule": "* * * * * *"})).await;
    assert_eq!(leader.get("/v1/jobs/tick").await.0, 200);
    wait_runs(&api, "job=tick&state=success", 2).await;

    // Live output goes through the leader: it is seen while the run goes on.
    let gate = cluster.dir().join("gate");
    let cmd =
        format!("echo begun; until [ -e {} ]; do sleep 0.05; done; echo done", gate.display());
    apply(&api, json!({"name": "slow", "cmd": cmd, "target": "127.0.0.3"})).await;
    let (_, triggered) = api.post("/v1/jobs/slow/trigger", json!({})).await;
    let id = triggered["runs"][0]["run_id"].as_str().unwrap();
    let follow = Process::start(cli_spec(&cluster, "follow", &api, &["logs", id, "-f"]));
    eventually(SOON, "output is shown while it runs", async || {
        let shown = follow.stdout();
        if shown.contains("begun") { Ok(()) } else { Err(format!("{shown:?} {}", follow.log())) }
    })
    .await;
    assert!(follow.is_running());
    std::fs::write(&gate, "").unwrap();
    assert!(follow.wait_exit(SOON).await.success());
    assert!(follow.stdout().contains("done"));

    // And a run is ended from there.
    let (_, triggered) = {
        std::fs::remove_file(&gate).unwrap();
        api.post("/v1/jobs/slow/trigger", json!({})).await
    };
    let id = triggered["runs"][0]["run_id"].as_str().unwrap();
    wait_runs(&api, "job=slow&state=running", 1).await;
    cli(&cluster, "kill", &api, &["kill", id]).await.ok();
    let killed = wait_runs(&api, "job=slow&state=killed", 1).await;
    assert_eq!(killed[0]["run_id"], id);
}

#[tokio::test]
async fn another_leads_when_the_leader_dies_and_nothing_is_lost() {
    let cluster = quick().masters(2).workers(2).start().await;
    let ticks = Evidence::new(cluster.dir(), "ticks");
    let (leader, follower) = roles(&cluster).await;
    let api = cluster.master(follower).api();
    apply(
        &api,
        json!({"name": "ticks", "cmd": ticks.cmd(), "schedule": "* * * * * *",
        "concurrency": "allow"}),
    )
    .await;
    let first = ticks.wait(4, |_| true).await.iter().map(|m| m.slot).max().unwrap();
    wait_session(&api, "127.0.0.2").await;

    cluster.master(leader).process().kill9();
    let died = Instant::now();
    // Accepted while nobody leads: kept.
    apply(&api, json!({"name": "between", "cmd": "echo kept", "target": "127.0.0.3"})).await;
    let (status, triggered) = api.post("/v1/jobs/between/trigger", json!({})).await;
    assert_eq!(status, 202, "{triggered}");
    let second = cluster.master(follower).process();
    eventually(SOON, "the other leads", async || {
        let out = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await;
        let leader: Value = serde_json::from_str(out.ok()).unwrap_or_default();
        if leader["http"] == api.base() { Ok(()) } else { Err(leader.to_string()) }
    })
    .await;
    let took = died.elapsed();
    assert!(took < secs(10), "a lease of two seconds, and {took:?} until another led");
    second.wait_log("this master leads", SOON).await;
    for node in ["127.0.0.2", "127.0.0.3"] {
        wait_session(&api, node).await;
    }
    let out = cli(&cluster, "run", &api, &["run", "-t", "all", "--", "echo again"]).await;
    assert!(out.ok().contains("again"));
    assert_eq!(wait_runs(&api, "job=between&state=success", 1).await.len(), 1);

    // The old one comes back and follows; then the leader goes in order, and it leads.
    cluster.master(leader).process().restart();
    cluster.master(leader).wait_ready().await;
    assert_eq!(roles(&cluster).await, (follower, leader));
    second.term();
    assert!(second.wait_exit(SOON).await.success());
    let api = cluster.master(leader).api();
    wait_session(&api, "127.0.0.2").await;
    let back = Timestamp::now();
    let upto = ticks.wait(4, |m| m.slot > back).await.iter().map(|m| m.slot).min().unwrap();

    // No slot was lost or ran twice by the changes, and all is recorded.
    ticks.distinct(false);
    let all = seconds(first, upto);
    for node in ["127.0.0.2", "127.0.0.3"] {
        let ran: BTreeSet<Timestamp> =
            ticks.marks().iter().filter(|m| m.node == node).map(|m| m.slot).collect();
        assert_eq!(all.difference(&ran).collect::<Vec<_>>(), Vec::<&Timestamp>::new());
        let query = format!("job=ticks&state=success&node={node}");
        eventually(SOON, "every run has arrived", async || {
            let found: BTreeSet<Timestamp> = runs(&api, &query)
                .await
                .iter()
                .map(|r| r["slot"].as_str().unwrap().parse().unwrap())
                .collect();
            let missing: Vec<_> = all.difference(&found).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        })
        .await;
    }
}
