//! The product tree: what nodes inherit of a job, what overrides it, and what is told of it.

use crate::{
    fleet::{SOON, apply, quick, wait_runs},
    placement::{holders, wait_holders},
};
use meepo_proto::v1::{self as pb, jobs_client::JobsClient};
use meepo_tests::{Api, Cluster, eventually};
use serde_json::{Value, json};

const TOP: &str = "127.0.0.2";
const SHOP: &str = "127.0.0.3";
const CART: &str = "127.0.0.4";
const WEB: &str = "127.0.0.5";

async fn tree() -> Cluster {
    let places = [(1, "tree=shop"), (2, "tree=shop/cart"), (3, "tree=shop/cart/web")];
    let builder = places.iter().fold(quick().workers(4), |b, (i, l)| b.label(*i, l));
    builder.start().await
}

/// What a node holds of a job, straight from etcd.
async fn assignment(cluster: &Cluster, node: &str, job: &str) -> Value {
    let key = format!("/cron/jobs/{node}/{job}");
    let out = cluster.etcd().ctl(&["get", &key, "--print-value-only"]).await;
    if out.stdout.trim().is_empty() { Value::Null } else { out.json() }
}

async fn wait_cmd(cluster: &Cluster, node: &str, job: &str, cmd: &str) -> Value {
    eventually(SOON, format!("{node} is to run {cmd:?}"), async || {
        let there = assignment(cluster, node, job).await;
        if there["cmd"] == cmd { Ok(there) } else { Err(there.to_string()) }
    })
    .await
}

async fn explained(api: &Api, job: &str, node: &str) -> Value {
    let (status, body) = api.get(&format!("/v1/jobs/{job}/explain?target={node}")).await;
    assert_eq!(status, 200, "{body}");
    body["nodes"][0].clone()
}

