//! Draining a node: what runs ends, nothing new begins, and nothing is forgotten.

use crate::fleet::{
    Evidence, SOON, alive, apply, clock_past, quick, runs, wait_gone, wait_runs, wait_session,
};
use jiff::{SignedDuration, Timestamp};
use meepo_proto::v1::{DrainRequest, NodeName, nodes_client::NodesClient};
use meepo_tests::{Api, Cluster, Process, Spec, binary, eventually, run, secs};
use serde_json::{Value, json};

const NODE: &str = "127.0.0.2";

/// A job that runs until `name.go` is there.
async fn gated(cluster: &Cluster, name: &str) -> String {
    let file = cluster.dir().join(name);
    let cmd =
        format!("echo $$ > {0}.pid; while [ ! -e {0}.go ]; do sleep 0.05; done", file.display());
    apply(&cluster.api(), json!({"name": name, "cmd": cmd, "target": NODE})).await;
    let run = trigger(&cluster.api(), name).await;
    wait_runs(&cluster.api(), &format!("job={name}&state=running"), 1).await;
    run
}

async fn trigger(api: &Api, job: &str) -> String {
    let (status, triggered) = api.post(&format!("/v1/jobs/{job}/trigger"), json!({})).await;
    assert_eq!(status, 202, "{triggered}");
    triggered["runs"][0]["run_id"].as_str().unwrap().to_owned()
}

async fn wait_state(api: &Api, state: &str) -> Value {
    eventually(SOON, format!("the node is {state}"), async || {
        let (_, node) = api.get(&format!("/v1/nodes/{NODE}")).await;
        if node["drain"]["state"] == state { Ok(node) } else { Err(node["drain"].to_string()) }
    })
    .await
}

/// Nothing of a job begins on the node in two seconds.
async fn nothing_begins(ticks: &Evidence) {
    let now = Timestamp::now();
    clock_past(now + SignedDuration::from_secs(2)).await;
    let late: Vec<_> =
        ticks.marks().into_iter().filter(|m| m.node == NODE && m.slot > now).collect();
    assert_eq!(late, []);
}

#[tokio::test]
async fn a_drained_node_ends_what_runs_and_takes_nothing_new() {
    let cluster = quick().workers(2).start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).process());
    let (ticks, once) =
        (Evidence::new(cluster.dir(), "ticks"), Evidence::new(cluster.dir(), "once"));
    let every_second = |name, cmd: &Evidence, placement| json!({"name": name, "cmd": cmd.cmd(), "schedule": "* * * * * *", "placement": placement});
    apply(&api, every_second("ticks", &ticks, "each")).await;
    apply(&api, every_second("once", &once, "once")).await;
    let long = gated(&cluster, "long").await;
    wait_session(&api, NODE).await;
    ticks.wait(1, |m| m.node == NODE).await;

    let out = cluster.cli(&["node", "drain", NODE]).await;
    assert!(out.ok().contains("takes nothing new"), "{out:?}");
    let node = wait_state(&api, "draining").await;
    assert!(node["online"] == true && node["work"]["running"].as_u64() >= Some(1), "{node}");
    let since: Timestamp = node["drain"]["requested_at"].as_str().unwrap().parse().unwrap();
    let shown = cluster.cli(&["node", "list"]).await;
    assert!(shown.ok().contains("draining"), "{shown:?}");
    let health =
        cluster.etcd().ctl(&["get", "/agent/health/127.0.0.2", "--print-value-only"]).await;
    assert_eq!(health.json()["status"], "Draining");
    let (_, metrics) = cluster.worker(0).metrics().get("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("meepo_worker_drained 1\n"), "{metrics}");
    // Commands are refused in clear words, by this node only.
    let body = json!({"id": "1", "hosts": [NODE, "127.0.0.3"], "method": "sync.sh", "cmd": "true"});
    let (_, answer) = api.post("/v1/exec", body).await;
    let answers = &answer["response"];
    assert_eq!(
        (&answers[0]["retcode"], &answers[1]["retcode"]),
        (&json!(0x0405), &json!(0)),
        "{answer}"
    );
    assert!(answers[0]["message"].as_str().unwrap().contains("drained"), "{answer}");
    // Requests wait; the job that runs once goes on elsewhere; a second request for what
    // runs is kept as well.
    let asked = trigger(&api, "long").await;
    let now = Timestamp::now();
    once.wait(2, |m| m.slot > now && m.node == "127.0.0.3").await;
    nothing_begins(&ticks).await;
    assert_eq!(runs(&api, "job=long").await.len(), 1);

    // What runs may end, and then the node is drained.
    let waiting = cluster.cli_start(&["node", "drain", NODE, "--wait"]);
    wait_state(&api, "draining").await;
    assert!(waiting.is_running(), "{}", waiting.log());
    std::fs::write(cluster.dir().join("long.go"), "").unwrap();
    assert!(waiting.wait_exit(SOON).await.success(), "{}", waiting.log());
    let ended = wait_runs(&api, "job=long&state=success", 1).await;
    assert_eq!(ended[0]["run_id"], long);
    wait_state(&api, "drained").await;

    // It stays so over a restart, also when etcd is away: its jobs are known, and rest.
    cluster.member(0).process().stop();
    worker.restart();
    worker.wait_log("going on with the last known jobs", SOON).await;
    nothing_begins(&ticks).await;
    cluster.member(0).process().cont();
    cluster.wait_online(0).await;
    wait_state(&api, "drained").await;
    nothing_begins(&ticks).await;

    // Undrained, it says what it missed and does what was asked of it.
    let mut client = NodesClient::connect(cluster.master(0).grpc_url()).await.unwrap();
    let node = client.undrain(NodeName { id: NODE.into() }).await.unwrap().into_inner();
    assert!(node.drain.is_none(), "{node:?}");
    let back = Timestamp::now();
    ticks.wait(1, |m| m.node == NODE && m.slot > back).await;
    let done = wait_runs(&api, "job=long&state=success", 2).await;
    assert!(done.iter().any(|r| r["run_id"] == asked.as_str()), "{done:?}");
    let query = format!("job=ticks&node={NODE}&state=missed&since={}", since + secs(1));
    let missed = wait_runs(&api, &query, 1).await;
    let said =
        missed.iter().filter(|r| r["message"].as_str().is_some_and(|m| m.contains("drained")));
    assert!(said.count() > 0, "{missed:?}");
    ticks.distinct(false);
    once.distinct(true);
}

