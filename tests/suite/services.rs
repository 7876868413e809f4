//! Masters and workers as services: their settings, their beginning and end, and how
//! jobs find their nodes.

use crate::fleet::{
    Evidence, SOON, alive, apply, clock_past, quick, runs, seconds, wait_gone, wait_runs,
};
use jiff::{SignedDuration, Timestamp};
use meepo_tests::{
    Api, Cluster, Etcd, Process, Spec, TestDir, binary, eventually, free_port, millis, run,
};
use serde_json::json;
use std::path::{Path, PathBuf};

fn spec(name: &str, program: &str, args: &[&str], dir: &Path) -> Spec {
    Spec::new(name, binary(program), args, dir)
}

fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn settings_come_from_file_environment_and_flags_and_the_later_wins() {
    let dir = TestDir::new();
    let etcd = Etcd::start(1, dir.path()).await;
    let url = etcd.urls();
    let [http, grpc, metrics, wrong] = std::array::from_fn(|_| free_port());
    let logs = dir.path().join("logs.db");
    let master = file(
        dir.path(),
        "master.toml",
        &format!(
            "etcd = [\"{url}\"]\nhttp = \"127.0.0.1:{wrong}\"\ngrpc = \"127.0.0.1:{wrong}\"\n\
             logs = \"sqlite://{}\"\nlease_ttl = \"5s\"\n",
            logs.display()
        ),
    );
    let mut m = spec("master", "meepo-master", &["--config", &master], dir.path());
    m.args.extend(["--http".into(), format!("127.0.0.1:{http}")]);
    m.env = vec![
        ("MEEPO_HTTP".into(), format!("127.0.0.1:{wrong}")),
        ("MEEPO_GRPC".into(), format!("127.0.0.1:{grpc}")),
    ];
    let m = Process::start(m);
    m.wait_log("this master leads", SOON).await;
    assert!(m.wait_log("lease granted", SOON).await.contains("5s"), "the file");
    let leader = etcd.ctl(&["get", "/meepo/leader", "--print-value-only"]).await.json();
    assert_eq!(leader["http"], format!("http://127.0.0.1:{http}"), "flag over environment");
    assert_eq!(leader["grpc"], format!("http://127.0.0.1:{grpc}"), "environment over file");

    let data = dir.path().join("worker");
    let worker = file(
        dir.path(),
        "worker.toml",
        &format!(
            "etcd = [\"{url}\"]\nnode = \"127.0.0.7\"\nmetrics = \"127.0.0.1:{wrong}\"\n\
             data_dir = \"{}\"\nlease_ttl = \"7s\"\n[labels]\ngroup = \"web\"\nrole = \"file\"\n",
            data.display()
        ),
    );
    let mut w = spec("worker", "meepo-worker", &["run", "--config", &worker], dir.path());
    w.args.extend(["--label".into(), "role=flag".into(), "--node".into(), "127.0.0.9".into()]);
    w.env = vec![
        ("MEEPO_NODE".into(), "127.0.0.8".into()),
        ("MEEPO_METRICS".into(), format!("127.0.0.1:{metrics}")),
    ];
    let w = Process::start(w);
    w.wait_log("registered", SOON).await;
    assert!(w.wait_log("lease granted", SOON).await.contains("7s"));
    let (_, node) = Api::new(&format!("http://127.0.0.1:{http}")).get("/v1/nodes/127.0.0.9").await;
    assert_eq!(node["labels"], json!({"group": "web", "role": "flag"}));
    assert_eq!(Api::new(&format!("http://127.0.0.1:{metrics}")).get("/metrics").await.0, 200);
    assert!(data.join("worker.pid").is_file());

    // What is wrong is said, with the place, and nothing starts.
    for (program, args, word) in [
        ("meepo-master", &["--config", "/nonexistent.toml"][..], "/nonexistent.toml"),
        ("meepo-worker", &["run", "--config", "/nonexistent.toml"], "/nonexistent.toml"),
        ("meepo-worker", &["run", "--lease-ttl", "1ms"], "lease_ttl"),
        ("meepo-worker", &["run", "--node", "a/b"], "--node"),
        ("meepo-master", &["--http", "0.0.0.0:7600"], "allow_insecure_listen"),
    ] {
        let out = run(spec("refused", program, args, dir.path())).await;
        assert_ne!(out.code, 0);
        assert!(out.stderr.contains(word), "{program} {args:?}: {out:?}");
    }
}