fn from(explained: &Value, field: &str) -> String {
    let fields = explained["fields"].as_array().unwrap();
    let it = fields.iter().find(|f| f["field"] == field).unwrap_or_else(|| panic!("{explained}"));
    it["from"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_job_is_inherited_overridden_and_switched_off() {
    let cluster = tree().await;
    let api = cluster.api();
    let file = cluster.dir().join("jobs.yaml");
    // Below first: the order in the file does not matter.
    let yaml = "name: tidy\ntree: shop/cart\ncmd: echo cart\n---\nname: tidy\ncmd: echo root\n\
                timeout: 1m\nschedule: \"@hourly\"\n---\nname: tidy\ntree: shop\ntimeout: 5m\n";
    std::fs::write(&file, yaml).unwrap();
    let out = cluster.cli(&["job", "apply", "-f", file.to_str().unwrap()]).await;
    assert!(out.ok().contains("job tidy at shop/cart created"), "{out:?}");

    let top = wait_cmd(&cluster, TOP, "tidy", "echo root").await;
    assert_eq!((&top["timeout"], &top["tree"]), (&json!("1m"), &Value::Null));
    let shop = wait_cmd(&cluster, SHOP, "tidy", "echo root").await;
    assert_eq!((&shop["timeout"], &shop["tree"]), (&json!("5m"), &json!("shop")));
    for node in [CART, WEB] {
        let cart = wait_cmd(&cluster, node, "tidy", "echo cart").await;
        assert_eq!((&cart["timeout"], &cart["tree"]), (&json!("5m"), &json!("shop/cart")));
        assert_eq!(cart["express"], "@hourly");
    }
    // Where each value comes from.
    let web = explained(&api, "tidy", WEB).await;
    assert_eq!((&web["gets"], &web["reason"]), (&json!(true), &json!("placed")));
    assert_eq!(from(&web, "cmd"), "shop/cart");
    assert_eq!(from(&web, "timeout"), "shop");
    assert_eq!(from(&web, "schedule"), "/");
    assert_eq!(from(&web, "executor"), "default");
    let shown = cluster.cli(&["job", "explain", "tidy", "-t", WEB]).await;
    assert!(shown.ok().contains("shop/cart"), "{shown:?}");

    // A request to run follows the tree, too.
    let (status, body) = api.post("/v1/jobs/tidy/trigger", json!({})).await;
    assert_eq!((status, body["runs"].as_array().unwrap().len()), (202, 4), "{body}");
    let done = wait_runs(&api, "job=tidy&state=success", 4).await;
    let carts = done.iter().filter(|r| r["cmd"] == "echo cart").count();
    assert_eq!(carts, 2, "{done:?}");

    // A change above reaches those below, unless they say otherwise.
    apply(&api, json!({"name": "tidy", "cmd": "echo new", "schedule": "@daily"})).await;
    wait_cmd(&cluster, SHOP, "tidy", "echo new").await;
    eventually(SOON, "the schedule is inherited", async || {
        let web = assignment(&cluster, WEB, "tidy").await;
        if web["express"] == "@daily" && web["cmd"] == "echo cart" {
            Ok(())
        } else {
            Err(web.to_string())
        }
    })
    .await;

    // Switched off below, and on again further down.
    apply(&api, json!({"name": "tidy", "tree": "shop/cart", "disabled": true})).await;
    wait_holders(&api, "tidy", |h| !h.contains(CART) && !h.contains(WEB) && h.len() == 2).await;
    let cart = explained(&api, "tidy", CART).await;
    assert_eq!((&cart["gets"], &cart["reason"]), (&json!(false), &json!("disabled")), "{cart}");
    assert!(cart["text"].as_str().unwrap().contains("shop/cart"), "{cart}");
    apply(&api, json!({"name": "tidy", "tree": "shop/cart/web", "disabled": false})).await;
    wait_holders(&api, "tidy", |h| !h.contains(CART) && h.contains(WEB)).await;

    // What a place has, by all three ways.
    let (_, list) = api.get("/v1/jobs?tree=shop/cart").await;
    assert_eq!(list["jobs"][0]["spec"]["disabled"], true, "{list}");
    let (_, view) = api.get("/v1/jobs/tidy?tree=shop").await;
    assert_eq!(view["spec"]["timeout"], "5m", "{view}");
    assert_eq!(view["tree"].as_array().unwrap().len(), 3, "{view}");
    let given =
        cluster.cli(&["job", "get", "tidy", "--tree", "shop", "--definition", "-o", "json"]);
    assert_eq!(given.await.json(), json!({"name": "tidy", "tree": "shop", "timeout": "5m"}));
    let mut grpc = JobsClient::connect(cluster.master(0).grpc_url()).await.unwrap();
    let at = pb::JobName { name: "tidy".into(), tree: "shop".into() };
    assert_eq!(grpc.get(at).await.unwrap().into_inner().spec.unwrap().timeout, "5m");
    let ask = pb::ExplainRequest { name: "tidy".into(), target: CART.into() };
    assert_eq!(grpc.explain(ask).await.unwrap().into_inner().nodes[0].reason, "disabled");

    // What is deleted is inherited again; the root goes only when those below can do without.
    cluster.cli(&["job", "delete", "tidy", "--tree", "shop/cart"]).await.ok();
    wait_cmd(&cluster, CART, "tidy", "echo new").await;
    let (status, body) = api.http("DELETE", "/v1/jobs/tidy", None).await;
    assert_eq!(status, 409, "{body}");
    for path in ["shop/cart/web", "shop"] {
        let (status, body) = api.http("DELETE", &format!("/v1/jobs/tidy?tree={path}"), None).await;
        assert_eq!(status, 200, "{body}");
    }
    let (status, body) = api.http("DELETE", "/v1/jobs/tidy?tree=shop", None).await;
    assert_eq!(status, 404, "{body}");
    let (status, _) = api.http("DELETE", "/v1/jobs/tidy", None).await;
    assert_eq!(status, 200);
    eventually(SOON, "nobody holds it", async || match assignment(&cluster, SHOP, "tidy").await {
        Value::Null => Ok(()),
        there => Err(there.to_string()),
    })
    .await;
}

#[tokio::test]
async fn each_definition_of_a_job_that_runs_once_claims_for_itself() {
    let cluster = tree().await;
    let api = cluster.api();
    let every =
        json!({"name": "beat", "cmd": "true", "schedule": "* * * * * *", "placement": "once"});
    apply(&api, every).await;
    // Only below the tree, with a command of its own.
    apply(&api, json!({"name": "beat", "tree": "shop/cart", "cmd": "echo cart"})).await;
    wait_holders(&api, "beat", |h| h.len() == 4).await;
    wait_runs(&api, "job=beat&state=success", 12).await;
    let runs = wait_runs(&api, "job=beat&state=success", 12).await;
    let below = |r: &&Value| r["node"] == CART || r["node"] == WEB;
    let slot = |r: &Value| r["slot"].as_str().unwrap().to_owned();
    let (cart, rest): (Vec<_>, Vec<_>) = runs.iter().partition(below);
    assert!(!cart.is_empty() && !rest.is_empty(), "{runs:?}");
    assert!(cart.iter().all(|r| r["cmd"] == "echo cart" || r["cmd"] == "true"));
    for some in [cart, rest] {
        let commands: Vec<_> = some.iter().map(|r| (slot(r), r["cmd"].to_string())).collect();
        let mut slots = commands.clone();
        slots.sort();
        slots.dedup();
        assert_eq!(slots.len(), commands.len(), "a slot ran twice: {commands:?}");
    }
    let claims = cluster.etcd().ctl(&["get", "--prefix", "/cron/lock/slot/beat", "--keys-only"]);
    let claims = claims.await.stdout;
    assert!(
        claims.contains("/cron/lock/slot/beat\n") && claims.contains("beat/shop/cart"),
        "{claims}"
    );
    // The tree is checked on its way in.
    for (bad, field) in [
        (json!({"name": "beat", "tree": "shop//x"}), "tree"),
        (json!({"name": "beat", "tree": "shop", "shedule": "x"}), "shedule"),
        (json!({"name": "beat", "tree": "shop", "schedule": "x"}), "schedule"),
        (json!({"name": "none", "tree": "shop", "schedule": "@daily"}), "cmd"),
    ] {
        let (status, body) = api.post("/v1/jobs", bad).await;
        assert_eq!((status, body["error"]["field"].as_str()), (400, Some(field)), "{body}");
    }
    assert_eq!(holders(&api, "beat").await.len(), 4);
}
