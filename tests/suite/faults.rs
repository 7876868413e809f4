//! What breaks, and what holds all the same.

use crate::fleet::{
    Evidence, SOON, alive, apply, clock_past, quick, runs, seconds, wait_gone, wait_runs,
    wait_session,
};
use jiff::{SignedDuration, Timestamp};
use meepo_tests::{Api, Cluster, Logs, eventually, secs};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Instant};

fn at(run: &Value) -> Timestamp {
    run["slot"].as_str().unwrap().parse().unwrap()
}

/// The job `ticks`. Late slots start together: none may be skipped for another.
fn every_second(cmd: &str) -> Value {
    json!({"name": "ticks", "cmd": cmd, "schedule": "* * * * * *", "concurrency": "allow"})
}

/// Triggers a job of one node that sleeps, and waits until the log store says that it runs;
/// answers the run and its pid.
async fn start_sleeper(cluster: &Cluster, node: &str) -> (String, u64) {
    let (run, pid) = just_started(cluster, "sleeper", node).await;
    wait_runs(&cluster.api(), "job=sleeper&state=running", 1).await;
    (run, pid)
}

/// The same as soon as it has written its pid into a file.
async fn just_started(cluster: &Cluster, name: &str, node: &str) -> (String, u64) {
    let api = cluster.api();
    let file = cluster.dir().join(format!("{name}.pid"));
    let cmd = format!("echo $$ > {0}.new && mv {0}.new {0}; sleep 600", file.display());
    apply(&api, json!({"name": name, "cmd": cmd, "target": node})).await;
    let (status, triggered) = api.post(&format!("/v1/jobs/{name}/trigger"), json!({})).await;
    assert_eq!(status, 202, "{triggered}");
    let run = triggered["runs"][0]["run_id"].as_str().unwrap().to_owned();
    let pid = eventually(SOON, "it runs", async || {
        let text = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
        text.trim().parse().map_err(|_| text)
    })
    .await;
    (run, pid)
}

#[tokio::test]
async fn a_worker_that_crashed_kills_what_it_left_and_runs_no_slot_twice() {
    let cluster = Cluster::builder().start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).process());
    let ticks = Evidence::new(cluster.dir(), "ticks");
    apply(&api, every_second(&ticks.cmd())).await;
    let (run, pid) = start_sleeper(&cluster, "127.0.0.2").await;
    let first = ticks.wait(2, |_| true).await[0].slot;
    // This one the worker has most likely not noted yet: its environment tells.
    let (new_run, new_pid) = just_started(&cluster, "fresh", "127.0.0.2").await;
    worker.kill9();
    let died = Timestamp::now();
    assert!(alive(pid) && alive(new_pid), "a crash leaves what it started");
    // Two slots pass meanwhile; they are late, but not too late to be run.
    clock_past(died + SignedDuration::from_secs(2)).await;
    worker.restart();
    wait_gone(pid).await;
    wait_gone(new_pid).await;
    let lost = wait_runs(&api, "job=fresh&state=lost", 1).await;
    assert_eq!((&lost[0]["run_id"], &lost[0]["code"]), (&json!(new_run), &json!(0x0203)));
    let lost = wait_runs(&api, "job=sleeper&state=lost", 1).await;
    assert_eq!((&lost[0]["run_id"], &lost[0]["code"]), (&json!(run), &json!(0x0203)));
    assert_eq!(lost[0]["pid"], pid);
    let back = Timestamp::now();
    let upto = ticks.wait(2, |m| m.slot > back).await[1].slot;
    // Each slot ran once; one that was begun at the crash may have been cut off.
    let ran = ticks.distinct(false);
    let missing: Vec<Timestamp> = seconds(first, upto).difference(&ran).copied().collect();
    let cut: BTreeSet<Timestamp> =
        runs(&api, "job=ticks&state=lost").await.iter().map(at).collect();
    assert!(missing.len() <= 1 && missing.iter().all(|s| cut.contains(s)), "{missing:?} {cut:?}");
}

#[tokio::test]
async fn runs_of_a_node_that_is_gone_are_lost() {
    let cluster = quick().workers(2).start().await;
    let api = cluster.api();
    let (run, _) = start_sleeper(&cluster, "127.0.0.3").await;
    cluster.worker(1).process().kill9();
    let lost = wait_runs(&api, "job=sleeper&state=lost", 1).await;
    assert_eq!((&lost[0]["run_id"], &lost[0]["code"]), (&json!(run), &json!(0x0203)));
    assert!(lost[0]["message"].as_str().is_some_and(|m| m.contains("vanished")), "{lost:?}");
    let (_, node) = api.get("/v1/nodes/127.0.0.3").await;
    assert_eq!(node["online"], false);
    // A command for it is answered as what it is: known, but away.
    let out = cluster.cli(&["run", "-t", "127.0.0.3", "--", "true"]).await;
    assert!(out.code != 0 && format!("{out:?}").contains("not connected"), "{out:?}");
    assert_eq!(cluster.cli(&["run", "-t", "127.0.0.2", "--", "echo here"]).await.code, 0);
}

