//! Against a real server. Most checks share one, so that it starts and ends once.

use super::*;
use crate::{
    FAILURES,
    conformance::{self, Random},
    plan::Plan,
    testing::{TestMongo, TestMongoSet},
};
use meepo_core::{
    code::{self, Code},
    run::RunState,
};
use mongodb::bson::Document;
use std::{sync::Arc, time::Instant};

async fn migrated(url: &str) -> Arc<dyn LogStore> {
    let store = crate::open(url).await.unwrap();
    store.migrate().await.unwrap();
    store
}

async fn sqlite() -> (tempfile::TempDir, Arc<dyn LogStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = migrated(&format!("sqlite://{}", dir.path().join("logs.db").display())).await;
    (dir, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_passes_every_check_and_answers_like_sqlite() {
    let mongo = TestMongo::start().await;
    for _ in 0..3 {
        let url = mongo.fresh_uri();
        let stores = futures::future::join_all((0..6).map(|_| crate::open(&url))).await;
        let stores: Vec<_> = stores.into_iter().map(Result::unwrap).collect();
        conformance::migrations(&stores).await;
    }
    conformance::all(migrated(&mongo.fresh_uri()).await).await;
    for seed in 0..5 {
        let (_dir, sqlite) = sqlite().await;
        let both = [migrated(&mongo.fresh_uri()).await, sqlite];
        conformance::same_answers(&both, seed).await;
    }
    awkward_documents(&mongo.fresh_uri()).await;
    foreign_unique_indexes(&mongo.fresh_uri()).await;
    indexes_serve_every_question(&mongo.fresh_uri()).await;
    the_schema_is_enforced(&mongo.fresh_uri()).await;
    older_records_answer_newer_questions(&mongo.fresh_uri()).await;
    a_question_that_takes_too_long_is_given_up(&mongo.fresh_uri()).await;
    conformance::retention(migrated(&mongo.fresh_uri()).await).await;
    conformance::what_is_removed_stays_consistent(migrated(&mongo.fresh_uri()).await).await;
}

/// No list is sorted and none looks at many more documents than it returns; the last
/// runs of some jobs cost one look each.
async fn indexes_serve_every_question(url: &str) {
    let store = MongoStore::open(url).await.unwrap();
    store.migrate().await.unwrap();
    let mut random = Random::new(1);
    let batch: Vec<_> = (0..4_000)
        .map(|i| {
            let (job, node) = (format!("job-{}", i % 40), format!("node-{}", i % 7));
            let mut run = conformance::run(random.run_id(), &job, &node, i / 3);
            (run.state, run.code) = match random.below(50) {
                0 => (RunState::Failed, Code::EXIT_STATUS),
                1 => (RunState::Lost, Code::LOST),
                _ => (RunState::Success, Code::OK),
            };
            run.user = (i % 30 == 0).then(|| "backup".to_owned());
            run.ended_at = Some(conformance::at(i + 1_000));
            LogItem::Run(run)
        })
        .collect();
    store.append(&batch).await.unwrap();
    let explain = async |command: Document| {
        let command = doc! { "explain": command, "verbosity": "executionStats" };
        store.db.run_command(command).await.unwrap()
    };
    let all = RunQuery::default();
    let (a, b) = (conformance::name("job-3"), conformance::name("node-3"));
    let time = |ms| Some(conformance::at(ms));
    for q in [
        all.clone(),
        RunQuery { since: time(100), until: time(1_000), ..all.clone() },
        RunQuery { job: Some(a.clone()), ..all.clone() },
        RunQuery { node: Some(b.clone()), since: time(300), ..all.clone() },
        RunQuery { states: vec![RunState::Lost], ..all.clone() },
        RunQuery { states: vec![RunState::Lost, RunState::Failed], ..all.clone() },
        RunQuery { job: Some(a.clone()), states: FAILURES.to_vec(), ..all.clone() },
        RunQuery { jobs: vec![a.clone(), conformance::name("job-9")], ..all.clone() },
        RunQuery { node: Some(b.clone()), states: vec![RunState::Failed], ..all.clone() },
        RunQuery { codes: vec![Code::LOST], ..all.clone() },
        RunQuery { codes: code::matching("run").unwrap(), since: time(100), ..all.clone() },
        RunQuery { user: Some("backup".into()), ..all.clone() },
    ] {
        let cursor = store.list_runs(&q).await.unwrap().next;
        for q in [q.clone(), RunQuery { cursor, ..q }] {
            let filter = read::filter(&q, q.position().unwrap());
            let find = doc! {
                "find": "runs", "filter": filter, "sort": read::newest(), "limit": 51,
                "hint": read::index(&Plan::of(&q)).unwrap(),
            };
            let plan = explain(find).await;
            let text = plan.to_string();
            let winner = plan.get_document("queryPlanner").unwrap().get_document("winningPlan");
            let winner = winner.unwrap().to_string();
            assert!(!winner.contains("\"SORT\"") && winner.contains("IXSCAN"), "{q:?}: {winner}");
            let stats = plan.get_document("executionStats").unwrap();
            let looked = stats.get_i32("totalDocsExamined").unwrap();
            assert!(looked <= 60, "{q:?} looked at {looked}: {text}");
        }
    }
    let jobs: Vec<_> = (0..20).map(|i| conformance::name(&format!("job-{i}"))).collect();
    let pipeline = read::last_runs_pipeline(&jobs);
    let plan = explain(doc! { "aggregate": "runs", "pipeline": pipeline, "cursor": {} }).await;
    assert!(plan.to_string().contains("DISTINCT_SCAN"), "{plan}");
    assert_eq!(store.last_runs(&jobs).await.unwrap().len(), 20);

    // Statistics are made of an index alone.
    let pipeline = tally::pipeline(&a, time(0), time(1_000));
    let command =
        doc! { "aggregate": "runs", "pipeline": pipeline, "cursor": {}, "hint": "by_job_newest" };
    let plan = explain(command).await.to_string();
    assert!(plan.contains("PROJECTION_COVERED") && !plan.contains("FETCH"), "{plan}");
    assert!(plan.contains("\"totalDocsExamined\": 0"), "{plan}");

    // No index but these: each is used by some question, see `Plan` and `sweep`.
    let indexes = store.runs.list_index_names().await.unwrap();
    let mut indexes: Vec<_> = indexes.iter().map(String::as_str).collect();
    indexes.sort_unstable();
    let want = [
        "_id_",
        "by_code",
        "by_job_newest",
        "by_job_state",
        "by_node_state",
        "by_slot",
        "by_state",
        "by_user",
    ];
    assert_eq!(indexes, want);
    assert_eq!(store.output.list_index_names().await.unwrap(), ["_id_"]);
}

/// What no record looks like is not taken, whoever writes it; unknown fields are.
async fn the_schema_is_enforced(url: &str) {
    let store = MongoStore::open(url).await.unwrap();
    store.migrate().await.unwrap();
    let run = conformance::run(Random::new(1).run_id(), "job", "node", 0);
    store.append(&[LogItem::Run(run.clone())]).await.unwrap();
    let (key, code) = (doc! { "_id": docs::run_key(run.run_id) }, 121);
    for (change, good) in [
        (doc! { "$set": { "colour": "red" } }, true),
        (doc! { "$set": { "code": 70_000 } }, false),
        (doc! { "$set": { "slot": "yesterday" } }, false),
        (doc! { "$unset": { "state": "" } }, false),
    ] {
        let done = store.runs.update_one(key.clone(), change.clone()).await;
        let refused = done.as_ref().err().and_then(error::code_of) == Some(code);
        assert!(if good { done.is_ok() } else { refused }, "{change}: {done:?}");
    }
    for (collection, document) in
        [("output", doc! { "stream": 1, "data": "text" }), ("tasks", doc! { "state": "success" })]
    {
        let done = store.db.collection::<Document>(collection).insert_one(document).await;
        assert_eq!(done.err().as_ref().and_then(error::code_of), Some(code), "{collection}");
    }
}

/// What was written by the step before gets what the new questions ask for.
async fn older_records_answer_newer_questions(url: &str) {
    let store = MongoStore::open(url).await.unwrap();
    store.migrate().await.unwrap();
    let mut run = conformance::run(Random::new(1).run_id(), "job", "node", 0);
    (run.state, run.ended_at) = (RunState::Success, Some(conformance::at(1_237)));
    store.append(&[LogItem::Run(run.clone())]).await.unwrap();
    store.runs.update_one(doc! {}, doc! { "$unset": { "took_ms": "" } }).await.unwrap();
    let exact = Some(Duration::from_millis(1_234));
    let q = RunQuery { min_took: exact, max_took: exact, ..RunQuery::default() };
    assert_eq!(store.list_runs(&q).await.unwrap().runs, []);
    let steps = store.db.collection::<Document>("meepo_migrations");
    steps.delete_one(doc! { "_id": 3 }).await.unwrap();
    // Also again: two processes may do it at once.
    assert_eq!(store.migrate().await.unwrap(), ["0003_questions"]);
    assert_eq!(store.list_runs(&q).await.unwrap().runs, [run.clone()]);
    // Slower, but not wrong while an index is yet to be made.
    store.runs.drop_index("by_job_newest").await.unwrap();
    let q = RunQuery { job: run.job.clone(), ..RunQuery::default() };
    assert_eq!(store.list_runs(&q).await.unwrap().runs, [run]);
}

/// A question that would take for ever is given up by the server.
async fn a_question_that_takes_too_long_is_given_up(url: &str) {
    let store = MongoStore::open(url).await.unwrap();
    store.migrate().await.unwrap();
    let run = conformance::run(Random::new(1).run_id(), "job", "node", 0);
    store.append(&[LogItem::Run(run)]).await.unwrap();
    let slow = doc! { "$where": "sleep(2000) || true" };
    let read = async { store.runs.find_one(slow).max_time(Duration::from_millis(100)).await };
    let e = store.context.wait_briefly("list runs", read).await.unwrap_err();
    assert!(matches!(e, StoreError::TooMuch { .. }) && !e.retryable(), "{}", e.chain());
}

/// Unknown fields are passed over, and a record of unknown form hides no other.
async fn awkward_documents(url: &str) {
    let store = MongoStore::open(url).await.unwrap();
    store.migrate().await.unwrap();
    let mut random = Random::new(1);
    let runs: Vec<_> =
        (0..3).map(|i| conformance::run(random.run_id(), "job", "node", i)).collect();
    let batch: Vec<_> = runs.iter().cloned().map(LogItem::Run).collect();
    store.append(&batch).await.unwrap();
    for (i, change) in
        [doc! { "colour": { "a": [1, 2] } }, doc! { "state": "odd" }].into_iter().enumerate()
    {
        let key = doc! { "_id": docs::run_key(runs[i].run_id) };
        store.runs.update_one(key, doc! { "$set": change }).await.unwrap();
    }
    assert_eq!(store.get_run(runs[0].run_id).await.unwrap(), Some(runs[0].clone()));
    let e = store.get_run(runs[1].run_id).await.unwrap_err();
    assert!(matches!(e, StoreError::Unreadable { .. }), "{}", e.chain());
    let listed = store.list_runs(&RunQuery::default()).await.unwrap().runs;
    assert_eq!(listed, [runs[2].clone(), runs[0].clone()]);
}

/// Only a duplicate of the key means "is there already": what another unique index
/// keeps out is an error, and not lost in silence.
async fn foreign_unique_indexes(url: &str) {
    let store = MongoStore::open(url).await.unwrap();
    store.migrate().await.unwrap();
    let index = doc! { "name": "odd", "key": { "at": 1 }, "unique": true };
    store.db.run_command(doc! { "createIndexes": "output", "indexes": [index] }).await.unwrap();
    let id = Random::new(1).run_id();
    let (a, mut b) = (conformance::chunk(id, 0, "a"), conformance::chunk(id, 1, "b"));
    b.at = a.at;
    store.append(&[LogItem::Output(a)]).await.unwrap();
    let e = store.append(&[LogItem::Output(b)]).await.unwrap_err();
    assert!(!e.retryable() && e.chain().contains("11000"), "{}", e.chain());
}

/// As production runs: a replica set, so with majorities and retryable writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_passes_every_check() {
    let mongo = TestMongo::start_replica_set().await;
    conformance::all(migrated(&mongo.fresh_uri()).await).await;
}

/// Primaries step down while batches are on their way, and everything is there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_survives_a_new_primary() {
    let set = TestMongoSet::start(3).await;
    let url = set.fresh_uri();
    let store = migrated(&url).await;
    let mut random = Random::new(1);
    let (mut kept, mut amid, mut again) = (Vec::new(), 0, 0);
    for round in 0..3 {
        let mut batch = Vec::new();
        for i in 0..300 {
            let mut run = conformance::run(random.run_id(), "job", "node", round * 1_000 + i);
            batch.push(LogItem::Run(run.clone()));
            (run.state, run.output_bytes) = (RunState::Success, 40 * 500);
            for seq in 0..40 {
                batch.push(LogItem::Output(conformance::chunk(run.run_id, seq, random.bytes(500))));
            }
            batch.push(LogItem::Run(run.clone()));
            kept.push(run);
        }
        let appending = tokio::spawn({
            let store = Arc::clone(&store);
            async move {
                let deadline = Instant::now() + Duration::from_secs(120);
                let mut failed = 0;
                while let Err(e) = store.append(&batch).await {
                    assert!(e.retryable() && Instant::now() < deadline, "{}", e.chain());
                    failed += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                failed
            }
        });
        set.step_down().await;
        amid += u32::from(!appending.is_finished());
        again += appending.await.unwrap();
    }
    assert!(amid > 0, "no batch was on its way when a primary stepped down");
    println!("{amid} of 3 amid a batch, {again} times appended again by the caller");
    let raw = MongoStore::open(&url).await.unwrap();
    assert_eq!(raw.runs.count_documents(doc! {}).await.unwrap(), kept.len() as u64);
    assert_eq!(raw.output.count_documents(doc! {}).await.unwrap(), kept.len() as u64 * 40);
    for run in kept {
        assert_eq!(store.get_run(run.run_id).await.unwrap().as_ref(), Some(&run));
        let chunks = store.output(run.run_id, None, 100).await.unwrap();
        assert!(chunks.iter().map(|c| c.seq).eq(0..40), "{}", run.run_id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_kill_and_the_store_comes_back() {
    let mongo = TestMongo::start_own().await;
    let url = format!("{}?serverSelectionTimeoutMS=500", mongo.fresh_uri());
    let store = migrated(&url).await;
    let mut random = Random::new(1);
    let mut kept = Vec::new();
    for round in 0..3 {
        for i in 0..20 {
            let run = conformance::run(random.run_id(), "job", "node", round * 100 + i);
            store.append(&[LogItem::Run(run.clone())]).await.unwrap();
            kept.push(run);
        }
        mongo.kill();
        let more = conformance::run(random.run_id(), "job", "node", 0);
        let start = Instant::now();
        let e = store.append(&[LogItem::Run(more)]).await.unwrap_err();
        assert!(e.retryable(), "{}", e.chain());
        assert!(e.to_string().contains("append") && e.to_string().contains("mongodb://"), "{e}");
        assert!(start.elapsed() < SERVER_SELECTION, "waited for {:?}", start.elapsed());
        mongo.restart().await;
    }
    for run in kept {
        assert_eq!(store.get_run(run.run_id).await.unwrap(), Some(run));
    }
}

/// A server that took the connection and then says nothing holds nobody for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_counts_as_away() {
    let mongo = TestMongo::start_own().await;
    let mut store = MongoStore::open(&mongo.fresh_uri()).await.unwrap();
    store.context.set_patience(Duration::from_millis(500));
    store.migrate().await.unwrap();
    let run = conformance::run(Random::new(1).run_id(), "job", "node", 0);
    let id = run.run_id;
    let batch = [LogItem::Run(run), LogItem::Output(conformance::chunk(id, 0, "x"))];
    store.append(&batch).await.unwrap();
    mongo.pause();
    for e in [
        store.append(&batch).await.unwrap_err(),
        store.get_run(id).await.unwrap_err(),
        store.list_runs(&RunQuery::default()).await.unwrap_err(),
        store.output(id, None, 1).await.unwrap_err(),
        store.last_runs(&[conformance::name("job")]).await.unwrap_err(),
        store.ping().await.unwrap_err(),
    ] {
        assert!(e.retryable(), "{}", e.chain());
    }
    mongo.resume();
    store.context.set_patience(Duration::from_secs(30));
    store.append(&batch).await.unwrap();
    assert_eq!(store.output(id, None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn opening_does_not_need_the_server() {
    // Port 1 is never served on the loopback.
    let store = crate::open("mongodb://user:geheim@127.0.0.1:1/db").await.unwrap();
    let fast = crate::open("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=50").await.unwrap();
    let start = Instant::now();
    let e = fast.ping().await.unwrap_err();
    assert!(start.elapsed() < SERVER_SELECTION, "the URL's timeout is not used");
    assert!(e.retryable() && e.to_string().contains("127.0.0.1:1/meepo"), "{}", e.chain());
    let e = store.get_run(Random::new(1).run_id()).await.unwrap_err();
    assert!(e.retryable() && !e.chain().contains("geheim"), "{}", e.chain());
}

#[tokio::test]
async fn bad_urls_say_what_would_be_right() {
    for url in [
        "mongodb://",
        "mongodb://u:ge/heim@h/db",
        "mongodb://h/db?w=none&journal=perhaps",
        "mongodb://h/db?w=0",
        "mongodb://h:99999/db",
        "mongodb+srv://u:geheim@h/db",
    ] {
        let Err(e) = crate::open(url).await else { panic!("opened {url}") };
        assert!(matches!(e, StoreError::BadUrl { .. }) && !e.retryable(), "{url}: {e}");
        assert!(!e.chain().contains("heim"), "{url}: {}", e.chain());
    }
}

#[test]
fn every_step_of_the_schema_is_listed() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/mongo");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter_map(|f| f.strip_suffix(".json").map(str::to_owned))
        .collect();
    files.sort();
    assert_eq!(files, STEPS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}
