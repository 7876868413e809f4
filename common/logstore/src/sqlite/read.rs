//! Reading: a few connections, used from blocking threads.

use super::{Access, READERS, connect, error::Context};
use crate::{
    LIST_PATIENCE, MAX_OUTPUT_BYTES, Observer, RunPage, RunQuery, StoreError, items, names,
    plan::{Plan, parts_of},
    query::{Position, bytes_of},
};
use jiff::Timestamp;
use meepo_core::{
    id::{Name, RunId},
    run::{OutputChunk, RunRecord},
};
use rusqlite::{
    Connection, OptionalExtension, Params, Row, params, params_from_iter, types::Value,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// Instructions of SQLite's machine between two looks at the clock: about a millisecond.
const STEPS: std::ffi::c_int = 100_000;

/// Connections kept for reading, at most [`READERS`] in use at once.
pub(super) struct Readers {
    context: Context,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    observer: Observer,
}

impl Readers {
    pub(super) fn new(context: Context, observer: Observer) -> Self {
        let permits = Arc::new(Semaphore::new(READERS));
        Self { context, idle: Mutex::default(), permits, observer }
    }

    /// Runs `work` on a connection, on a blocking thread.
    pub(super) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        op: &'static str,
        work: impl FnOnce(&Connection, &Context) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.within(LIST_PATIENCE, op, work).await
    }

    /// The same; a statement that runs still after `limit` is interrupted.
    pub(super) async fn within<T: Send + 'static>(
        self: &Arc<Self>,
        limit: Duration,
        op: &'static str,
        work: impl FnOnce(&Connection, &Context) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let me = Arc::clone(self);
        let done = super::blocking(&self.context, op, move || {
            // The permit ends with the work, not with the future that waits for it.
            let _permit = permit;
            let idle = me.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut conn = match idle {
                Some(conn) => conn,
                None => {
                    connect(me.context.path(), Access::Read).map_err(|e| me.context.error(op, e))?
                }
            };
            let done = patiently(&mut conn, limit, |conn| work(conn, &me.context))
                .unwrap_or_else(|e| Err(me.context.error(op, e)));
            // After an error the connection is dropped: the next opens a fresh one.
            if done.is_ok() {
                me.idle.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
            }
            done
        })
        .await;
        (self.observer)(op, begun.elapsed(), done.is_ok());
        done
    }
}

/// Lets `work` use the connection; what it runs after `limit` is interrupted.
fn patiently<T>(
    conn: &mut Connection,
    limit: Duration,
    work: impl FnOnce(&Connection) -> T,
) -> rusqlite::Result<T> {
    let end = Instant::now() + limit;
    conn.progress_handler(STEPS, Some(move || Instant::now() > end))?;
    let done = work(conn);
    conn.progress_handler(0, None::<fn() -> bool>)?;
    Ok(done)
}

pub(super) fn ping(conn: &Connection, ctx: &Context) -> Result<(), StoreError> {
    // Reads the header of the file, unlike a constant expression.
    conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        .map_err(|e| ctx.error("ping", e))
}

fn parse(ctx: &Context, op: &'static str, id: &[u8], doc: &str) -> Result<RunRecord, StoreError> {
    serde_json::from_str(doc).map_err(|e| {
        let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
        ctx.unreadable(op, format!("run {id}"), e)
    })
}

pub(super) fn get_run(
    conn: &Connection,
    ctx: &Context,
    run_id: RunId,
) -> Result<Option<RunRecord>, StoreError> {
    let op = "get run";
    let id = bytes_of(run_id);
    let doc: Option<String> = conn
        .prepare_cached("SELECT doc FROM runs WHERE run_id = ?1")
        .and_then(|mut s| s.query_row([id], |row| row.get(0)).optional())
        .map_err(|e| ctx.error(op, e))?;
    doc.map(|doc| parse(ctx, op, &id, &doc)).transpose()
}

type Found = (Position, String);

/// A statement under construction: what to read through which index.
#[derive(Debug, Clone)]
pub(super) struct Select {
    index: &'static str,
    text: String,
    values: Vec<Value>,
}

impl Select {
    pub(super) fn through(index: &'static str) -> Self {
        Self { index, text: String::new(), values: Vec::new() }
    }

    pub(super) fn and(&mut self, condition: &str, values: impl IntoIterator<Item = Value>) {
        self.text.push_str(if self.text.is_empty() { "WHERE " } else { " AND " });
        self.text.push_str(condition);
        self.values.extend(values);
    }

    /// The whole statement; its last value is the limit. The index is named, as SQLite may
    /// otherwise collect every run in a state or on a node and sort them.
    pub(super) fn sql(&self, columns: &str) -> String {
        format!(
            "SELECT {columns} FROM runs INDEXED BY {} {} ORDER BY slot DESC, run_id DESC LIMIT ?",
            self.index, self.text
        )
    }

