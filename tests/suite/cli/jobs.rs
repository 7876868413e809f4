//! `meepo job`: definitions come, change, pause, run and go.

use crate::shared::{NODE, one_line, server, wait_runs};
use meepo_tests::{Output, Server, Spec, TestDir, binary, eventually, run, secs};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

/// `meepo … < file`.
async fn with_stdin(server: &Server, dir: &Path, args: &str, text: &str) -> Output {
    fs::write(dir.join("stdin"), text).unwrap();
    let script = format!("exec {} {args} < stdin", binary("meepo").display());
    // A name of its own: a second command would add to the first one's output.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("stdin-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let mut spec = Spec::new(&name, "sh", &["-c", &script], dir);
    spec.env.push(("MEEPO_MASTER".into(), server.api().base().into()));
    run(spec).await
}

/// `name action` of each job applied.
fn actions(output: &Output) -> Vec<&str> {
    output.ok().lines().map(|l| l.strip_prefix("job ").unwrap()).collect()
}

#[tokio::test]
async fn definitions_come_from_yaml_json_folders_and_stdin() {
    let (server, dir) = (server().await, TestDir::new());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (yaml, json_file) = (path("many.yaml"), path("one.json"));
    let two = "name: src-a\ncmd: echo a\n---\nname: src-b\ncmd: echo b\nschedule: '@daily'\n";
    fs::write(&yaml, two).unwrap();
    fs::write(&json_file, r#"{"name": "src-c", "cmd": "echo c"}"#).unwrap();
    let apply = async |file: &str| server.cli(&["job", "apply", "-f", file]).await;
    assert_eq!(actions(&apply(&yaml).await), ["src-a created", "src-b created"]);
    assert_eq!(actions(&apply(&yaml).await), ["src-a unchanged", "src-b unchanged"]);
    fs::write(&yaml, two.replace("echo b", "echo B")).unwrap();
    assert_eq!(actions(&apply(&yaml).await), ["src-a unchanged", "src-b updated"]);
    assert_eq!(actions(&apply(&json_file).await), ["src-c created"]);
    // A folder: what is no definition is left out.
    fs::write(path("README.txt"), "not a job").unwrap();
    let all = apply(dir.path().to_str().unwrap()).await;
    assert_eq!(actions(&all), ["src-a unchanged", "src-b unchanged", "src-c unchanged"]);
    let piped =
        with_stdin(&server, dir.path(), "job apply -f -", "name: src-d\ncmd: echo d\n").await;
    assert_eq!(actions(&piped), ["src-d created"]);
    let args = "job apply -f - -o json";
    let piped = with_stdin(&server, dir.path(), args, "name: src-d\ncmd: echo D\n").await.json();
    assert_eq!((&piped[0]["name"], &piped[0]["action"]), (&"src-d".into(), &"updated".into()));

    // One error, and nothing is applied.
    fs::write(&yaml, "name: src-e\ncmd: echo\n---\nname: src-f\ncmd: ''\n").unwrap();
    let output = apply(&yaml).await;
    let line = one_line(&output, 2);
    assert!(
        line.contains("document 2") && line.contains("cmd") && line.contains("expected"),
        "{line}"
    );
    assert_eq!(server.cli(&["job", "get", "src-e"]).await.code, 3);

    // What is read out can be put in again.
    let definition = server.cli(&["job", "get", "src-b", "--definition"]).await;
    let again = with_stdin(&server, dir.path(), "job apply -f -", definition.ok()).await;
    assert_eq!(actions(&again), ["src-b unchanged"]);
    let gone = server.cli(&["job", "delete", "src-a", "src-b", "src-c", "src-d"]).await;
    assert_eq!(
        actions(&gone),
        ["src-a deleted", "src-b deleted", "src-c deleted", "src-d deleted"]
    );
    assert_eq!(server.cli(&["job", "delete", "src-a"]).await.code, 3);
}

#[tokio::test]
async fn a_job_is_listed_paused_resumed_and_deleted() {
    let (server, dir) = (server().await, TestDir::new());
    let spec = "name: life\ncmd: echo $1 $GREETING\nargs: [hello]\nschedule: '0 3 * * *'\n\
                timezone: Europe/London\nenv: {GREETING: there}\n";
    let applied = with_stdin(&server, dir.path(), "job apply -f -", spec).await;
    assert_eq!(actions(&applied), ["life created"]);
    let get = async || server.cli(&["job", "get", "life", "-o", "json"]).await.json();
    let job = eventually(secs(10), "the node holds it", async || {
        let job = get().await;
        if job["nodes"][0]["node"] == NODE { Ok(job) } else { Err(job.to_string()) }
    })
    .await;
    assert_eq!(job["spec"]["timezone"], "Europe/London");
    assert_eq!(job["nodes"][0]["express"], "0 3 * * *");
    assert!(job["revision"].as_i64().unwrap() > 0);
    let next = server.cli(&["job", "next", "life", "-n", "3", "-o", "json"]).await.json();
    assert_eq!(next.as_array().unwrap().len(), 3);
    assert_eq!(next[0], job["next"]);
    let times = ["T03:00:00Z", "T02:00:00Z"];
    assert!(times.iter().any(|t| next[0].as_str().unwrap().ends_with(t)), "{next}");

    assert_eq!(server.cli(&["job", "pause", "life"]).await.ok(), "job life paused\n");
    let job = get().await;
    assert_eq!((&job["spec"]["status"], &job["next"]), (&"pause".into(), &Value::Null));
    assert_eq!(server.cli(&["job", "next", "life", "-o", "json"]).await.json(), json!([]));
    // Paused is not deleted: it runs when asked to.
    let output = server.cli(&["job", "trigger", "life", "--follow"]).await;
    assert!(output.ok().contains("127.0.0.1 | hello there"), "{output:?}");
    assert_eq!(server.cli(&["job", "resume", "life"]).await.ok(), "job life resumed\n");
    assert_eq!(get().await["spec"]["status"], "running");

    assert_eq!(server.cli(&["job", "delete", "life"]).await.ok(), "job life deleted\n");
    for args in [&["job", "get", "life"][..], &["job", "trigger", "life"], &["job", "next", "life"]]
    {
        let output = server.cli(args).await;
        assert!(one_line(&output, 3).contains("no job life"), "{output:?}");
    }
    // Its history stays.
    assert_eq!(wait_runs(&server.api(), "life", "success", 1).await.len(), 1);
}

#[tokio::test]
async fn a_job_runs_every_second_until_it_is_paused() {
    let (server, dir) = (server().await, TestDir::new());
    let spec = |name: &str| format!("name: {name}\ncmd: echo tick\nschedule: '* * * * * *'\n");
    let both = spec("tick") + "---\n" + &spec("tock");
    with_stdin(&server, dir.path(), "job apply -f -", &both).await.ok();
    let api = server.api();
    wait_runs(&api, "tick", "success", 2).await;
    let runs =
        server.cli(&["runs", "--job", "tick", "--state", "success", "-o", "json"]).await.json();
    let runs = runs.as_array().unwrap();
    let instant = |v: &Value| v.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    for run in runs {
        let slot = instant(&run["slot"]);
        let (started, ended) = (instant(&run["started_at"]), instant(&run["ended_at"]));
        assert_eq!(slot.subsec_nanosecond(), 0, "{run}");
        assert!(slot <= started && started <= ended, "{run}");
        assert!(run["pid"].as_u64().unwrap() > 1, "{run}");
        for (field, want) in [
            ("job", json!("tick")),
            ("node", json!(NODE)),
            ("attempt", json!(1)),
            ("cause", json!("schedule")),
            ("executor", json!("bash")),
            ("cmd", json!("echo tick")),
            ("code", json!(0)),
            ("exit_code", json!(0)),
            ("output_bytes", json!(5)),
            ("dropped_bytes", json!(0)),
        ] {
            assert_eq!(run[field], want, "{field} of {run}");
        }
    }
    let slots: Vec<_> = runs.iter().map(|r| instant(&r["slot"])).collect();
    assert!(slots.windows(2).all(|w| w[0] > w[1]), "newest first, each once: {slots:?}");
    let output = server.cli(&["logs", runs[0]["run_id"].as_str().unwrap()]).await;
    assert_eq!(output.ok(), "tick\n");

    server.cli(&["job", "pause", "tick"]).await.ok();
    // Its twin goes on: by its slots the time is told.
    let newest = |runs: &[Value]| instant(&runs[0]["slot"]);
    let paused_at = jiff::Timestamp::now();
    let grace = paused_at + jiff::SignedDuration::from_secs(1);
    eventually(secs(30), "the twin runs on", async || {
        let twin = newest(&wait_runs(&api, "tock", "success", 1).await);
        let late = twin > grace + jiff::SignedDuration::from_secs(1);
        if late { Ok(()) } else { Err(format!("its newest slot is {twin}")) }
    })
    .await;
    let last = newest(&wait_runs(&api, "tick", "success", 1).await);
    assert!(last <= grace, "paused at {paused_at}, and yet a run of {last}");
    server.cli(&["job", "delete", "tick", "tock"]).await.ok();
}
