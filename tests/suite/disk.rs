//! Disks that are full, read-only or broken, a log store that is away for long, and ten
//! thousand jobs in one second: nothing blocks, nothing is forgotten.

use crate::fleet::{Evidence, SOON, apply, clock_past, quick, runs, seconds, wait_runs};
use jiff::{SignedDuration, Timestamp};
use meepo_tests::{Api, Cluster, Process, Spec, binary, eventually, flags, free_port, run, secs};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::PathBuf,
};

const NODE: &str = "127.0.0.9";

/// A worker whose data directory is a small disk of its own, in a mount namespace that
/// goes with it: nothing has to be unmounted.
struct OnDisk {
    process: Process,
    metrics: Api,
    data: PathBuf,
}

impl OnDisk {
    /// `before` is a shell command between the mount and the worker; `$0` is the disk.
    fn start(cluster: &Cluster, before: &str) -> Self {
        let data = cluster.dir().join("disk");
        std::fs::create_dir_all(&data).unwrap();
        let metrics = free_port();
        let etcd = cluster.etcd().urls();
        let worker = flags::worker(&flags::WorkerFlags {
            etcd: &etcd,
            node: NODE,
            data_dir: &data,
            metrics,
            logs: None,
            labels: &[],
        });
        let mount = format!(
            "mount -t tmpfs -o size=12m,mode=700 meepo-test \"$0\" && {before} && \
             exec env --ignore-signal=XFSZ \"$@\""
        );
        let own = ["--mount", "--propagation", "private"];
        // Without root a user namespace gives the right to mount.
        let user: &[&str] = match nix::unistd::geteuid().is_root() {
            true => &[],
            false => &["--user", "--map-root-user"],
        };
        let disk = data.display().to_string();
        let args = [user, &own, &["sh", "-c", &mount, &disk]].concat();
        let mut spec = Spec::new("worker-on-disk", "unshare", &args, cluster.dir());
        spec.args.push(binary("meepo-worker").display().to_string());
        spec.args.extend(worker);
        let metrics = Api::new(&format!("http://127.0.0.1:{metrics}"));
        Self { process: Process::start(spec), metrics, data }
    }

    /// A file on its disk, as seen from here.
    fn file(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.process.pid()));
        root.join(self.data.strip_prefix("/").unwrap()).join(name)
    }

    /// Writes until nothing goes in any more.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.file("filler")).unwrap();
        let full = std::iter::repeat_with(|| file.write_all(&[1; 4096])).find_map(Result::err);
        assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
    }

    async fn metric(&self, name: &str) -> i64 {
        metric(&self.metrics, name).await
    }

    async fn wait_refuses(&self, yes: i64) {
        eventually(SOON, format!("disk_refuses is {yes}"), async || {
            let n = self.metric("disk_refuses").await;
            if n == yes { Ok(()) } else { Err(n.to_string()) }
        })
        .await;
    }
}

/// The sum of a metric over its labels.
async fn metric(api: &Api, name: &str) -> i64 {
    let (_, text) = api.get("/metrics").await;
    let text = text.as_str().unwrap();
    let full = format!("meepo_worker_{name}");
    let of = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(&full)).then(|| value.parse::<i64>().unwrap())
    };
    let found: Vec<i64> = text.lines().filter_map(of).collect();
    // The only one with labels: it is not shown before the first is counted.
    assert!(!found.is_empty() || name == "runs_total", "no {full}: {text}");
    found.iter().sum()
}

fn slot(run: &Value) -> Timestamp {
    run["slot"].as_str().unwrap().parse().unwrap()
}

/// Waits until the node's problems name `subject` (or do not, where `there` is false);
/// answers its words.
async fn wait_problem(api: &Api, subject: &str, there: bool) -> String {
    eventually(SOON, format!("a problem of {subject}: {there}"), async || {
        let (_, node) = api.get(&format!("/v1/nodes/{NODE}")).await;
        let all = node["problems"].as_array().cloned().unwrap_or_default();
        let reason = all.iter().find(|p| p["subject"] == subject).map(|p| p["reason"].clone());
        match (reason, there) {
            (Some(reason), true) => Ok(reason.as_str().unwrap().to_owned()),
            (None, false) if node["online"] == true => Ok(String::new()),
            _ => Err(node.to_string()),
        }
    })
    .await
}

/// Every slot of `ticks` up to now ran once or is recorded as missed. Answers the
/// messages of the missed.
async fn all_accounted(
    api: &Api,
    ticks: &Evidence,
    first: Timestamp,
) -> BTreeMap<Timestamp, String> {
    let now = Timestamp::now();
    let upto = ticks.wait(2, |m| m.slot > now).await[1].slot;
    let ran = ticks.distinct(false);
    let all = seconds(first, upto);
    let query = format!("job=ticks&until={}", upto + secs(1));
    eventually(SOON, "every slot has a final record", async || {
        let found = runs(api, &query).await;
        let done: BTreeSet<Timestamp> =
            found.iter().filter(|r| r["state"] != "running").map(slot).collect();
        let open: Vec<_> = all.difference(&done).collect();
        if !open.is_empty() {
            return Err(format!("{open:?}"));
        }
        for run in found.iter().filter(|r| all.contains(&slot(r))) {
            let fine = match run["state"].as_str() {
                Some("success") => ran.contains(&slot(run)),
                Some("missed") => !ran.contains(&slot(run)),
                _ => false,
            };
            assert!(fine, "{run}");
        }
        let missed = found.iter().filter(|r| r["state"] == "missed");
        let said = |r: &Value| r["message"].as_str().unwrap_or_default().to_owned();
        Ok(missed.map(|r| (slot(r), said(r))).collect())
    })
    .await
}

