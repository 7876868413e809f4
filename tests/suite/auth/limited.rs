//! Roles for some nodes, some commands, some users: what is out of them is not seen and not
//! touched.

use super::{Guarded, why};
use crate::fleet::{SOON, quick, wait_runs, wait_session};
use meepo_tests::{Api, eventually};
use serde_json::{Value, json};

const WEB: &str = "127.0.0.2";
const DB: &str = "127.0.0.3";

/// Two nodes, and somebody who may work with one of them.
async fn start(masters: usize) -> (Guarded, Api) {
    let plan = quick().masters(masters).workers(2).label(0, "group=web").label(1, "group=db");
    let guarded = Guarded::start(plan).await;
    let grants = json!([
        {"permissions": ["job.*", "run.*", "node.read", "node.drain", "node.label", "task.*",
            "event.read"], "target": "group=web", "commands": ["echo *", "id -un"]},
        {"permissions": ["exec"], "target": "group=web", "commands": ["echo *", "id -un"]},
    ]);
    guarded.role("web", grants).await;
    let token = guarded.user("ann", &["web"]).await;
    for node in [WEB, DB] {
        wait_session(&guarded.admin, node).await;
    }
    let ann = guarded.cluster.api().with_token(&token);
    (guarded, ann)
}

async fn exec(api: &Api, target: &str, cmd: &str) -> (u16, Value) {
    api.post("/v1/exec/stream", json!({"target": target, "cmd": cmd})).await
}

