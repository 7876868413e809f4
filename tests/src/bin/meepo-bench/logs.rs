//! Output on its way: appended to a worker's spool beside the same rows in a plain SQLite
//! table, and from a worker to MongoDB beside a plain bulk insert of the same documents.
//!
//! The worker's spool and deliverer run in this process as they do in a worker.

use super::stats::Round;
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use meepo_core::{
    id::{Name, RunId},
    run::{OutputChunk, Stream},
};
use meepo_logstore::testing::TestMongo;
use meepo_worker::{
    config::{DEFAULT_CATCHUP, DEFAULT_MAX_AGE},
    deliver::{Deliverer, Sink},
    state::{State, StateOptions},
};
use mongodb::{
    Client, Collection,
    bson::RawDocumentBuf,
    options::{Acknowledgment, InsertManyOptions, WriteConcern},
};
use std::{sync::Arc, time::Instant};
use tokio_util::sync::CancellationToken;

/// Lines of one round.
const LINES: usize = 60_000;
/// Bytes of a line; its document has 277.
const LINE: usize = 200;
/// Runs that write at the same time.
const RUNS: usize = 8;
/// Lines in one append, here and there.
const APPEND: usize = 512;
/// Documents in one bulk insert.
const BULK: usize = 2048;

/// What is measured.
pub(crate) struct LogLines {
    mongo: TestMongo,
}

type Chunks = Vec<Arc<OutputChunk>>;

impl LogLines {
    pub(crate) async fn new() -> Self {
        Self { mongo: TestMongo::start_own().await }
    }

    /// One round of everything.
    pub(crate) async fn round(&self) -> Result<Vec<(&'static str, Round)>> {
        let appends = batches(APPEND);
        let (raw, spool) = (raw_appends(&appends).await?, spool_appends(&appends).await?);
        let uri = self.mongo.fresh_uri();
        let client = Client::with_uri_str(&uri).await?;
        let database = client.default_database().context("a URL without a database")?;
        let delivered = deliver(&uri).await?;
        // The very documents that the worker has stored.
        let stored: Collection<RawDocumentBuf> = database.collection("output");
        let docs: Vec<RawDocumentBuf> =
            stored.find(Default::default()).await?.try_collect().await?;
        ensure!(docs.len() == LINES, "{} of {LINES} lines are stored", docs.len());
        let bulk = bulk(&database.collection("plain"), docs).await?;
        database.drop().await?;
        Ok(vec![
            ("spool_raw", raw),
            ("spool", spool),
            ("mongo_bulk", bulk),
            ("mongo_lines", delivered),
        ])
    }
}

/// The lines of a round, `size` at a time, run after run.
fn batches(size: usize) -> Vec<Chunks> {
    let runs: Vec<RunId> = (0..RUNS).map(|_| RunId(uuid::Uuid::now_v7())).collect();
    let mut seqs = [0; RUNS];
    let mut all = Vec::new();
    for first in (0..LINES).step_by(size) {
        let run = all.len() % RUNS;
        let chunk = |_| {
            let seq = seqs[run];
            seqs[run] += 1;
            let data = format!("{seq:0width$}\n", width = LINE - 1).into_bytes();
            let (stream, at) = (Stream::Stdout, Timestamp::now());
            Arc::new(OutputChunk { run_id: runs[run], seq, stream, at, data })
        };
        all.push((first..LINES.min(first + size)).map(chunk).collect());
    }
    all
}

fn lines(began: Instant, samples: Vec<f64>) -> Round {
    Round { rate: LINES as f64 / began.elapsed().as_secs_f64(), samples }
}

/// A table without anything else, each batch durable.
async fn raw_appends(batches: &[Chunks]) -> Result<Round> {
    let rows: Vec<Vec<Vec<u8>>> =
        batches.iter().map(|b| b.iter().map(|c| c.data.clone()).collect()).collect();
    tokio::task::spawn_blocking(move || {
        let dir = tempfile::tempdir()?;
        let mut db = rusqlite::Connection::open(dir.path().join("raw.db"))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, payload BLOB NOT NULL)", [])?;
        let (began, mut samples) = (Instant::now(), Vec::new());
        for batch in rows {
            let start = Instant::now();
            let transaction = db.transaction()?;
            {
                let mut insert =
                    transaction.prepare_cached("INSERT INTO rows (payload) VALUES (?1)")?;
                for row in batch {
                    insert.execute([row])?;
                }
            }
            transaction.commit()?;
            samples.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(lines(began, samples))
    })
    .await?
}

/// The worker's spool, each batch durable before the next.
async fn spool_appends(batches: &[Chunks]) -> Result<Round> {
    let dir = tempfile::tempdir()?;
    let options = StateOptions::new(dir.path());
    let state = tokio::task::spawn_blocking(move || State::open(&options)).await??;
    let (began, mut samples) = (Instant::now(), Vec::new());
    for batch in batches {
        let start = Instant::now();
        state.spool_output_queued(batch).await?.await?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let round = lines(began, samples);
    state.close().await;
    Ok(round)
}

/// From the first append to a spool until MongoDB has acknowledged the last line; a sample is
/// how long an append took meanwhile.
async fn deliver(uri: &str) -> Result<Round> {
    let dir = tempfile::tempdir()?;
    let options = StateOptions::new(dir.path());
    let spool_limit = options.spool_limit;
    let state = tokio::task::spawn_blocking(move || State::open(&options)).await??;
    let store = meepo_logstore::open(uri).await?;
    store.migrate().await?;
    let stop = CancellationToken::new();
    let deliverer = Deliverer {
        state: state.clone(),
        sink: Arc::new(Sink::Store(store)),
        node: Name::new("127.0.0.9")?,
        metrics: Arc::default(),
        delivery: Arc::default(),
        spool_limit,
        max_age: DEFAULT_MAX_AGE,
        catchup_rate: DEFAULT_CATCHUP,
    };
    let delivering = tokio::spawn(deliverer.run(stop.clone()));
    // As many pieces at a time as a busy run hands on.
    let batches = batches(64);
    let (began, mut samples) = (Instant::now(), Vec::new());
    for batch in &batches {
        let start = Instant::now();
        state.spool_output(batch).await?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut stats = state.spool_changes();
    let newest = LINES as i64;
    stats.wait_for(|s| s.items == 0 && s.last_id >= newest).await?;
    let round = lines(began, samples);
    stop.cancel();
    delivering.await??;
    state.close().await;
    Ok(round)
}

/// What the driver does with the same documents, as safely.
async fn bulk(plain: &Collection<RawDocumentBuf>, docs: Vec<RawDocumentBuf>) -> Result<Round> {
    let concern = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build();
    let options = InsertManyOptions::builder().ordered(false).write_concern(concern).build();
    let (began, mut samples) = (Instant::now(), Vec::new());
    let mut chunks = futures::stream::iter(docs.chunks(BULK));
    while let Some(docs) = chunks.next().await {
        let start = Instant::now();
        plain.insert_many(docs).with_options(options.clone()).await?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(lines(began, samples))
}
