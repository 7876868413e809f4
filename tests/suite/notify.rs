//! Telling people: real masters and workers, a real HTTP receiver, a real conversation in
//! SMTP, a real program.

mod channels;
mod crashes;
mod events;
mod limits;
mod mail;
mod receiver;
mod reminders;
mod secure;

use crate::fleet::{SOON, apply};
use meepo_tests::{Api, Cluster, eventually};
use receiver::Receiver;
use serde_json::{Value, json};

/// A cluster, and a channel `hook` to a receiver.
async fn hooked(cluster: &Cluster) -> Receiver {
    let receiver = Receiver::start().await;
    put(&cluster.api(), "channels/hook", json!({"webhook": {"url": receiver.url()}})).await;
    receiver
}

/// Creates or replaces a channel or a rule.
async fn put(api: &Api, path: &str, body: Value) {
    let (status, answer) = api.http("PUT", &format!("/v1/notify/{path}"), Some(&body)).await;
    assert!(status == 200 || status == 201, "{path}: {status} {answer}");
}

/// A rule that tells `hook` at once.
async fn rule(api: &Api, name: &str, more: Value) {
    let mut rule = json!({"to": ["hook"], "group_wait": "0s"});
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    put(api, &format!("rules/{name}"), rule).await;
}

/// A job on request that runs `cmd`.
async fn job(api: &Api, name: &str, cmd: &str, more: Value) {
    let mut spec = json!({"name": name, "cmd": cmd});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    apply(api, spec).await;
}

/// Runs a job and answers the id of its run.
async fn trigger(api: &Api, name: &str) -> String {
    let run = eventually(SOON, format!("{name} can be run"), async || {
        let (status, body) = api.post(&format!("/v1/jobs/{name}/trigger"), json!({})).await;
        let run = body["runs"][0]["run_id"].as_str().map(str::to_owned);
        run.filter(|_| status == 202).ok_or_else(|| format!("{status} {body}"))
    });
    run.await
}

/// Waits until the list of notifications says something.
async fn wait_list(api: &Api, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(SOON, format!("the list shows {what}"), async || {
        let (status, list) = api.get("/v1/notify/notifications?limit=200").await;
        assert_eq!(status, 200, "{list}");
        if is(&list) { Ok(list) } else { Err(list.to_string()) }
    })
    .await
}
