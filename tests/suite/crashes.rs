//! A worker that dies at any place in the life of a run neither forgets it nor runs it
//! twice. The places are those of the worker's debug builds (`failpoint`).

use crate::fleet::{SOON, apply, runs, wait_runs};
use meepo_tests::{Cluster, Process, eventually};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet, fs, ops::RangeInclusive, os::unix::process::ExitStatusExt, path::PathBuf,
};

/// In the order in which a run comes to them.
const PLACES: [&str; 7] =
    ["decided", "begun", "spawned", "exited", "ended", "delivering", "delivered"];

/// What a run comes from.
#[derive(Clone, Copy)]
enum Kind {
    /// A slot of a job on each node.
    Slot,
    /// A slot of a job that runs once in the cluster.
    Claim,
    /// Somebody who asks.
    Request,
}

/// A job, on a node of its own, whose first run takes the worker with it at `place`.
struct Crash<'a> {
    cluster: &'a Cluster,
    worker: usize,
    kind: Kind,
    place: &'a str,
    name: String,
    /// Fields of the job besides the usual ones.
    more: Value,
}

impl<'a> Crash<'a> {
    fn new(cluster: &'a Cluster, worker: usize, kind: Kind, place: &'a str) -> Self {
        let name = match kind {
            Kind::Slot => format!("slot-{place}"),
            Kind::Claim => format!("claim-{place}"),
            Kind::Request => format!("request-{place}"),
        };
        Self { cluster, worker, kind, place, name, more: json!({}) }
    }

    /// The same with further attempts.
    fn retried(mut self, retry: Value) -> Self {
        self.name += "-retried";
        self.more = json!({"retry": retry});
        self
    }

    fn process(&self) -> &Process {
        self.cluster.worker(self.worker).process()
    }

    fn file(&self, what: &str) -> PathBuf {
        self.cluster.dir().join(format!("{}.{what}", self.name))
    }

    /// Whether the run is past its start when the worker dies.
    fn is_late(&self) -> bool {
        PLACES.iter().position(|p| *p == self.place) > Some(2)
    }

    /// Writes a line into a file at once, prints one, and ends when the gate is open; the
    /// first attempt fails where there is to be another one.
    fn spec(&self) -> Value {
        let (evidence, gate) = (self.file("evidence"), self.file("gate"));
        let (evidence, gate) = (evidence.display(), gate.display());
        let cmd = format!(
            r#"echo "$MEEPO_RUN_ID $MEEPO_SLOT" >> {evidence}; echo "out $MEEPO_RUN_ID"; n=0
            until [ -e {gate} ] || [ $n -gt 1200 ]; do sleep 0.05; n=$((n+1)); done"#
        );
        let mut spec = json!({
            "name": self.name, "cmd": cmd, "target": self.cluster.worker(self.worker).node(),
        });
        let fields = spec.as_object_mut().unwrap();
        fields.extend(self.more.as_object().unwrap().clone());
        if let Kind::Slot | Kind::Claim = self.kind {
            // The first slot that comes, and nothing after it; late ones are made up for.
            fields.insert("schedule".into(), json!("* * * * * *"));
            fields.insert("max_runs".into(), json!(1));
            fields.insert("misfire".into(), json!("all"));
        }
        if let Kind::Claim = self.kind {
            fields.insert("placement".into(), json!("once"));
        }
        if self.is_retried() && self.is_late() {
            fields.insert("cmd".into(), json!(format!("{cmd}; [ $MEEPO_ATTEMPT -gt 1 ]")));
        }
        spec
    }

    /// Ends the life of the worker that is and starts one that will die at the place.
    async fn prepare(&self) {
        let failpoint = format!("{}:{}", self.place, self.name);
        self.process().restart_with(&[("MEEPO_FAILPOINT", &failpoint)]);
        self.process().wait_log("registered", SOON).await;
    }

