//! Where runs and their output are kept.
//!
//! [`LogStore`] is what the rest of meepo sees; [`open`] picks a driver by URL:
//!
//! | URL | driver | for |
//! |---|---|---|
//! | `sqlite:///var/lib/meepo/logs.db`, `sqlite:logs.db` | [`sqlite`] | one server, laptops, tests |
//! | `mongodb://host:27017/meepo` | [`mongo`] | fleets |
//!
//! Both pass the same suite (`conformance`, behind the feature of that name) and give
//! the same answers to the same calls. Writers deliver at least once: appending a
//! batch again changes nothing.

mod audit;
mod error;
mod items;
pub mod mongo;
mod names;
mod plan;
mod query;
mod retention;
mod search;
pub mod sqlite;
mod stats;
mod store;
mod tasks;
mod url;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(any(test, feature = "conformance"))]
pub mod testing;

pub use audit::{AuditPage, AuditQuery, DEFAULT_AUDIT, MAX_AUDIT};
pub use error::{BoxError, StoreError};
pub use items::{LogItem, MAX_ITEM_BYTES, MAX_SEQ};
pub use query::{
    DEFAULT_RUNS, LIST_PATIENCE, MAX_OUTPUT_BYTES, MAX_OUTPUT_CHUNKS, MAX_RUNS, RunPage, RunQuery,
};
pub use retention::{Class, Keep, Retention, Swept};
pub use search::{MAX_NEEDLE, SEARCH_BYTES, SEARCH_RUNS, SEARCH_TIME, search};
pub use stats::{FAILURES, TALLY_RUNS, TallyRow, job_stats};
pub use store::LogStore;
pub use tasks::{DEFAULT_TASKS, MAX_TASK_BYTES, MAX_TASKS, TaskQuery};

use std::{sync::Arc, time::Duration};

/// Told of every call to a store: the operation, how long it took, and whether it succeeded.
pub type Observer = Arc<dyn Fn(&'static str, Duration, bool) + Send + Sync>;

/// Opens the store that `url` names.
///
/// A SQLite file is created if it is not there (its directory must be). MongoDB is
/// not contacted: a server that is away shows in the first call, as a retryable error.
/// Call [`LogStore::migrate`] once before the first use.
///
/// # Errors
/// [`StoreError::BadUrl`] for an unknown scheme or a URL the driver cannot use;
/// for SQLite also what keeps the file from being opened.
pub async fn open(url: &str) -> Result<Arc<dyn LogStore>, StoreError> {
    open_observed(url, mongo::POOL, Arc::new(|_, _, _| {})).await
}

/// [`open`] with so many connections per MongoDB server at most, unless the URL says
/// otherwise; `observer` is told of every call. Of [`mongo::WORKER_POOL`] a worker has enough,
/// and a fleet has many workers.
///
/// # Errors
/// As [`open`].
pub async fn open_observed(
    url: &str,
    pool: u32,
    observer: Observer,
) -> Result<Arc<dyn LogStore>, StoreError> {
    match url::Location::parse(url)? {
        url::Location::Mongo(url) => {
            Ok(Arc::new(mongo::MongoStore::guarded(&url, pool, observer).await?))
        }
        url::Location::Sqlite(path) => {
            Ok(Arc::new(sqlite::SqliteStore::observed(&path, observer).await?))
        }
    }
}
