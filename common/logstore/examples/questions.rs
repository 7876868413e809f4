//! How quickly everyday questions are answered over many runs:
//!
//! ```text
//! cargo run --release -p meepo-logstore --features conformance --example questions -- 10000000 [sqlite|mongo|URL…]
//! ```
//!
//! Fills each store with so many runs of 1,000 jobs on 200 nodes over 90 days, every one of them
//! another, and asks each question 200 times about something else. A MongoDB of its own has a
//! cache of 0.25 GiB.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a program for developers")]

use jiff::{Timestamp, ToSpan};
use meepo_core::{
    code::Code,
    id::Name,
    run::{Cause, RunState},
};
use meepo_logstore::{
    FAILURES, LogItem, LogStore, RunQuery,
    conformance::{Random, chunk, name, run},
    job_stats, search,
    testing::TestMongo,
};
use std::{sync::Arc, time::Duration, time::Instant};

const JOBS: usize = 1_000;
const NODES: usize = 200;
/// Runs with output, the newest.
const WITH_OUTPUT: u64 = 20_000;
const ASKED: usize = 200;
const BATCH: u64 = 5_000;
/// 2026-08-01.
const FIRST: i64 = 1_785_542_400_000;
const SPAN: i64 = 90 * 24 * 3600 * 1000;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let runs: u64 = args.next().map_or(100_000, |n| n.parse().expect("a number of runs"));
    let mut stores: Vec<String> = args.collect();
    if stores.is_empty() {
        stores = vec!["sqlite".into(), "mongo".into()];
    }
    for which in stores {
        let (mut mongo, mut dir) = (None, None);
        let url = match which.as_str() {
            "sqlite" => {
                let place = dir.insert(tempfile::tempdir().unwrap());
                format!("sqlite://{}", place.path().join("logs.db").display())
            }
            "mongo" => mongo.insert(TestMongo::start_own().await).fresh_uri(),
            url => url.to_owned(),
        };
        let store = meepo_logstore::open(&url).await.unwrap();
        println!("{which}: {runs} runs");
        if url.starts_with("sqlite") {
            store.migrate().await.unwrap();
        }
        // MongoDB's indexes are made at the end, which is quicker.
        fill(&store, runs).await;
        ask(&*store, runs).await;
    }
}

fn job(n: usize) -> Name {
    name(&format!("job-{n}"))
}

fn slot(i: u64, runs: u64) -> i64 {
    FIRST + (i128::from(SPAN) * i128::from(i) / i128::from(runs)) as i64
}

/// Run number `i`.
fn item(i: u64, runs: u64) -> Vec<LogItem> {
    let mut random = Random::new(i);
    let at = slot(i, runs);
    let id = random.run_id_at(at as u64);
    let node = format!("10.0.{}.{}", random.below(NODES) / 100, random.below(100));
    let mut r = run(id, job(random.below(JOBS)).as_str(), &node, at);
    r.cmd = format!("/usr/local/bin/backup --target db{} --keep 7", random.below(50));
    r.user = random.once_in(20).then(|| format!("user{}", random.below(10)));
    (r.state, r.code) = match random.below(1_000) {
        0..20 => (RunState::Failed, Code::EXIT_STATUS),
        20..25 => (RunState::Timeout, Code::TIMED_OUT),
        25..27 => (RunState::Killed, Code::KILLED),
        27 => (RunState::Lost, Code::LOST),
        28..38 => (RunState::Missed, Code::MISSED),
        38..40 => (RunState::Skipped, Code::OVERLAP),
        _ => (RunState::Success, Code::OK),
    };
    let took = 1 << random.below(20);
    r.ended_at = Some(r.started_at.unwrap() + Duration::from_millis(took + random.number() % took));
    r.cause = Cause::Schedule;
    if i + WITH_OUTPUT < runs {
        return vec![LogItem::Run(r)];
    }
    let text = format!("{:>190} {i}\n", "line");
    r.output_bytes = text.len() as u64;
    vec![LogItem::Output(chunk(id, 0, text)), LogItem::Run(r)]
}

