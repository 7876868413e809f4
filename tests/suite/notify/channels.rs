//! Failure and recovery by webhook and by program, from the command line.

use super::{Receiver, hooked, job, put, rule, trigger, wait_list};
use crate::fleet::{SOON, quick};
use meepo_tests::eventually;
use serde_json::{Value, json};

#[tokio::test]
async fn a_failure_and_its_end_are_told_once_each_and_signed() {
    let secrets = tempfile::tempdir().unwrap();
    std::fs::write(secrets.path().join("hook-key"), "sesame\n").unwrap();
    let dir = secrets.path().to_str().unwrap();
    let cluster = quick().master_arg("--secrets-dir").master_arg(dir).start().await;
    let api = cluster.api();
    let receiver = Receiver::start().await;
    let file = |name: &str, text: String| {
        let path = cluster.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let channel = file(
        "channel.yaml",
        format!("name: hook\nwebhook:\n  url: {}\n  secret: hook-key\n", receiver.url()),
    );
    let out = cluster.cli(&["notify", "channel", "apply", "-f", &channel]).await;
    assert_eq!(out.ok(), "channel hook created\n");
    let rules =
        file("rule.yaml", "name: all\njobs: [\"nightly*\"]\nto: [hook]\ngroup_wait: 0s\n".into());
    assert_eq!(
        cluster.cli(&["notify", "rule", "apply", "-f", &rules]).await.ok(),
        "rule all created\n"
    );
    let tested = cluster.cli(&["notify", "channel", "test", "hook", "-o", "json"]).await.json();
    assert_eq!(tested["delivered"], true, "{tested}");
    let test = receiver.got().remove(0);
    assert_eq!(
        (test.id.as_str(), test.json()["rule"].as_str()),
        (tested["id"].as_str().unwrap(), Some("test"))
    );

    let flag = cluster.dir().join("well");
    let cmd =
        format!("test -e {} && exit; echo first; echo 'last \"words\"'; exit 3", flag.display());
    job(&api, "nightly-backup", &cmd, json!({})).await;
    job(&api, "other", "false", json!({})).await;
    let run = trigger(&api, "nightly-backup").await;
    let told = receiver.wait("failure", 1).await.remove(0);
    assert_eq!(told["run_id"], run);
    assert_eq!(told["job"], "nightly-backup");
    assert_eq!(told["node"], cluster.worker(0).node());
    assert_eq!(
        (&told["exit_code"], &told["state"], &told["attempt"]),
        (&json!(3), &json!("failed"), &json!(1))
    );
    assert_eq!(told["tail"], "first\nlast \"words\"");
    let got = receiver.messages().remove(1);
    let stamp = got.header("meepo-timestamp");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"sesame");
    let tag = ring::hmac::sign(&key, format!("{stamp}.{}", got.body).as_bytes());
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(got.header("meepo-signature"), format!("sha256={hex}"));
    assert_eq!(got.json()["id"], got.id);
    assert!(got.json()["text"].as_str().unwrap().contains("| last \"words\""), "{}", got.body);
    // Nothing of the secret is in etcd.
    let all = cluster.etcd().ctl(&["get", "--prefix", "/meepo/notify/"]).await;
    assert!(!all.stdout.contains("sesame") && all.stdout.contains("hook-key"), "{}", all.stdout);

    // Again, and a job that nobody asked for: neither is told.
    let again = trigger(&api, "nightly-backup").await;
    trigger(&api, "other").await;
    crate::fleet::wait_runs(&api, "job=nightly-backup&state=failed", 2).await;
    crate::fleet::wait_runs(&api, "job=other&state=failed", 1).await;
    std::fs::write(&flag, "").unwrap();
    trigger(&api, "nightly-backup").await;
    let well = receiver.wait("recovery", 1).await.remove(0);
    assert!(well["since"].is_string() && well["run_id"].is_string(), "{well}");
    assert_eq!(receiver.messages().len(), 3, "{:?}", receiver.messages());
    assert!(!receiver.messages().iter().any(|g| g.body.contains(&again)));

    let list = wait_list(&api, "both as delivered", |list| {
        let all = list["notifications"].as_array().unwrap();
        all.len() == 2 && all.iter().all(|m| m["state"] == "delivered")
    });
    assert_eq!(list.await["notifications"][0]["kinds"], json!({"recovery": 1}));
    let table = cluster.cli(&["notify", "list"]).await;
    assert!(
        table.ok().contains("job nightly-backup on 127.0.0.2 failed: exit status 3"),
        "{}",
        table.stdout
    );
    let (_, metrics) = api.get("/metrics").await;
    let sent = r#"meepo_master_notifications_sent_total{channel="hook"} 2"#;
    assert!(metrics.as_str().unwrap().contains(sent), "{metrics}");
    // A channel that a rule needs stays.
    let kept = cluster.cli(&["notify", "channel", "delete", "hook"]).await;
    assert!(kept.code == 5 && kept.stderr.contains("used by rules: all"), "{kept:?}");
    cluster.cli(&["notify", "rule", "delete", "all"]).await.ok();
    cluster.cli(&["notify", "channel", "delete", "hook"]).await.ok();
    assert_eq!(cluster.cli(&["notify", "channel", "list", "-o", "json"]).await.json(), json!([]));
}

