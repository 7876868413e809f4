//! The host: whose files these are, what stands in their place, and what the services may do.

use crate::fleet::{apply, wait_runs};
use meepo_tests::{Cluster, Spec, TestDir, binary, run, workspace_root};
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o777
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace_root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Everything below a directory.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            all.extend(below(&path));
        }
        all.push(path);
    }
    all
}

#[tokio::test]
async fn data_directories_and_what_is_in_them_are_for_their_user_only() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let gate = cluster.dir().join("gate");
    let cmd = format!("until [ -e {} ]; do sleep 0.02; done", gate.display());
    apply(&api, json!({"name": "long", "cmd": cmd, "survive_restart": true})).await;
    let (status, body) = api.post("/v1/jobs/long/trigger", json!({})).await;
    assert_eq!(status, 202, "{body}");
    let running = wait_runs(&api, "job=long&state=running", 1).await;
    let (worker, master) =
        (cluster.dir().join("worker-0-1.data"), cluster.dir().join("master-0-1.data"));
    for dir in [&worker, &master] {
        assert_eq!(mode(dir), 0o700, "{}", dir.display());
    }
    // The socket by which it can be killed, its order and its output.
    let run = worker.join("surviving").join(running[0]["run_id"].as_str().unwrap());
    assert!(run.join("sock").exists(), "{:?}", below(&run));
    assert_eq!((mode(&run), mode(run.parent().unwrap())), (0o700, 0o700));
    for path in below(&worker) {
        let name = path.file_name().unwrap().to_str().unwrap();
        // The pid is no secret, and whoever asks for it may be another user.
        if path.is_file() && name.contains("state") || ["order", "output"].contains(&name) {
            assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        }
    }
    assert_eq!(mode(&cluster.dir().join("logs.db")), 0o600);
    fs::write(&gate, "").unwrap();
    wait_runs(&api, "job=long&state=success", 1).await;
}

#[tokio::test]
async fn a_directory_that_others_may_write_to_is_refused() {
    let dir = TestDir::new();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
    let place = data.display().to_string();
    for (name, program, args) in [
        ("worker", "meepo-worker", vec!["run", "--data-dir", &place, "--node", "n"]),
        (
            "master",
            "meepo-master",
            vec!["--data-dir", &place, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"],
        ),
        ("server", "meepo", vec!["server", "--data-dir", &place]),
    ] {
        let out = run(Spec::new(name, binary(program), &args, dir.path())).await;
        let said = format!("{}{}", out.stdout, out.stderr);
        assert_ne!(out.code, 0, "{name}: {said}");
        assert!(said.contains("others than its owner may write"), "{name}: {said}");
        assert!(said.contains("mode 700"), "it says what would be right: {said}");
        assert_eq!((mode(&data), below(&data).len()), (0o777, 0), "it is left alone");
    }
}

#[tokio::test]
async fn a_link_in_the_place_of_a_pid_file_or_a_log_is_not_followed() {
    let dir = TestDir::new();
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let (link, second, data) =
        (dir.path().join("link"), dir.path().join("second"), dir.path().join("data"));
    symlink(&victim, &link).unwrap();
    fs::hard_link(&victim, &second).unwrap();
    let data = data.display().to_string();
    for (name, place) in [("link", &link), ("second", &second)] {
        let place = place.display().to_string();
        let args = ["run", "--data-dir", &data, "--node", "n", "--pid-file", &place];
        let out = run(Spec::new(name, binary("meepo-worker"), &args, dir.path())).await;
        assert_ne!(out.code, 0, "{out:?}");
        assert!(format!("{out:?}").contains("pid file"), "{out:?}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{name}");
        // Nor is a number that stands there taken for a worker's.
        for command in ["status", "stop"] {
            let args = [command, "--data-dir", &data, "--pid-file", &place];
            let name = format!("{command}-{name}");
            let out = run(Spec::new(&name, binary("meepo-worker"), &args, dir.path())).await;
            assert_ne!(out.code, 0, "{out:?}");
        }
    }
}

/// What `systemd-analyze security` says of a unit: 0 is shut in, 10 is free.
fn exposure(unit: &str) -> Option<f64> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("unit.service");
    fs::write(&path, unit).unwrap();
    let asked = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(&path)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&asked.stdout).into_owned();
    let line = text.lines().find(|l| l.contains("Overall exposure level"))?.to_owned();
    line.split(": ").nth(1)?.split(' ').next()?.parse().ok()
}

