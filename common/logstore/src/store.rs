//! The interface of every store.

use crate::{
    AuditPage, AuditQuery, LogItem, Retention, RunPage, RunQuery, StoreError, Swept, TallyRow,
    TaskQuery,
};
use async_trait::async_trait;
use jiff::Timestamp;
use meepo_core::{
    audit::AuditRecord,
    id::{Name, RunId},
    run::{OutputChunk, RunRecord},
    task::{TaskId, TaskView},
};
use std::collections::BTreeMap;

/// A place where runs and their output are kept.
///
/// All methods may be called at once from many tasks, and several processes may use
/// one store. Dropping a future abandons the wait, not the write: what was handed to
/// `append` may or may not be stored then, and appending it again settles it.
#[async_trait]
pub trait LogStore: Send + Sync + 'static {
    /// Keeps a batch. `Ok` means it survives a loss of power (of a minority of the
    /// servers, if there are several).
    ///
    /// Appending the same items again, in any order, in any batches, leaves the same
    /// state: a run's record replaces the stored one only if the
    /// [rank](meepo_core::run::RunState::rank) of its state is higher, the first of
    /// equals stays; a chunk is known by (`run_id`, `seq`) and the first stays.
    /// Chunks need no record of their run. A batch's output is there when its runs
    /// are. Times are cut to milliseconds.
    ///
    /// # Errors
    /// On an error any part of the batch may be stored; append it again.
    /// [`StoreError::Refused`] if an item exceeds [`crate::MAX_ITEM_BYTES`] or
    /// [`crate::MAX_SEQ`]; nothing of the batch is stored then.
    async fn append(&self, batch: &[LogItem]) -> Result<(), StoreError>;

    /// The record of a run, if there is one.
    async fn get_run(&self, run_id: RunId) -> Result<Option<RunRecord>, StoreError>;

    /// A page of the runs that match, newest first: by slot, then run id, both
    /// descending. Following [`RunPage::next`] shows every run that was there at the
    /// start and still matches exactly once, whatever is appended meanwhile.
    ///
    /// A record that cannot be read is left out and logged.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the cursor is not one. [`StoreError::TooMuch`] if it took
    /// longer than [`crate::LIST_PATIENCE`].
    async fn list_runs(&self, query: &RunQuery) -> Result<RunPage, StoreError>;

    /// Chunks of a run in order of `seq`: those after `after_seq`, or from the start.
    ///
    /// At most `limit_chunks` (1 to [`crate::MAX_OUTPUT_CHUNKS`]) and no more once
    /// [`crate::MAX_OUTPUT_BYTES`] are reached, so only an empty answer means that
    /// there is nothing more.
    async fn output(
        &self,
        run_id: RunId,
        after_seq: Option<u64>,
        limit_chunks: usize,
    ) -> Result<Vec<OutputChunk>, StoreError>;

    /// The newest run of each of these jobs, in the order of [`LogStore::list_runs`].
    /// Jobs without runs are absent. Costs one look into an index per job.
    async fn last_runs(&self, jobs: &[Name]) -> Result<BTreeMap<Name, RunRecord>, StoreError>;

    /// Counts the runs of a job with slots from `since` on and before `until`, at most the
    /// newest [`crate::TALLY_RUNS`], by state, day and duration. No order.
    ///
    /// # Errors
    /// [`StoreError::TooMuch`] if it took longer than [`crate::LIST_PATIENCE`].
    async fn tally(
        &self,
        job: &Name,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Vec<TallyRow>, StoreError>;

    /// Removes a part of what has been over for longer than `retention` says: a bounded
    /// step that does not hold up others for long, to be repeated while it answers that
    /// there may be more. Output goes before the record of its run. What is appended again
    /// later is removed again.
    ///
    /// Age is counted from the end, or from the slot where nothing ran; that of output from
    /// when it was read.
    ///
    /// # Errors
    /// On an error a part of the step may be done.
    async fn sweep(&self, retention: &Retention, now: Timestamp) -> Result<Swept, StoreError>;

    /// Keeps tasks that are over, with their parts. One that is there already is written
    /// again. `Ok` means what it means for [`LogStore::append`].
    ///
    /// # Errors
    /// On an error any of them may be kept. [`StoreError::Refused`] if one exceeds
    /// [`crate::MAX_TASK_BYTES`]; nothing is kept then.
    async fn put_tasks(&self, tasks: &[TaskView]) -> Result<(), StoreError>;

    /// A task with its parts, if it is kept here.
    async fn get_task(&self, id: TaskId) -> Result<Option<TaskView>, StoreError>;

    /// The tasks that match, without their parts, newest first: by id, descending.
    ///
    /// A record that cannot be read is left out and logged.
    async fn list_tasks(&self, query: &TaskQuery) -> Result<Vec<TaskView>, StoreError>;

    /// Adds records to the audit. One whose id is there already stays as it was. `Ok` means
    /// what it means for [`LogStore::append`].
    ///
    /// # Errors
    /// On an error any of them may be kept; add them again.
    async fn append_audit(&self, records: &[AuditRecord]) -> Result<(), StoreError>;

    /// A page of the records that match, newest first.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the cursor is not one; [`StoreError::Unreadable`] if a
    /// record on the page cannot be read: none is left out.
    async fn list_audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError>;

    /// Brings the schema up to date and returns the names of the steps this call
    /// applied, in order; empty if there was nothing to do. Safe when several
    /// processes do it at once. Steps of a newer version are left alone.
    async fn migrate(&self) -> Result<Vec<String>, StoreError>;

    /// The names of the steps that [`LogStore::migrate`] would apply, in order. Changes
    /// nothing.
    async fn pending_migrations(&self) -> Result<Vec<String>, StoreError>;

    /// Whether the store answers.
    async fn ping(&self) -> Result<(), StoreError>;

    /// How its circuit breaker stands, if it has one: open while calls are refused
    /// without asking a server that did not answer lately.
    fn breaker(&self) -> Option<meepo_core::breaker::State> {
        None
    }
}
