use super::*;
use crate::conformance::{self, Random};
use meepo_core::{
    code::Code,
    run::{Cause, RunState},
};

/// A directory, and the URL of a file in it that is not there yet.
fn place() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("logs.db").display());
    (dir, url)
}

async fn place_open() -> (tempfile::TempDir, SqliteStore) {
    let (dir, _) = place();
    let store = SqliteStore::open(&dir.path().join("logs.db")).await.unwrap();
    store.migrate().await.unwrap();
    (dir, store)
}

async fn migrated() -> (tempfile::TempDir, Arc<dyn LogStore>) {
    let (dir, url) = place();
    let store = crate::open(&url).await.unwrap();
    store.migrate().await.unwrap();
    (dir, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_passes_every_check() {
    let (_dir, store) = migrated().await;
    conformance::all(store).await;
    let (_dir, store) = migrated().await;
    conformance::retention(store).await;
    let (_dir, store) = migrated().await;
    conformance::what_is_removed_stays_consistent(store).await;
}

#[tokio::test]
async fn sqlite_answers_like_the_model() {
    for seed in 0..5 {
        let (_dir, store) = migrated().await;
        conformance::same_answers(&[store], seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_open_and_migrate_at_once() {
    for _ in 0..5 {
        let (_dir, url) = place();
        let stores = futures::future::join_all((0..6).map(|_| crate::open(&url))).await;
        let stores: Vec<_> = stores.into_iter().map(Result::unwrap).collect();
        conformance::migrations(&stores).await;
    }
}

#[test]
fn every_step_of_the_schema_is_listed() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/sqlite");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter_map(|f| f.strip_suffix(".sql").map(str::to_owned))
        .collect();
    files.sort();
    assert_eq!(files, STEPS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (i, name) in files.iter().enumerate() {
        assert!(name.starts_with(&format!("{:04}_", i + 1)), "{name} is out of order");
    }
}

#[tokio::test]
async fn what_is_kept_survives_the_store() {
    let (_dir, url) = place();
    let mut random = Random::new(1);
    let record = conformance::run(random.run_id(), "job", "node", 5);
    {
        let store = crate::open(&url).await.unwrap();
        store.migrate().await.unwrap();
        store.append(&[LogItem::Run(record.clone())]).await.unwrap();
    }
    let store = crate::open(&url).await.unwrap();
    assert_eq!(store.migrate().await.unwrap(), Vec::<String>::new());
    assert_eq!(store.get_run(record.run_id).await.unwrap(), Some(record));
}

#[tokio::test]
async fn a_store_without_schema_says_so() {
    let (_dir, url) = place();
    let store = crate::open(&url).await.unwrap();
    store.ping().await.unwrap();
    let id = Random::new(1).run_id();
    let item = LogItem::Output(conformance::chunk(id, 0, "x"));
    for e in [
        store.append(&[item]).await.unwrap_err(),
        store.get_run(id).await.unwrap_err(),
        store.list_runs(&RunQuery::default()).await.unwrap_err(),
        store.output(id, None, 1).await.unwrap_err(),
        store.last_runs(&[conformance::name("j")]).await.unwrap_err(),
    ] {
        assert!(matches!(e, StoreError::NotMigrated { .. }) && !e.retryable(), "{}", e.chain());
        assert!(e.to_string().contains("migrate"), "{e}");
    }
}

#[tokio::test]
async fn what_cannot_be_opened_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let missing = format!("sqlite://{}/no/such/dir/logs.db", dir.path().display());
    let Err(e) = crate::open(&missing).await else { panic!("opened {missing}") };
    assert!(!e.retryable() && e.to_string().contains("no/such/dir/logs.db"), "{}", e.chain());

    let garbage = dir.path().join("garbage.db");
    std::fs::write(&garbage, "this is not a database, but long enough to be one".repeat(99))
        .unwrap();
    let Err(e) = crate::open(&format!("sqlite://{}", garbage.display())).await else {
        panic!("opened garbage")
    };
    assert!(!e.retryable(), "{}", e.chain());
}

#[tokio::test]
async fn the_file_belongs_to_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, store) = migrated().await;
    store.ping().await.unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
    }
}

#[tokio::test]
async fn unknown_fields_are_tolerated_and_bad_records_are_left_out() {
    let (dir, store) = migrated().await;
    let mut random = Random::new(1);
    let runs: Vec<_> =
        (0..3).map(|i| conformance::run(random.run_id(), "job", "node", i)).collect();
    let batch: Vec<_> = runs.iter().cloned().map(LogItem::Run).collect();
    store.append(&batch).await.unwrap();
    let conn = Connection::open(dir.path().join("logs.db")).unwrap();
    conn.execute("UPDATE runs SET doc = json_set(doc, '$.colour', 'red') WHERE slot = 0", [])
        .unwrap();
    conn.execute("UPDATE runs SET doc = json_set(doc, '$.state', 'odd') WHERE slot = 1", [])
        .unwrap();
    assert_eq!(store.get_run(runs[0].run_id).await.unwrap(), Some(runs[0].clone()));
    let e = store.get_run(runs[1].run_id).await.unwrap_err();
    assert!(matches!(e, StoreError::Unreadable { .. }), "{}", e.chain());
    assert!(e.chain().contains("odd"), "{}", e.chain());
    let listed = store.list_runs(&RunQuery::default()).await.unwrap().runs;
    assert_eq!(listed, [runs[2].clone(), runs[0].clone()]);
}

/// No list sorts: whatever is asked, an index gives the order. But for the parts of a task.
#[tokio::test]
async fn lists_are_served_by_an_index() {
    let (dir, store) = migrated().await;
    let mut random = Random::new(1);
    let batch: Vec<_> = (0..300)
        .map(|i| LogItem::Run(conformance::run(random.run_id(), "job", "node", i)))
        .collect();
    store.append(&batch).await.unwrap();
    let conn = Connection::open(dir.path().join("logs.db")).unwrap();
    let explain = |sql: &str, params: Vec<rusqlite::types::Value>| -> Vec<String> {
        let mut stmt = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let rows = stmt.query_map(rusqlite::params_from_iter(params), |row| row.get(3)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    // With statistics the planner has more ideas.
    for statistics in [false, true] {
        if statistics {
            conn.execute_batch("ANALYZE").unwrap();
        }
        for bits in 0..2048_u32 {
            let has = |bit: u32| bits & (1 << bit) != 0;
            let all = [RunState::Failed, RunState::Lost];
            let q = RunQuery {
                job: has(0).then(|| conformance::name("job")),
                node: has(1).then(|| conformance::name("node")),
                states: if has(2) { all[..1 + usize::from(has(3))].to_vec() } else { vec![] },
                cause: has(4).then_some(Cause::Exec),
                since: has(5).then(|| conformance::at(1)),
                until: has(3).then(|| conformance::at(999)),
                codes: if has(7) { vec![Code::LOST, Code::MISSED] } else { vec![] },
                user: has(8).then(|| "u".to_owned()),
                min_took: has(9).then_some(Duration::from_secs(1)),
                jobs: if has(10) { vec![conformance::name("job")] } else { vec![] },
                ..RunQuery::default()
            };
            let from = has(6).then_some(query::Position { slot: 500, run_id: [7; 16] });
            for select in read::selects(&q, from) {
                let sql = select.sql("slot, run_id, doc");
                let plan = explain(&sql, select.values_with_limit(51));
                // A scan that begins at the newest and ends with the page is one by time.
                let good = plan.len() == 1 && plan[0].contains("INDEX runs_by_");
                assert!(good, "{q:?}: {plan:?}");
            }
        }
        let task = RunQuery { task: Some(TaskId(random.run_id().0)), ..RunQuery::default() };
        let select = &read::selects(&task, None)[0];
        let plan = explain(&select.sql("slot, run_id, doc"), select.values_with_limit(51));
        assert!(
            plan[0].contains("SEARCH runs USING INDEX runs_by_job (job>? AND job<?)"),
            "{plan:?}"
        );

        let (sql, runs) =
            tally::statement(&conformance::name("job"), Some(conformance::at(1)), None);
        let plan = explain(&sql, runs.values_with_limit(1000)).join("\n");
        assert!(plan.contains("SEARCH runs USING COVERING INDEX runs_by_job"), "{plan}");
        assert!(!plan.contains("FOR ORDER BY"), "{plan}");
        // Removing walks along the states from the oldest, and along the keys of output.
        for (sql, want) in [
            (sweep::OLD_RUNS, "SEARCH runs USING INDEX runs_by_state (state=? AND slot<?)"),
            (sweep::OLD_OUTPUT, "SEARCH output USING INDEX output_by_run (run_id<?)"),
            (sweep::OLD_TASKS, "SEARCH tasks USING INDEX sqlite_autoindex_tasks_1 (task_id<?)"),
        ] {
            let null = rusqlite::types::Value::Null;
            let plan = explain(sql, vec![null; sql.matches('?').count().min(3)]).join("\n");
            assert!(plan.contains(want) && !plan.contains("FOR ORDER BY"), "{plan}");
        }
    }
}

/// A question that would take for ever is given up, and the connection is as good as new.
#[tokio::test]
async fn a_question_that_takes_too_long_is_given_up() {
    let (_dir, store) = place_open().await;
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    let short = Duration::from_millis(50);
    let ask = move |c: &Connection, ctx: &Context| {
        c.query_row(endless, [], |_| Ok(())).map_err(|e| ctx.error("list runs", e))
    };
    let e = store.readers.within(short, "list runs", ask).await.unwrap_err();
    assert!(matches!(e, StoreError::TooMuch { .. }) && !e.retryable(), "{}", e.chain());
    assert!(e.to_string().contains("a shorter time"), "{e}");
    assert_eq!(store.list_runs(&RunQuery::default()).await.unwrap().runs, []);
}

/// What was written by the step before gets what the new questions ask for.
#[tokio::test]
async fn older_records_answer_newer_questions() {
    let (dir, url) = place();
    let store = SqliteStore::open(&dir.path().join("logs.db")).await.unwrap();
    let conn = Connection::open(dir.path().join("logs.db")).unwrap();
    conn.execute_batch("CREATE TABLE meepo_migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT").unwrap();
    for (number, (name, sql)) in (1..).zip(&STEPS[..2]) {
        conn.execute_batch(sql).unwrap();
        let values = rusqlite::params![number, name];
        conn.execute("INSERT INTO meepo_migrations VALUES (?1, ?2, 0)", values).unwrap();
    }
    let mut old = conformance::run(Random::new(1).run_id(), "job", "node", 1_700_000_000_001);
    (old.state, old.code) = (RunState::Failed, Code::EXIT_STATUS);
    old.ended_at = Some(old.started_at.unwrap() + Duration::from_millis(1_234));
    let insert = "INSERT INTO runs VALUES (?1, 'job', 'node', ?2, 'failed', 'schedule', 3, ?3)";
    let doc = serde_json::to_string(&old).unwrap();
    let values = rusqlite::params![old.run_id.0.as_bytes(), old.slot.as_millisecond(), doc];
    conn.execute(insert, values).unwrap();
    drop(conn);
    assert_eq!(store.migrate().await.unwrap()[0], "0003_questions");
    let exact = Some(Duration::from_millis(1_234));
    let q = RunQuery {
        codes: vec![Code::EXIT_STATUS],
        min_took: exact,
        max_took: exact,
        ..RunQuery::default()
    };
    assert_eq!(crate::open(&url).await.unwrap().list_runs(&q).await.unwrap().runs, [old.clone()]);
    let soon = Retention { failed: crate::Keep::For(Duration::from_secs(1)), ..Retention::FOREVER };
    assert_eq!(store.sweep(&soon, old.ended_at.unwrap()).await.unwrap().runs, 0);
    let later = old.ended_at.unwrap() + Duration::from_secs(2);
    assert_eq!(store.sweep(&soon, later).await.unwrap().runs, 1);
}

/// A process that holds the file makes others wait, and waiting has an end that can
/// be told from a failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_for_another_process() {
    let (dir, store) = migrated().await;
    let other = Connection::open(dir.path().join("logs.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let run = conformance::run(Random::new(1).run_id(), "job", "node", 1);
    let item = LogItem::Run(run.clone());
    let appending = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.append(&[item]).await }
    });
    // Reading goes on meanwhile.
    assert_eq!(store.get_run(run.run_id).await.unwrap(), None);
    assert!(!appending.is_finished());
    other.execute_batch("COMMIT").unwrap();
    appending.await.unwrap().unwrap();
    assert_eq!(store.get_run(run.run_id).await.unwrap(), Some(run));
}