    /// The values of the statement.
    pub(super) fn with_limit(&self, limit: usize) -> impl Params {
        params_from_iter(self.values_with_limit(limit))
    }

    /// The same, one by one.
    pub(super) fn values_with_limit(&self, limit: usize) -> Vec<Value> {
        let limit = Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX));
        self.values.iter().cloned().chain([limit]).collect()
    }
}

fn position(row: &Row<'_>) -> rusqlite::Result<Position> {
    Ok(Position { slot: row.get(0)?, run_id: row.get(1)? })
}

fn found(row: &Row<'_>) -> rusqlite::Result<Found> {
    Ok((position(row)?, row.get(2)?))
}

pub(super) fn list_runs(
    conn: &Connection,
    ctx: &Context,
    query: &RunQuery,
    from: Option<Position>,
) -> Result<RunPage, StoreError> {
    let op = "list runs";
    let page = query.page_size();
    let mut rows = select(conn, query, from, page + 1).map_err(|e| ctx.error(op, e))?;
    let next = Position::cut(&mut rows, page);
    let mut runs = Vec::with_capacity(rows.len());
    for (position, doc) in rows {
        match parse(ctx, op, &position.run_id, &doc) {
            Ok(run) => runs.push(run),
            // One bad record must not hide all the others.
            Err(e) => tracing::warn!(error = %e.chain(), "left a run out of a list"),
        }
    }
    Ok(RunPage { runs, next })
}

/// The rows of all statements, merged in order.
fn select(
    conn: &Connection,
    query: &RunQuery,
    from: Option<Position>,
    limit: usize,
) -> rusqlite::Result<Vec<Found>> {
    let selects = selects(query, from);
    if let [only] = selects.as_slice() {
        let mut stmt = conn.prepare_cached(&only.sql("slot, run_id, doc"))?;
        return stmt.query_map(only.with_limit(limit), found)?.collect();
    }
    // Of several only the places at first: most of the records would not be needed.
    let mut places = Vec::new();
    for select in &selects {
        let mut stmt = conn.prepare_cached(&select.sql("slot, run_id"))?;
        let rows = stmt.query_map(select.with_limit(limit), position)?;
        places.extend(rows.collect::<rusqlite::Result<Vec<_>>>()?);
    }
    places.sort_by(|a, b| b.cmp(a));
    places.truncate(limit);
    let mut stmt = conn.prepare_cached("SELECT slot, run_id, doc FROM runs WHERE run_id = ?1")?;
    let mut rows = Vec::with_capacity(places.len());
    for place in places {
        // One that has gone since is none.
        rows.extend(stmt.query_row([place.run_id], found).optional()?);
    }
    Ok(rows)
}

/// The statements that together find the matching runs, each in order.
pub(super) fn selects(query: &RunQuery, from: Option<Position>) -> Vec<Select> {
    let text = |s: &str| Value::Text(s.to_owned());
    let at = |index, condition: &str, values: Vec<Value>| {
        let mut select = Select::through(index);
        select.and(condition, values);
        select
    };
    let mut all: Vec<Select> = match Plan::of(query) {
        Plan::Nothing => Vec::new(),
        Plan::Time => vec![Select::through("runs_by_slot")],
        Plan::Job(jobs) => {
            jobs.iter().map(|j| at("runs_by_job", "job = ?", vec![text(j.as_str())])).collect()
        }
        Plan::JobState(jobs, states) => {
            let pairs = jobs.iter().flat_map(|j| states.iter().map(move |s| (j, s)));
            let values = pairs.map(|(j, s)| vec![text(j.as_str()), text(s.as_str())]);
            values.map(|v| at("runs_by_job_state", "job = ? AND state = ?", v)).collect()
        }
        Plan::NodeState(node, states) => {
            let values = states.iter().map(|s| vec![text(node.as_str()), text(s.as_str())]);
            values.map(|v| at("runs_by_node_state", "node = ? AND state = ?", v)).collect()
        }
        Plan::State(states) => {
            let values = states.iter().map(|s| vec![text(s.as_str())]);
            values.map(|v| at("runs_by_state", "state = ?", v)).collect()
        }
        Plan::Code(codes) => {
            let values = codes.iter().map(|c| vec![Value::Integer(c.0.into())]);
            // The first condition lets the partial index be used.
            values.map(|v| at("runs_by_code", "code > 0 AND code = ?", v)).collect()
        }
        Plan::User(user) => vec![at("runs_by_user", "user = ?", vec![text(&user)])],
        Plan::Task(task) => {
            let (first, end) = parts_of(task);
            let values = vec![Value::Text(first), Value::Text(end)];
            vec![at("runs_by_job", "job >= ? AND job < ?", values)]
        }
    };
    for select in &mut all {
        rest(select, query, from);
    }
    all
}