#[test]
fn services_may_do_what_they_need_and_no_more() {
    let master = read("deploy/systemd/meepo-master.service");
    let worker = read("deploy/systemd/meepo-worker.service");
    let confined = read("deploy/systemd/meepo-worker.service.d/confined.conf");
    let sysusers = read("deploy/sysusers.d/meepo.conf");
    for (name, unit, user) in
        [("master", &master, "meepo"), ("a confined worker", &confined, "meepo-jobs")]
    {
        for line in [
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "AmbientCapabilities=",
            "ProtectSystem=strict",
            "ProtectHome=yes",
            "PrivateTmp=yes",
            "PrivateDevices=yes",
            "ProtectKernelModules=yes",
            "ProtectKernelTunables=yes",
            "ProtectKernelLogs=yes",
            "ProtectControlGroups=yes",
            "ProtectClock=yes",
            "ProtectHostname=yes",
            "ProtectProc=invisible",
            "LockPersonality=yes",
            "RestrictNamespaces=yes",
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "SystemCallArchitectures=native",
            "SystemCallFilter=@system-service",
            "UMask=0077",
        ] {
            assert!(unit.lines().any(|l| l == line), "{name} lacks {line}");
        }
        assert!(unit.lines().any(|l| l == format!("User={user}")), "{name}");
        assert!(sysusers.contains(&format!("\nu {user} ")), "sysusers.d does not make {user}");
    }
    for line in ["StateDirectoryMode=0700", "KeyringMode=private"] {
        assert!(worker.lines().any(|l| l == line), "the worker lacks {line}");
    }
    // Where systemd is there to say so.
    for (name, unit, most) in
        [("the master", master, 2.0), ("a confined worker", format!("{worker}\n{confined}"), 2.5)]
    {
        if let Some(level) = exposure(&unit) {
            assert!(level <= most, "{name} is exposed at {level} of 10");
        }
    }
}

#[test]
fn the_worker_says_what_its_privileges_are_for() {
    let page = read("docs/security.md");
    let source = read("deploy/systemd/meepo-worker.service");
    assert!(source.contains("docs/security.md"), "the unit leads to where it is explained");
    for capability in [
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_KILL",
        "CAP_SYS_PTRACE",
        "CAP_DAC_READ_SEARCH",
        "CAP_DAC_OVERRIDE",
        "CAP_SYS_NICE",
        "CAP_SYS_RESOURCE",
    ] {
        assert!(page.contains(&format!("`{capability}`")), "{capability} is not explained");
    }
}

#[test]
fn every_exception_of_the_audit_of_dependencies_has_a_reason() {
    let text = read("deny.toml");
    let deny: toml::Table = text.parse().unwrap();
    let list = |table: &str, key: &str| -> Vec<toml::Value> {
        let found = deny.get(table).and_then(|t| t.get(key)).and_then(|v| v.as_array());
        found.cloned().unwrap_or_default()
    };
    for (table, key) in [
        ("bans", "deny"),
        ("bans", "skip"),
        ("bans", "skip-tree"),
        ("advisories", "ignore"),
        ("licenses", "exceptions"),
    ] {
        for entry in list(table, key) {
            let reason = entry.get("reason").and_then(|r| r.as_str()).unwrap_or_default();
            assert!(reason.len() > 10, "[{table}] {key}: {entry} has no reason");
        }
    }
    // A licence beyond the usual ones, with the reason in the comment above it.
    let usual = ["Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unicode-3.0"];
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for licence in list("licenses", "allow") {
        let licence = licence.as_str().unwrap();
        if usual.contains(&licence) {
            continue;
        }
        let at = lines.iter().position(|l| *l == format!("\"{licence}\",")).unwrap();
        assert!(lines[at - 1].starts_with("# "), "{licence} is allowed without a reason");
    }
    let warned = deny["bans"].get("multiple-versions").and_then(toml::Value::as_str);
    assert_eq!(warned, Some("warn"));
}

/// Every file with tests.
fn sources() -> Vec<(PathBuf, String)> {
    let root = workspace_root();
    let folders = ["common", "master", "worker", "cli", "tests"].map(|f| root.join(f));
    let files = folders.iter().flat_map(|f| below(f));
    let rust = files.filter(|p| p.extension().is_some_and(|e| e == "rs"));
    rust.map(|p| (p.clone(), fs::read_to_string(p).unwrap())).collect()
}

#[test]
fn what_the_threat_model_promises_is_shown_by_tests_that_exist() {
    let page = read("docs/security.md");
    let sources = sources();
    // `module::…::test`, as a test runner names them.
    let is_name = |w: &str| {
        let path = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
        w.contains("::") && w.chars().all(path)
    };
    let named: BTreeSet<&str> = page.split('`').skip(1).step_by(2).filter(|w| is_name(w)).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in &named {
        let (module, test) = name.rsplit_once("::").unwrap();
        let first = module.split("::").next().unwrap();
        let start = format!("fn {test}(");
        let found = sources.iter().any(|(path, text)| {
            let here =
                path.iter().any(|part| Path::new(part).file_stem().is_some_and(|s| s == first));
            here && text.contains(&start)
        });
        assert!(found, "{name} of docs/security.md is no test");
    }
    // Every attacker has rows, and every row a test.
    for attacker in [
        "On the network",
        "With a stolen token",
        "On a stolen worker",
        "With write access to etcd",
        "With write access to the log store",
        "A job's output",
        "A curious operator",
    ] {
        let section = page.split(&format!("\n### {attacker}\n")).nth(1);
        let section = section.unwrap_or_else(|| panic!("{attacker}: no section of security.md"));
        let section = section.split("\n### ").next().unwrap().split("\n## ").next().unwrap();
        let rows: Vec<&str> = section.lines().filter(|l| l.starts_with("| ")).skip(1).collect();
        assert!(rows.len() >= 2, "{attacker}: {rows:?}");
        for row in rows {
            let shown = row.trim_matches('|').rsplit('|').next().unwrap();
            let tests = shown.split('`').skip(1).step_by(2).filter(|w| is_name(w)).count();
            assert!(tests > 0 || shown.contains("by design"), "{attacker}: no test for {row}");
        }
    }
}
