//! Channels, rules and messages of notifications over gRPC, and what the audit says of them.

use super::words;
use crate::fleet::{SOON, apply, quick, wait_session};
use meepo_proto::v1::{self as pb, audit_client::AuditClient, notify_client::NotifyClient};
use meepo_tests::eventually;
use prost_types::{Struct, Value, value::Kind};
use serde_json::json;
use tonic::{Code, transport::Channel};

fn text(s: &str) -> Value {
    Value { kind: Some(Kind::StringValue(s.into())) }
}

fn list(items: &[&str]) -> Value {
    let values = items.iter().map(|s| text(s)).collect();
    Value { kind: Some(Kind::ListValue(prost_types::ListValue { values })) }
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    Struct { fields: fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() }
}

fn inside(object: Struct) -> Value {
    Value { kind: Some(Kind::StructValue(object)) }
}

fn string<'a>(object: &'a Struct, field: &str) -> &'a str {
    match object.fields.get(field).and_then(|v| v.kind.as_ref()) {
        Some(Kind::StringValue(s)) => s,
        other => panic!("{field}: {other:?}"),
    }
}

fn named(name: &str) -> pb::NotifyName {
    pb::NotifyName { name: name.into() }
}

#[tokio::test]
async fn channels_and_rules_live_and_messages_are_listed_and_audited() {
    let settings = tempfile::tempdir().unwrap();
    let (file, out) = (settings.path().join("master.toml"), settings.path().join("out"));
    let program = format!(
        "[notify_commands.note]\ncommand = [\"/bin/sh\", \"-c\", \"cat >> {}\"]\n",
        out.display()
    );
    std::fs::write(&file, program).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let cluster = config.iter().fold(quick(), |b, arg| b.master_arg(arg)).start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    let url = cluster.master(0).grpc_url();
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut notify = NotifyClient::new(channel.clone());

    let command = |program: &str| inside(object([("program", text(program))]));
    let note = || object([("name", text("note")), ("command", command("note"))]);
    for action in ["created", "unchanged"] {
        let applied = notify.put_channel(note()).await.unwrap().into_inner();
        assert_eq!((applied.name.as_str(), applied.action.as_str()), ("note", action));
    }
    let rule = || {
        object([
            ("name", text("all")),
            ("on", list(&["failure"])),
            ("to", list(&["note"])),
            ("group_wait", text("0s")),
        ])
    };
    assert_eq!(notify.put_rule(rule()).await.unwrap().into_inner().action, "created");
    // What HTTP shows is the same.
    let (_, shown) = api.get("/v1/notify/rules/all").await;
    assert_eq!((&shown["to"], &shown["group_wait"]), (&json!(["note"]), &json!("0s")), "{shown}");
    let got = notify.get_rule(named("all")).await.unwrap().into_inner();
    assert_eq!((string(&got, "name"), string(&got, "group_wait")), ("all", "0s"));
    let got = notify.get_channel(named("note")).await.unwrap().into_inner();
    assert_eq!(string(&got, "name"), "note");
    let channels = notify.list_channels(pb::ListNotifyRequest {}).await.unwrap().into_inner();
    let rules = notify.list_rules(pb::ListNotifyRequest {}).await.unwrap().into_inner();
    assert_eq!((channels.objects.len(), rules.objects.len()), (1, 1));
    let tested = notify.test_channel(named("note")).await.unwrap().into_inner();
    assert!(tested.delivered && tested.error.is_empty() && !tested.id.is_empty(), "{tested:?}");

    apply(&api, json!({"name": "a", "cmd": "exit 3"})).await;
    let (status, body) = api.post("/v1/jobs/a/trigger", json!({})).await;
    assert_eq!(status, 202, "{body}");
    let message = eventually(SOON, "it is delivered", async || {
        let request =
            pb::ListNotificationsRequest { state: "delivered".into(), ..Default::default() };
        let all = notify.clone().list(request).await.map_err(|e| e.to_string())?.into_inner();
        all.notifications.first().cloned().ok_or_else(|| format!("{all:?}"))
    })
    .await;
    assert_eq!(
        (message.channel.as_str(), message.rule.as_str(), message.attempts),
        ("note", "all", 1)
    );
    let digest = format!("{:?}", message.digest.unwrap());
    assert!(digest.contains("failure") && digest.contains("events"), "{digest}");
    let pending = pb::ListNotificationsRequest { state: "pending".into(), ..Default::default() };
    assert!(notify.list(pending).await.unwrap().into_inner().notifications.is_empty());
    assert!(std::fs::read_to_string(&out).unwrap().contains(&tested.id));

    // What cannot be is refused as over HTTP.
    let unknown = notify.get_rule(named("nobody")).await.unwrap_err();
    assert_eq!(words(&unknown).0, Code::NotFound);
    let refused = notify
        .put_rule(object([("name", text("bad")), ("to", list(&["nobody"]))]))
        .await
        .unwrap_err();
    assert_eq!((words(&refused).0, words(&refused).2.as_str()), (Code::InvalidArgument, "to"));
    let strange = object([("name", text("x")), ("comand", command("note"))]);
    let refused = notify.put_channel(strange).await.unwrap_err();
    assert!(refused.message().contains("comand"), "{refused:?}");
    let state = pb::ListNotificationsRequest { state: "lost".into(), ..Default::default() };
    assert_eq!(words(&notify.list(state).await.unwrap_err()).2, "state");
    let used = notify.delete_channel(named("note")).await.unwrap_err();
    assert!(used.message().contains("used by rules: all"), "{used:?}");
    assert_eq!(notify.delete_rule(named("all")).await.unwrap().into_inner().action, "deleted");
    notify.delete_channel(named("note")).await.unwrap();

    // Each of these has left a record, under the name it has over HTTP.
    let want = [
        ("notify.channel.put", "channel/note", "ok", 2),
        ("notify.channel.put", "channel/x", "refused", 0),
        ("notify.channel.test", "channel/note", "ok", 1),
        ("notify.channel.delete", "channel/note", "ok", 1),
        ("notify.channel.delete", "channel/note", "refused", 1),
        ("notify.rule.put", "rule/all", "ok", 1),
        ("notify.rule.put", "rule/bad", "refused", 1),
        ("notify.rule.delete", "rule/all", "ok", 1),
    ];
    for (operation, object, result, n) in want {
        eventually(SOON, format!("{n} records {operation} {object} {result}"), async || {
            let request = pb::ListAuditRequest {
                operation: operation.into(),
                object: object.into(),
                result: result.into(),
                ..Default::default()
            };
            let found = AuditClient::new(channel.clone()).list(request).await;
            let records = found.map_err(|e| e.to_string())?.into_inner().records;
            let grpc = records.iter().all(|r| r.method.contains("Notify"));
            if records.len() == n && grpc { Ok(()) } else { Err(format!("{records:?}")) }
        })
        .await;
    }
}
