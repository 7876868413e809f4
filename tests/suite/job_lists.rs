//! Lists of jobs: pages, filters, and what they cost.

use crate::fleet::{SOON, apply, quick};
use meepo_tests::{Api, Cluster, eventually};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Every page of a list, at most `limit` jobs each.
async fn pages(api: &Api, query: &str, limit: usize) -> Vec<Vec<Value>> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = api.get(&format!("/v1/jobs?limit={limit}{query}{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        let jobs = page["jobs"].as_array().unwrap().clone();
        assert!(jobs.len() <= limit);
        pages.push(jobs);
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return pages,
        }
    }
}

fn names(jobs: &[Value]) -> Vec<&str> {
    jobs.iter().map(|j| j["name"].as_str().unwrap()).collect()
}

async fn all(api: &Api, query: &str) -> Vec<Value> {
    pages(api, query, 1000).await.concat()
}

/// Puts an assignment as people do.
async fn put(cluster: &Cluster, key: &str, value: &Value) {
    cluster.etcd().ctl(&["put", key, &value.to_string()]).await.ok();
}

#[tokio::test]
async fn pages_have_every_job_once_whatever_it_is_made_of() {
    let cluster = quick().label(0, "tree=shop/cart").start().await;
    let api = cluster.api();
    // Names that keys sort otherwise than names do.
    let defined = ["a", "a-b", "a.b", "a:b", "b", "web-1", "web-2", "z"];
    for name in defined {
        apply(&api, json!({"name": name, "cmd": format!("echo {name}"), "schedule": "@yearly"}))
            .await;
    }
    for (name, tree) in [("a-b", "shop"), ("only-below", "shop/cart"), ("elsewhere", "bank")] {
        apply(&api, json!({"name": name, "tree": tree, "cmd": "true", "schedule": "@yearly"}))
            .await;
    }
    let by_hand = json!({"cmd": "date", "express": "@daily", "task_id": "hand", "status": "pause",
        "executor": "sh"});
    put(&cluster, "/cron/jobs/127.0.0.2/hand", &by_hand).await;
    put(&cluster, "/cron/jobs/127.0.0.9/hand", &json!({"cmd": "date", "executor": "ruby"})).await;
    let oldest = json!({"cmd": "uptime", "task_id": "oldest", "status": "running"});
    put(&cluster, "/cron/jobs/127.0.0.2/", &oldest).await;

    let mut want: BTreeSet<&str> = defined.into();
    want.extend(["only-below", "elsewhere", "hand", "oldest"]);
    let want: Vec<&str> = want.into_iter().collect();
    eventually(SOON, "all are listed and placed", async || {
        let list = all(&api, "").await;
        let placed = list.iter().filter(|j| j["counts"]["nodes"] != 0).count();
        // All but the one that no node has.
        let ready = names(&list) == want && placed == want.len() - 1;
        if ready { Ok(()) } else { Err(json!(list).to_string()) }
    })
    .await;
    for limit in [1, 3, 4, 100] {
        let found = pages(&api, "", limit).await;
        assert_eq!(names(&found.concat()), want, "{limit} a page");
        assert!(found.iter().rev().skip(1).all(|page| page.len() == limit));
    }

    let list = all(&api, "").await;
    let job = |name: &str| list.iter().find(|j| j["name"] == name).unwrap();
    assert_eq!(job("a")["counts"], json!({"nodes": 1, "online": 1, "problems": 0}));
    assert_eq!(
        (&job("a")["spec"]["cmd"], &job("a")["source"]),
        (&json!("echo a"), &json!("definition"))
    );
    assert!(job("a")["next"].is_string() && job("a").get("nodes").is_none(), "{}", job("a"));
    assert_eq!(job("hand")["counts"], json!({"nodes": 2, "online": 1, "problems": 1}));
    let shown = json!({"status": "pause", "express": "@daily", "cmd": "date"});
    assert_eq!((&job("hand")["by_hand"], &job("hand")["source"]), (&shown, &json!("etcd")));
    assert_eq!(job("oldest")["by_hand"]["cmd"], "uptime");
    assert_eq!(job("elsewhere")["counts"]["nodes"], 0);

    for (query, want) in [
        ("&name=web-*", vec!["web-1", "web-2"]),
        ("&name=?", vec!["a", "b", "z"]),
        ("&name=nothing", vec![]),
        ("&node=127.0.0.9", vec!["hand"]),
        ("&node=127.0.0.2&name=*l*", vec!["oldest", "only-below"]),
        ("&tree=shop/cart&name=*b", vec!["a-b", "a.b", "a:b", "b"]),
        ("&tree=bank&name=e*", vec!["elsewhere"]),
    ] {
        assert_eq!(names(&pages(&api, query, 1).await.concat()), want, "{query}");
    }
    let below = all(&api, "&tree=shop/cart&name=a-b").await;
    assert_eq!(below[0]["spec"]["cmd"], "true", "as it is there: {below:?}");
    let (status, refused) = api.get("/v1/jobs?cursor=a/b").await;
    assert_eq!((status, &refused["error"]["field"]), (400, &json!("cursor")), "{refused}");

    // One by one, and what is not there.
    for name in want {
        assert_eq!(api.get(&format!("/v1/jobs/{name}")).await.0, 200, "{name}");
    }
    let (_, oldest) = api.get("/v1/jobs/oldest").await;
    assert_eq!(oldest["nodes"][0]["node"], "127.0.0.2", "{oldest}");
    assert_eq!(api.get("/v1/jobs/none").await.0, 404);
    let table = cluster.cli(&["job", "list", "--name", "web-*"]).await;
    assert!(table.ok().contains("web-2") && !table.stdout.contains("only"), "{table:?}");
    let first = cluster.cli(&["job", "list", "-n", "2", "-o", "json"]).await;
    assert_eq!(names(first.json().as_array().unwrap()), ["a", "a-b"]);
}