/// Adds every condition of the query. Those that the index is entered by stand there twice.
fn rest(s: &mut Select, query: &RunQuery, from: Option<Position>) {
    let text = |s: &str| Value::Text(s.to_owned());
    let marks = |n: usize| vec!["?"; n].join(", ");
    if let Some(jobs) = query.distinct_jobs() {
        let values = jobs.iter().map(|j| text(j.as_str()));
        s.and(&format!("+job IN ({})", marks(jobs.len())), values);
    }
    if let Some(task) = query.task {
        let (first, end) = parts_of(task);
        s.and("+job >= ? AND +job < ?", [Value::Text(first), Value::Text(end)]);
    }
    if let Some(node) = &query.node {
        s.and("+node = ?", [text(node.as_str())]);
    }
    let states = query.distinct_states();
    if !states.is_empty() {
        let values = states.iter().map(|s| text(s.as_str()));
        s.and(&format!("+state IN ({})", marks(states.len())), values);
    }
    let codes = query.distinct_codes();
    if !codes.is_empty() {
        let values = codes.iter().map(|c| Value::Integer(c.0.into()));
        s.and(&format!("+code IN ({})", marks(codes.len())), values);
    }
    if let Some(user) = &query.user {
        s.and("+user = ?", [text(user)]);
    }
    if let Some(cause) = query.cause {
        s.and("cause = ?", [text(names::cause(cause))]);
    }
    let (min, max) = query.took();
    if let Some(min) = min {
        s.and("took >= ?", [Value::Integer(min)]);
    }
    if let Some(max) = max {
        s.and("took <= ?", [Value::Integer(max)]);
    }
    if let Some(since) = query.since {
        s.and("slot >= ?", [Value::Integer(items::millis_ceil(since))]);
    }
    // One upper bound only: of two SQLite may take neither.
    let until = query.until.map(items::millis_ceil);
    match (from, until) {
        (Some(p), until) if until.is_none_or(|u| p.slot < u) => {
            let values = [Value::Integer(p.slot), Value::Blob(p.run_id.to_vec())];
            s.and("(slot, run_id) < (?, ?)", values);
        }
        (_, Some(until)) => s.and("slot < ?", [Value::Integer(until)]),
        _ => {}
    }
}

pub(super) fn last_runs(
    conn: &Connection,
    ctx: &Context,
    jobs: &[Name],
) -> Result<BTreeMap<Name, RunRecord>, StoreError> {
    let op = "last runs";
    let mut last = BTreeMap::new();
    let mut stmt = conn
        .prepare_cached(
            "SELECT slot, run_id, doc FROM runs WHERE job = ?1
             ORDER BY slot DESC, run_id DESC LIMIT 1",
        )
        .map_err(|e| ctx.error(op, e))?;
    for job in jobs {
        let row = stmt.query_row([job.as_str()], found).optional().map_err(|e| ctx.error(op, e))?;
        let Some((position, doc)) = row else { continue };
        match parse(ctx, op, &position.run_id, &doc) {
            Ok(run) => {
                last.insert(job.clone(), run);
            }
            Err(e) => tracing::warn!(error = %e.chain(), "left a run out of the last runs"),
        }
    }
    Ok(last)
}

pub(super) fn output(
    conn: &Connection,
    ctx: &Context,
    run_id: RunId,
    after_seq: Option<u64>,
    limit: usize,
) -> Result<Vec<OutputChunk>, StoreError> {
    let op = "read output";
    // No chunk has a higher number than a signed integer holds: nothing follows it.
    let after = after_seq.map_or(-1, |s| i64::try_from(s).unwrap_or(i64::MAX));
    let id = bytes_of(run_id);
    let limit_sql = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut stmt = conn
        .prepare_cached(
            "SELECT seq, stream, at, data FROM output
             WHERE run_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
        )
        .map_err(|e| ctx.error(op, e))?;
    let mut rows = stmt.query(params![id, after, limit_sql]).map_err(|e| ctx.error(op, e))?;
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    while bytes < MAX_OUTPUT_BYTES {
        let Some(row) = rows.next().map_err(|e| ctx.error(op, e))? else { break };
        let chunk = chunk(row, run_id).map_err(|e| {
            ctx.unreadable(op, format!("a chunk of run {run_id} after {after_seq:?}"), e)
        })?;
        bytes += chunk.data.len();
        chunks.push(chunk);
    }
    Ok(chunks)
}

fn chunk(row: &Row<'_>, run_id: RunId) -> Result<OutputChunk, crate::BoxError> {
    let stream: i64 = row.get(1)?;
    Ok(OutputChunk {
        run_id,
        seq: row.get::<_, i64>(0)?.try_into()?,
        stream: names::stream_of(stream).ok_or_else(|| format!("unknown stream {stream}"))?,
        at: Timestamp::from_millisecond(row.get(2)?)?,
        data: row.get(3)?,
    })
}
