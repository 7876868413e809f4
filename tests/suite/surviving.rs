//! Runs that survive the end of their worker.

use crate::fleet::{SOON, alive, apply, runs, wait_gone, wait_runs};
use meepo_tests::{Api, Cluster, eventually, secs};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, time::Instant};

/// Kills what a failed test would leave behind: nobody else would.
struct Survivors(Vec<u64>);

impl Drop for Survivors {
    fn drop(&mut self) {
        for pid in self.0.iter().filter(|pid| alive(**pid)) {
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
    }
}

/// Defines a job that survives and runs it; answers the run and its pid.
async fn start(api: &Api, mut spec: Value, survivors: &mut Survivors) -> (String, u64) {
    spec["survive_restart"] = json!(true);
    let name = spec["name"].as_str().unwrap().to_owned();
    apply(api, spec).await;
    let run = trigger(api, &name).await;
    let running = wait_runs(api, &format!("job={name}&state=running"), 1).await;
    let pid = running[0]["pid"].as_u64().unwrap();
    survivors.0.push(pid);
    (run, pid)
}

async fn trigger(api: &Api, job: &str) -> String {
    let (status, triggered) = api.post(&format!("/v1/jobs/{job}/trigger"), json!({})).await;
    assert_eq!(status, 202, "{triggered}");
    triggered["runs"][0]["run_id"].as_str().unwrap().to_owned()
}

/// Waits for the record of a run as `state`.
async fn ended(api: &Api, run: &str, state: &str) -> Value {
    let path = format!("/v1/runs/{run}");
    eventually(SOON, format!("{run} is {state}"), async || {
        let (_, record) = api.get(&path).await;
        if record["state"] == state { Ok(record) } else { Err(record.to_string()) }
    })
    .await
}

fn surviving(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("worker-0-1.data/surviving")
}

/// Waits until nothing is kept of runs that have ended.
async fn wait_swept(cluster: &Cluster) {
    eventually(SOON, "nothing is left of the runs", async || {
        let left: Vec<_> = fs::read_dir(surviving(cluster)).unwrap().flatten().collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_run_goes_on_over_a_crash_and_a_restart_of_its_worker() {
    let cluster = Cluster::builder().start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).process());
    let (mut survivors, gate) = (Survivors(Vec::new()), cluster.dir().join("gate"));
    let script = format!(
        "n=0; until [ -e {} ]; do echo $n; n=$((n+1)); sleep 0.02; done; echo end >&2; exit 5",
        gate.display()
    );
    let (run, pid) = start(&api, json!({"name": "long", "cmd": script}), &mut survivors).await;
    let taken_over = async || {
        worker.wait_log("a run has survived the last life", secs(30)).await;
        cluster.wait_online(0).await;
    };
    worker.kill9();
    assert!(alive(pid));
    worker.restart();
    taken_over().await;
    // It is active for its job.
    let second = trigger(&api, "long").await;
    assert_eq!(ended(&api, &second, "skipped").await["code"], 0x0205);
    worker.term();
    worker.wait_exit(secs(30)).await;
    assert!(alive(pid));
    worker.restart();
    taken_over().await;
    // Who reads along sees what was written before, and what comes.
    let following = cluster.cli_start(&["logs", &run, "-f"]);
    eventually(SOON, "the follower sees the beginning", async || {
        let seen = following.stdout();
        if seen.starts_with("0\n1\n2\n") { Ok(()) } else { Err(seen) }
    })
    .await;
    fs::write(&gate, "").unwrap();
    let record = ended(&api, &run, "failed").await;
    assert_eq!((&record["exit_code"], &record["pid"]), (&json!(5), &json!(pid)), "{record}");
    assert_eq!((&record["code"], &record["dropped_bytes"]), (&json!(0x0101), &json!(0)));
    following.wait_exit(secs(30)).await;
    let output = following.stdout();
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines.len() > 3 && lines.iter().zip(0..).all(|(l, n)| *l == n.to_string()), "{output}");
    let stored = cluster.cli(&["logs", &run]).await;
    assert_eq!((stored.stdout.as_str(), stored.stderr.as_str()), (output.as_str(), "end\n"));
    assert_eq!(record["output_bytes"], output.len() + 4);
    wait_swept(&cluster).await;
    // It is told once, also to the next life.
    worker.term();
    worker.wait_exit(secs(30)).await;
    worker.restart();
    cluster.wait_online(0).await;
    let all = runs(&api, "job=long").await;
    let states: Vec<_> = all.iter().map(|r| r["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["skipped", "failed"]);
}

#[tokio::test]
async fn a_run_without_a_worker_keeps_its_timeout_and_the_next_worker_can_end_it() {
    let cluster = Cluster::builder().start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).process());
    let mut survivors = Survivors(Vec::new());
    let spec = json!({"name": "victim", "cmd": "exec sleep 600"});
    let (victim, victim_pid) = start(&api, spec, &mut survivors).await;
    let spec = json!({"name": "orphan", "cmd": "exec sleep 600"});
    let (orphan, orphan_pid) = start(&api, spec, &mut survivors).await;
    let begun = Instant::now();
    let spec = json!({"name": "slow", "cmd": "exec sleep 600", "timeout": "6s"});
    let (slow, slow_pid) = start(&api, spec, &mut survivors).await;
    worker.kill9();
    assert!(begun.elapsed() < secs(6), "this machine is too slow for this test");
    wait_gone(slow_pid).await;
    assert!(alive(victim_pid) && alive(orphan_pid));
    worker.restart();
    let record = ended(&api, &slow, "timeout").await;
    assert_eq!(record["message"], "ran longer than 6s", "{record}");
    let (status, answer) = api.post(&format!("/v1/runs/{victim}/kill"), json!({})).await;
    assert!(status < 300, "{status} {answer}");
    let record = ended(&api, &victim, "killed").await;
    assert_eq!(record["code"], 0x0103, "{record}");
    // Without its supervisor nobody knows how a run ends: it is ended.
    let lock = fs::read_to_string(surviving(&cluster).join(&orphan).join("lock")).unwrap();
    kill(Pid::from_raw(lock.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    let record = ended(&api, &orphan, "lost").await;
    assert_eq!(record["code"], 0x0203, "{record}");
    wait_gone(orphan_pid).await;
    wait_gone(victim_pid).await;
    wait_swept(&cluster).await;
}
