//! MongoDB in the place of the embedded store: the same answers.

use crate::fleet::{SOON, apply, runs, wait_runs};
use meepo_tests::{Cluster, Spec, TestDir, binary, eventually, run, shared_mongo};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Fields that differ from run to run.
const FLEETING: &[&str] =
    &["run_id", "slot", "pid", "started_at", "ended_at", "next", "revision", "at"];

/// `value` with what differs between two clusters taken out.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| match FLEETING.contains(&k.as_str()) && !v.is_null() {
                true => (k.clone(), json!("*")),
                false => (k.clone(), normal(v)),
            })
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(all) => all.iter().map(normal).collect(),
        other => other.clone(),
    }
}

/// Does the same things in a fresh cluster and notes every answer.
async fn scripted(mongo: bool) -> BTreeMap<String, Value> {
    let cluster = Cluster::builder().mongo(mongo).start().await;
    let api = cluster.api();
    let mut answers = BTreeMap::new();
    let jobs = [
        ("fine", "echo one; echo two"),
        ("bad", "echo oops >&2; exit 3"),
        ("dies", "kill -9 $$"),
        ("bytes", r"printf '\xff\xfe\n'"),
        ("much", "head -c 200000 /dev/zero | tr '\\0' x"),
        ("none", "true"),
    ];
    // One after the other, so that their order is the same everywhere.
    for (name, cmd) in jobs {
        apply(&api, json!({"name": name, "cmd": cmd})).await;
        cluster.cli(&["job", "trigger", name]).await.ok();
        let query = format!("job={name}&state=success,failed");
        let found = wait_runs(&api, &query, 1).await;
        let id = found[0]["run_id"].as_str().unwrap().to_owned();
        answers.insert(format!("{name} run"), api.get(&format!("/v1/runs/{id}")).await.1);
        // Pieces are cut as they were read: what counts is the text.
        let (_, page) = api.get(&format!("/v1/runs/{id}/output?limit=10000")).await;
        let chunks = page["chunks"].as_array().unwrap();
        let text: Vec<(&Value, String)> = chunks
            .iter()
            .map(|c| (&c["stream"], format!("{}{}", c["text"], c["base64"])))
            .collect();
        answers.insert(
            format!("{name} output"),
            match name {
                "much" => {
                    json!(chunks.iter().map(|c| c["text"].as_str().unwrap().len()).sum::<usize>())
                }
                _ => json!(text),
            },
        );
        let (_, rest) = api.get(&format!("/v1/runs/{id}/output?after=99999")).await;
        answers.insert(format!("{name} after the end"), rest);
        let logs = cluster.cli(&["logs", &id]).await;
        let shown = if name == "much" { logs.stdout.len().to_string() } else { logs.stdout };
        answers.insert(format!("{name} logs"), json!([logs.code, shown]));
        let (_, job) = api.get(&format!("/v1/jobs/{name}")).await;
        answers.insert(format!("{name} job"), job["last_run"].clone());
    }
    for (what, query) in [
        ("all", ""),
        ("failed", "state=failed"),
        ("two states", "state=failed,success"),
        ("one job", "job=fine"),
        ("no job", "job=nobody"),
        ("one node", "node=127.0.0.2"),
        ("no node", "node=127.0.0.3"),
        ("since the future", "since=2999-01-01T00:00:00Z"),
        ("until the past", "until=2001-01-01T00:00:00Z"),
    ] {
        answers.insert(format!("runs {what}"), json!(runs(&api, query).await));
    }
    // Page by page.
    let (mut cursor, mut pages) = (String::new(), Vec::new());
    loop {
        let (_, page) = api.get(&format!("/v1/runs?limit=4{cursor}")).await;
        pages.push(page["runs"].as_array().unwrap().len());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    answers.insert("pages".into(), json!(pages));
    for (what, path) in [
        ("bad cursor", "/v1/runs?cursor=nonsense"),
        ("bad limit", "/v1/runs?limit=0"),
        ("no run", "/v1/runs/01900000-0000-7000-8000-000000000000"),
        ("no output", "/v1/runs/01900000-0000-7000-8000-000000000000/output"),
    ] {
        let (status, body) = api.get(path).await;
        answers.insert(what.into(), json!([status, body]));
    }
    // A synchronous command is a run like others.
    let out = eventually(SOON, "a synchronous command succeeds", async || {
        let out = cluster.cli(&["run", "-t", "all", "--", "echo sync"]).await;
        if out.code == 0 { Ok(out) } else { Err(out.stderr) }
    })
    .await;
    answers.insert("sync".into(), json!(out.stdout));
    let found = eventually(SOON, "it is recorded", async || {
        let all = runs(&api, "state=success").await;
        all.into_iter().find(|r| r["cause"] == "exec").ok_or_else(|| "not yet".to_owned())
    })
    .await;
    answers.insert("sync run".into(), found);
    answers.into_iter().map(|(k, v)| (k, normal(&v))).collect()
}

#[tokio::test]
async fn both_stores_give_the_same_answers() {
    let (sqlite, mongo) = tokio::join!(scripted(false), scripted(true));
    assert_eq!(sqlite.keys().collect::<Vec<_>>(), mongo.keys().collect::<Vec<_>>());
    for (what, answer) in &sqlite {
        assert_eq!(answer, &mongo[what], "{what}");
    }
    assert_eq!(sqlite["bad run"]["exit_code"], 3);
    assert_eq!(sqlite["pages"], json!([4, 2]));
}

#[tokio::test]
async fn migrations_make_what_is_needed_once() {
    use mongodb::bson::doc;
    let dir = TestDir::new();
    let server = shared_mongo().await;
    let uri = server.fresh_uri();
    let migrate = async |uri: &str| {
        let mut spec =
            Spec::new("migrate", binary("meepo-master"), &["migrate", "--logs", uri], dir.path());
        spec.split_output = true;
        let _ = std::fs::remove_file(dir.path().join("migrate.out"));
        run(spec).await
    };
    let first = migrate(&uri).await;
    assert!(first.ok().lines().all(|l| l.starts_with("applied 0")), "{first:?}");
    assert!(first.stdout.contains("0001_runs_and_output"), "{first:?}");
    assert_eq!(migrate(&uri).await.ok(), "nothing to do\n");

    let client = mongodb::Client::with_uri_str(&uri).await.unwrap();
    let database = client.default_database().unwrap();
    let names = database.list_collection_names().await.unwrap();
    assert!(names.contains(&"runs".into()) && names.len() >= 3, "{names:?}");
    let indexes = database.collection::<mongodb::bson::Document>("runs").list_index_names().await;
    assert!(indexes.unwrap().len() >= 3);
    let steps = database.collection::<mongodb::bson::Document>("meepo_migrations");
    assert_eq!(steps.count_documents(doc! {}).await.unwrap(), first.ok().lines().count() as u64);
    // Two at once, on a fresh database, do not disturb each other.
    let fresh = server.fresh_uri();
    let other =
        Spec::new("other", binary("meepo-master"), &["migrate", "--logs", &fresh], dir.path());
    let (a, b) = tokio::join!(migrate(&fresh), run(other));
    assert_eq!((a.code, b.code), (0, 0), "{a:?} {b:?}");
    let applied = [&a, &b].iter().filter(|o| o.stdout.contains("applied 0001")).count();
    assert_eq!(applied, 1, "{a:?} {b:?}");
    for uri in [uri, fresh] {
        let client = mongodb::Client::with_uri_str(&uri).await.unwrap();
        client.default_database().unwrap().drop().await.unwrap();
    }
    // The embedded store has them too; what is no store is refused.
    let sqlite = format!("sqlite://{}", dir.path().join("logs.db").display());
    assert!(migrate(&sqlite).await.ok().starts_with("applied 0001"));
    assert_eq!(migrate(&sqlite).await.ok(), "nothing to do\n");
    let refused = migrate("postgres://x").await;
    assert!(refused.code != 0 && refused.stderr.contains("mongodb://"), "{refused:?}");
}
