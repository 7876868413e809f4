//! What an operation notes of itself while it is served.

use meepo_core::audit::{MAX_DETAILS, cut};
use std::{
    collections::BTreeMap,
    fmt::Display,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

tokio::task_local! {
    /// That of the request that is being served.
    static NOTE: Note;
}

/// What is noted of one request. Clones are the same note.
#[derive(Clone, Default)]
pub(super) struct Note(Arc<Mutex<Inner>>);

#[derive(Default)]
pub(super) struct Inner {
    pub(super) operation: Option<String>,
    pub(super) object: Option<String>,
    pub(super) details: BTreeMap<String, String>,
}

impl Note {
    /// Serves a request whose operation writes into this note.
    pub(super) async fn while_serving<T>(&self, serve: impl Future<Output = T>) -> T {
        NOTE.scope(self.clone(), serve).await
    }

    pub(super) fn read(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever does not serve a request (the leader's own work) has nothing to note.
fn note(write: impl FnOnce(&mut Inner)) {
    let _ = NOTE.try_with(|note| write(&mut note.read()));
}

/// The request is about this: `job`, `backup`.
pub fn object(kind: &str, name: impl Display) {
    note(|n| n.object = Some(cut(&format!("{kind}/{name}"))));
}

/// As [`object`], unless that was said already.
pub fn object_at_first(kind: &str, name: impl Display) {
    note(|n| {
        n.object.get_or_insert_with(|| cut(&format!("{kind}/{name}")));
    });
}

/// The operation, where the path or method alone does not tell.
pub fn operation(name: impl Display) {
    note(|n| n.operation = Some(cut(&name.to_string())));
}

/// More of what was asked for. Nothing that is a secret: who may read the audit need not be
/// who may read the job.
pub fn detail(key: &str, value: impl Display) {
    note(|n| {
        if n.details.len() < MAX_DETAILS {
            n.details.insert(key.to_owned(), cut(&value.to_string()));
        }
    });
}