#[tokio::test]
async fn a_full_disk_stops_beginnings_and_nothing_is_forgotten() {
    let cluster = quick().workers(0).start().await;
    let api = cluster.api();
    let worker = OnDisk::start(&cluster, "true");
    worker.process.wait_log("registered", SOON).await;
    let ticks = Evidence::new(cluster.dir(), "ticks");
    let spec = json!({"name": "ticks", "cmd": ticks.cmd(), "schedule": "* * * * * *", "concurrency": "allow"});
    apply(&api, spec).await;
    let go = cluster.dir().join("go");
    let cmd = format!("while [ ! -e {} ]; do sleep 0.05; done; echo over", go.display());
    apply(&api, json!({"name": "long", "cmd": cmd})).await;
    api.post("/v1/jobs/long/trigger", json!({})).await;
    wait_runs(&api, "job=long&state=running", 1).await;
    apply(&api, json!({"name": "asked", "cmd": "true"})).await;
    let first = ticks.wait(1, |_| true).await[0].slot;

    worker.fill();
    worker.wait_refuses(1).await;
    let full = Timestamp::now();
    // Seen where one looks, in words; the rest of the worker answers.
    let said = wait_problem(&api, "disk", true).await;
    assert!(said.contains("full") && said.contains("no run starts"), "{said}");
    let (status, health) = worker.metrics.get("/healthz").await;
    let health = health.as_str().unwrap().to_owned();
    assert!(status == 200 && health.starts_with("ok\ndisk: "), "{status} {health}");
    let out = cluster.cli(&["run", "-t", NODE, "--", "true"]).await;
    assert!(out.code != 0 && format!("{out:?}").contains("cannot write its journal"), "{out:?}");
    api.post("/v1/jobs/asked/trigger", json!({})).await;
    // What runs may end; what cannot be recorded waits.
    std::fs::write(&go, "").unwrap();
    // Longer than a slot counts as on time.
    clock_past(full + SignedDuration::from_secs(12)).await;
    let began: Vec<_> = ticks.marks().into_iter().filter(|m| m.slot > full).collect();
    assert_eq!(began, [], "no run starts without its durable beginning");
    assert_eq!(runs(&api, "job=long&state=running").await.len(), 1);
    assert_eq!(runs(&api, "job=asked").await.len(), 0);
    assert!(worker.metric("runs_refused_total").await > 0);

    std::fs::remove_file(worker.file("filler")).unwrap();
    worker.wait_refuses(0).await;
    wait_runs(&api, "job=long&state=success", 1).await;
    wait_runs(&api, "job=asked&state=success", 1).await;
    let missed = all_accounted(&api, &ticks, first).await;
    assert!(!missed.is_empty() && missed.values().all(|m| m.contains("disk")), "{missed:?}");
    wait_problem(&api, "disk", false).await;
    // Said once, not by slot.
    let log = worker.process.log();
    let said = log.lines().filter(|l| l.contains("ERROR")).count();
    assert_eq!(said, 1, "{log}");
}

#[tokio::test]
async fn a_read_only_disk_is_named_and_one_with_errors_is_waited_for() {
    let cluster = quick().workers(0).start().await;
    let api = cluster.api();
    // Read-only from the start: there is nothing it could do.
    let worker = OnDisk::start(&cluster, "mount -o remount,ro \"$0\"");
    let ended = worker.process.wait_exit(SOON).await;
    let log = worker.process.log();
    let disk = worker.data.display().to_string();
    assert!(!ended.success() && log.contains(&disk) && log.contains("Read-only"), "{log}");
    drop(worker);

    let worker = OnDisk::start(&cluster, "true");
    worker.process.wait_log("registered", SOON).await;
    let ticks = Evidence::new(cluster.dir(), "ticks");
    let spec = json!({"name": "ticks", "cmd": ticks.cmd(), "schedule": "* * * * * *", "concurrency": "allow"});
    apply(&api, spec).await;
    let first = ticks.wait(1, |_| true).await[0].slot;
    // From now on every longer file is an error of its disk: EFBIG, which is none of the
    // errors that mean "full". Also the log cannot be written any more.
    let limit = async |limit: &str| {
        let pid = worker.process.pid().to_string();
        let args = ["--pid", &pid, &format!("--fsize={limit}:unlimited")];
        run(Spec::new(&format!("limit-{limit}"), "prlimit", &args, cluster.dir()))
            .await
            .ok()
            .to_owned()
    };
    limit("64").await;
    worker.wait_refuses(1).await;
    let broken = Timestamp::now();
    let said = wait_problem(&api, "disk", true).await;
    assert!(said.contains("I/O"), "{said}");
    clock_past(broken + SignedDuration::from_secs(2)).await;
    assert!(ticks.marks().iter().all(|m| m.slot <= broken));
    limit("unlimited").await;
    worker.wait_refuses(0).await;
    all_accounted(&api, &ticks, first).await;
}

