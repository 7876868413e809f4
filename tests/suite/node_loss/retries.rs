//! Further attempts of runs that are repeated elsewhere: the slot is one node's at a time.

use super::wait_no_keys;
use crate::fleet::{SOON, apply, quick, runs, wait_runs};
use meepo_tests::{Cluster, eventually};
use serde_json::{Value, json};

const FIRST: &str = "127.0.0.2";
const OTHER: &str = "127.0.0.3";

/// A job whose first attempt fails; each attempt is a line.
struct Failing<'a>(&'a Cluster, &'a str);

impl Failing<'_> {
    async fn apply(&self, delay: &str, target: &str) {
        let file = self.0.dir().join(self.1);
        let cmd = format!(
            "echo $MEEPO_NODE $MEEPO_ATTEMPT >> {}; [ $MEEPO_ATTEMPT -gt 1 ]",
            file.display()
        );
        let spec = json!({"name": self.1, "cmd": cmd, "schedule": "* * * * * *", "max_runs": 1,
            "target": target, "placement": "once", "on_node_loss": "rerun",
            "retry": {"max": 3, "delay": delay, "backoff": "fixed"}});
        apply(&self.0.api(), spec).await;
    }

    /// Node and attempt of each beginning.
    fn begun(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.dir().join(self.1)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Lets the first worker die when the end of the first attempt, and with it the promise
    /// of the next, is on its disk and nobody has been told.
    async fn die(&self, delay: &str) {
        let worker = self.0.worker(0).process();
        worker.restart_with(&[("MEEPO_FAILPOINT", &format!("ended:{}", self.1))]);
        worker.wait_log("registered", SOON).await;
        self.apply(delay, FIRST).await;
        worker.wait_exit(SOON).await;
        assert_eq!(self.begun(), [format!("{FIRST} 1")]);
    }

    /// The runs, as attempt, node and state.
    async fn told(&self) -> Vec<(u64, String, String)> {
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let of = |r: &Value| (r["attempt"].as_u64().unwrap(), text(&r["node"]), text(&r["state"]));
        let found = runs(&self.0.api(), &format!("job={}", self.1)).await;
        let mut told: Vec<_> = found.iter().map(of).collect();
        told.sort();
        told
    }
}

fn run(attempt: u64, node: &str, state: &str) -> (u64, String, String) {
    (attempt, node.to_owned(), state.to_owned())
}

#[tokio::test]
async fn a_promise_whose_slot_went_to_another_node_is_not_kept_twice() {
    let cluster = quick().workers(2).start().await;
    let job = Failing(&cluster, "gone");
    job.die("1s").await;
    job.apply("1s", "all").await;
    wait_runs(&cluster.api(), "job=gone&state=success", 1).await;
    // The node is back, and has the promise of a further attempt on its disk.
    cluster.worker(0).process().restart();
    let skipped = wait_runs(&cluster.api(), "job=gone&state=skipped", 1).await;
    assert!(skipped[0]["message"].as_str().unwrap().contains("left to others"), "{skipped:?}");
    wait_runs(&cluster.api(), "job=gone&state=failed", 1).await;
    wait_no_keys(&cluster).await;
    let want = [run(1, FIRST, "failed"), run(2, FIRST, "skipped"), run(2, OTHER, "success")];
    assert_eq!(job.told().await, want);
    assert_eq!(job.begun(), [format!("{FIRST} 1"), format!("{OTHER} 2")]);
}

#[tokio::test]
async fn a_promise_is_kept_once_by_a_worker_that_is_back_before_anybody_takes_its_slot() {
    // The usual lease: no busy machine takes so long to be back that the leader acts.
    let cluster = Cluster::builder().workers(2).start().await;
    for (name, without_etcd) in [("at-once", false), ("no-answer", true)] {
        let job = Failing(&cluster, name);
        job.die("1s").await;
        job.apply("1s", "all").await;
        let worker = cluster.worker(0).process();
        if without_etcd {
            // It begins its next life without an answer to who has the slot.
            cluster.member(0).process().kill9();
            worker.restart();
            worker.wait_log("cannot get a lease from etcd", SOON).await;
            cluster.member(0).process().restart();
        } else {
            worker.restart();
        }
        wait_runs(&cluster.api(), &format!("job={name}&state=success"), 1).await;
        wait_no_keys(&cluster).await;
        assert_eq!(job.told().await, [run(1, FIRST, "failed"), run(2, FIRST, "success")]);
        assert_eq!(job.begun(), [format!("{FIRST} 1"), format!("{FIRST} 2")]);
    }
}

#[tokio::test]
async fn a_further_attempt_that_waits_on_a_lost_node_is_made_elsewhere() {
    let cluster = quick().workers(2).start().await;
    let job = Failing(&cluster, "waiting");
    job.apply("1h", FIRST).await;
    eventually(SOON, "the key is the next attempt's", async || {
        let out = cluster.etcd().ctl(&["get", "--prefix", "/meepo/rerun/"]).await;
        let next = out.stdout.contains(r#""attempt":2"#);
        if next { Ok(()) } else { Err(out.stdout) }
    })
    .await;
    job.apply("1h", "all").await;
    cluster.worker(0).process().kill9();
    wait_runs(&cluster.api(), "job=waiting&state=success", 1).await;
    cluster.worker(0).process().restart();
    cluster.wait_online(0).await;
    wait_no_keys(&cluster).await;
    assert_eq!(job.begun(), [format!("{FIRST} 1"), format!("{OTHER} 3")]);
}