    /// Runs the job and waits until the worker has died.
    async fn happen(&self) {
        if self.place == "decided" {
            // It is to run to its end in the next life.
            fs::write(self.file("gate"), "").unwrap();
        }
        let api = self.cluster.api();
        apply(&api, self.spec()).await;
        if let Kind::Request = self.kind {
            if self.is_retried() {
                self.held().await;
            }
            let (status, body) =
                api.post(&format!("/v1/jobs/{}/trigger", self.name), json!({})).await;
            assert_eq!(status, 202, "{body}");
        }
        if self.is_late() {
            // What it has printed is delivered before it ends, and the worker with it.
            let running = wait_runs(&api, &format!("job={}&state=running", self.name), 1).await;
            let run = running[0]["run_id"].as_str().unwrap();
            eventually(SOON, "its output is kept", async || {
                let text = self.output(run).await;
                if text.is_empty() { Err("it is not") } else { Ok(()) }.map_err(str::to_owned)
            })
            .await;
            fs::write(self.file("gate"), "").unwrap();
        }
        let status = self.process().wait_exit(SOON).await;
        assert_eq!(status.signal(), Some(9), "{} at {}", self.name, self.place);
    }

    fn is_retried(&self) -> bool {
        !self.more["retry"].is_null()
    }

    /// Waits until the worker holds the job, its only one: what it does not know of a job
    /// when it dies, it cannot go by afterwards.
    async fn held(&self) {
        let path = format!("/v1/nodes/{}", self.cluster.worker(self.worker).node());
        eventually(SOON, "the worker holds the job", async || {
            let (_, node) = self.cluster.api().get(&path).await;
            if node["jobs"] == 1 { Ok(()) } else { Err(node.to_string()) }
        })
        .await;
    }

    async fn output(&self, run: &str) -> String {
        let (_, output) = self.cluster.api().get(&format!("/v1/runs/{run}/output")).await;
        let chunks = output["chunks"].as_array().into_iter().flatten();
        chunks.filter_map(|c| c["text"].as_str()).collect()
    }

    /// Run ids and slots, as the runs themselves have noted them.
    fn evidence(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.file("evidence")).unwrap_or_default();
        let line = |l: &str| l.split_once(' ').map(|(run, slot)| (run.into(), slot.into()));
        text.lines().map(|l| line(l).unwrap_or_else(|| panic!("{l:?}"))).collect()
    }

    /// State of the run, and how often it may have started.
    fn outcome(&self) -> (&'static str, RangeInclusive<usize>) {
        match (self.place, self.kind) {
            // Nobody but this node may run a slot that it has claimed, and nobody knows
            // how far it has come.
            ("decided", Kind::Claim) => ("lost", 0..=0),
            ("decided", _) => ("success", 1..=1),
            ("begun", _) => ("lost", 0..=0),
            ("spawned", _) => ("lost", 0..=1),
            ("exited", _) => ("lost", 1..=1),
            _ => ("success", 1..=1),
        }
    }

    /// Waits until a later life has told how the run ended; holds that against the traces
    /// the run has left.
    async fn settled(&self) {
        let (api, name) = (self.cluster.api(), &self.name);
        let (state, starts) = self.outcome();
        wait_runs(&api, &format!("job={name}&state={state}"), 1).await;
        let mut found = runs(&api, &format!("job={name}")).await;
        // On a busy machine the next slot comes while the run is still there.
        found.retain(|run| run["state"] != "skipped");
        let [run] = &found[..] else { panic!("{name}: more than one run: {found:?}") };
        let code = if state == "lost" { 0x0203 } else { 0 };
        assert_eq!((&run["state"], &run["code"]), (&json!(state), &json!(code)), "{name}: {run}");
        let id = run["run_id"].as_str().unwrap();
        let marks = self.evidence();
        assert!(starts.contains(&marks.len()), "{name}: started {marks:?}");
        for mark in &marks {
            assert_eq!((&*mark.0, json!(mark.1)), (id, run["slot"].clone()), "{name}");
        }
        if *starts.start() == 1 {
            assert_eq!(self.output(id).await, format!("out {id}\n"), "{name}");
        }
        assert_eq!(processes_of(id), Vec::<String>::new(), "{name}: left behind");
        self.no_request_left().await;
    }

    /// Waits until the worker has taken back what asked for its runs.
    async fn no_request_left(&self) {
        let prefix = format!("/cron/trigger/{}/", self.cluster.worker(self.worker).node());
        eventually(SOON, "no request is left", async || {
            let out = self.cluster.etcd().ctl(&["get", "--prefix", "--keys-only", &prefix]).await;
            if out.ok().trim().is_empty() { Ok(()) } else { Err(out.stdout) }
        })
        .await;
    }
}