#[tokio::test]
async fn what_was_just_applied_or_deleted_counts_at_every_master() {
    let cluster = quick().masters(2).start().await;
    for n in 0..20 {
        let [one, other] = [n % 2, (n + 1) % 2].map(|i| cluster.master(i).api());
        let name = format!("job-{n}");
        apply(&one, json!({"name": name, "cmd": "true"})).await;
        let found = all(&other, "").await;
        assert!(names(&found).contains(&name.as_str()), "{name}: {found:?}");
        apply(&other, json!({"name": name, "cmd": format!("echo {n}")})).await;
        let found = all(&one, &format!("&name={name}")).await;
        assert_eq!(found[0]["spec"]["cmd"], format!("echo {n}"));
        if n % 2 == 0 {
            let (status, _) = other.http("DELETE", &format!("/v1/jobs/{name}"), None).await;
            assert_eq!(status, 200);
            assert!(!names(&all(&one, "").await).contains(&name.as_str()), "{name} is deleted");
            assert_eq!(one.get(&format!("/v1/jobs/{name}")).await.0, 404);
        }
    }
}

/// Bytes that etcd has sent to its clients.
async fn sent(cluster: &Cluster) -> u64 {
    let etcd = Api::new(cluster.member(0).url());
    let (_, text) = etcd.get("/metrics").await;
    let name = "etcd_network_client_grpc_sent_bytes_total ";
    let line = text.as_str().unwrap().lines().find_map(|l| l.strip_prefix(name));
    line.unwrap().parse::<f64>().unwrap() as u64
}

#[tokio::test]
async fn a_question_costs_what_its_answer_does_however_large_the_fleet_is() {
    const OTHERS: usize = 4_000;
    let cluster = quick().start().await;
    let api = cluster.api();
    apply(&api, json!({"name": "mine", "cmd": "true"})).await;
    let mut etcd = cluster.etcd().client().await;
    let value = json!({"cmd": "x".repeat(200), "status": "running"}).to_string();
    for n in 0..OTHERS {
        let key = format!("/cron/jobs/10.1.{}.{}/other", n / 250, n % 250);
        etcd.put(key, value.clone(), None).await.unwrap();
    }
    eventually(SOON, "the master knows of all", async || {
        let list = all(&api, "").await;
        let there = list.iter().any(|j| j["counts"]["nodes"] == OTHERS);
        if there { Ok(()) } else { Err(json!(list).to_string()) }
    })
    .await;
    let run = uuid::Uuid::now_v7();
    let before = sent(&cluster).await;
    for _ in 0..3 {
        assert_eq!(all(&api, "").await.len(), 2);
        assert_eq!(api.get("/v1/jobs/mine").await.0, 200);
        assert_eq!(api.get("/v1/jobs/none").await.0, 404);
        assert_eq!(api.post("/v1/jobs/none/trigger", json!({})).await.0, 404);
        assert_eq!(api.post(&format!("/v1/runs/{run}/kill"), json!({})).await.0, 404);
    }
    let bytes = sent(&cluster).await - before;
    // One reading of all assignments takes a megabyte.
    assert!(bytes < 300_000, "{bytes} bytes for fifteen questions");
}
