//! The store in MongoDB 6.0 or later, for fleets.
//!
//! | collection | document |
//! |---|---|
//! | `runs` | one per run; `_id` is the run id as a UUID, times are dates |
//! | `output` | one per chunk; `_id` is 24 bytes: the run id, then the sequence number with the high byte first. So the collection needs no index but that of its key, which finds a run's chunks in order |
//! | `tasks` | one per task that is over; `_id` is its id as a UUID, the task itself is JSON |
//! | `audit` | one per request that was to change something; `_id` is its id as a UUID, the record itself is JSON |
//! | `meepo_migrations` | one per applied step |
//!
//! Writes ask for a majority and its journal unless the URL sets a write concern of
//! its own. Reads go to the primary unless the URL sets a read preference.

mod audit;
mod docs;
mod error;
mod migrate;
mod read;
mod sweep;
mod tally;
mod tasks;
mod write;

#[cfg(test)]
mod tests;

use crate::{
    AuditPage, AuditQuery, LogItem, LogStore, Observer, Retention, RunPage, RunQuery, StoreError,
    Swept, TallyRow, TaskQuery, items, query, tasks::Row as TaskRow, url,
};
use async_trait::async_trait;
use error::Context;
use jiff::Timestamp;
use meepo_core::{
    audit::AuditRecord,
    id::{Name, RunId},
    run::{OutputChunk, RunRecord},
    task::{TaskId, TaskView},
};
use mongodb::{
    Client, Collection, Database,
    bson::{RawDocumentBuf, doc},
    options::{Acknowledgment, ClientOptions, WriteConcern},
};
use std::{collections::BTreeMap, time::Duration};

pub use migrate::STEPS;

/// The database used when the URL names none.
pub const DEFAULT_DATABASE: &str = "meepo";
/// How long a call waits for a server to turn up, unless the URL says otherwise.
pub const SERVER_SELECTION: Duration = Duration::from_secs(5);
/// Connections per server, unless the URL says otherwise.
pub const POOL: u32 = 4;
/// The same for a worker, which only writes: one batch at a time, and sometimes a run.
pub const WORKER_POOL: u32 = 2;
/// How long one command may take before the store counts as away: a server that
/// accepts connections and then says nothing must not hold its callers for ever.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

const FORM: &str = "mongodb://[user:password@]host[:port][,host…]/database[?options]";

/// A [`LogStore`] in a MongoDB database.
#[derive(Debug)]
pub struct MongoStore {
    context: Context,
    db: Database,
    runs: Collection<RawDocumentBuf>,
    output: Collection<RawDocumentBuf>,
    write_concern: WriteConcern,
}

impl MongoStore {
    /// Reads the URL and prepares the connections. No server is contacted.
    ///
    /// # Errors
    /// [`StoreError::BadUrl`] if the URL is not one the driver can use.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Self::pooled(url, POOL).await
    }

    async fn pooled(url: &str, pool: u32) -> Result<Self, StoreError> {
        let bad = |e: mongodb::error::Error| url::bad(url, error::message(&e), FORM);
        let mut options = ClientOptions::parse(url).await.map_err(bad)?;
        options.server_selection_timeout.get_or_insert(SERVER_SELECTION);
        options.connect_timeout.get_or_insert(SERVER_SELECTION);
        options.max_pool_size.get_or_insert(pool);
        options.app_name.get_or_insert_with(|| "meepo".to_owned());
        let write_concern = options.write_concern.clone().unwrap_or_else(|| {
            WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build()
        });
        if write_concern.w == Some(Acknowledgment::Nodes(0)) {
            return Err(url::bad(url, "w=0 does not say whether runs were kept", "w=majority"));
        }
        let name = options.default_database.clone();
        let name = name.unwrap_or_else(|| DEFAULT_DATABASE.to_owned());
        let hosts: Vec<_> = options.hosts.iter().map(ToString::to_string).collect();
        let context = Context::new(format!("mongodb://{}/{name}", hosts.join(",")));
        let db = Client::with_options(options).map_err(bad)?.database(&name);
        let (runs, output) = (db.collection("runs"), db.collection("output"));
        Ok(Self { context, db, runs, output, write_concern })
    }

    /// [`Self::open`], with a circuit breaker before the server.
    pub(crate) async fn guarded(
        url: &str,
        pool: u32,
        observer: Observer,
    ) -> Result<Self, StoreError> {
        let mut store = Self::pooled(url, pool).await?;
        store.context.set_breaker();
        store.context.set_observer(observer);
        Ok(store)
    }
}

#[async_trait]
impl LogStore for MongoStore {
    async fn append(&self, batch: &[LogItem]) -> Result<(), StoreError> {
        items::check(batch)?;
        // Output first: a run that shows as ended has its output.
        self.append_output(batch).await?;
        self.append_runs(batch).await
    }

    async fn get_run(&self, run_id: RunId) -> Result<Option<RunRecord>, StoreError> {
        read::get_run(self, run_id).await
    }

    async fn list_runs(&self, query: &RunQuery) -> Result<RunPage, StoreError> {
        read::list_runs(self, query).await
    }

    async fn output(
        &self,
        run_id: RunId,
        after_seq: Option<u64>,
        limit_chunks: usize,
    ) -> Result<Vec<OutputChunk>, StoreError> {
        read::output(self, run_id, after_seq, query::chunk_limit(limit_chunks)).await
    }

    async fn last_runs(&self, jobs: &[Name]) -> Result<BTreeMap<Name, RunRecord>, StoreError> {
        read::last_runs(self, jobs).await
    }

    async fn tally(
        &self,
        job: &Name,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Vec<TallyRow>, StoreError> {
        tally::tally(self, job, since, until).await
    }

    async fn sweep(&self, retention: &Retention, now: Timestamp) -> Result<Swept, StoreError> {
        self.sweep_step(retention, now).await
    }

    async fn put_tasks(&self, tasks: &[TaskView]) -> Result<(), StoreError> {
        let rows = tasks.iter().map(TaskRow::new).collect::<Result<Vec<_>, _>>()?;
        self.keep_tasks(&rows).await
    }

    async fn get_task(&self, id: TaskId) -> Result<Option<TaskView>, StoreError> {
        self.find_task(id).await
    }

    async fn list_tasks(&self, query: &TaskQuery) -> Result<Vec<TaskView>, StoreError> {
        self.find_tasks(query).await
    }

    async fn append_audit(&self, records: &[AuditRecord]) -> Result<(), StoreError> {
        match records.is_empty() {
            true => Ok(()),
            false => self.keep_audit(records).await,
        }
    }

    async fn list_audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.find_audit(query).await
    }

    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        self.apply_migrations().await
    }

    async fn pending_migrations(&self) -> Result<Vec<String>, StoreError> {
        self.missing_migrations().await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let ping = async { self.db.run_command(doc! { "ping": 1 }).await };
        self.context.wait("ping", ping).await.map(drop)
    }

    fn breaker(&self) -> Option<meepo_core::breaker::State> {
        self.context.breaker()
    }
}
