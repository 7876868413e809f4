//! Operations that are sent in order and waited for later, or not at all.

use super::{
    Begin, SnapshotEntry, State, StateError,
    engine::{Call, Context, Message},
    journal::{self, Entry, Note},
    snapshot,
};
use jiff::Timestamp;
use meepo_core::{
    id::{Name, RunId},
    run::RunRecord,
};
use std::{
    future::Future,
    pin::Pin,
    task::{self, Poll},
};
use tokio::sync::oneshot;

/// The answer to an operation that has been sent: ready when it is durable.
#[derive(Debug)]
pub struct Queued<R>(oneshot::Receiver<Result<R, StateError>>);

impl<R> Future for Queued<R> {
    type Output = Result<R, StateError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|answer| answer.unwrap_or_else(|_| Err(StateError::closed())))
    }
}

impl State {
    /// Sends [`State::begin_run`]. Operations take effect in the order in which they
    /// were sent, so beginnings of one job sent in the order of their slots never get
    /// in each other's way.
    pub async fn begin_run_queued(
        &self,
        record: &RunRecord,
        cursor: Option<(Name, Timestamp)>,
    ) -> Result<Queued<Begin>, StateError> {
        let entry = Entry::new(record);
        let (reply, answer) = oneshot::channel();
        let f = move |cx: &mut Context| journal::begin(cx, &entry, cursor.as_ref());
        self.send(Message::Do(Box::new(Call { f, result: None, reply: Some(reply) }))).await?;
        Ok(Queued(answer))
    }

    /// Sends [`State::note_runs`]; a failure to write is logged. Errors: the state is
    /// closed.
    pub async fn note_runs_later(
        &self,
        records: &[RunRecord],
        cursor: Option<(Name, Timestamp)>,
    ) -> Result<(), StateError> {
        let notes: Vec<_> = records.iter().map(Note::new).collect();
        self.later(move |cx| journal::note(cx, &notes, cursor.as_ref())).await
    }

    /// Sends [`State::started`]; as [`State::note_runs_later`].
    pub async fn started_later(
        &self,
        run_id: RunId,
        pid: u32,
        start: u64,
    ) -> Result<(), StateError> {
        self.later(move |cx| journal::started(cx, run_id, pid, start)).await
    }

    /// Sends [`State::forget_job`]; as [`State::note_runs_later`].
    pub async fn forget_job_later(&self, job: Name) -> Result<(), StateError> {
        self.later(move |cx| journal::forget(&cx.conn, &job)).await
    }

    /// Sends [`State::put_snapshot`]; as [`State::note_runs_later`].
    pub async fn put_snapshot_later(&self, entry: SnapshotEntry) -> Result<(), StateError> {
        self.later(move |cx| snapshot::put(&cx.conn, &entry)).await
    }

    /// Sends [`State::delete_snapshot`]; as [`State::note_runs_later`].
    pub async fn delete_snapshot_later(&self, key: String) -> Result<(), StateError> {
        self.later(move |cx| snapshot::delete(&cx.conn, &key)).await
    }

    async fn later<R, F>(&self, f: F) -> Result<(), StateError>
    where
        R: Send + 'static,
        F: FnMut(&mut Context) -> rusqlite::Result<R> + Send + 'static,
    {
        self.send(Message::Do(Box::new(Call { f, result: None, reply: None }))).await
    }
}