fn text(answer: &Value) -> String {
    match answer {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[tokio::test]
async fn commands_reach_the_nodes_of_the_role_alone_and_are_those_of_its_list() {
    let (_guarded, ann) = start(1).await;
    let (status, answer) = exec(&ann, WEB, "echo hello").await;
    assert!(status == 200 && text(&answer).contains("hello"), "{answer}");
    assert_eq!(exec(&ann, "group=web", "echo hello").await.0, 200);
    for (target, cmd, named) in [
        (DB, "echo hello", DB),
        ("all", "echo hello", DB),
        ("group=db", "echo hello", DB),
        (WEB, "echo hello; id", WEB),
        (WEB, "echo $(id)", WEB),
        (WEB, "echo a b", WEB),
        (WEB, "id", WEB),
        (WEB, "reboot", WEB),
    ] {
        let (status, answer) = exec(&ann, target, cmd).await;
        assert_eq!((status, why(&answer)), (403, "denied"), "{target} {cmd}: {answer}");
        assert!(text(&answer).contains(named), "{answer}");
    }
    // Nothing beside the command makes it another one.
    for extra in [
        json!({"env": {"BASH_ENV": "/tmp/x"}}),
        json!({"cwd": "/tmp"}),
        json!({"args": ["x"]}),
        json!({"executor": "python"}),
        json!({"probe": "reboot"}),
    ] {
        let mut body = json!({"target": WEB, "cmd": "echo hello"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let (status, answer) = ann.post("/v1/exec/stream", body).await;
        assert_eq!((status, why(&answer)), (403, "denied"), "{extra}: {answer}");
    }
    // With a probe that is on the list both run.
    let body = json!({"target": WEB, "probe": "id -un", "cmd": "echo hello"});
    let (status, answer) = ann.post("/v1/exec/stream", body).await;
    assert!(status == 200 && text(&answer).contains("hello"), "{answer}");
    let body = json!({"id": "1", "hosts": [WEB, DB], "method": "sync.bash", "cmd": "echo hello"});
    let (status, answer) = ann.post("/v1/exec", body).await;
    assert_eq!(status, 403);
    assert!(text(&answer).contains(DB) && !text(&answer).contains(WEB), "{answer}");
}

#[tokio::test]
async fn jobs_and_tasks_are_held_to_target_command_and_user() {
    let (guarded, ann) = start(1).await;
    let apply = async |api: &Api, more: Value| {
        let mut job = json!({"name": "j", "cmd": "echo hello", "target": "group=web"});
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        api.post("/v1/jobs", job).await
    };
    for more in [
        json!({"target": "all"}),
        json!({"target": "group=web or group=db"}),
        json!({"target": "group!=db"}),
        json!({"target": DB}),
        json!({"cmd": "reboot"}),
        json!({"cmd": "echo hello; reboot"}),
        json!({"env": {"PATH": "/tmp"}}),
        json!({"stdin": "reboot"}),
    ] {
        let (status, answer) = apply(&ann, more.clone()).await;
        assert_eq!((status, why(&answer)), (403, "denied"), "{more}: {answer}");
    }
    let (status, answer) = apply(&ann, json!({})).await;
    assert_eq!(status, 201, "{answer}");
    assert_eq!(apply(&ann, json!({"name": "by-name", "target": WEB})).await.0, 201);
    // With a list of users one of them must be asked for.
    let grants = json!([{"permissions": ["job.write", "exec"], "users": ["nobody"]}]);
    guarded.role("as-nobody", grants).await;
    let bob = guarded.api_of("bob", &["as-nobody"]).await;
    for more in [
        json!({"name": "b"}),
        json!({"name": "b", "user": "root"}),
        json!({"name": "b", "user": "nobody", "group": "root"}),
    ] {
        let (status, answer) = apply(&bob, more.clone()).await;
        assert_eq!((status, why(&answer)), (403, "denied"), "{more}: {answer}");
    }
    assert_eq!(apply(&bob, json!({"name": "b", "user": "nobody"})).await.0, 201);
    // A job of others is neither changed, nor run, nor paused, nor deleted, nor seen.
    let (status, _) = apply(&guarded.admin, json!({"name": "db", "target": "group=db"})).await;
    assert_eq!(status, 201);
    let (status, answer) = apply(&ann, json!({"name": "db"})).await;
    assert_eq!((status, why(&answer)), (403, "denied"), "taking it over: {answer}");
    for (method, path) in [
        ("POST", "/v1/jobs/db/trigger"),
        ("POST", "/v1/jobs/db/pause"),
        ("POST", "/v1/jobs/db/resume"),
        ("DELETE", "/v1/jobs/db"),
    ] {
        let (status, answer) = ann.http(method, path, Some(&json!({}))).await;
        assert_eq!((status, why(&answer)), (403, "denied"), "{path}: {answer}");
    }
    for path in ["", "/next", "/stats", "/gaps", "/explain"] {
        assert_eq!(ann.get(&format!("/v1/jobs/db{path}")).await.0, 404, "{path}");
    }
    // One whose command is not on the list is seen, and not run.
    let (status, _) = apply(&guarded.admin, json!({"name": "other", "cmd": "uptime"})).await;
    assert_eq!(status, 201);
    assert_eq!(ann.get("/v1/jobs/other").await.0, 200);
    assert_eq!(ann.post("/v1/jobs/other/trigger", json!({})).await.0, 403);
    let (status, answer) = ann.post("/v1/jobs/j/trigger", json!({})).await;
    assert_eq!(status, 202, "{answer}");
    for (task, want) in [
        (json!({"target": "group=web", "cmd": "echo hello"}), 201),
        (json!({"hosts": [WEB], "cmd": "echo hello"}), 201),
        (json!({"target": "all", "cmd": "echo hello"}), 403),
        (json!({"hosts": [DB], "cmd": "echo hello"}), 403),
        (json!({"target": "group=web", "cmd": "reboot"}), 403),
        (json!({"queue": "q", "cmd": "echo hello"}), 403),
        (json!({"queue": "q", "target": "group=web", "cmd": "echo hello"}), 201),
        (json!({"target": "group=web", "commands": [{"cmd": "echo a"}, {"cmd": "reboot"}]}), 403),
    ] {
        let (status, answer) = ann.post("/v1/tasks", task.clone()).await;
        assert_eq!(status, want, "{task}: {answer}");
    }
}

#[tokio::test]
async fn what_is_out_of_a_role_is_not_there_for_it() {
    let (guarded, ann) = start(1).await;
    let admin = &guarded.admin;
    for (name, target) in [("w", "group=web"), ("d", "group=db"), ("both", "all")] {
        let job = json!({"name": name, "cmd": "echo hello", "target": target});
        assert_eq!(admin.post("/v1/jobs", job).await.0, 201);
    }
    // Once the nodes have them, and have run them.
    let mut runs = Vec::new();
    for (name, node) in [("w", WEB), ("d", DB)] {
        let body = json!({});
        let triggered = eventually(SOON, format!("{name} is triggered"), async || {
            match admin.post(&format!("/v1/jobs/{name}/trigger"), body.clone()).await {
                (202, answer) => Ok(answer),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(triggered["runs"][0]["node"], node);
        runs.push(triggered["runs"][0]["run_id"].as_str().unwrap().to_owned());
        wait_runs(admin, &format!("job={name}&state=success"), 1).await;
    }
    let (mut web, mut db) = (String::new(), String::new());
    for (id, node) in [(&mut web, WEB), (&mut db, DB)] {
        let (status, task) = admin.post("/v1/tasks", json!({"hosts": [node], "cmd": "true"})).await;
        assert_eq!(status, 201);
        *id = task["id"].as_str().unwrap().to_owned();
    }
    let names = |list: &Value, of: &str, field: &str| -> Vec<String> {
        let all = list[of].as_array().unwrap();
        let mut names: Vec<String> =
            all.iter().map(|v| v[field].as_str().unwrap().to_owned()).collect();
        names.sort();
        names.dedup();
        names
    };
    let get = async |path: &str| ann.get(path).await.1;
    assert_eq!(names(&get("/v1/nodes").await, "nodes", "id"), [WEB]);
    assert_eq!(names(&get("/v1/nodes?target=all").await, "nodes", "id"), [WEB]);
    assert_eq!(names(&get("/v1/jobs").await, "jobs", "name"), ["both", "w"]);
    assert_eq!(names(&get("/v1/runs").await, "runs", "node"), [WEB]);
    assert_eq!(names(&get("/v1/tasks").await, "tasks", "id"), [web.clone()]);
    let both = get("/v1/jobs/both").await;
    assert!(both["nodes"].as_array().unwrap().iter().all(|n| n["node"] == WEB), "{both}");
    // Figures over all nodes would tell of the others.
    assert_eq!(ann.get("/v1/jobs/both/stats").await.0, 403);
    assert_eq!(ann.get("/v1/jobs/w/stats").await.0, 200);
    let explained = get("/v1/jobs/both/explain").await;
    assert_eq!(names(&explained, "nodes", "node"), [WEB], "{explained}");
    assert_eq!(ann.get(&format!("/v1/nodes/{DB}")).await.0, 404);
    for path in ["", "/output", "/output?follow=true"] {
        assert_eq!(ann.get(&format!("/v1/runs/{}{path}", runs[1])).await.0, 404, "{path}");
        assert_eq!(ann.get(&format!("/v1/runs/{}{path}", runs[0])).await.0, 200, "{path}");
    }
    assert_eq!(ann.get(&format!("/v1/tasks/{db}")).await.0, 404);
    assert_eq!(ann.get(&format!("/v1/tasks/{db}/events")).await.0, 404);
    assert_eq!(ann.get(&format!("/v1/tasks/{web}")).await.0, 200);
    let hits = get("/v1/runs/search?q=hello").await;
    assert!(hits["hits"].as_array().unwrap().iter().all(|h| h["run"]["node"] == WEB), "{hits}");
    for (method, path) in [
        ("POST", format!("/v1/nodes/{DB}/drain")),
        ("DELETE", format!("/v1/nodes/{DB}/drain")),
        ("POST", format!("/v1/tasks/{db}/cancel")),
    ] {
        let (status, answer) = ann.http(method, &path, Some(&json!({}))).await;
        // A task that is over by now is so for everybody.
        assert!(status == 403 || path.contains("tasks") && status == 409, "{path}: {answer}");
    }
    let labels = json!({"labels": {"group": "web"}});
    let (status, _) = ann.http("PATCH", &format!("/v1/nodes/{DB}/labels"), Some(&labels)).await;
    assert_eq!(status, 403, "it would be in the role then");
    // A run that goes on there is neither seen nor ended.
    let long = json!({"name": "long", "cmd": "sleep 600", "target": "group=db"});
    assert_eq!(admin.post("/v1/jobs", long).await.0, 201);
    let triggered = eventually(SOON, "long is triggered", async || {
        match admin.post("/v1/jobs/long/trigger", json!({})).await {
            (202, answer) => Ok(answer),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let run = triggered["runs"][0]["run_id"].as_str().unwrap();
    wait_runs(admin, "job=long&state=running", 1).await;
    assert_eq!(ann.post(&format!("/v1/runs/{run}/kill"), json!({})).await.0, 403);
    assert_eq!(admin.post(&format!("/v1/runs/{run}/kill"), json!({})).await.0, 202);
    // Events: what has happened so far, without that of others.
    let events = text(&get("/v1/events?recent=1000&follow=false").await);
    assert!(
        events.contains(WEB) && !events.contains(DB) && !events.contains("\"long\""),
        "{events}"
    );
    let all = text(&admin.get("/v1/events?recent=1000&follow=false").await.1);
    assert!(all.contains(DB));
}

#[tokio::test]
async fn a_follower_hands_on_who_asks_and_the_leader_looks_again() {
    let (guarded, _) = start(2).await;
    let leader = guarded.cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await;
    let leader = leader.json();
    let is_leader = |i: usize| leader["http"] == guarded.master(i).base();
    let (lead, follow) = if is_leader(0) { (0, 1) } else { (1, 0) };
    let token = guarded.user("bob", &["web"]).await;
    let bob = guarded.master(follow).with_token(&token);
    let (status, answer) = exec(&bob, WEB, "echo hello").await;
    assert!(status == 200 && text(&answer).contains("hello"), "{answer}");
    assert_eq!(exec(&bob, DB, "echo hello").await.0, 403);
    // The leader knows of whom the follower spoke.
    let admin = guarded.master(lead).with_token(guarded.admin.token().unwrap());
    eventually(SOON, "both masters have recorded it", async || {
        let (_, page) = admin.get("/v1/audit?actor=bob&operation=exec.run&result=ok").await;
        let records = page["records"].as_array().unwrap();
        let at_leader = |r: &&Value| r["master"] == leader["http"] && r["verified"] == true;
        match records.iter().find(at_leader) {
            Some(r) if r["details"]["forwarded"].is_string() => Ok(()),
            _ => Err(page.to_string()),
        }
    })
    .await;
    // The word of somebody who is no master counts for nothing.
    use meepo_proto::v1::{ExecRequest, exec_client::ExecClient};
    let channel = guarded.cluster.master(lead).grpc_url();
    let mut client = ExecClient::connect(channel).await.unwrap();
    for word in ["e30.e30", "admin", "eyJuYW1lIjoiYWRtaW4ifQ.AAAA"] {
        let message = ExecRequest { target: "all".into(), cmd: "id".into(), ..Default::default() };
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("meepo-forwarded", "1".parse().unwrap());
        request.metadata_mut().insert("meepo-caller", word.parse().unwrap());
        let status = client.run(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{word}: {status}");
    }
}
