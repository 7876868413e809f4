//! Who did what: every operation that changes something leaves one record.

use crate::fleet::{SOON, apply, quick, wait_runs, wait_session};
use meepo_master::audit::operations::{READS, TABLE};
use meepo_proto::v1 as pb;
use meepo_tests::{Api, Cluster, Logs, eventually, workspace_root};
use prost::Message;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tonic::{Request, transport::Channel};

/// Records, newest first; `query` as in `actor=ann&limit=5`.
async fn records(api: &Api, query: &str) -> Vec<Value> {
    let (status, page) = api.get(&format!("/v1/audit?limit=1000&{query}")).await;
    assert_eq!(status, 200, "{page}");
    page["records"].as_array().unwrap().clone()
}

/// Waits until `query` finds exactly one record; answers it.
async fn wait_one(api: &Api, query: &str) -> Value {
    eventually(SOON, format!("there is one record with {query}"), async || {
        match records(api, query).await.as_slice() {
            [one] => Ok(one.clone()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// Operations of the OpenAPI document that are to change something, as `POST /v1/jobs`.
fn mutating() -> BTreeSet<String> {
    let document: Value =
        serde_json::from_str(&meepo_master::http::document().to_json().unwrap()).unwrap();
    let mut found = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            if !["get", "head", "options"].contains(&method.as_str()) {
                found.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    found
}

/// Calls of the public services, as `Jobs/Apply`.
fn calls() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(meepo_proto::DESCRIPTORS).unwrap();
    let public = set.file.iter().filter(|f| f.package() == "meepo.v1");
    let services = public.flat_map(|f| &f.service);
    let calls =
        services.flat_map(|s| s.method.iter().map(move |m| format!("{}/{}", s.name(), m.name())));
    calls.collect()
}

#[test]
fn every_operation_that_changes_something_has_a_name() {
    let named = |of: fn(&(&str, &str, &str)) -> String| -> BTreeSet<String> {
        TABLE.iter().map(of).collect()
    };
    assert_eq!(mutating(), named(|(_, http, _)| (*http).to_owned()));
    let reads: BTreeSet<String> = READS.iter().map(|r| (*r).to_owned()).collect();
    let mut writes = named(|(.., grpc)| (*grpc).to_owned());
    // Some are of HTTP alone.
    writes.remove("");
    assert!(reads.is_disjoint(&writes));
    assert_eq!(calls(), reads.union(&writes).cloned().collect());
    let page = std::fs::read_to_string(workspace_root().join("docs/reference/api.md")).unwrap();
    for (name, ..) in TABLE.iter().filter(|(name, ..)| *name != "task.act") {
        assert!(page.contains(&format!("`{name}`")), "{name} is missing in api.md");
    }
}

async fn send(api: &Api, user: &str, method: &str, path: &str, body: &Value) -> (u16, HeaderMap) {
    let url = format!("{}{path}", api.base());
    let request = reqwest::Client::new()
        .request(method.parse().unwrap(), url)
        .header("Meepo-User", user)
        .header("X-Forwarded-For", "203.0.113.9")
        .json(body);
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    response.bytes().await.unwrap();
    (status, headers)
}

/// A cluster with a run that goes on, a task that waits, and the ids of both.
async fn with_objects() -> (Cluster, String, String) {
    let cluster = quick().start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    apply(&api, json!({"name": "long", "cmd": "sleep 600"})).await;
    let (_, triggered) = api.post("/v1/jobs/long/trigger", json!({})).await;
    let run = triggered["runs"][0]["run_id"].as_str().unwrap().to_owned();
    wait_runs(&api, "job=long&state=running", 1).await;
    let (status, task) =
        api.post("/v1/tasks", json!({"target": "all", "cmd": "true", "delay": "1h"})).await;
    assert_eq!(status, 201, "{task}");
    let task = task["id"].as_str().unwrap().to_owned();
    (cluster, run, task)
}

#[tokio::test]
async fn every_mutating_operation_of_http_leaves_one_record() {
    let (cluster, run, task) = with_objects().await;
    let api = cluster.api();
    let (of_run, of_task) = (format!("run/{run}"), format!("task/{task}"));
    let made = api.http("PUT", "/v1/users/v", Some(&json!({"roles": ["viewer"]}))).await;
    assert_eq!(made.0, 201, "{made:?}");
    let (_, token) = api.post("/v1/tokens", json!({"user": "v"})).await;
    let token = token["id"].as_str().unwrap();
    let of_token = format!("token/{token}");
    let password = json!({"password": "correct horse battery"});
    let login = json!({"user": "u", "password": "correct horse battery"});
    let vouched = "ab".repeat(32);
    let join = json!({
        "token": format!("meepo-join.0.s3cr3t.{vouched}"),
        "node": "n1",
        "request": "",
    });
    // In this order; an operation that is missing here fails the test.
    let requests = [
        ("POST /v1/jobs", "/v1/jobs".to_owned(), json!({"name": "a", "cmd": "echo a"}), "job/a"),
        ("PUT /v1/jobs/{name}", "/v1/jobs/b".into(), json!({"cmd": "echo b"}), "job/b"),
        ("POST /v1/jobs/{name}/pause", "/v1/jobs/a/pause".into(), json!({}), "job/a"),
        ("POST /v1/jobs/{name}/resume", "/v1/jobs/a/resume".into(), json!({}), "job/a"),
        ("POST /v1/jobs/{name}/trigger", "/v1/jobs/a/trigger".into(), json!({}), "job/a"),
        ("DELETE /v1/jobs/{name}", "/v1/jobs/b".into(), json!({}), "job/b"),
        ("POST /v1/runs/{id}/kill", format!("/v1/runs/{run}/kill"), json!({}), &*of_run),
        (
            "PATCH /v1/nodes/{id}/labels",
            "/v1/nodes/127.0.0.2/labels".into(),
            json!({"labels": {"zone": "x"}}),
            "node/127.0.0.2",
        ),
        (
            "POST /v1/nodes/{id}/drain",
            "/v1/nodes/127.0.0.2/drain".into(),
            json!({}),
            "node/127.0.0.2",
        ),
        (
            "DELETE /v1/nodes/{id}/drain",
            "/v1/nodes/127.0.0.2/drain".into(),
            json!({}),
            "node/127.0.0.2",
        ),
        (
            "POST /v1/exec",
            "/v1/exec".into(),
            json!({"id": "1", "hosts": ["127.0.0.2"], "method": "sync.bash", "cmd": "echo x"}),
            "node/127.0.0.2",
        ),
        (
            "POST /v1/exec/stream",
            "/v1/exec/stream".into(),
            json!({"target": "all", "cmd": "echo x"}),
            "target/all",
        ),
        ("POST /v1/tasks", "/v1/tasks".into(), json!({"target": "all", "cmd": "true"}), "task/"),
        ("POST /v1/tasks/{id}/{verb}", format!("/v1/tasks/{task}/cancel"), json!({}), &*of_task),
        (
            "PUT /v1/notify/channels/{name}",
            "/v1/notify/channels/c".into(),
            json!({"webhook": {"url": "http://127.0.0.1:1/"}}),
            "channel/c",
        ),
        (
            "PUT /v1/notify/rules/{name}",
            "/v1/notify/rules/r".into(),
            json!({"jobs": ["none"], "to": ["c"]}),
            "rule/r",
        ),
        (
            "POST /v1/notify/channels/{name}/test",
            "/v1/notify/channels/c/test".into(),
            json!({}),
            "channel/c",
        ),
        ("DELETE /v1/notify/rules/{name}", "/v1/notify/rules/r".into(), json!({}), "rule/r"),
        (
            "DELETE /v1/notify/channels/{name}",
            "/v1/notify/channels/c".into(),
            json!({}),
            "channel/c",
        ),
        ("PUT /v1/users/{name}", "/v1/users/u".into(), json!({"roles": ["viewer"]}), "user/u"),
        ("PUT /v1/users/{name}/password", "/v1/users/u/password".into(), password, "user/u"),
        ("POST /v1/login", "/v1/login".into(), login, "user/u"),
        ("POST /v1/tokens", "/v1/tokens".into(), json!({"user": "u"}), "user/u"),
        ("DELETE /v1/tokens/{id}", format!("/v1/tokens/{token}"), json!({}), &*of_token),
        (
            "PUT /v1/roles/{name}",
            "/v1/roles/r".into(),
            json!({"grants": [{"permissions": ["job.read"]}]}),
            "role/r",
        ),
        ("DELETE /v1/roles/{name}", "/v1/roles/r".into(), json!({}), "role/r"),
        ("DELETE /v1/users/{name}", "/v1/users/u".into(), json!({}), "user/u"),
        // Nobody has one here.
        ("POST /v1/logout", "/v1/logout".into(), json!({}), ""),
        // Nothing is encrypted here.
        ("POST /v1/join-tokens", "/v1/join-tokens".into(), json!({}), ""),
        ("DELETE /v1/join-tokens/{id}", "/v1/join-tokens/0".into(), json!({}), "join-token/0"),
        ("POST /v1/join", "/v1/join".into(), join, "node/n1"),
        ("POST /v1/renew", "/v1/renew".into(), json!({"request": ""}), ""),
    ];
    let refused = |operation: &str| match operation {
        "POST /v1/logout" => Some(409),
        "POST /v1/join-tokens" | "POST /v1/join" | "POST /v1/renew" => Some(403),
        "DELETE /v1/join-tokens/{id}" => Some(404),
        _ => None,
    };
    let covered: BTreeSet<String> = requests.iter().map(|r| r.0.to_owned()).collect();
    assert_eq!(covered, mutating(), "an operation without a request here");
    for (n, (operation, path, body, object)) in requests.iter().enumerate() {
        let (method, _) = operation.split_once(' ').unwrap();
        let (status, headers) = send(&api, &format!("user-{n}"), method, path, body).await;
        let refused = refused(operation);
        let fine = refused.map_or((200..300).contains(&status), |expected| status == expected);
        assert!(fine, "{operation}: {status}");
        let record = wait_one(&api, &format!("actor=user-{n}")).await;
        let name = TABLE.iter().find(|t| t.1 == *operation).unwrap().0;
        let name = if name == "task.act" { "task.cancel" } else { name };
        assert_eq!(record["operation"], name, "{record}");
        let is = record["object"].as_str().unwrap();
        assert!(is.starts_with(object) && !is.ends_with('/'), "{record}");
        assert!(!record.to_string().contains("correct horse"), "{record}");
        assert!(!record.to_string().contains("s3cr3t"), "{record}");
        assert_eq!(record["result"], if refused.is_some() { "refused" } else { "ok" }, "{record}");
        assert_eq!(record["status"], status.to_string(), "{record}");
        assert_eq!(record["verified"], false);
        assert_eq!(record["method"], format!("{method} {path}"));
        assert_eq!(record["forwarded_for"], "203.0.113.9");
        assert!(record["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{record}");
        assert_eq!(headers["x-request-id"], record["id"].as_str().unwrap());
        assert_eq!(record["master"], api.base());
    }
    // What only reads leaves nothing.
    let before = records(&api, "").await.len();
    for path in ["/v1/jobs", "/v1/jobs/a", "/v1/runs", "/v1/nodes", "/v1/tasks", "/v1/audit"] {
        assert_eq!(api.get(path).await.0, 200);
    }
    send(&api, "last", "POST", "/v1/jobs/a/pause", &json!({})).await;
    wait_one(&api, "actor=last").await;
    assert_eq!(records(&api, "").await.len(), before + 1);
}

/// Calls of the service of users, tokens and roles; each by an actor of its own name.
async fn access_calls(channel: &Channel, covered: &mut BTreeSet<String>) {
    use pb::{AccessName, access_client::AccessClient};
    use prost_types::{ListValue, Struct, Value as Any, value::Kind};
    let text = |s: &str| Any { kind: Some(Kind::StringValue(s.into())) };
    let list = |values: Vec<Any>| Any { kind: Some(Kind::ListValue(ListValue { values })) };
    let document = |fields: Vec<(&str, Any)>| Struct {
        fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    };
    macro_rules! call {
        ($method:ident, $call:literal, $message:expr) => {{
            let mut request = Request::new($message);
            request.metadata_mut().insert("meepo-user", $call.parse().unwrap());
            covered.insert($call.to_owned());
            AccessClient::new(channel.clone()).$method(request).await
        }};
    }
    let password = "correct horse battery";
    let viewer = list(vec![text("viewer")]);
    let put = document(vec![("name", text("g")), ("roles", viewer)]);
    call!(put_user, "Access/PutUser", put).unwrap();
    let set = document(vec![("name", text("g")), ("password", text(password))]);
    call!(set_password, "Access/SetPassword", set).unwrap();
    let login = document(vec![("user", text("g")), ("password", text(password))]);
    call!(login, "Access/Login", login).unwrap();
    let token = call!(create_token, "Access/CreateToken", document(vec![("user", text("g"))]));
    let id = match token.unwrap().into_inner().fields["id"].kind.clone() {
        Some(Kind::StringValue(id)) => id,
        other => panic!("{other:?}"),
    };
    call!(revoke_token, "Access/RevokeToken", AccessName { name: id }).unwrap();
    let grant = document(vec![("permissions", list(vec![text("job.read")]))]);
    let grants = list(vec![Any { kind: Some(Kind::StructValue(grant)) }]);
    let role = document(vec![("name", text("q")), ("grants", grants)]);
    call!(put_role, "Access/PutRole", role).unwrap();
    call!(delete_role, "Access/DeleteRole", AccessName { name: "q".into() }).unwrap();
    call!(delete_user, "Access/DeleteUser", AccessName { name: "g".into() }).unwrap();
    // Nobody has a token here.
    call!(logout, "Access/Logout", ()).unwrap_err();
}

#[tokio::test]
async fn every_mutating_call_of_grpc_leaves_one_record() {
    let (cluster, run, task) = with_objects().await;
    let api = cluster.api();
    let channel =
        Channel::from_shared(cluster.master(0).grpc_url()).unwrap().connect().await.unwrap();
    use pb::{
        ActOnTaskRequest, ApplyJobRequest, DrainRequest, ExecRequest, JobName, LabelRequest,
        NodeName, NotifyName, PutTaskRequest, RunId, TriggerRequest, exec_client::ExecClient,
        jobs_client::JobsClient, nodes_client::NodesClient, notify_client::NotifyClient,
        runs_client::RunsClient, tasks_client::TasksClient,
    };
    let mut covered = BTreeSet::new();
    macro_rules! call {
        ($client:ident, $method:ident, $call:literal, $message:expr) => {{
            let mut request = Request::new($message);
            request.metadata_mut().insert("meepo-user", $call.parse().unwrap());
            let answer = $client::new(channel.clone()).$method(request).await;
            answer.unwrap_or_else(|e| panic!("{}: {e}", $call));
            covered.insert($call.to_owned());
        }};
    }
    let job = || JobName { name: "a".into(), ..Default::default() };
    let node = || NodeName { id: "127.0.0.2".into() };
    let spec = pb::JobSpec { name: "a".into(), cmd: "echo a".into(), ..Default::default() };
    call!(JobsClient, apply, "Jobs/Apply", ApplyJobRequest { job: Some(spec.clone()) });
    call!(JobsClient, pause, "Jobs/Pause", job());
    call!(JobsClient, resume, "Jobs/Resume", job());
    call!(
        JobsClient,
        trigger,
        "Jobs/Trigger",
        TriggerRequest { name: "a".into(), ..Default::default() }
    );
    call!(JobsClient, delete, "Jobs/Delete", job());
    call!(RunsClient, kill, "Runs/Kill", RunId { run_id: run.clone() });
    let set = [("zone".to_owned(), "x".to_owned())].into();
    call!(
        NodesClient,
        label,
        "Nodes/Label",
        LabelRequest { id: "127.0.0.2".into(), set, remove: vec![] }
    );
    call!(
        NodesClient,
        drain,
        "Nodes/Drain",
        DrainRequest { id: "127.0.0.2".into(), ..Default::default() }
    );
    call!(NodesClient, undrain, "Nodes/Undrain", node());
    call!(
        ExecClient,
        run,
        "Exec/Run",
        ExecRequest { target: "all".into(), cmd: "true".into(), ..Default::default() }
    );
    let text = |s: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(s.into())),
    };
    let fields = [("target".to_owned(), text("all")), ("cmd".to_owned(), text("true"))].into();
    let put = PutTaskRequest { task: Some(prost_types::Struct { fields }) };
    call!(TasksClient, put, "Tasks/Put", put);
    call!(
        TasksClient,
        act,
        "Tasks/Act",
        ActOnTaskRequest { id: task.clone(), verb: "cancel".into(), ..Default::default() }
    );
    access_calls(&channel, &mut covered).await;
    let object = |fields: Vec<(&str, prost_types::Value)>| prost_types::Struct {
        fields: fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
    };
    let value = |kind| prost_types::Value { kind: Some(kind) };
    let command =
        value(prost_types::value::Kind::StructValue(object(vec![("program", text("x"))])));
    let channel_x = object(vec![("name", text("x")), ("command", command)]);
    let to = prost_types::ListValue { values: vec![text("x")] };
    let to = value(prost_types::value::Kind::ListValue(to));
    let rule_y = object(vec![("name", text("y")), ("to", to)]);
    let named = |name: &str| NotifyName { name: name.into() };
    call!(NotifyClient, put_channel, "Notify/PutChannel", channel_x);
    call!(NotifyClient, test_channel, "Notify/TestChannel", named("x"));
    call!(NotifyClient, put_rule, "Notify/PutRule", rule_y);
    call!(NotifyClient, delete_rule, "Notify/DeleteRule", named("y"));
    call!(NotifyClient, delete_channel, "Notify/DeleteChannel", named("x"));
    let writes: BTreeSet<String> =
        calls().into_iter().filter(|c| !READS.contains(&c.as_str())).collect();
    assert_eq!(covered, writes, "a call without a request here");
    for call in &covered {
        let record = wait_one(&api, &format!("actor={call}")).await;
        let name = TABLE.iter().find(|t| t.2 == call).unwrap().0;
        let name = if name == "task.act" { "task.cancel" } else { name };
        assert_eq!(record["operation"], name, "{record}");
        if call == "Access/Logout" {
            assert_eq!(record["result"], "refused", "{record}");
            continue;
        }
        assert!(record["object"].as_str().unwrap().contains('/'), "{record}");
        assert_eq!(
            (&record["result"], &record["status"]),
            (&json!("ok"), &json!("Ok")),
            "{record}"
        );
        assert_eq!(record["method"], format!("meepo.v1.{call}"));
        assert!(record["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{record}");
    }
    // A refusal says why.
    let mut request = Request::new(pb::JobName { name: "nothing".into(), ..Default::default() });
    request.metadata_mut().insert("meepo-user", "refused".parse().unwrap());
    JobsClient::new(channel.clone()).pause(request).await.unwrap_err();
    let record = wait_one(&api, "actor=refused").await;
    assert_eq!((&record["result"], &record["status"]), (&json!("refused"), &json!("NotFound")));
    assert!(
        record["code"].is_number() && record["message"].as_str().unwrap().contains("nothing"),
        "{record}"
    );
    // The same over gRPC.
    let list = pb::ListAuditRequest { actor: "refused".into(), ..Default::default() };
    let mut client = pb::audit_client::AuditClient::new(channel);
    let page = client.list(list).await.unwrap().into_inner();
    assert_eq!(page.records.len(), 1);
    assert_eq!(json!(page.records[0].id), record["id"]);
}

#[tokio::test]
async fn refusals_unknown_operations_and_those_who_leave_are_recorded() {
    let cluster = quick().start().await;
    let api = cluster.api();
    for (user, path, body, want) in [
        (
            "bad",
            "/v1/jobs",
            json!({"name": "x", "cmd": "y", "schedule": "never"}),
            ("refused", "400", "job.apply"),
        ),
        ("none", "/v1/jobs/nothing/trigger", json!({}), ("refused", "404", "job.trigger")),
        (
            "odd",
            "/v1/of/a/newer/version",
            json!({}),
            ("refused", "404", "POST /v1/of/a/newer/version"),
        ),
    ] {
        send(&api, user, "POST", path, &body).await;
        let record = wait_one(&api, &format!("actor={user}")).await;
        let is = [&record["result"], &record["status"], &record["operation"]];
        assert_eq!(is, [&json!(want.0), &json!(want.1), &json!(want.2)], "{record}");
        assert!(record["message"].as_str().is_some_and(|m| !m.is_empty()), "{record}");
    }
    assert_eq!(wait_one(&api, "actor=none").await["object"], "job/nothing");
    assert_eq!(wait_one(&api, "actor=bad").await["object"], "job/x");
    // A client that goes away while a command runs.
    wait_session(&api, "127.0.0.2").await;
    let body = json!({"id": "1", "hosts": ["127.0.0.2"], "method": "sync.bash", "cmd": "sleep 20"});
    let request = reqwest::Client::new()
        .post(format!("{}/v1/exec", api.base()))
        .header("Meepo-User", "gone")
        .timeout(std::time::Duration::from_millis(700))
        .json(&body);
    request.send().await.unwrap_err();
    let record = wait_one(&api, "actor=gone").await;
    assert_eq!(
        (&record["result"], &record["object"]),
        (&json!("unknown"), &json!("node/127.0.0.2"))
    );
    assert_eq!(record["details"]["cmd"], "sleep 20");
}

#[tokio::test]
async fn the_command_shows_who_did_what() {
    let cluster = quick().start().await;
    let file = cluster.dir().join("job.yaml");
    std::fs::write(&file, "name: shown\ncmd: echo shown\n").unwrap();
    cluster.cli(&["job", "apply", "-f", file.to_str().unwrap()]).await.ok();
    cluster.cli(&["job", "pause", "shown"]).await.ok();
    let list = async |more: &[&str]| cluster.cli(&[&["audit", "list"], more].concat()).await;
    let found = eventually(SOON, "both are shown", async || {
        let found = list(&["--object", "job/shown", "-o", "json"]).await.json();
        match found.as_array().unwrap().len() {
            2 => Ok(found),
            _ => Err(found.to_string()),
        }
    })
    .await;
    assert_eq!(
        (&found[0]["operation"], &found[1]["operation"]),
        (&json!("job.pause"), &json!("job.apply"))
    );
    let user = std::env::var("USER").or(std::env::var("LOGNAME")).unwrap_or("anonymous".into());
    assert_eq!(found[0]["actor"], user);
    let table = list(&["--object", "job/shown"]).await.ok().to_owned();
    assert!(table.contains(&format!("{user}?")) && table.contains("cmd=echo shown"), "{table}");
    for (args, n) in [
        (&["--operation", "job.pause"][..], 1),
        (&["--operation", "job."], 2),
        (&["--object", "job/", "-n", "1"], 1),
        (&["--since", "1h"], 2),
        (&["--until", "1h"], 0),
        (&["--result", "refused"], 0),
        (&["--actor", "nobody"], 0),
    ] {
        let found = list(&[args, &["-o", "json"]].concat()).await.json();
        assert_eq!(found.as_array().unwrap().len(), n, "{args:?}: {found}");
    }
    assert_eq!(list(&["--actor", "nobody"]).await.ok(), "no records\n");
    assert_eq!(list(&["--result", "fine"]).await.code, 2);
}

#[tokio::test]
async fn pages_lead_through_all_records() {
    let cluster = quick().start().await;
    let api = cluster.api();
    for n in 0..5 {
        send(&api, "pager", "POST", &format!("/v1/jobs/n{n}/pause"), &json!({})).await;
    }
    eventually(SOON, "all are there", async || {
        let n = records(&api, "actor=pager").await.len();
        if n == 5 { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = api.get(&format!("/v1/audit?actor=pager&limit=2{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        seen.extend(page["records"].as_array().unwrap().iter().map(|r| r["object"].clone()));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, [4, 3, 2, 1, 0].map(|n| json!(format!("job/n{n}"))));
    assert_eq!(api.get("/v1/audit?cursor=x").await.0, 400);
    assert_eq!(api.get("/v1/audit?result=good").await.0, 400);
    assert_eq!(api.get("/v1/audit?who=me").await.0, 400);
}

/// The log store is stopped, changes go on, the master is killed meanwhile: when the store is
/// back all is there, once.
#[tokio::test]
async fn what_is_done_without_the_log_store_is_in_the_audit_later() {
    let cluster = quick().logs(Logs::OwnMongo).start().await;
    let api = cluster.api();
    send(&api, "before", "POST", "/v1/jobs", &json!({"name": "a", "cmd": "true"})).await;
    wait_one(&api, "actor=before").await;
    cluster.mongo().pause();
    for n in 0..3 {
        let body = json!({"name": format!("away-{n}"), "cmd": "true"});
        assert_eq!(send(&api, "during", "POST", "/v1/jobs", &body).await.0, 201);
    }
    let waits = async |least: f64| {
        eventually(SOON, "records wait in the file", async || {
            let (_, page) = crate::metrics::exposed(&api).await;
            let line = page.lines().find(|l| l.starts_with("meepo_master_audit_spill_bytes "));
            let bytes: f64 = line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
            if bytes >= least { Ok(bytes) } else { Err(bytes.to_string()) }
        })
        .await
    };
    // All three: each has some hundred bytes.
    waits(900.0).await;
    cluster.master(0).process().kill9();
    cluster.master(0).process().restart();
    cluster.mongo().resume();
    cluster.master(0).wait_ready().await;
    let found = eventually(SOON, "all are there", async || {
        let found = records(&api, "actor=during").await;
        if found.len() >= 3 { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await;
    let objects: Vec<&Value> = found.iter().map(|r| &r["object"]).collect();
    assert_eq!(objects, [&json!("job/away-2"), &json!("job/away-1"), &json!("job/away-0")]);
    eventually(SOON, "nothing waits any more", async || {
        let (_, page) = crate::metrics::exposed(&api).await;
        let empty = page.contains("meepo_master_audit_spill_bytes 0\n");
        if empty { Ok(()) } else { Err("something does") }.map_err(str::to_owned)
    })
    .await;
    assert_eq!(records(&api, "actor=during").await.len(), 3);
    // It stands in the log, too.
    let log = cluster.master(0).process().log();
    assert!(log.contains("job/away-1"), "{log}");
}