#[tokio::test]
async fn slots_missed_while_a_worker_was_away_follow_the_policy() {
    let cluster = Cluster::builder().start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).process());
    // Three seconds of each minute that are to come soon.
    let first = Timestamp::now() + SignedDuration::from_secs(4);
    let slots: Vec<Timestamp> =
        (0..3).map(|n| Timestamp::from_second(first.as_second() + n).unwrap()).collect();
    let list: Vec<String> = slots.iter().map(|s| (s.as_second() % 60).to_string()).collect();
    let schedule = format!("{} * * * * *", list.join(","));
    let policies = ["skip", "once", "all"];
    for policy in policies {
        let spec = json!({"name": policy, "cmd": "date", "schedule": schedule, "misfire": policy});
        apply(&api, spec).await;
    }
    eventually(SOON, "the worker holds them", async || {
        let (_, node) = api.get("/v1/nodes/127.0.0.2").await;
        if node["jobs"] == 3 { Ok(()) } else { Err(node.to_string()) }
    })
    .await;
    worker.kill9();
    assert!(Timestamp::now() < slots[0], "this machine is too slow for this test");
    // Ten seconds late is on time still; later is missed.
    clock_past(slots[2] + SignedDuration::from_secs(11)).await;
    worker.restart();
    let expected = [(3, 0), (2, 1), (0, 3)];
    for (policy, (missed, made_up)) in policies.into_iter().zip(expected) {
        let query = format!("job={policy}&state=success,missed&until={}", slots[2] + secs(1));
        let found = wait_runs(&api, &query, 3).await;
        let of = |state: &str| -> Vec<Timestamp> {
            let mut all: Vec<_> = found.iter().filter(|r| r["state"] == state).map(at).collect();
            all.sort();
            all
        };
        assert_eq!(of("missed"), slots[..missed], "{policy}: {found:?}");
        assert_eq!(of("success"), slots[3 - made_up..], "{policy}");
        for run in &found {
            let (code, cause) = match run["state"].as_str() {
                Some("missed") => (0x0204, "schedule"),
                _ => (0, "misfire"),
            };
            assert_eq!((&run["code"], &run["cause"]), (&json!(code), &json!(cause)), "{run}");
        }
    }
}

/// An answer of the API during an outage, with the time it took.
async fn refused(api: &Api, method: &str, path: &str, body: Option<&Value>) {
    let asked = Instant::now();
    let (status, answer) = api.http(method, path, body).await;
    let took = asked.elapsed();
    assert_eq!((status, &answer["error"]["retry"]), (503, &json!(true)), "{path}: {answer}");
    assert_eq!(answer["error"]["name"], "etcd", "{answer}");
    assert!(took < secs(10), "{path} took {took:?}");
}