#[tokio::test]
async fn a_log_store_that_is_away_for_long_costs_output_and_no_record() {
    let cluster = quick().worker_arg("--spool-limit").worker_arg("200000").start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).metrics());
    let ticks = Evidence::new(cluster.dir(), "ticks");
    let cmd = format!("{}; head -c 40000 /dev/zero | tr '\\0' x", ticks.cmd());
    apply(
        &api,
        json!({"name": "ticks", "cmd": cmd, "schedule": "* * * * * *", "concurrency": "allow"}),
    )
    .await;
    let first = ticks.wait(1, |_| true).await[0].slot;
    // Workers deliver through the leading master.
    cluster.master(0).process().kill9();
    let problems = eventually(SOON, "the worker says what is wrong", async || {
        let out =
            cluster.etcd().ctl(&["get", "/agent/health/127.0.0.2", "--print-value-only"]).await;
        let problems = out.json()["problems"].clone();
        let subjects: Vec<&str> = problems
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|p| p["subject"].as_str())
            .collect();
        if subjects == ["log store", "spool"] { Ok(problems) } else { Err(problems.to_string()) }
    })
    .await;
    let words = problems.to_string();
    for want in ["the spool holds", "the oldest from", "output is dropped and counted"] {
        assert!(words.contains(want), "{want}: {words}");
    }
    let bytes = metric(&worker, "spool_bytes").await;
    assert!(bytes < 260_000, "records only beyond the limit: {bytes}");
    assert_eq!(metric(&worker, "log_store_refuses").await, 1);
    assert_eq!(worker.get("/healthz").await.0, 200);
    cluster.master(0).process().restart();
    cluster.master(0).wait_ready().await;
    let missed = all_accounted(&api, &ticks, first).await;
    assert!(missed.is_empty(), "no job waited for the log store: {missed:?}");
    let found = runs(&api, "job=ticks&state=success").await;
    let dropped = |r: &&Value| r["dropped_bytes"].as_u64() == Some(40_000);
    assert!(found.iter().filter(dropped).count() > 0, "counted in each run");
    eventually(SOON, "it catches up", async || {
        let n = metric(&worker, "spool_items").await;
        if n < 20 { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_jobs_in_one_second_all_run_and_nothing_stops_answering() {
    const JOBS: i64 = 10_000;
    let cluster = Cluster::builder().start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0));
    let at = Timestamp::from_second(Timestamp::now().as_second() + 20).unwrap();
    let express = at.strftime("%-S %-M %-H %-d %-m *").to_string();
    let value =
        json!({"cmd": "/bin/true", "executor": "exec", "express": express, "status": "running"});
    let mut etcd = cluster.etcd().client().await;
    for first in (0..JOBS).step_by(100) {
        let put = |n| {
            etcd_client::TxnOp::put(format!("/cron/jobs/127.0.0.2/j{n}"), value.to_string(), None)
        };
        let operations: Vec<_> = (first..first + 100).map(put).collect();
        etcd.txn(etcd_client::Txn::new().and_then(operations)).await.unwrap();
    }
    let metrics = worker.metrics();
    eventually(SOON, "the worker holds them", async || {
        let n = metric(&metrics, "jobs").await;
        if n == JOBS { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    assert!(Timestamp::now() < at, "this machine is too slow for this test");
    clock_past(at).await;
    let mut slowest = std::time::Duration::ZERO;
    eventually(secs(180), "all have ended", async || {
        let asked = std::time::Instant::now();
        let health = worker.metrics().get("/healthz").await;
        let nodes = api.get("/v1/nodes/127.0.0.2").await;
        slowest = slowest.max(asked.elapsed());
        assert_eq!((health.0, nodes.0), (200, 200), "{health:?}");
        let n = metric(&metrics, "runs_total").await;
        if n == JOBS { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    eprintln!(
        "{:?} after the slot; slowest answer {slowest:?}",
        Timestamp::now().duration_since(at)
    );
    assert!(slowest < secs(5), "{slowest:?}");
    // All ran, each once, and arrive in the log store.
    assert_eq!(metric(&metrics, "processes_started_total").await, JOBS);
    assert_eq!(metric(&metrics, "ready").await, 0);
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", worker.process().pid())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim();
    eprintln!("peak memory {peak}");
    let kib: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 200 << 10, "{peak}");
    eventually(secs(120), "all are recorded", async || {
        let n = metric(&metrics, "spool_items").await;
        if n == 0 { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    let found = runs(&api, &format!("state=success&since={at}&until={}", at + secs(1))).await;
    let jobs: BTreeSet<&str> = found.iter().filter_map(|r| r["job"].as_str()).collect();
    assert_eq!((found.len() as i64, jobs.len() as i64), (JOBS, JOBS));
}