/// Every process that has the id of a run in its environment.
fn processes_of(run: &str) -> Vec<String> {
    let wanted = format!("MEEPO_RUN_ID={run}");
    let of_run = |dir: &PathBuf| {
        let environ = fs::read(dir.join("environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes())
    };
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    all.filter(of_run).map(|dir| dir.display().to_string()).collect()
}

/// Lets the worker die at each place, one life after the other.
async fn every_place(cluster: &Cluster, worker: usize, kind: Kind) {
    let all: Vec<_> = PLACES.iter().map(|p| Crash::new(cluster, worker, kind, p)).collect();
    for (i, crash) in all.iter().enumerate() {
        crash.prepare().await;
        // This life is the next one for what the last one left.
        if let Some(before) = i.checked_sub(1) {
            all[before].settled().await;
        }
        crash.happen().await;
    }
    cluster.worker(worker).process().restart();
    // Also of the first: nothing has come of it later.
    for crash in all.iter().rev() {
        crash.settled().await;
    }
}

#[tokio::test]
async fn a_crash_at_any_place_neither_forgets_nor_doubles_a_run() {
    let cluster = Cluster::builder().workers(3).start().await;
    tokio::join!(
        every_place(&cluster, 0, Kind::Slot),
        every_place(&cluster, 1, Kind::Claim),
        every_place(&cluster, 2, Kind::Request),
    );
}

#[tokio::test]
async fn an_attempt_that_was_promised_comes_once_whatever_the_crash() {
    let cluster = Cluster::builder().workers(3).start().await;
    let soon = |on: &str| json!({"max": 1, "delay": "10ms", "backoff": "fixed", "on": [on]});
    let case = |worker, kind, place, on| {
        let crash = Crash::new(&cluster, worker, kind, place).retried(soon(on));
        async move {
            crash.prepare().await;
            crash.happen().await;
            // The attempt is due before the worker knows any job.
            fs::write(crash.file("gate"), "").unwrap();
            crash.process().restart();
            crash
        }
    };
    let crashes = tokio::join!(
        case(0, Kind::Slot, "ended", "exit_status"),
        case(1, Kind::Slot, "spawned", "lost"),
        case(2, Kind::Request, "begun", "lost"),
    );
    let api = cluster.api();
    for (crash, first) in [(crashes.0, "failed"), (crashes.1, "lost"), (crashes.2, "lost")] {
        let name = &crash.name;
        wait_runs(&api, &format!("job={name}&state=success"), 1).await;
        let found = runs(&api, &format!("job={name}")).await;
        let mut ends: Vec<_> = found.iter().map(|r| (&r["attempt"], &r["state"])).collect();
        ends.sort_by_key(|(attempt, _)| attempt.as_u64());
        assert_eq!(ends, [(&json!(1), &json!(first)), (&json!(2), &json!("success"))], "{name}");
        let slots: BTreeSet<_> = found.iter().map(|r| r["slot"].as_str()).collect();
        assert_eq!(slots.len(), 1, "{name}: {found:?}");
        let marks = crash.evidence();
        let ids: BTreeSet<_> = marks.iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), marks.len(), "{name}: a run started twice: {marks:?}");
        for run in &found {
            assert_eq!(processes_of(run["run_id"].as_str().unwrap()), Vec::<String>::new());
        }
        crash.no_request_left().await;
    }
}