/// Ends a daemon that the harness does not know, on a panic too.
struct Daemon {
    pid_file: PathBuf,
    data_dir: String,
}

impl Daemon {
    fn pid(&self) -> Option<u64> {
        std::fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(pid) = self.pid() else { return };
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&cmdline).contains(&self.data_dir) {
            kill(pid, "-9");
        }
    }
}

fn kill(pid: u64, signal: &str) {
    let _ = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
}

#[tokio::test]
async fn a_worker_is_started_and_stopped_by_its_pid_file() {
    let dir = TestDir::new();
    let etcd = Etcd::start(1, dir.path()).await;
    let url = etcd.urls();
    let data = dir.path().join("data").display().to_string();
    let pid_file = dir.path().join("run/worker.pid");
    let daemon = Daemon { pid_file: pid_file.clone(), data_dir: data.clone() };
    let metrics = format!("127.0.0.1:{}", free_port());
    let pid_path = pid_file.display().to_string();
    // No node is configured: it finds the address it reaches etcd from.
    let settings =
        ["--etcd", &url, "--data-dir", &data, "--pid-file", &pid_path, "--metrics", &metrics];
    let ctl = async |command: &str| {
        let args = [&[command][..], &settings].concat();
        let mut spec = spec(command, "meepo-worker", &args, dir.path());
        spec.split_output = true;
        run(spec).await
    };
    let version = run(spec("version", "meepo-worker", &["version"], dir.path())).await;
    assert!(version.stdout.starts_with("meepo-worker ") && version.code == 0, "{version:?}");

    let status = ctl("status").await;
    assert_eq!(status.code, 3, "{status:?}");
    assert!(ctl("stop").await.ok().contains("does not run"));
    assert!(ctl("start").await.ok().contains("started with pid"));
    let pid = daemon.pid().unwrap();
    assert!(alive(pid));
    assert!(ctl("status").await.ok().contains(&pid.to_string()));
    let registered = async || {
        eventually(SOON, "it is registered under its own address", async || {
            let out = etcd.ctl(&["get", "/agent/health/127.0.0.1", "--print-value-only"]).await;
            if out.ok().contains("Online") { Ok(()) } else { Err(format!("{out:?}")) }
        })
        .await;
    };
    registered().await;
    // A second one is refused, in the background and in the foreground.
    for command in ["start", "run"] {
        let second = ctl(command).await;
        let told = format!("{}{}", second.stdout, second.stderr);
        assert_ne!(second.code, 0);
        assert!(told.contains("runs already") && told.contains(&pid.to_string()), "{told}");
    }
    assert_eq!(daemon.pid(), Some(pid));

    // Killed, it leaves its pid file: nobody is misled, not even by a living process
    // that has got the number meanwhile.
    kill(pid, "-9");
    wait_gone(pid).await;
    assert_eq!(daemon.pid(), Some(pid), "the file is still there");
    std::fs::write(&pid_file, format!("{}\n", std::process::id())).unwrap();
    assert_eq!(ctl("status").await.code, 3);
    assert!(ctl("stop").await.ok().contains("does not run"), "and this test was not signalled");
    ctl("start").await.ok();
    let again = daemon.pid().unwrap();
    assert!(again != pid && alive(again));
    registered().await;
    assert!(ctl("stop").await.ok().contains(&again.to_string()));
    wait_gone(again).await;
    assert_eq!(ctl("status").await.code, 3);
    let health = etcd.ctl(&["get", "/agent/health/127.0.0.1"]).await;
    assert_eq!(health.ok(), "", "gone at once");
}

