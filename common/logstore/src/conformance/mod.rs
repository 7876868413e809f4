//! What every [`LogStore`] must do, as checks that panic where a store does not.
//!
//! Each check takes a store that is migrated and uses runs, jobs and nodes of its own,
//! so one store serves all of them, also at once. [`all`] runs them; [`migrations`],
//! [`same_answers`] and [`retention`] need stores of their own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "this is a test suite: a failure is a panic that says what failed"
)]

mod audit;
mod listing;
mod model;
mod output;
mod records;
mod retention;
mod search;
mod tasks;
mod together;

pub use audit::{audit_is_swept, audit_lists, audit_records_do_not_change};
pub use listing::{
    filters, last_runs, limits, ordering, paging_while_runs_arrive, tasks_and_many_jobs,
};
pub use output::{first_chunk_stays, long_output, output_is_kept_as_it_was};
pub use records::{
    batches_are_idempotent, oversized_items_are_refused, rank_decides, records_round_trip,
    unknown_runs,
};
pub use retention::{retention, what_is_removed_stays_consistent};
pub use search::{search_finds_what_is_there, search_is_bounded};
pub use tasks::{task_lists, tasks_round_trip};
pub use together::{concurrent_appends, large_batch, migrations, same_answers};

use crate::LogStore;
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    id::{Name, RunId},
    job::Executor,
    run::{Cause, OutputChunk, RunRecord, RunState, Stream},
};
use std::sync::Arc;

/// Every check that one store can be given.
pub async fn all(store: Arc<dyn LogStore>) {
    store.ping().await.unwrap();
    unknown_runs(store.clone()).await;
    records_round_trip(store.clone()).await;
    rank_decides(store.clone()).await;
    batches_are_idempotent(store.clone()).await;
    oversized_items_are_refused(store.clone()).await;
    ordering(store.clone()).await;
    paging_while_runs_arrive(store.clone()).await;
    filters(store.clone()).await;
    limits(store.clone()).await;
    last_runs(store.clone()).await;
    tasks_and_many_jobs(store.clone()).await;
    search_finds_what_is_there(store.clone()).await;
    search_is_bounded(store.clone()).await;
    output_is_kept_as_it_was(store.clone()).await;
    first_chunk_stays(store.clone()).await;
    long_output(store.clone()).await;
    tasks_round_trip(store.clone()).await;
    task_lists(store.clone()).await;
    audit_lists(store.clone()).await;
    audit_records_do_not_change(store.clone()).await;
    audit_is_swept(store.clone()).await;
    concurrent_appends(store.clone()).await;
    large_batch(store).await;
}

/// A small generator of pseudo-random numbers (SplitMix64): the same seed gives the
/// same workload everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator for `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.number() % n as u64) as usize
    }

    /// One of `items`.
    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A run id.
    pub fn run_id(&mut self) -> RunId {
        let n = (u128::from(self.number()) << 64) | u128::from(self.number());
        RunId(uuid::Builder::from_random_bytes(n.to_be_bytes()).into_uuid())
    }

    /// A run id as they are made at `ms` milliseconds after 1970.
    pub fn run_id_at(&mut self, ms: u64) -> RunId {
        let mut rest = [0; 10];
        rest[..8].copy_from_slice(&self.number().to_le_bytes());
        RunId(uuid::Builder::from_unix_timestamp_millis(ms, &rest).into_uuid())
    }

    /// Some bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// The items in another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// The instant `ms` milliseconds after 1970.
pub fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap()
}

/// A name, for jobs and nodes.
pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A plain record: a running scheduled run of `job` on `node`.
pub fn run(run_id: RunId, job: &str, node: &str, slot_ms: i64) -> RunRecord {
    RunRecord {
        run_id,
        job: Some(name(job)),
        node: name(node),
        slot: at(slot_ms),
        attempt: 1,
        cause: Cause::Schedule,
        executor: Executor::Bash,
        cmd: "echo hello".into(),
        user: None,
        state: RunState::Running,
        code: Code::OK,
        message: None,
        exit_code: None,
        signal: None,
        fence: None,
        pid: Some(4242),
        started_at: Some(at(slot_ms + 3)),
        ended_at: None,
        output_bytes: 0,
        dropped_bytes: 0,
    }
}

/// A plain chunk.
pub fn chunk(run_id: RunId, seq: u64, data: impl Into<Vec<u8>>) -> OutputChunk {
    OutputChunk {
        run_id,
        seq,
        stream: if seq % 3 == 2 { Stream::Stderr } else { Stream::Stdout },
        at: at(1_700_000_000_123 + seq.min(1_000_000) as i64),
        data: data.into(),
    }
}
