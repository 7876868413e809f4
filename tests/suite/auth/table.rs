//! Every operation of both APIs, and what it needs.

use super::{Guarded, why};
use crate::fleet::quick;
use http::uri::PathAndQuery;
use meepo_core::auth::Role;
use meepo_master::auth::{
    operations::{INTERNAL, Need, TABLE},
    reference,
};
use meepo_tests::{Api, workspace_root};
use prost::Message;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tonic::{Code, Request, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

/// Operations of the OpenAPI document.
fn of_http() -> BTreeSet<String> {
    let document: Value =
        serde_json::from_str(&meepo_master::http::document().to_json().unwrap()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let of = |(path, operations): (&String, &Value)| -> Vec<String> {
        let methods = operations.as_object().unwrap().keys();
        methods.map(|m| format!("{} {path}", m.to_uppercase())).collect()
    };
    paths.iter().flat_map(of).collect()
}

/// Calls of a package, with the whole of their names.
fn of_grpc(package: &str) -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(meepo_proto::DESCRIPTORS).unwrap();
    let files = set.file.iter().filter(|f| f.package() == package);
    let calls = files
        .flat_map(|f| &f.service)
        .flat_map(|s| s.method.iter().map(move |m| format!("{package}.{}/{}", s.name(), m.name())));
    calls.collect()
}

#[test]
fn every_operation_of_both_apis_needs_something_that_stands_in_the_table() {
    let http: BTreeSet<String> = TABLE.iter().map(|(http, ..)| (*http).to_owned()).collect();
    assert_eq!(http, of_http());
    let named = TABLE.iter().filter(|(_, grpc, _)| !grpc.is_empty());
    let grpc: BTreeSet<String> = named.map(|(_, grpc, _)| format!("meepo.v1.{grpc}")).collect();
    assert_eq!(grpc, of_grpc("meepo.v1"));
    let internal: BTreeSet<String> = INTERNAL.iter().map(|(call, _)| (*call).to_owned()).collect();
    assert_eq!(internal, of_grpc("meepo.internal.v1"));
    // Nothing that changes something is open, but for what brings its own proof.
    for (http, _, need) in TABLE {
        let proves_itself = ["POST /v1/login", "POST /v1/join", "POST /v1/renew"].contains(http);
        let reads = http.starts_with("GET ");
        assert!(*need != Need::Nothing || proves_itself || reads, "{http}");
    }
}

#[test]
fn the_reference_is_what_the_code_says() {
    let path = workspace_root().join("docs/reference/permissions.md");
    if std::env::var_os("MEEPO_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, reference::page()).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    let same = page == reference::page();
    assert!(same, "permissions.md is old: run this test once with MEEPO_WRITE_REFERENCE=1");
}

/// A path that leads nowhere in particular.
fn path(route: &str) -> String {
    let id = "0190a5d2-7c4e-7b1a-8000-000000000001";
    let path = route.replace("{name}", "nothing").replace("{part}", "etcd");
    let path = path.replace("{verb}", "cancel");
    match path.starts_with("/v1/nodes/") {
        true => path.replace("{id}", "127.0.0.99"),
        false => path.replace("{id}", id),
    }
}

/// The status of a request that would change nothing if it were served.
async fn ask(api: &Api, operation: &str) -> (u16, Value) {
    let (method, route) = operation.split_once(' ').unwrap();
    let mut request = api.request(method, &path(route));
    if method != "GET" {
        request = request.json(&json!({"does_not_exist": 1}));
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    // Some of what is served never ends.
    let body = if status >= 400 { response.json().await.unwrap_or_default() } else { Value::Null };
    (status, body)
}

/// The code of a call with an empty message.
async fn call(channel: &Channel, token: Option<&str>, call: &str) -> Code {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let mut request = Request::new(());
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let path: PathAndQuery = format!("/{call}").parse().unwrap();
    let codec = ProstCodec::<(), ()>::default();
    match grpc.server_streaming(request, path, codec).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

#[tokio::test]
async fn who_is_not_known_is_served_nothing_and_each_role_what_the_table_says() {
    let plan = quick().workers(0).master_arg("--rate-limit").master_arg("0");
    let guarded = Guarded::start(plan).await;
    let nobody = guarded.master(0);
    let wrong = format!("meepo_{}_{}", "0".repeat(20), "x".repeat(43));
    let mut roles = Vec::new();
    for name in ["viewer", "operator", "admin"] {
        roles.push((
            Role::built_in(name).unwrap(),
            guarded.user(&format!("u-{name}"), &[name]).await,
        ));
    }
    let has = |role: &Role, need: Need| match need {
        Need::May(p) => role.grants[0].permissions.iter().any(|x| x == "*" || x == p.as_str()),
        need => need != Need::Node && need != Need::Master,
    };
    let channel = Channel::from_shared(guarded.cluster.master(0).grpc_url()).unwrap();
    let channel = channel.connect().await.unwrap();
    for (http, grpc, need) in TABLE {
        let (status, answer) = ask(&nobody, http).await;
        match need {
            Need::Nothing | Need::Node | Need::Master => assert_ne!(status, 403, "{http}"),
            _ => assert_eq!((status, why(&answer)), (401, "unauthenticated"), "{http}"),
        }
        for (role, token) in &roles {
            // It ends the token; or asks for a certificate, where there are some.
            let certified = [Need::Node, Need::Master].contains(need);
            if *http == "POST /v1/logout" || certified {
                continue;
            }
            let (status, answer) = ask(&nobody.with_token(token), http).await;
            // One's own affairs are looked at one by one.
            if *need == Need::Caller && status == 403 {
                assert!(why(&answer) == "denied", "{http} as {}: {answer}", role.name);
                continue;
            }
            assert_eq!(status == 403, !has(role, *need), "{http} as {}: {status}", role.name);
            assert_ne!(status, 401, "{http} as {}", role.name);
        }
        if grpc.is_empty() || *grpc == "Access/Logout" {
            continue;
        }
        let name = format!("meepo.v1.{grpc}");
        let code = call(&channel, None, &name).await;
        let unknown = code == Code::Unauthenticated;
        assert_eq!(unknown, *need != Need::Nothing, "{grpc}: {code:?}");
        for (role, token) in &roles {
            let code = call(&channel, Some(token), &name).await;
            if *need != Need::Caller {
                let refused = code == Code::PermissionDenied;
                assert_eq!(refused, !has(role, *need), "{grpc} as {}: {code:?}", role.name);
            }
            assert!(code != Code::Unauthenticated || *need == Need::Nothing, "{grpc}: {code:?}");
        }
    }
    // A wrong secret is as good as none, and says no more.
    for token in [wrong.as_str(), "meepo_x", "x.y.z", "", "nonsense"] {
        let (status, answer) = nobody.with_token(token).get("/v1/jobs").await;
        assert_eq!((status, why(&answer)), (401, "unauthenticated"), "{token:?}");
    }
    let (status, _) = nobody.get("/v1/of/a/newer/version").await;
    assert_eq!(status, 401, "what there is not is nobody's affair");
    let (status, _) = guarded.admin.get("/v1/of/a/newer/version").await;
    assert_eq!(status, 404);
    // Health and reflection are open; what no table names is not.
    let health = tonic_health::pb::health_client::HealthClient::new(channel.clone())
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await;
    assert!(health.is_ok(), "{health:?}");
    let unknown = call(&channel, None, "meepo.v1.Jobs/OfANewerVersion").await;
    assert_eq!(unknown, Code::Unauthenticated);
}