#[tokio::test]
async fn what_is_not_taken_is_sent_again_with_the_same_id_or_shown_as_failed() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let receiver = Receiver::start().await;
    let body = r#"{"msg": {{ title }}, "n": {{ count }}, "events": {{ events }}}"#;
    let hook = json!({"webhook": {"url": receiver.url(), "method": "PUT", "body": body,
        "headers": {"X-Team": "ops"}}});
    put(&api, "channels/hook", hook).await;
    let notify = json!({"notify": {"on": ["failure"], "to": ["hook"]}});
    job(&api, "a", "exit 1", notify.clone()).await;
    job(&api, "b", "exit 2", notify).await;
    receiver.answer(&[503, 429]);
    trigger(&api, "a").await;
    eventually(SOON, "three tries", async || {
        let n = receiver.got().len();
        if n >= 3 { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    let got = receiver.got();
    assert!(got.iter().all(|g| g.id == got[0].id), "{got:?}");
    let said = got[2].json();
    assert_eq!(
        (said["msg"].as_str(), &said["n"]),
        (Some("meepo: job a on 127.0.0.2 failed: exit status 1"), &json!(1))
    );
    assert_eq!(got[2].header("x-team"), "ops");
    let one = |list: &Value, state: &str| {
        let all = list["notifications"].as_array().unwrap();
        all.iter().find(|m| m["state"] == state).cloned()
    };
    let list = wait_list(&api, "it as delivered", |l| one(l, "delivered").is_some()).await;
    let message = one(&list, "delivered").unwrap();
    assert_eq!((&message["attempts"], &message["rule"]), (&json!(3), &json!("job:a")));
    // What will never go is not tried for a day.
    receiver.answer(&[404]);
    trigger(&api, "b").await;
    let list = wait_list(&api, "the other as failed", |l| one(l, "failed").is_some()).await;
    let message = one(&list, "failed").unwrap();
    assert!(message["error"].as_str().unwrap().contains("404"), "{message}");
    let (_, metrics) = api.get("/metrics").await;
    for (name, n) in [("sent", 1), ("failed", 1), ("retried", 2)] {
        let line = format!("meepo_master_notifications_{name}_total{{channel=\"hook\"}} {n}");
        assert!(metrics.as_str().unwrap().contains(&line), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_it_is_needed() {
    let cluster = quick().workers(0).start().await;
    let api = cluster.api();
    let refused = async |path: &str, body: Value| {
        let (status, answer) = api.http("PUT", &format!("/v1/notify/{path}"), Some(&body)).await;
        assert_eq!(status, 400, "{answer}");
        let error = &answer["error"];
        format!("{}: {}", error["field"].as_str().unwrap(), error["message"].as_str().unwrap())
    };
    let hook = |body: &str| json!({"webhook": {"url": "http://127.0.0.1:1/", "body": body}});
    let e = refused("channels/c", hook("{\n\"a\": {{ titel }}\n}")).await;
    assert!(e.starts_with("webhook.body: line 2: "), "{e}");
    let e = refused("channels/c", hook("{\n\n\"a\": {{ title }")).await;
    assert!(e.starts_with("webhook.body: line 3: "), "{e}");
    let e = refused("channels/c", hook("{\"a\": \"{{ title }}\"}")).await;
    assert!(e.contains("no JSON"), "{e}");
    let e = refused("rules/r", json!({"to": ["nobody"]})).await;
    assert!(e.starts_with("to: there is no channel"), "{e}");
    let e = refused("rules/r", json!({"to": ["x"], "target": "group="})).await;
    assert!(e.starts_with("target: "), "{e}");
    let e = refused("channels/c", json!({"name": "d", "command": {"program": "x"}})).await;
    assert!(e.starts_with("name: "), "{e}");
    // A program that the settings do not name can be asked for, and is not run.
    put(&api, "channels/c", json!({"command": {"program": "sh"}})).await;
    let (_, tested) = api.post("/v1/notify/channels/c/test", json!({})).await;
    assert_eq!(tested["delivered"], false);
    assert!(tested["error"].as_str().unwrap().contains("notify_commands.sh"), "{tested}");
}

#[tokio::test]
async fn programs_of_the_settings_are_run_with_the_message() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let script = dir.path().join("page");
    std::fs::write(
        &script,
        format!(
            "#!/bin/sh\ncat > {0}.json\nenv | grep ^MEEPO_ | sort > {0}.env\necho \"$1\" > {0}.tmp\nmv {0}.tmp {0}\n",
            out.display()
        ),
    )
    .unwrap();
    let mut mode = std::fs::metadata(&script).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let settings = dir.path().join("master.toml");
    std::fs::write(
        &settings,
        format!(
            "[notify_commands.pager]\ncommand = [{:?}, \"now\"]\n[notify_commands.slow]\ncommand = [\"/bin/sleep\", \"600\"]\ntimeout = \"1s\"\n[notify_commands.bad]\ncommand = [\"/bin/sh\", \"-c\", \"echo no >&2; exit 4\"]\n",
            script
        ),
    )
    .unwrap();
    let settings = settings.to_str().unwrap();
    let cluster = quick().master_arg("--config").master_arg(settings).start().await;
    let api = cluster.api();
    for name in ["pager", "slow", "bad"] {
        put(&api, &format!("channels/{name}"), json!({"command": {"program": name}})).await;
    }
    job(&api, "a", "exit 7", json!({"notify": {"to": ["pager"]}})).await;
    let run = trigger(&api, "a").await;
    eventually(SOON, "the program has run", async || {
        if out.exists() { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "now\n");
    let read = |end: &str| std::fs::read_to_string(dir.path().join(format!("out.{end}"))).unwrap();
    let message: Value = serde_json::from_str(&read("json")).unwrap();
    assert_eq!(message["events"][0]["run_id"], run);
    for line in ["MEEPO_JOB=a", "MEEPO_KIND=failure", "MEEPO_EXIT_CODE=7", "MEEPO_RULE=job:a"] {
        assert!(read("env").lines().any(|l| l == line), "{line}: {}", read("env"));
    }
    for (name, want) in [("slow", "did not end within 1s"), ("bad", "exit status: 4: no")] {
        let (_, tested) = api.post(&format!("/v1/notify/channels/{name}/test"), json!({})).await;
        assert!(tested["error"].as_str().unwrap().contains(want), "{tested}");
    }
}

#[tokio::test]
async fn attempts_are_told_to_those_who_ask() {
    let cluster = quick().start().await;
    let api = cluster.api();
    let receiver = hooked(&cluster).await;
    rule(&api, "ends", json!({"on": ["failure"]})).await;
    rule(&api, "all", json!({"on": ["failure", "attempt"]})).await;
    let retry = json!({"retry": {"max": 2, "delay": "100ms", "backoff": "fixed"}});
    job(&api, "a", "exit 1", retry).await;
    trigger(&api, "a").await;
    let failures = receiver.wait("failure", 2).await;
    assert!(failures.iter().all(|e| e["attempt"] == 3), "{failures:?}");
    let attempts = receiver.wait("attempt", 2).await;
    let numbers: Vec<&Value> = attempts.iter().map(|e| &e["attempt"]).collect();
    assert_eq!(numbers, [1, 2]);
    for got in receiver.messages() {
        let only_ends = got.json()["rule"] == "ends";
        assert!(!only_ends || got.events("attempt").is_empty(), "{}", got.body);
    }
}