#[tokio::test]
async fn a_worker_that_ends_leaves_no_process_and_no_open_run() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let pids = cluster.dir().join("pids");
    // One in a group of its own below the shell, and one that will not hear of an end.
    let cmd =
        format!("trap '' TERM; sleep 600 & echo $$ $! >> {0}; wait; sleep 600", pids.display());
    for job in ["a", "b"] {
        apply(&api, json!({"name": job, "cmd": cmd})).await;
        cluster.cli(&["job", "trigger", job]).await.ok();
    }
    let started = eventually(SOON, "both run", async || {
        let text = std::fs::read_to_string(&pids).unwrap_or_default();
        let pids: Vec<u64> = text.split_whitespace().map(|p| p.parse().unwrap()).collect();
        if pids.len() == 4 { Ok(pids) } else { Err(text) }
    })
    .await;
    assert!(started.iter().all(|pid| alive(*pid)));
    let worker = cluster.worker(0).process();
    worker.term();
    assert!(worker.wait_exit(SOON).await.success());
    for pid in started {
        assert!(!alive(pid), "{pid} was left behind");
    }
    let ended = wait_runs(&api, "state=killed", 2).await;
    for run in ended {
        assert_eq!(run["code"], 0x0106, "{run}");
        assert!(run["ended_at"].is_string() && run["started_at"].is_string(), "{run}");
    }
    // A master that is asked to end does so too, though somebody holds a stream open.
    let master = cluster.master(0).process();
    let follower = cluster.cli_start(&["run", "-t", "all", "--timeout", "60s", "--", "true"]);
    master.term();
    assert!(master.wait_exit(SOON).await.success());
    follower.wait_exit(SOON).await;
}

#[tokio::test]
async fn without_etcd_they_wait_and_say_so() {
    let dir = TestDir::new();
    let etcd = Etcd::start(1, dir.path()).await;
    let url = etcd.urls();
    etcd.members()[0].process().kill9();
    let [http, grpc, metrics] = std::array::from_fn(|_| format!("127.0.0.1:{}", free_port()));
    let data = dir.path().join("d").display().to_string();
    let args = ["--etcd", &url, "--http", &http, "--grpc", &grpc, "--data-dir", &data];
    let master = Process::start(spec("master", "meepo-master", &args, dir.path()));
    let args = ["run", "--etcd", &url, "--metrics", &metrics, "--data-dir", &data];
    let args = [&args[..], &["--node", "127.0.0.2"]].concat();
    let worker = Process::start(spec("worker", "meepo-worker", &args, dir.path()));
    for process in [&master, &worker] {
        let line = process.wait_log("will try again", SOON).await;
        assert!(line.contains("etcd") || line.contains("list keys"), "{line}");
        process.wait_log("cannot get a lease from etcd", SOON).await;
    }
    let api = Api::new(&format!("http://{http}"));
    let (status, body) =
        eventually(SOON, "the API answers", async || api.try_http("GET", "/v1/jobs", None).await)
            .await;
    assert_eq!((status, &body["error"]["retry"]), (503, &json!(true)), "{body}");
    assert_ne!(api.get("/readyz").await.0, 200);
    assert!(master.is_running() && worker.is_running());

    etcd.members()[0].process().restart();
    apply_when_ready(&api).await;
    assert_eq!(wait_runs(&api, "job=a&state=success", 1).await[0]["node"], "127.0.0.2");
}

/// Applies a job each second as soon as the API takes it.
async fn apply_when_ready(api: &Api) {
    let body = json!({"name": "a", "cmd": "date", "schedule": "* * * * * *"});
    eventually(SOON, "the job is accepted", async || {
        let (status, answer) = api.try_http("POST", "/v1/jobs", Some(&body)).await?;
        if status < 300 { Ok(()) } else { Err(format!("{status} {answer}")) }
    })
    .await;
}

