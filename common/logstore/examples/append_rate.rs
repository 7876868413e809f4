//! How fast the stores keep output: `cargo run -p meepo-logstore --release
//! --features conformance --example append_rate`. Prints thousands of chunks a second,
//! for batches of 512 chunks of 277 bytes, from one caller and from eight.
#![allow(clippy::unwrap_used, reason = "a failure ends the measurement and says why")]

use meepo_logstore::{
    LogItem, LogStore,
    conformance::{self, Random},
    testing::TestMongo,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const BATCH: usize = 512;
const CHUNK: usize = 277;
const TIME: Duration = Duration::from_secs(5);

/// Appends batches until the time is over; every batch `copies` times.
async fn caller(store: Arc<dyn LogStore>, seed: u64, copies: usize) -> usize {
    let mut random = Random::new(seed);
    let data = random.bytes(CHUNK);
    let (start, mut kept) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        let id = random.run_id();
        let mut batch: Vec<_> = (0..BATCH as u64)
            .map(|seq| LogItem::Output(conformance::chunk(id, seq, data.clone())))
            .collect();
        batch.push(LogItem::Run(conformance::run(id, "job", "node", kept as i64)));
        for _ in 0..copies {
            store.append(&batch).await.unwrap();
        }
        kept += BATCH * copies;
    }
    kept
}

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let mongo = TestMongo::start().await;
    for (what, url) in [
        ("sqlite", format!("sqlite://{}", dir.path().join("logs.db").display())),
        ("mongodb", mongo.fresh_uri()),
    ] {
        let store = meepo_logstore::open(&url).await.unwrap();
        store.migrate().await.unwrap();
        for (callers, copies) in [(1, 1), (8, 1), (1, 2)] {
            let start = Instant::now();
            let tasks = (0..callers).map(|seed| {
                // Seeds differ between rounds, so that every run is new.
                let seed = seed + 100 * callers + 10_000 * copies as u64;
                tokio::spawn(caller(Arc::clone(&store), seed, copies))
            });
            let kept = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap);
            let rate = kept.sum::<usize>() as f64 / start.elapsed().as_secs_f64() / 1_000.0;
            println!("{what:8} {callers} callers, every batch {copies} times: {rate:6.0} k/s");
        }
    }
}
