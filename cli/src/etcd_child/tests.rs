//! With real etcd. The program is `etcd`, or what `MEEPO_TEST_ETCD` names.

use super::*;
use std::process::Command;

fn options(dir: &Path) -> EtcdOptions {
    let program = std::env::var_os("MEEPO_TEST_ETCD").unwrap_or_else(|| "etcd".into());
    EtcdOptions { data_dir: dir.join("data"), port: 0, program: program.into() }
}

/// The pid in the pid file.
fn pid(dir: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(dir.join("data/etcd.pid")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn exists(pid: i32) -> bool {
    // A zombie has a stat file too, but an empty command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| !c.is_empty())
}

async fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(got) = check() {
            return got;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "no {what} in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Puts or gets with etcd's own JSON interface; values in base64.
async fn kv(endpoint: &str, what: &str, body: serde_json::Value) -> Result<serde_json::Value> {
    let client = crate::client::local(Duration::from_secs(30))?;
    Ok(client.post(format!("{endpoint}/v3/kv/{what}")).json(&body).send().await?.json().await?)
}

#[tokio::test]
async fn it_starts_keeps_data_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = EtcdChild::start(options(dir.path())).await.unwrap();
    kv(etcd.endpoint(), "put", serde_json::json!({"key": "YQ==", "value": "Yg=="})).await.unwrap();
    let first = pid(dir.path()).unwrap();
    // Its own process group: the terminal's Ctrl-C does not reach it.
    assert_eq!(
        nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(first))).unwrap().as_raw(),
        first
    );
    etcd.stop().await;
    assert!(!exists(first));
    assert_eq!(pid(dir.path()), None);

    // Another port does not matter to the data.
    let etcd = EtcdChild::start(options(dir.path())).await.unwrap();
    let got = kv(etcd.endpoint(), "range", serde_json::json!({"key": "YQ=="})).await.unwrap();
    assert_eq!(got["kvs"][0]["value"], "Yg==");
    etcd.stop().await;
}

#[tokio::test]
async fn one_that_dies_comes_back_on_the_same_port() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = EtcdChild::start(options(dir.path())).await.unwrap();
    let first = pid(dir.path()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::SIGKILL).unwrap();
    until("new etcd", || pid(dir.path()).filter(|p| *p != first)).await;
    let begin = Instant::now();
    while kv(etcd.endpoint(), "range", serde_json::json!({"key": "YQ=="})).await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    etcd.stop().await;
    assert_eq!(pid(dir.path()), None);
}

#[tokio::test]
async fn dropping_it_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = EtcdChild::start(options(dir.path())).await.unwrap();
    let first = pid(dir.path()).unwrap();
    drop(etcd);
    until("end of etcd", || (!exists(first)).then_some(())).await;
}

#[tokio::test]
async fn a_left_over_one_is_ended_first() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // What looks like an etcd on that directory and does not want to end.
    let mut left = Command::new("sh")
        .args(["-c", "trap '' TERM; echo; while :; do sleep 0.05; done", "sh"])
        .arg(format!("--data-dir={}", data.canonicalize().unwrap().join("etcd").display()))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The trap is set when it has written its line.
    std::io::Read::read_exact(left.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    leftover::remember(&data, left.id());
    let reaper = std::thread::spawn(move || left.wait().unwrap());
    let etcd = EtcdChild::start(options(dir.path())).await.unwrap();
    let status = reaper.join().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    etcd.stop().await;
}

#[tokio::test]
async fn a_strangers_process_with_that_pid_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    leftover::remember(&data, stranger.id());
    leftover::end(&data).unwrap();
    let alive = stranger.try_wait().unwrap().is_none();
    let _ = stranger.kill();
    let _ = stranger.wait();
    assert!(alive);
    assert_eq!(pid(dir.path()), None);
}

async fn refusal(options: EtcdOptions) -> String {
    match EtcdChild::start(options).await {
        Ok(_) => panic!("it started"),
        Err(e) => format!("{e:#}"),
    }
}

#[tokio::test]
async fn a_taken_port_names_its_holder_and_the_settings() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let text = refusal(EtcdOptions { port, ..options(dir.path()) }).await;
    for want in [
        &format!("port {port} "),
        &format!("(pid {})", std::process::id()),
        "--etcd-port",
        "--etcd",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
}

#[tokio::test]
async fn a_directory_serves_one_server() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = EtcdChild::start(options(dir.path())).await.unwrap();
    let text = refusal(options(dir.path())).await;
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    assert!(text.contains("--data-dir"), "{text}");
    assert!(exists(pid(dir.path()).unwrap()), "the first goes on");
    etcd.stop().await;
}

#[tokio::test]
async fn what_is_missing_or_broken_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let text = refusal(EtcdOptions { program: "no-such-etcd".into(), ..options(dir.path()) }).await;
    assert!(text.contains("apt install etcd-server") && text.contains("--etcd"), "{text}");

    let text =
        refusal(EtcdOptions { data_dir: "/proc/nowhere".into(), ..options(dir.path()) }).await;
    assert!(text.contains("/proc/nowhere") && text.contains("--data-dir"), "{text}");

    let member = dir.path().join("data/etcd/member");
    std::fs::create_dir_all(member.join("snap")).unwrap();
    std::fs::create_dir_all(member.join("wal")).unwrap();
    std::fs::write(member.join("snap/db"), [7; 65536]).unwrap();
    std::fs::write(member.join("wal/0000000000000000-0000000000000000.wal"), [7; 4096]).unwrap();
    let text = refusal(options(dir.path())).await;
    assert!(text.contains("etcd.log"), "{text}");
    assert_eq!(pid(dir.path()), None);
}