#[tokio::test]
async fn at_the_deadline_what_runs_still_is_killed() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let run = gated(&cluster, "stubborn").await;
    let pid = std::fs::read_to_string(cluster.dir().join("stubborn.pid")).unwrap();
    let mut client = NodesClient::connect(cluster.master(0).grpc_url()).await.unwrap();
    let soon = DrainRequest { id: NODE.into(), deadline: "soon".into() };
    assert_eq!(client.drain(soon).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let hour = DrainRequest { id: NODE.into(), deadline: "1h".into() };
    assert!(client.drain(hour).await.unwrap().into_inner().drain.unwrap().deadline.is_some());
    let node = wait_state(&api, "draining").await;
    assert!(node["drain"]["deadline"].is_string(), "{node}");
    // Asked again, the new deadline counts.
    let out = cluster.cli(&["node", "drain", NODE, "--deadline", "1s", "--wait"]).await;
    assert!(out.ok().contains("is drained"), "{out:?}");
    wait_gone(pid.trim().parse().unwrap()).await;
    let killed = wait_runs(&api, "job=stubborn&state=killed", 1).await;
    assert_eq!((&killed[0]["run_id"], &killed[0]["code"]), (&json!(run), &json!(0x0405)));
    assert!(killed[0]["message"].as_str().unwrap().contains("drain"), "{killed:?}");
    let unknown = cluster.cli(&["node", "drain", "10.9.9.9"]).await;
    assert_eq!(unknown.code, 3, "{unknown:?}");
    assert_eq!(cluster.cli(&["node", "undrain", NODE]).await.code, 0);
    assert_eq!(cluster.cli(&["run", "-t", NODE, "--", "true"]).await.code, 0);
}

#[tokio::test]
async fn a_worker_that_is_stopped_may_let_its_runs_end() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    let ticks = Evidence::new(cluster.dir(), "ticks");
    let spec =
        json!({"name": "ticks", "cmd": ticks.cmd(), "schedule": "* * * * * *", "target": NODE});
    apply(&api, spec).await;
    let long = gated(&cluster, "long").await;
    let worker = cluster.worker(0).process();
    let args = &worker.spec().args;
    let data = &args[args.iter().position(|a| a == "--data-dir").unwrap() + 1];
    let stop = |name: &str, drain: &str| {
        let args = ["stop", "--data-dir", data, "--drain", drain];
        Spec::new(name, binary("meepo-worker"), &args, cluster.dir())
    };
    let stopping = Process::start(stop("stop", "1h"));
    wait_state(&api, "draining").await;
    nothing_begins(&ticks).await;
    assert!(worker.is_running() && stopping.is_running());
    std::fs::write(cluster.dir().join("long.go"), "").unwrap();
    assert!(stopping.wait_exit(SOON).await.success(), "{}", stopping.log());
    assert!(worker.wait_exit(SOON).await.success());
    let ended = wait_runs(&api, "job=long&state=success", 1).await;
    assert_eq!(ended[0]["run_id"], long);
    // The next life takes work again. Its drain ends at the deadline, or by a signal.
    worker.restart();
    cluster.wait_online(0).await;
    let back = Timestamp::now();
    ticks.wait(1, |m| m.slot > back).await;
    std::fs::remove_file(cluster.dir().join("long.go")).unwrap();
    trigger(&api, "long").await;
    wait_runs(&api, "job=long&state=running", 1).await;
    let stopped = run(stop("stop-late", "300ms")).await;
    assert_eq!(stopped.code, 0, "{stopped:?}");
    let killed = wait_runs(&api, "job=long&state=killed", 1).await;
    assert_eq!(killed[0]["code"], 0x0106, "{killed:?}");
    worker.restart();
    cluster.wait_online(0).await;
    trigger(&api, "long").await;
    let pid = wait_runs(&api, "job=long&state=running", 1).await[0]["pid"].as_u64().unwrap();
    let stopping = Process::start(stop("stop-signal", "1h"));
    wait_state(&api, "draining").await;
    assert!(alive(pid) && worker.is_running());
    worker.term();
    assert!(worker.wait_exit(secs(30)).await.success());
    assert!(stopping.wait_exit(SOON).await.success(), "{}", stopping.log());
    wait_gone(pid).await;
}
