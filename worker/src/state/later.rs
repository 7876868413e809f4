//! Operations that are sent in order and waited for later, or not at all.

use super::{
    Begin, SnapshotEntry, State, StateError,
    engine::{Call, Context, Message},
    journal::{self, Entry, Note},
    push_all, snapshot,
    spool::Row,
};
use jiff::Timestamp;
use meepo_core::{
    id::{Name, RunId},
    run::{OutputChunk, RunRecord},
};
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
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

impl<R> Queued<R> {
    /// An answer that is there already.
    pub fn ready(answer: Result<R, StateError>) -> Self {
        let (reply, queued) = oneshot::channel();
        // The receiver is right here.
        let _ = reply.send(answer);
        Self(queued)
    }
}

impl State {
    /// Sends [`State::note_runs`] in order; the answer is waited for later.
    pub async fn note_runs_queued(
        &self,
        records: &[RunRecord],
        cursor: Option<(Name, Timestamp)>,
    ) -> Result<Queued<Begin>, StateError> {
        let notes: Vec<_> = records.iter().map(Note::new).collect();
        self.queued(move |cx| journal::note(cx, &notes, cursor.as_ref())).await
    }

    /// Sends pieces of output to the spool in order; the answer is waited for later.
    pub async fn spool_output_queued(
        &self,
        chunks: &[Arc<OutputChunk>],
    ) -> Result<Queued<()>, StateError> {
        let rows: Vec<_> = chunks.iter().map(|c| Row::chunk(c)).collect();
        self.queued(move |cx| push_all(cx, &rows)).await
    }

    async fn queued<R, F>(&self, f: F) -> Result<Queued<R>, StateError>
    where
        R: Send + 'static,
        F: FnMut(&mut Context) -> rusqlite::Result<R> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Do(Box::new(Call { f, result: None, reply: Some(reply) }))).await?;
        Ok(Queued(answer))
    }

    /// Sends [`State::begin_run`]. Operations take effect in the order in which they
    /// were sent, so beginnings of one job sent in the order of their slots never get
    /// in each other's way.
    pub async fn begin_run_queued(
        &self,
        record: &RunRecord,
        cursor: Option<(Name, Timestamp)>,
    ) -> Result<Queued<Begin>, StateError> {
        let entry = Entry::new(record);
        self.queued(move |cx| journal::begin(cx, &entry, cursor.as_ref())).await
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

    /// Sends an order to put entries into the snapshot; as [`State::note_runs_later`].
    pub async fn put_snapshots_later(&self, entries: Vec<SnapshotEntry>) -> Result<(), StateError> {
        self.later(move |cx| entries.iter().try_for_each(|e| snapshot::put(cx.conn, e))).await
    }

    /// Sends an order to remove a key from the snapshot; as [`State::note_runs_later`].
    pub async fn delete_snapshot_later(&self, key: String) -> Result<(), StateError> {
        self.later(move |cx| snapshot::delete(cx.conn, &key)).await
    }

    pub(super) async fn later<R, F>(&self, f: F) -> Result<(), StateError>
    where
        R: Send + 'static,
        F: FnMut(&mut Context) -> rusqlite::Result<R> + Send + 'static,
    {
        self.send(Message::Do(Box::new(Call { f, result: None, reply: None }))).await
    }
}
