//! `meepo run`: commands on nodes, now.

use crate::fleet::wait_session;
use crate::shared::{NODE, server, wait_gone, wait_run, wait_stdout};
use meepo_tests::{Cluster, Output, Server, eventually, secs};
use serde_json::Value;

async fn on_all(server: &Server, options: &[&str], words: &[&str]) -> Output {
    let args = [&["run", "-t", "all"], options, &["--"], words].concat();
    server.cli(&args).await
}

/// The lines of `-o json`.
fn events(output: &Output) -> Vec<Value> {
    output.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[tokio::test]
async fn output_comes_by_node_and_the_exit_status_is_passed_on() {
    let server = server().await;
    for (options, words, code, stdout) in [
        (&[][..], &["echo one; echo two"][..], 0, "127.0.0.1 | one\n127.0.0.1 | two\n"),
        (&[], &["exit 7"], 7, ""),
        (&[], &["printf half; exit 3"], 3, "127.0.0.1 | half\n"),
        // Several words arrive as they are.
        (
            &[],
            &["printf", "<%s>", "a  b", "$HOME", "it's", "*"],
            0,
            "127.0.0.1 | <a  b><$HOME><it's><*>\n",
        ),
        (
            &["--executor", "sh"],
            &["echo $0 | grep -c bash; echo x"],
            0,
            "127.0.0.1 | 0\n127.0.0.1 | x\n",
        ),
        (
            &["--executor", "exec"],
            &["/bin/echo", "a  b", "$HOME", ";"],
            0,
            "127.0.0.1 | a  b $HOME ;\n",
        ),
        (
            &["--executor", "python"],
            &["import sys; print(sys.argv[1:])", "x", "y z"],
            0,
            "127.0.0.1 | ['x', 'y z']\n",
        ),
        (
            &["--env", "A=1 2", "--env", "B=", "--cwd", "/usr"],
            &["echo \"[$A][${B-unset}] $PWD\""],
            0,
            "127.0.0.1 | [1 2][] /usr\n",
        ),
        (&["--no-prefix"], &["printf 'raw'"], 0, "raw"),
    ] {
        let output = on_all(&server, options, words).await;
        assert_eq!((output.code, output.stdout.as_str()), (code, stdout), "{words:?}: {output:?}");
    }
}

#[tokio::test]
async fn what_goes_to_stderr_comes_to_stderr() {
    let server = server().await;
    let output = on_all(&server, &[], &["echo out; echo err >&2"]).await;
    assert_eq!(output.ok(), "127.0.0.1 | out\n");
    assert_eq!(output.stderr, "127.0.0.1 | err\n");
    let output = on_all(&server, &[], &["kill -9 $$"]).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("127.0.0.1: ended by signal 9"), "{output:?}");
}

#[tokio::test]
async fn json_is_an_event_a_line() {
    let server = server().await;
    let output = on_all(&server, &["-o", "json"], &["echo hi"]).await;
    assert_eq!(output.code, 0);
    let events = events(&output);
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["start", "output", "end"]);
    assert_eq!(events[0]["hosts"][0]["host"], NODE);
    assert_eq!((&events[1]["text"], &events[1]["stream"]), (&"hi\n".into(), &"stdout".into()));
    assert_eq!(events[2]["run"]["run_id"], events[0]["hosts"][0]["run_id"]);
    assert_eq!(events[2]["run"]["cause"], "exec");
}

/// Tests run as root in the usual container; elsewhere only root may change users and
/// the answer says so.
#[tokio::test]
async fn a_user_is_changed_to_where_that_is_allowed() {
    let server = server().await;
    let output = on_all(&server, &["--user", "nobody"], &["id -un; id -Gn"]).await;
    if nix::unistd::geteuid().is_root() {
        let stdout = output.ok();
        assert!(stdout.starts_with("127.0.0.1 | nobody\n"), "{stdout}");
        assert!(!stdout.contains("root"), "groups are left behind too: {stdout}");
    } else {
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains("nobody"), "{output:?}");
    }
    for (options, words, reason) in [
        (&["--user", "no-such-user"][..], &["true"][..], "no user \"no-such-user\""),
        (&["--cwd", "/no/such/dir"], &["true"], "/no/such/dir does not exist"),
        (&["--executor", "exec"], &["no-such-program"], "\"no-such-program\" not found"),
    ] {
        let output = on_all(&server, options, words).await;
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains(reason), "{output:?}");
    }
}