#[tokio::test]
async fn without_etcd_jobs_go_on_and_the_api_says_so() {
    let cluster = Cluster::builder().start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).process());
    let etcd = cluster.member(0);
    let ticks = Evidence::new(cluster.dir(), "ticks");
    apply(&api, every_second(&ticks.cmd())).await;
    let first = ticks.wait(1, |_| true).await[0].slot;

    // Silent first, then gone.
    etcd.process().stop();
    let (job, empty) = (json!({"name": "new", "cmd": "date"}), json!({}));
    tokio::join!(
        refused(&api, "GET", "/v1/jobs", None),
        refused(&api, "GET", "/v1/nodes", None),
        refused(&api, "POST", "/v1/jobs", Some(&job)),
        refused(&api, "POST", "/v1/jobs/ticks/trigger", Some(&empty)),
    );
    etcd.process().kill9();
    tokio::join!(
        refused(&api, "GET", "/v1/jobs/ticks", None),
        refused(&api, "DELETE", "/v1/jobs/ticks", None),
    );
    assert_eq!(api.get("/healthz").await.0, 200);
    assert_eq!(api.get("/readyz").await.0, 503);
    let cli = cluster.cli(&["job", "list"]).await;
    assert!(cli.code != 0 && cli.stderr.contains("etcd"), "{cli:?}");
    let now = Timestamp::now();
    ticks.wait(2, |m| m.slot > now).await;

    // Also with a worker that starts anew: from what it remembers.
    worker.restart();
    let restarted = Timestamp::now();
    worker.wait_log("going on with the last known jobs", SOON).await;
    ticks.wait(3, |m| m.slot > restarted).await;

    etcd.process().restart();
    etcd.wait_ready().await;
    cluster.wait_online(0).await;
    let back = Timestamp::now();
    let upto = ticks.wait(2, |m| m.slot > back).await[1].slot;
    eventually(SOON, "the API serves again", async || {
        let (status, body) = api.http("POST", "/v1/jobs", Some(&job)).await;
        if status < 300 { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    // Every slot ran once, and every run arrives; one may have been cut off.
    let ran = ticks.distinct(false);
    let query = format!("job=ticks&until={}", upto + secs(1));
    let all = seconds(first, upto);
    let recorded = eventually(SOON, "a final record of every slot is there", async || {
        let found = runs(&api, &query).await;
        let done: BTreeSet<Timestamp> =
            found.iter().filter(|r| r["state"] != "running").map(at).collect();
        let missing: Vec<_> = all.difference(&done).collect();
        if missing.is_empty() { Ok(found) } else { Err(format!("{missing:?}")) }
    })
    .await;
    let mut slots: Vec<Timestamp> = recorded.iter().map(at).collect();
    slots.sort();
    assert!(slots.is_sorted_by(|a, b| a < b), "a slot is recorded twice: {slots:?}");
    for run in recorded.iter().filter(|r| !ran.contains(&at(r))) {
        assert!(run["state"] == "lost", "{run}");
    }
}

#[tokio::test]
async fn a_master_that_crashed_has_its_sessions_back() {
    let cluster = quick().start().await;
    let (api, master) = (cluster.api(), cluster.master(0));
    wait_session(&api, "127.0.0.2").await;
    let ticks = Evidence::new(cluster.dir(), "ticks");
    apply(&api, every_second(&ticks.cmd())).await;
    let first = ticks.wait(1, |_| true).await[0].slot;
    for _ in 0..2 {
        master.process().kill9();
        let now = Timestamp::now();
        ticks.wait(2, |m| m.slot > now).await;
        master.process().restart();
        master.wait_ready().await;
        wait_session(&api, "127.0.0.2").await;
        let out = cluster.cli(&["run", "-t", "all", "--", "echo back"]).await;
        assert!(out.ok().contains("back"), "{out:?}");
    }
    let upto = *ticks.distinct(false).last().unwrap();
    let all = seconds(first, upto);
    eventually(SOON, "every run has arrived", async || {
        let done: BTreeSet<Timestamp> =
            runs(&api, "job=ticks&state=success").await.iter().map(at).collect();
        let missing: Vec<_> = all.difference(&done).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_log_store_that_is_away_stops_no_job_and_loses_no_record() {
    let cluster = Cluster::builder().logs(Logs::OwnMongo).start().await;
    let (api, mongo) = (cluster.api(), cluster.mongo());
    let ticks = Evidence::new(cluster.dir(), "ticks");
    let cmd = format!("{}; echo slot $MEEPO_SLOT", ticks.cmd());
    apply(&api, every_second(&cmd)).await;
    wait_runs(&api, "job=ticks&state=success", 1).await;
    let first = ticks.marks()[0].slot;
    mongo.kill();
    let gone = Timestamp::now();
    ticks.wait(3, |m| m.slot > gone).await;
    let (status, body) = api.get("/v1/runs").await;
    assert_eq!((status, &body["error"]["name"]), (503, &json!("log_store")), "{body}");
    assert_eq!(body["error"]["retry"], true);
    // Jobs are changed and run without it.
    let (status, _) = api.get("/v1/jobs/ticks").await;
    assert_eq!(status, 200);
    mongo.restart().await;
    let back = Timestamp::now();
    let upto = ticks.wait(2, |m| m.slot > back).await[1].slot;
    let all = seconds(first, upto);
    let query = format!("job=ticks&state=success&until={}", upto + secs(1));
    let found = eventually(SOON, "every run has arrived", async || {
        let found = runs(&api, &query).await;
        let missing: Vec<_> = all.difference(&found.iter().map(at).collect()).copied().collect();
        if missing.is_empty() { Ok(found) } else { Err(format!("{missing:?}")) }
    })
    .await;
    let distinct: BTreeSet<Timestamp> = found.iter().map(at).collect();
    assert_eq!((found.len(), ticks.distinct(false).is_superset(&distinct)), (distinct.len(), true));
    for run in found {
        let path = format!("/v1/runs/{}/output", run["run_id"].as_str().unwrap());
        let (_, output) = api.get(&path).await;
        let text: String = output["chunks"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|c| c["text"].as_str())
            .collect();
        assert_eq!(text, format!("slot {}\n", run["slot"].as_str().unwrap()));
    }
}