#[tokio::test]
async fn jobs_go_to_all_nodes_to_those_labelled_and_to_those_that_come() {
    let mut cluster =
        Cluster::builder().workers(2).label(1, "group=web").label(2, "group=web").start().await;
    let api = cluster.api();
    let [all, web] = ["all", "web"].map(|n| Evidence::new(cluster.dir(), n));
    let every = "* * * * * *";
    apply(&api, json!({"name": "all", "cmd": all.cmd(), "schedule": every})).await;
    apply(&api, json!({"name": "web", "cmd": web.cmd(), "schedule": every, "target": "group=web"}))
        .await;
    for node in ["127.0.0.2", "127.0.0.3"] {
        all.wait(2, |m| m.node == node).await;
    }
    web.wait(2, |m| m.node == "127.0.0.3").await;
    cluster.add_worker().await;
    let came = Timestamp::now();
    all.wait(2, |m| m.node == "127.0.0.4").await;
    web.wait(2, |m| m.node == "127.0.0.4").await;
    assert!(web.marks().iter().all(|m| m.node != "127.0.0.2"));
    // Slots before it came are not its own.
    let second = SignedDuration::from_secs(2);
    let early = |m: &&crate::fleet::Mark| m.node == "127.0.0.4" && m.slot < came - second;
    assert_eq!(all.marks().iter().find(early), None);
    for evidence in [&all, &web] {
        evidence.distinct(false);
    }
    // Deleted, it ends everywhere.
    cluster.cli(&["job", "delete", "all"]).await.ok();
    eventually(SOON, "no node holds it", async || {
        let (_, nodes) = api.get("/v1/nodes").await;
        let held: Vec<u64> =
            nodes["nodes"].as_array().unwrap().iter().filter_map(|n| n["jobs"].as_u64()).collect();
        if held == [0, 1, 1] { Ok(()) } else { Err(format!("{held:?}")) }
    })
    .await;
    let gone = Timestamp::now();
    web.wait(3, |m| m.slot > gone).await;
    let after = gone + SignedDuration::from_secs(1);
    assert_eq!(all.marks().iter().find(|m| m.slot > after), None);
}

#[tokio::test]
async fn once_per_cluster_means_once_also_when_the_preferred_node_dies() {
    let cluster = quick().workers(3).start().await;
    let api = cluster.api();
    let evidence = Evidence::new(cluster.dir(), "once");
    apply(
        &api,
        json!({"name": "solo", "cmd": evidence.cmd(), "schedule": "* * * * * *",
            "placement": "once", "misfire": "all", "misfire_cap": 1000, "concurrency": "queue"}),
    )
    .await;
    let first = evidence.wait(3, |_| true).await;
    let (_, view) = api.get("/v1/jobs/solo").await;
    assert_eq!(view["nodes"].as_array().map(Vec::len), Some(3), "two stand by: {view}");
    let key = format!("/cron/jobs/{}/solo", first[2].node);
    let held = cluster.etcd().ctl(&["get", &key, "--print-value-only"]).await.json();
    let preferred = held["once"][0].as_str().unwrap().to_owned();

    let victim = (0..3).map(|i| cluster.worker(i)).find(|w| w.node() == preferred).unwrap();
    let now = Timestamp::now();
    evidence.wait(2, |m| m.slot > now && m.node == preferred).await;
    victim.process().kill9();
    let died = Timestamp::now();
    // The slots it had claimed and not begun are nobody's: at most once comes first.
    let claim = cluster.etcd().ctl(&["get", "/cron/lock/slot/solo", "--print-value-only"]).await;
    let claim = claim.json();
    let marks = evidence.wait(4, |m| m.slot > died && m.node != preferred).await;
    victim.process().restart();
    let back = Timestamp::now();
    evidence.wait(3, |m| m.slot > back).await;

    cluster.cli(&["job", "delete", "solo"]).await.ok();
    eventually(SOON, "no node holds it", async || {
        let left = cluster.etcd().ctl(&["get", "--prefix", "/cron/jobs", "--keys-only"]).await;
        let left = left.ok().trim().to_owned();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    let end = Timestamp::now();
    clock_past(end + SignedDuration::from_secs(2)).await;
    let after = end + SignedDuration::from_secs(1);
    assert_eq!(evidence.marks().iter().find(|m| m.slot > after), None, "it goes on");

    let ran = evidence.distinct(true);
    let mut by_fence = evidence.marks();
    by_fence.sort_by_key(|m| m.fence);
    assert!(by_fence.is_sorted_by(|a, b| a.fence < b.fence && a.slot < b.slot), "{by_fence:?}");
    let upto = marks.iter().map(|m| m.slot).max().unwrap();
    let mut missing: Vec<Timestamp> =
        seconds(first[0].slot, upto).difference(&ran).copied().collect();
    if claim["node"] == *preferred {
        missing.retain(|slot| claim["slot"] != slot.to_string());
    }
    assert_eq!(missing, [], "slots that nobody ran");
    // Each of those runs was recorded, with its fence.
    for mark in marks {
        let slot = format!("job=solo&since={0}&until={1}", mark.slot, mark.slot + millis(1));
        let found = runs(&api, &slot).await;
        assert!(found.iter().any(|r| r["fence"].as_i64() == mark.fence), "{mark:?}: {found:?}");
    }
}
