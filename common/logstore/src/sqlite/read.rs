//! Reading: a few connections, used from blocking threads.

use super::{Access, READERS, connect, error::Context};
use crate::{
    MAX_OUTPUT_BYTES, RunPage, RunQuery, StoreError, items, names,
    query::{Position, bytes_of},
};
use jiff::Timestamp;
use meepo_core::{
    id::{Name, RunId},
    run::{OutputChunk, RunRecord, RunState},
};
use rusqlite::{
    Connection, OptionalExtension, Params, Row, params, params_from_iter, types::Value,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;

/// Connections kept for reading, at most [`READERS`] in use at once.
pub(super) struct Readers {
    context: Context,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(context: Context) -> Self {
        Self { context, idle: Mutex::default(), permits: Arc::new(Semaphore::new(READERS)) }
    }

    /// Runs `work` on a connection, on a blocking thread.
    pub(super) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        op: &'static str,
        work: impl FnOnce(&Connection, &Context) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let me = Arc::clone(self);
        super::blocking(&self.context, op, move || {
            // The permit ends with the work, not with the future that waits for it.
            let _permit = permit;
            let idle = me.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let conn = match idle {
                Some(conn) => conn,
                None => {
                    connect(me.context.path(), Access::Read).map_err(|e| me.context.error(op, e))?
                }
            };
            let done = work(&conn, &me.context);
            // After an error the connection is dropped: the next opens a fresh one.
            if done.is_ok() {
                me.idle.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
            }
            done
        })
        .await
    }
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

/// The conditions of a statement under construction.
#[derive(Debug, Default, Clone)]
pub(super) struct Filter {
    text: String,
    values: Vec<Value>,
}

impl Filter {
    fn and(&mut self, condition: &str, values: impl IntoIterator<Item = Value>) {
        self.text.push_str(if self.text.is_empty() { "WHERE " } else { " AND " });
        self.text.push_str(condition);
        self.values.extend(values);
    }

    /// The whole statement; its last value is the limit.
    pub(super) fn sql(&self) -> String {
        format!(
            "SELECT slot, run_id, doc FROM runs {} ORDER BY slot DESC, run_id DESC LIMIT ?",
            self.text
        )
    }

    fn run(&self, conn: &Connection, limit: usize) -> rusqlite::Result<Vec<Found>> {
        let mut stmt = conn.prepare_cached(&self.sql())?;
        stmt.query_map(self.with_limit(limit), found)?.collect()
    }

    /// The values of the statement.
    pub(super) fn with_limit(&self, limit: usize) -> impl Params {
        let limit = Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX));
        params_from_iter(self.values.iter().cloned().chain([limit]))
    }
}

fn found(row: &Row<'_>) -> rusqlite::Result<Found> {
    Ok((Position { slot: row.get(0)?, run_id: row.get(1)? }, row.get(2)?))
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
    let mut all = Vec::new();
    for filter in filters(query, from) {
        all.extend(filter.run(conn, limit)?);
    }
    all.sort_by(|(a, _), (b, _)| b.cmp(a));
    all.truncate(limit);
    Ok(all)
}

/// The statements that together find the matching runs. Usually one; one for each
/// state if states are the best filter, because the index on states gives the order
/// only within one.
///
/// Whichever index serves the order must be the only choice: a unary `+` keeps a
/// condition from being another. Without it SQLite may collect every run in a state
/// or on a node and sort them.
pub(super) fn filters(query: &RunQuery, from: Option<Position>) -> Vec<Filter> {
    let text = |s: &str| Value::Text(s.to_owned());
    let states = query.distinct_states();
    let mut f = Filter::default();
    if let Some(job) = &query.job {
        f.and("job = ?", [text(job.as_str())]);
    }
    if let Some(node) = &query.node {
        let column = if query.job.is_some() { "+node" } else { "node" };
        f.and(&format!("{column} = ?"), [text(node.as_str())]);
    }
    if let Some(cause) = query.cause {
        f.and("+cause = ?", [text(names::cause(cause))]);
    }
    if let Some(since) = query.since {
        f.and("slot >= ?", [Value::Integer(items::millis_ceil(since))]);
    }
    if let Some(until) = query.until {
        f.and("slot < ?", [Value::Integer(items::millis_ceil(until))]);
    }
    if let Some(p) = from {
        let values = [Value::Integer(p.slot), Value::Blob(p.run_id.to_vec())];
        f.and("(slot, run_id) < (?, ?)", values);
    }
    if states.is_empty() {
        return vec![f];
    }
    if query.job.is_some() || query.node.is_some() {
        let marks = vec!["?"; states.len()].join(", ");
        f.and(&format!("+state IN ({marks})"), states.iter().map(|s| text(s.as_str())));
        return vec![f];
    }
    let with_state = |s: &RunState| {
        let mut f = f.clone();
        f.and("state = ?", [text(s.as_str())]);
        f
    };
    states.iter().map(with_state).collect()
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