async fn fill(store: &Arc<dyn LogStore>, runs: u64) {
    let started = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for first in (0..runs).step_by(BATCH as usize) {
        if writers.len() == 3 {
            writers.join_next().await.unwrap().unwrap();
        }
        let store = Arc::clone(store);
        writers.spawn(async move {
            let items = (first..runs.min(first + BATCH)).flat_map(|i| item(i, runs));
            store.append(&items.collect::<Vec<_>>()).await.unwrap();
        });
        if first % 1_000_000 == 0 {
            println!("  {first} after {:.0} s", started.elapsed().as_secs_f64());
        }
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    store.migrate().await.unwrap();
    println!("  filled in {:.0} s", started.elapsed().as_secs_f64());
}

/// Asks one question again and again, each time with other numbers.
async fn time(what: &str, mut question: impl AsyncFnMut(&mut Random) -> usize) {
    let mut random = Random::new(7);
    let (mut took, mut found) = (Vec::new(), 0);
    for _ in 0..ASKED {
        let started = Instant::now();
        found += question(&mut random).await;
        took.push(started.elapsed());
    }
    took.sort();
    let ms = |share: usize| took[(ASKED - 1) * share / 100].as_secs_f64() * 1000.0;
    let (p50, p95, max, each) = (ms(50), ms(95), ms(100), found / ASKED);
    println!("| {what} | {p50:.1} | {p95:.1} | {max:.1} | {each} |");
}

async fn ask(store: &dyn LogStore, runs: u64) {
    let q = RunQuery::default;
    let list = async |query: RunQuery| store.list_runs(&query).await.unwrap().runs.len();
    let any = |r: &mut Random| Some(job(r.below(JOBS)));
    let node =
        |r: &mut Random| Some(name(&format!("10.0.{}.{}", r.below(NODES) / 100, r.below(100))));
    let moment =
        |r: &mut Random| Timestamp::from_millisecond(slot(r.number() % runs, runs)).unwrap();
    println!("| question | p50 ms | p95 ms | longest | found |\n|---|---|---|---|---|");
    time("the newest runs", async |_| list(q()).await).await;
    time("runs of a job", async |r| list(RunQuery { job: any(r), ..q() }).await).await;
    time("failures of a job", async |r| {
        list(RunQuery { job: any(r), states: FAILURES.to_vec(), ..q() }).await
    })
    .await;
    time("runs on a node", async |r| list(RunQuery { node: node(r), ..q() }).await).await;
    time("failures on a node", async |r| {
        list(RunQuery { node: node(r), states: FAILURES.to_vec(), ..q() }).await
    })
    .await;
    time("failures anywhere, before some instant", async |r| {
        list(RunQuery { until: Some(moment(r)), states: FAILURES.to_vec(), ..q() }).await
    })
    .await;
    time("lost runs, before some instant", async |r| {
        list(RunQuery { until: Some(moment(r)), codes: vec![Code::LOST], ..q() }).await
    })
    .await;
    time("runs as a user, before some instant", async |r| {
        let user = Some(format!("user{}", r.below(10)));
        list(RunQuery { until: Some(moment(r)), user, ..q() }).await
    })
    .await;
    time("an hour somewhere", async |r| {
        let since = moment(r);
        list(RunQuery { since: Some(since), until: Some(since + 1.hour()), ..q() }).await
    })
    .await;
    time("runs of a job on a node that failed", async |r| {
        list(RunQuery { job: any(r), node: node(r), states: FAILURES.to_vec(), ..q() }).await
    })
    .await;
    time("runs of a job that took over 10 minutes", async |r| {
        list(RunQuery { job: any(r), min_took: Some(Duration::from_secs(600)), ..q() }).await
    })
    .await;
    time("the tenth page of a job", async |r| {
        let mut query = RunQuery { job: any(r), ..q() };
        for _ in 0..9 {
            query.cursor = store.list_runs(&query).await.unwrap().next;
        }
        list(query).await
    })
    .await;
    time("one run", async |r| {
        let [.., LogItem::Run(run)] = &item(r.number() % runs, runs)[..] else { return 0 };
        usize::from(store.get_run(run.run_id).await.unwrap().is_some())
    })
    .await;
    time("the newest run of each of 100 jobs", async |r| {
        let jobs: Vec<_> = (0..100).map(|_| job(r.below(JOBS))).collect();
        store.last_runs(&jobs).await.unwrap().len()
    })
    .await;
    time("statistics of a job, 30 days", async |r| {
        let until = Timestamp::from_millisecond(FIRST + SPAN).unwrap();
        let job = job(r.below(JOBS));
        let since = until.checked_sub((30 * 24).hours()).ok();
        job_stats(store, &job, since, None).await.unwrap().runs as usize
    })
    .await;
    time("text in the output of a job's runs, 30 days", async |r| {
        let since =
            Timestamp::from_millisecond(FIRST + SPAN).unwrap().checked_sub(720.hours()).ok();
        let query = RunQuery { job: any(r), since, ..q() };
        search(store, &query, b"no such text").await.unwrap().looked_at as usize
    })
    .await;
}
