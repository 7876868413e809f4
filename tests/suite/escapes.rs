//! What jobs and people write is only read: on a terminal, in logs and in messages it does
//! nothing, pretends nothing, and is not lost either.

use crate::fleet::{SOON, apply, wait_runs, wait_session};
use meepo_core::shown::is_unsafe;
use meepo_tests::{Cluster, Spec, TestDir, binary, eventually, run};
use serde_json::json;
use std::fs;

/// A title, a cleared screen (in both forms), a question to the terminal, text that reads
/// backwards, and a line that overwrites itself. As an argument of printf.
const EVIL: &str = r"\033]0;owned\007\033[2J\302\2332J\033[6n\342\200\256live\rX";
/// The beginning of what stands in its place.
const SHOWN: &str = r"\x1b]0;owned\x07\x1b[2J";

/// What `meepo` shows on a terminal, in no colours.
async fn on_terminal(cluster: &Cluster, name: &str, args: &[&str]) -> String {
    let words: Vec<String> =
        args.iter().map(|a| format!("'{}'", a.replace('\'', r"'\''"))).collect();
    let command = format!("{} {}", binary("meepo").display(), words.join(" "));
    let mut spec = Spec::new(name, "script", &["-qec", &command, "/dev/null"], cluster.dir());
    let master = cluster.api().base().to_owned();
    for (key, value) in [
        ("MEEPO_MASTER", master.as_str()),
        ("NO_COLOR", "1"),
        ("TERM", "xterm"),
        ("SHELL", "/bin/sh"),
    ] {
        spec.env.push((key.to_owned(), value.to_owned()));
    }
    run(spec).await.stdout
}

/// Nothing in it does anything but begin a line.
fn harmless(what: &str, text: &str) {
    let lines = text.replace("\r\n", "\n");
    let found: Vec<char> =
        lines.chars().filter(|c| is_unsafe(*c) && !"\n\t".contains(*c)).collect();
    assert!(found.is_empty(), "{what}: {found:?} in {text:?}");
}

#[tokio::test]
async fn on_a_terminal_output_is_shown_and_does_nothing() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    let evil = "\u{1b}[2J\u{9b}2J\u{202e}x";
    let cmd = format!("printf '{EVIL}\\n'; printf '{EVIL}' >&2; exit 3");
    let job = json!({"name": "evil", "cmd": cmd, "description": format!("who reads {evil} this")});
    apply(&api, job).await;
    let (status, body) = api.post("/v1/jobs/evil/trigger", json!({})).await;
    assert_eq!(status, 202, "{body}");
    let failed = wait_runs(&api, "job=evil&state=failed", 1).await;
    let id = failed[0]["run_id"].as_str().unwrap();
    eventually(SOON, "the output is kept", async || {
        let out = cluster.cli(&["logs", id]).await;
        if out.stdout.is_empty() { Err("nothing yet".to_owned()) } else { Ok(()) }
    })
    .await;
    let now = format!("printf '{EVIL}\\n'");
    for (n, (args, said)) in [
        (vec!["logs", id], true),
        (vec!["logs", id, "--timestamps"], true),
        (vec!["logs", id, "-f"], true),
        (vec!["logs", id, "-o", "json"], false),
        (vec!["logs", id, "-o", "yaml"], false),
        (vec!["run", "-t", "127.0.0.2", "--", &now], true),
        (vec!["run", "-t", "127.0.0.2", "--no-prefix", "--", &now], true),
        (vec!["runs", "--job", "evil"], false),
        (vec!["runs", "--job", "evil", "-o", "json"], false),
        (vec!["job", "get", "evil"], false),
        (vec!["job", "get", "evil", "-o", "json"], false),
        (vec!["job", "get", "evil", "-o", "yaml"], false),
        (vec!["job", "get", "evil", "--definition"], false),
    ]
    .into_iter()
    .enumerate()
    {
        let shown = on_terminal(&cluster, &format!("terminal-{n}"), &args).await;
        harmless(&format!("{args:?}"), &shown);
        assert!(!shown.trim().is_empty(), "{args:?} shows nothing");
        assert!(!said || shown.contains(SHOWN), "{args:?}: it is shown by its numbers: {shown}");
    }
    // A pipe gets the bytes: what reads there is a program.
    let piped = cluster.cli(&["logs", id]).await;
    assert!(piped.ok().starts_with("\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}2J"), "{piped:?}");
    let json = cluster.cli(&["job", "get", "evil", "-o", "json"]).await;
    harmless("JSON in a pipe", json.ok());
    assert!(json.json().to_string().contains("\u{202e}x"), "it is the same text");
}