#[tokio::test]
async fn a_timeout_kills_even_what_ignores_signals() {
    let server = server().await;
    // The grandchild ignores them too and must not stay either.
    let script = "trap '' INT TERM HUP; echo pid=$$; sh -c 'echo pid=$$; sleep 300' & \
                  while :; do sleep 0.1; done";
    let output = on_all(&server, &["--timeout", "300ms", "-o", "json"], &[script]).await;
    assert_eq!(output.code, 1, "{output:?}");
    let events = events(&output);
    let end = events.last().unwrap();
    assert_eq!((&end["type"], &end["retcode"]), (&"end".into(), &0x0100.into()), "{end}");
    assert_eq!((&end["run"]["state"], &end["resp"]), (&"timeout".into(), &"failed".into()));
    let text: String = events.iter().filter_map(|e| e["text"].as_str()).collect();
    let pids: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("pid=")).collect();
    assert_eq!(pids.len(), 2, "{text}");
    for pid in pids {
        wait_gone(pid).await;
    }
}

#[tokio::test]
async fn ctrl_c_kills_the_remote_process() {
    let server = server().await;
    let process = server.cli_start(&[
        "run",
        "-t",
        "all",
        "--no-prefix",
        "--",
        "echo pid=$$.; exec sleep 300",
    ]);
    let stdout = wait_stdout(&process, ".\n").await;
    let pid = stdout.trim().trim_start_matches("pid=").trim_end_matches('.');
    assert!(std::path::Path::new("/proc").join(pid).exists());
    process.interrupt();
    assert_eq!(process.wait_exit(secs(10)).await.code(), Some(130));
    assert!(process.log().contains("interrupted"), "{}", process.log());
    wait_gone(pid).await;
    // What came of it stands in the history.
    let id = eventually(secs(30), "its record is there", async || {
        let runs = server.cli(&["runs", "-n", "100", "-o", "json"]).await.json();
        let mut runs = runs.as_array().unwrap().iter();
        let mine = runs.find(|r| r["pid"].as_u64() == pid.parse().ok());
        mine.map(|r| r["run_id"].as_str().unwrap().to_owned()).ok_or("no record".to_owned())
    })
    .await;
    let record = wait_run(&server.api(), &id, &["killed"]).await;
    assert_eq!(record["code"], 0x0103);
}

#[tokio::test]
async fn hosts_that_are_unknown_or_away_answer_too() {
    let cluster = Cluster::builder().workers(2).start().await;
    let (here, away) = (cluster.worker(0).node(), cluster.worker(1).node());
    for node in [here, away] {
        wait_session(&cluster.api(), node).await;
    }
    cluster.worker(1).process().kill9();
    eventually(secs(30), "the session is gone", async || {
        let (_, node) = cluster.api().try_http("GET", &format!("/v1/nodes/{away}"), None).await?;
        if node["connected"] == false { Ok(()) } else { Err(node.to_string()) }
    })
    .await;
    let target = format!("{here} or {away} or 10.9.9.9");
    let output = cluster.cli(&["run", "-t", &target, "--", "echo hi"]).await;
    assert_eq!((output.code, output.stdout), (1, format!("{here} | hi\n")));
    for line in [
        format!("{away}: the host is known but not connected"),
        "10.9.9.9: no such host".to_owned(),
        "2 of 3 nodes failed".to_owned(),
    ] {
        assert!(output.stderr.lines().any(|l| l == line), "{line:?} in {}", output.stderr);
    }
    let output = cluster.cli(&["run", "-t", &target, "-o", "json", "--", "echo hi"]).await;
    let mut ends: Vec<(String, u64)> = events(&output)
        .iter()
        .filter(|e| e["type"] == "end")
        .map(|e| (e["host"].as_str().unwrap().to_owned(), e["retcode"].as_u64().unwrap()))
        .collect();
    ends.sort();
    let want = [("10.9.9.9", 0x0200), (here, 0), (away, 0x0201)];
    assert_eq!(ends, want.map(|(host, code)| (host.to_owned(), code)));
    for alone in [away, "10.9.9.9"] {
        assert_eq!(cluster.cli(&["run", "-t", alone, "--", "true"]).await.code, 1);
    }
    let output = cluster.cli(&["run", "-t", "group=nobody", "--", "true"]).await;
    let line = crate::shared::one_line(&output, 3);
    assert!(line.contains("matches no node"), "{line}");
}
