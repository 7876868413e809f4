//! Settings of the three binaries that cannot be: refused at the start, in words.

use crate::shared::server;
use meepo_tests::{Output, Spec, TestDir, binary, free_port, run};
use std::{
    fs,
    net::TcpListener,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

/// Runs a binary that must refuse to start.
async fn start(program: &str, args: &[&str], dir: &Path) -> Output {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("start-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    run(Spec::new(&name, binary(program), args, dir)).await
}

/// The last line of standard error; the lines before it may be a log.
#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    assert!(matches!(output.code, 1 | 2), "{output:?}");
    let error = output.stderr.lines().find(|l| l.starts_with("error: "));
    let error = error.unwrap_or_else(|| panic!("{output:?}"));
    for word in words {
        assert!(error.contains(word), "{word:?} in {error}");
    }
}

#[tokio::test]
async fn configuration_files() {
    let dir = TestDir::new();
    let file = dir.path().join("settings.toml");
    let path = file.to_str().unwrap();
    for (program, text, words) in [
        ("meepo-master", "htp = \"127.0.0.1:1\"", &["htp", "http", "settings.toml"][..]),
        ("meepo-master", "http = 7600", &["http", "settings.toml"]),
        ("meepo-master", "http = \"nonsense\"", &["http", "settings.toml"]),
        ("meepo-master", "http = ", &["settings.toml"]),
        ("meepo-master", "lease_ttl = \"1ms\"", &["lease_ttl", "2s to 1h"]),
        ("meepo-master", "lease_ttl = \"soon\"", &["lease_ttl", "30s"]),
        ("meepo-master", "etcd = []", &["etcd", "at least one"]),
        ("meepo-master", "log_format = \"xml\"", &["log_format", "json"]),
        ("meepo-master", "http = \"0.0.0.0:0\"", &["http", "allow_insecure_listen"]),
        ("meepo-master", "grpc = \"[::]:0\"", &["grpc", "allow_insecure_listen"]),
        ("meepo-worker", "max_runing = 1", &["max_runing", "max_running", "settings.toml"]),
        ("meepo-worker", "max_running = 0", &["max_running", "at least 1"]),
        ("meepo-worker", "node = \"a/b\"", &["node", "letters"]),
        ("meepo-worker", "metrics = \"0.0.0.0:0\"", &["metrics", "allow_insecure_listen"]),
        ("meepo-worker", "[labels]\na = 1", &["labels", "settings.toml"]),
    ] {
        fs::write(&file, text).unwrap();
        let mut args = vec!["--config", path];
        if program == "meepo-worker" {
            args.insert(0, "run");
        }
        let output = start(program, &args, dir.path()).await;
        // TOML errors quote the line below: all of it counts.
        let joined = Output { stderr: output.stderr.replace('\n', " "), ..output };
        refused(&joined, words);
    }
    for (program, args) in [
        ("meepo-master", &["--config", "/no/such.toml"][..]),
        ("meepo-worker", &["run", "--config", "/no/such.toml"]),
    ] {
        refused(&start(program, args, dir.path()).await, &["/no/such.toml", "No such file"]);
    }
}

#[tokio::test]
async fn flags() {
    let dir = TestDir::new();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    for (program, args, words) in [
        ("meepo", &["--server", "--http", "nonsense"][..], &["--http"][..]),
        ("meepo", &["--server", "--nonsense"], &["--nonsense"]),
        ("meepo", &["--server", "--node", "a/b"], &["--node", "letters"]),
        ("meepo", &["--server", "--jobs", "/no/such/dir"], &["/no/such/dir"]),
        ("meepo", &["--server", "--http", "0.0.0.0:0"], &["http", "allow"]),
        ("meepo", &["--server", "--grpc", "0.0.0.0:0"], &["grpc", "allow"]),
        ("meepo", &["--server", "--metrics", "[::]:0"], &["metrics", "allow"]),
        ("meepo", &["run", "-t", "all", "--timeout", "soon", "--", "x"], &["--timeout", "30s"]),
        (
            "meepo",
            &["run", "-t", "all", "--executor", "perl", "--", "x"],
            &["--executor", "python"],
        ),
        ("meepo", &["run", "-t", "all", "--env", "x", "--", "x"], &["--env", "KEY=VALUE"]),
        ("meepo", &["run", "-t", "all"], &["required"]),
        ("meepo", &["run", "true"], &["required"]),
        ("meepo", &["job", "get", "a/b"], &["a/b", "letters"]),
        ("meepo", &["runs", "-n", "0"], &["-n", "1..=1000000000"]),
        ("meepo", &["runs", "--since", "soon", "--master", "127.0.0.1:1"], &["--since", "1h"]),
        ("meepo", &["runs", "--min-duration", "5"], &["--min-duration", "30s"]),
        ("meepo", &["runs", "--export", "csv"], &["--export", "csv"]),
        ("meepo", &["runs", "--state", "done"], &["--state", "running, success"]),
        ("meepo", &["nonsense"], &["nonsense"]),
        ("meepo", &["job", "list", "-o", "xml"], &["--output", "xml"]),
        ("meepo-master", &["--http", "x"], &["--http"]),
        ("meepo-master", &["--http", "0.0.0.0:0"], &["http", "allow_insecure_listen"]),
        ("meepo-master", &["--lease-ttl", "1ms"], &["lease_ttl", "2s to 1h"]),
        ("meepo-master", &["--retention", "all=1d"], &["--retention", "success, failed"]),
        ("meepo-master", &["--retention", "success=0s"], &["--retention", "forever"]),
        (
            "meepo-master",
            &["--otlp-endpoint", "no url"],
            &["otlp_endpoint", "http://127.0.0.1:4317"],
        ),
        (
            "meepo-worker",
            &["run", "--otlp-endpoint", "ftp://x"],
            &["otlp_endpoint", "https://otel"],
        ),
        ("meepo-master", &["--log-format", "xml"], &["--log-format", "text or json"]),
        ("meepo-worker", &["run", "--label", "x"], &["--label", "KEY=VALUE"]),
        ("meepo-worker", &["run", "--max-running", "0"], &["max_running", "at least 1"]),
        ("meepo-worker", &["run", "--metrics", "0.0.0.0:0"], &["metrics", "allow_insecure_listen"]),
    ] {
        let mut args = args.to_vec();
        if args[0] == "--server" {
            args.extend(["--data-dir", data]);
        }
        refused(&start(program, &args, dir.path()).await, words);
    }
    assert!(!Path::new(data).exists(), "what is refused leaves nothing behind");
}

#[tokio::test]
async fn taken_ports_name_the_setting() {
    let (shared, dir) = (server().await, TestDir::new());
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = busy.local_addr().unwrap().to_string();
    let free = || format!("127.0.0.1:{}", free_port());
    let (etcd, data) = (shared.etcd_url(), dir.path().join("data").display().to_string());
    for flag in ["--http", "--grpc", "--metrics"] {
        let env = format!("MEEPO_{}", flag[2..].to_uppercase());
        let addresses: Vec<String> = ["--http", "--grpc", "--metrics"]
            .into_iter()
            .flat_map(|f| [f.to_owned(), if f == flag { taken.clone() } else { free() }])
            .collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let port = free_port().to_string();
        let server = [&["--server", "--data-dir", &data, "--etcd-port", &port], &addresses[..]];
        let output = start("meepo", &server.concat(), dir.path()).await;
        refused(&output, &[&taken, flag, &env, "in use"]);
        let (program, args) = match flag {
            "--metrics" => {
                let args = ["run", "--etcd", &etcd, "--node", "taken", "--data-dir", &data];
                ("meepo-worker", [&args[..], &addresses[4..]].concat())
            }
            _ => {
                let args = ["--etcd", &etcd, "--data-dir", &data];
                ("meepo-master", [&args[..], &addresses[..4]].concat())
            }
        };
        refused(&start(program, &args, dir.path()).await, &[&taken, flag, &env, "in use"]);
    }
    let port = busy.local_addr().unwrap().port().to_string();
    let args = ["--server", "--data-dir", &data, "--etcd-port", &port];
    let addresses = ["--http", &free(), "--grpc", &free(), "--metrics", &free()].map(str::to_owned);
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let output = start("meepo", &[&args[..], &addresses].concat(), dir.path()).await;
    refused(&output, &[&port, "--etcd-port", "MEEPO_ETCD_PORT"]);
    // A second server on the same data.
    let held = shared.data_dir().to_str().unwrap();
    let port = free_port().to_string();
    let args = ["--server", "--data-dir", held, "--etcd-port", &port];
    let output = start("meepo", &[&args[..], &addresses].concat(), dir.path()).await;
    refused(&output, &[held, "--data-dir"]);
    assert_eq!(shared.api().get("/readyz").await.0, 200);
}