#[tokio::test]
async fn a_log_line_is_neither_forged_nor_does_it_anything() {
    for format in ["text", "json"] {
        let mut builder = Cluster::builder();
        for arg in ["--log-format", format] {
            builder = builder.master_arg(arg).worker_arg(arg);
        }
        let cluster = builder.start().await;
        // The worker says what it cannot use.
        let etcd = cluster.etcd().client().await;
        let evil = "\u{1b}[2J\u{9b}2J\n2026-11-27T00:00:00Z  INFO forged\u{202e}";
        for (key, value) in [
            ("x".to_owned(), json!({"cmd": "true", "executor": evil, "task_id": "x"})),
            (evil.to_owned(), json!({"cmd": "true", "express": "* * * * *"})),
        ] {
            let key = format!("/cron/jobs/127.0.0.2/{key}");
            etcd.clone().put(key, value.to_string(), None).await.unwrap();
        }
        let worker = cluster.worker(0).process();
        eventually(SOON, "the worker complains", async || {
            let log = worker.log();
            // Of both.
            if log.matches("forged").count() > 1 { Ok(()) } else { Err(log) }
        })
        .await;
        let log = worker.log();
        harmless(format, &log);
        let forged = log.lines().find(|l| l.starts_with("2026-11-27T00:00:00Z"));
        assert_eq!(forged, None);
        if format == "json" {
            assert!(log.lines().all(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()));
        }
    }
}

#[tokio::test]
async fn a_message_to_people_holds_text_only() {
    let dir = TestDir::new();
    let (said, title) = (dir.path().join("said"), dir.path().join("title"));
    let program = format!(
        "[notify_commands.note]\ncommand = [\"/bin/sh\", \"-c\", \"printf %s \\\"$MEEPO_TITLE\\\" > {}; \
         cat > {}.new; mv {}.new {}\"]\n",
        title.display(),
        said.display(),
        said.display(),
        said.display()
    );
    let settings = dir.path().join("master.toml");
    fs::write(&settings, program).unwrap();
    let cluster = Cluster::builder()
        .master_arg("--config")
        .master_arg(&settings.display().to_string())
        .start()
        .await;
    let api = cluster.api();
    let channel = json!({"name": "note", "command": {"program": "note"}});
    let (status, body) = api.http("PUT", "/v1/notify/channels/note", Some(&channel)).await;
    assert!(status < 300, "{status} {body}");
    let rule = json!({"name": "all", "to": ["note"], "group_wait": "0s"});
    let (status, body) = api.http("PUT", "/v1/notify/rules/all", Some(&rule)).await;
    assert!(status < 300, "{status} {body}");
    let cmd = format!("printf '{EVIL}\\nSubject: forged\\n'; exit 3");
    apply(&api, json!({"name": "evil", "cmd": cmd})).await;
    let (status, body) = api.post("/v1/jobs/evil/trigger", json!({})).await;
    assert_eq!(status, 202, "{body}");
    let message = eventually(SOON, "the message has come", async || {
        fs::read_to_string(&said).map_err(|e| e.to_string())
    })
    .await;
    let value: serde_json::Value = serde_json::from_str(&message).unwrap();
    let tail = value["events"][0]["tail"].as_str().unwrap();
    let text = value["text"].as_str().unwrap();
    for (what, text) in
        [("tail", tail), ("text", text), ("title", value["title"].as_str().unwrap())]
    {
        harmless(what, text);
    }
    assert!(tail.contains(SHOWN) && text.contains(SHOWN), "{value}");
    assert!(!text.lines().any(|l| l.starts_with("Subject")), "{text}");
    harmless("the variable", &fs::read_to_string(&title).unwrap());
}
