//! What is shipped under `deploy/` is read as its users read it, and agrees with
//! itself: a unit names a binary that exists, a folder in a configuration is one its
//! unit provides, nginx forwards to the ports the masters listen on.

mod ini;

use ini::Ini;
use meepo_core::job::{JobSpec, JobStatus, Placement};
use meepo_tests::workspace_root;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn deploy(path: &str) -> PathBuf {
    workspace_root().join("deploy").join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files of a folder under `deploy/`, with this ending.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(deploy(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no *.{ending} in deploy/{folder}");
    found
}

fn config(name: &str) -> toml::Table {
    let path = deploy("config").join(name);
    read(&path).parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn example(path: &Path) -> JobSpec {
    let value: serde_json::Value =
        serde_saphyr::from_str(&read(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    JobSpec::from_user(value).unwrap_or_else(|e| panic!("{}: {e:?}", path.display()))
}

#[test]
fn example_jobs_are_valid() {
    let jobs: Vec<JobSpec> = files("examples", "yaml")
        .iter()
        .map(|path| {
            let job = example(path);
            // One looks for a job by the name of its file.
            assert_eq!(path.file_stem().unwrap().to_str(), Some(job.name.to_string().as_str()));
            assert!(job.description.is_some(), "{} has no description", job.name);
            job
        })
        .collect();
    let names: Vec<String> = jobs.iter().map(|j| j.name.to_string()).collect();
    assert_eq!(names, ["disk-report", "hello", "nightly", "on-demand", "once-per-cluster"]);
    // Between them they show what matters.
    assert!(jobs.iter().any(|j| j.placement == Placement::Once));
    assert!(jobs.iter().any(|j| j.schedule.is_none()));
    assert!(jobs.iter().any(|j| j.timezone.is_some() && j.status == JobStatus::Pause));
}

/// The commands of the examples, run here: harmless and successful on any Debian.
#[test]
fn example_jobs_succeed() {
    for path in files("examples", "yaml") {
        let job = example(&path);
        let mut command = match job.executor.as_str() {
            "exec" => Command::new(&job.cmd),
            shell => {
                let mut command = Command::new(shell);
                command.args(["-c", &job.cmd, shell]);
                command
            }
        };
        let output = command.args(&job.args).envs(&job.env).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{}: {stderr}", job.name);
        assert!(!output.stdout.is_empty(), "{} says nothing", job.name);
    }
}

#[test]
fn configurations_hold_known_settings_only() {
    for (name, known) in [
        (
            "master.toml",
            &[
                "etcd",
                "http",
                "grpc",
                "logs",
                "data_dir",
                "log_format",
                "lease_ttl",
                "secrets_dir",
                "retention",
            ][..],
        ),
        ("worker.toml", &["etcd", "data_dir", "pid_file", "metrics", "lease_ttl", "labels"]),
    ] {
        let config = config(name);
        let found: BTreeSet<&str> = config.keys().map(String::as_str).collect();
        assert_eq!(found, known.iter().copied().collect(), "{name}");
        let etcd = config["etcd"].as_array().unwrap();
        assert!(etcd.iter().all(|url| url.as_str().unwrap().starts_with("http://")), "{name}");
        let lease = config["lease_ttl"].as_str().unwrap();
        assert!(lease.parse::<meepo_core::duration::HumanDuration>().is_ok(), "{name}: {lease}");
        for key in ["http", "grpc", "metrics"] {
            if let Some(address) = config.get(key) {
                let address = address.as_str().unwrap();
                assert!(address.parse::<std::net::SocketAddr>().is_ok(), "{name}: {address}");
            }
        }
    }
    let labels = config("worker.toml")["labels"].as_table().unwrap().clone();
    assert!(labels.values().all(toml::Value::is_str));
}

#[test]
fn units_start_binaries_that_exist() {
    let built = workspace_binaries();
    for path in files("systemd", "service") {
        let unit = Ini::parse(&read(&path));
        let name = path.file_stem().unwrap().to_str().unwrap();
        if unit.one("Service", "Type") == "oneshot" {
            // Started by its timer.
            assert_eq!(unit.one("Service", "ExecStart"), "/usr/local/bin/meepo-worker renew");
            let timer = Ini::parse(&read(&path.with_extension("timer")));
            assert_eq!(timer.one("Install", "WantedBy"), "timers.target");
            continue;
        }
        assert_eq!(unit.sections(), ["Unit", "Service", "Install"], "{name}");
        let start = unit.one("Service", "ExecStart");
        let program = Path::new(start.split(' ').next().unwrap());
        assert!(program.is_absolute(), "{name}: systemd wants a path, not {start}");
        let file = program.file_name().unwrap().to_str().unwrap();
        assert_eq!(file, name, "{name} starts something else");
        assert!(built.contains(file), "{file} is not among the binaries {built:?}");
        assert_eq!(unit.one("Install", "WantedBy"), "multi-user.target", "{name}");
        assert_eq!(unit.one("Service", "Type"), "exec", "{name}");
        assert_eq!(unit.one("Service", "Restart"), "always", "{name}");
        // Without it systemd gives up after five quick failures.
        assert_eq!(unit.one("Unit", "StartLimitIntervalSec"), "0", "{name}");
        let stop: u64 = unit.one("Service", "TimeoutStopSec").parse().unwrap();
        assert!((10..=300).contains(&stop), "{name}");
    }
}

fn workspace_binaries() -> BTreeSet<String> {
    let metadata = crate::architecture::metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let targets = packages.iter().flat_map(|p| p["targets"].as_array().unwrap());
    targets
        .filter(|t| t["kind"].as_array().unwrap().iter().any(|k| k == "bin"))
        .map(|t| t["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_master_is_confined_and_the_worker_can_run_jobs() {
    let master = Ini::parse(&read(&deploy("systemd/meepo-master.service")));
    let user = master.one("Service", "User");
    let sysusers = read(&deploy("sysusers.d/meepo.conf"));
    assert!(sysusers.contains(&format!("\nu {user} ")), "sysusers.d does not make {user}");
    for (key, value) in
        [("NoNewPrivileges", "yes"), ("ProtectSystem", "strict"), ("CapabilityBoundingSet", "")]
    {
        assert_eq!(master.one("Service", key), value);
    }
    let worker = Ini::parse(&read(&deploy("systemd/meepo-worker.service")));
    // Each of these would reach into the jobs.
    for key in ["User", "NoNewPrivileges", "ProtectSystem", "PrivateTmp", "SystemCallFilter"] {
        assert!(worker.get("Service", key).is_none(), "jobs would suffer from {key}");
    }
    assert_eq!(worker.one("Service", "KillMode"), "process", "a restart must spare the jobs");
    assert_eq!(worker.one("Service", "OOMPolicy"), "continue");
}

#[test]
fn units_provide_the_folders_of_the_configurations() {
    for (unit, file) in
        [("meepo-master.service", "master.toml"), ("meepo-worker.service", "worker.toml")]
    {
        let unit = Ini::parse(&read(&deploy("systemd").join(unit)));
        let config = config(file);
        let data = config["data_dir"].as_str().unwrap();
        assert_eq!(data, format!("/var/lib/{}", unit.one("Service", "StateDirectory")));
        if let Some(pid_file) = config.get("pid_file") {
            let run = format!("/run/{}/", unit.one("Service", "RuntimeDirectory"));
            assert!(pid_file.as_str().unwrap().starts_with(&run), "{pid_file} is not in {run}");
        }
    }
}

/// The setting without which etcd 3.4 is a third as fast for claims.
#[test]
fn etcd_is_told_a_small_batch() {
    let text = read(&deploy("systemd/etcd.service.d/meepo.conf"));
    let settings = Ini::parse(&text);
    assert_eq!(settings.sections(), ["Service"]);
    let environment = settings.get("Service", "Environment").unwrap();
    assert!(environment.iter().any(|e| e == "ETCD_BACKEND_BATCH_LIMIT=1000"), "{environment:?}");
}

#[test]
fn nginx_forwards_to_the_masters() {
    let text = read(&deploy("nginx/meepo.conf"));
    let code: Vec<&str> = text
        .lines()
        .map(|l| l.split('#').next().unwrap().trim())
        .filter(|l| !l.is_empty())
        .collect();
    let mut depth = 0;
    for line in &code {
        assert!(line.ends_with(['{', '}', ';']), "neither a block nor a statement: {line}");
        depth += line.matches('{').count() as i32 - line.matches('}').count() as i32;
        assert!(depth >= 0, "closed too often: {line}");
    }
    assert_eq!(depth, 0, "a block is left open");

    let config = config("master.toml");
    for (upstream, setting, pass) in [
        ("meepo_http", "http", "proxy_pass http://meepo_http;"),
        ("meepo_grpc", "grpc", "grpc_pass grpc://meepo_grpc;"),
    ] {
        let port = config[setting].as_str().unwrap().rsplit(':').next().unwrap();
        let open = format!("upstream {upstream} {{");
        let block = code.iter().skip_while(|l| **l != open).skip(1).take_while(|l| **l != "}");
        let servers: Vec<&&str> = block.filter(|l| l.starts_with("server ")).collect();
        assert_eq!(servers.len(), 3, "{upstream}");
        assert!(servers.iter().all(|s| s.contains(&format!(":{port} "))), "{servers:?}");
        assert!(code.contains(&pass), "nothing goes to {upstream}");
    }
    let stream = code.iter().skip_while(|l| !l.contains("events")).take_while(|l| **l != "}");
    assert!(stream.into_iter().any(|l| *l == "proxy_buffering off;"), "events would be held back");
}
