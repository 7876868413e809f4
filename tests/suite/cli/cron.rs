//! `meepo cron`.

use crate::shared::{one_line, server, wait_run};
use meepo_tests::{Spec, TestDir, binary, run};
use serde_json::{Value, json};
use std::fs;

#[tokio::test]
async fn next_needs_no_master() {
    let dir = TestDir::new();
    let args = "cron next --from 2026-03-01T00:01:00Z -n 3 -o json --master http://127.0.0.1:1";
    let args: Vec<&str> = args.split(' ').chain(["*/5 * * * *"]).collect();
    let output = run(Spec::new("next", binary("meepo"), &args, dir.path())).await;
    let want = ["2026-03-01T00:05:00Z", "2026-03-01T00:10:00Z", "2026-03-01T00:15:00Z"];
    assert_eq!(output.json(), json!(want));
}

#[tokio::test]
async fn next_follows_the_clock_of_a_zone() {
    let server = server().await;
    // 01:30 does not exist in London on 2026-03-29: right after the gap instead.
    for (expr, zone, from, want) in [
        ("30 1 * * *", "Europe/London", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"),
        ("30 1 * * *", "Europe/London", "2026-03-29T12:00:00Z", "2026-03-30T00:30:00Z"),
        ("0 9 * * 1-5", "America/New_York", "2026-01-03T00:00:00Z", "2026-01-05T14:00:00Z"),
        ("*/10 * * * * *", "UTC", "2026-01-01T00:00:05Z", "2026-01-01T00:00:10Z"),
        ("@hourly", "UTC", "2026-01-01T00:30:00Z", "2026-01-01T01:00:00Z"),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
    ] {
        let args = ["cron", "next", expr, "--tz", zone, "--from", from, "-n", "1", "-o", "json"];
        assert_eq!(server.cli(&args).await.json(), json!([want]), "{expr} {zone}");
        // The master reckons as the command does.
        let query = [("expr", expr), ("tz", zone), ("from", from), ("n", "1")];
        let query: Vec<String> =
            query.iter().map(|(k, v)| format!("{k}={}", v.replace(' ', "%20"))).collect();
        let (status, slots) = server.api().get(&format!("/v1/cron/next?{}", query.join("&"))).await;
        assert_eq!((status, slots), (200, json!([want])), "{expr} {zone}");
    }
    for (args, word) in [
        (&["61 * * * *"][..], "0-59"),
        (&["@daily", "--tz", "Mars/Base"], "Europe/London"),
        (&["0 0 30 2 *"], "a day that exists"),
        (&["@daily", "--from", "later"], "2026-03-29T01:00:00Z"),
    ] {
        let output = server.cli(&[&["cron", "next"], args].concat()).await;
        assert!(one_line(&output, 2).contains(word), "{output:?}");
    }
}

const CRONTAB: &str = "\
# /etc/crontab: system-wide crontab
SHELL=/bin/sh
PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
MAILTO=root
# Example of job definition:
# .---------------- minute (0 - 59)
17 *\t* * *\troot\tcd / && run-parts --report /etc/cron.hourly
25 6\t* * 7\troot\ttest -x /usr/sbin/anacron || { cd / && echo weekly; }

CRON_TZ=Europe/London
SHELL=/bin/bash
30 1 * * mon-fri nobody cat%first%second \\% more
@reboot root true
";

#[tokio::test]
async fn a_system_crontab_becomes_jobs_once() {
    let (server, dir) = (server().await, TestDir::new());
    let file = dir.path().join("crontab");
    fs::write(&file, CRONTAB).unwrap();
    let file = file.to_str().unwrap();
    let import = ["cron", "import", file, "--tz", "Asia/Tokyo", "--prefix", "imp-"];
    let dry = server.cli(&[&import[..], &["--dry-run", "-o", "json"]].concat()).await;
    assert!(dry.stderr.contains("with a user column"), "{dry:?}");
    assert!(dry.stderr.contains("MAILTO"), "it says that nothing is mailed: {dry:?}");
    let jobs = dry.json();
    let jobs = jobs.as_array().unwrap();
    let field = |f: &str| jobs.iter().map(|j| j[f].clone()).collect::<Vec<Value>>();
    assert_eq!(field("schedule"), ["17 * * * *", "25 6 * * 7", "30 1 * * mon-fri", "@reboot"]);
    assert_eq!(field("user"), ["root", "root", "nobody", "root"]);
    assert_eq!(field("timezone")[..3], ["Asia/Tokyo", "Asia/Tokyo", "Europe/London"]);
    assert_eq!(jobs[0]["cmd"], "cd / && run-parts --report /etc/cron.hourly");
    assert_eq!(jobs[0]["env"]["PATH"], "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    assert_eq!((&jobs[0]["executor"], &jobs[2]["executor"]), (&"sh".into(), &"bash".into()));
    assert_eq!(
        (&jobs[2]["cmd"], &jobs[2]["stdin"]),
        (&"cat".into(), &"first\nsecond % more\n".into())
    );
    let names: Vec<String> = jobs.iter().map(|j| j["name"].as_str().unwrap().to_owned()).collect();
    assert!(names.iter().all(|n| n.starts_with("imp-")), "{names:?}");
    assert_eq!(server.cli(&["job", "get", &names[0]]).await.code, 3, "a dry run writes nothing");

    let applied =
        |action: &str| -> String { names.iter().map(|n| format!("job {n} {action}\n")).collect() };
    for action in ["created", "unchanged"] {
        let output = server.cli(&import).await;
        assert!(output.ok().ends_with(&applied(action)), "{action}: {output:?}");
    }
    let got = server.cli(&["job", "get", &names[2], "-o", "json"]).await.json();
    assert_eq!(got["spec"], jobs[2], "what was shown is what is there");
    // As cron ran it: text after % on standard input, as that user where we may.
    let run = crate::shared::trigger(&server.api(), &names[2]).await;
    if nix::unistd::geteuid().is_root() {
        wait_run(&server.api(), &run, &["success"]).await;
        assert_eq!(server.cli(&["logs", &run]).await.ok(), "first\nsecond % more\n");
    } else {
        wait_run(&server.api(), &run, &["failed"]).await;
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    server.cli(&[&["job", "delete"], &names[..]].concat()).await.ok();
}

#[tokio::test]
async fn lines_that_cannot_be_taken_do_not_keep_the_others() {
    let (server, dir) = (server().await, TestDir::new());
    let file = dir.path().join("tab");
    fs::write(&file, "61 * * * * echo bad\n0 5 * * * echo good\n").unwrap();
    let import = [
        "cron",
        "import",
        file.to_str().unwrap(),
        "--user",
        "root",
        "--prefix",
        "some-",
        "-o",
        "json",
    ];
    let output = server.cli(&import).await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.stderr.contains("line 1: minute \"61\" is out of range; expected 0-59"),
        "{output:?}"
    );
    let applied: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(applied.as_array().unwrap().len(), 1);
    assert_eq!(applied[0]["action"], "created");
    let name = applied[0]["name"].as_str().unwrap();
    server.cli(&["job", "delete", name]).await.ok();
}
