//! Tasks in SQLite.

use super::error::Context;
use crate::{
    StoreError,
    tasks::{Row, TaskQuery},
};
use meepo_core::task::{TaskId, TaskView};
use rusqlite::{
    Connection, OptionalExtension, TransactionBehavior, params, params_from_iter, types::Value,
};

/// Keeps all of them or none. One that is there is written again.
pub(super) fn put(conn: &mut Connection, rows: &[Row]) -> rusqlite::Result<()> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut insert = tx.prepare_cached(
            "INSERT OR REPLACE INTO tasks (task_id, queue, state, ended_at, summary, doc)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        for r in rows {
            insert.execute(params![r.id, r.queue, r.state, r.ended_at, r.summary, r.doc])?;
        }
    }
    tx.commit()
}

fn parse(ctx: &Context, op: &'static str, doc: &str) -> Result<TaskView, StoreError> {
    serde_json::from_str(doc).map_err(|e| {
        let begin: String = doc.chars().take(60).collect();
        ctx.unreadable(op, format!("task {begin}"), e)
    })
}

pub(super) fn get(
    conn: &Connection,
    ctx: &Context,
    id: TaskId,
) -> Result<Option<TaskView>, StoreError> {
    let op = "get task";
    let doc: Option<String> = conn
        .prepare_cached("SELECT doc FROM tasks WHERE task_id = ?1")
        .and_then(|mut s| s.query_row([id.0.as_bytes()], |row| row.get(0)).optional())
        .map_err(|e| ctx.error(op, e))?;
    doc.map(|doc| parse(ctx, op, &doc)).transpose()
}

pub(super) fn list(
    conn: &Connection,
    ctx: &Context,
    query: &TaskQuery,
) -> Result<Vec<TaskView>, StoreError> {
    let op = "list tasks";
    let (mut conditions, mut values) = (Vec::new(), Vec::new());
    let text = |s: &str| Value::Text(s.to_owned());
    if let Some(queue) = &query.queue {
        conditions.push("queue = ?".to_owned());
        values.push(text(queue.as_str()));
    }
    let states = query.distinct_states();
    if !states.is_empty() {
        // A unary plus keeps the index that gives the order the only choice.
        let column = if query.queue.is_some() || states.len() > 1 { "+state" } else { "state" };
        conditions.push(format!("{column} IN ({})", vec!["?"; states.len()].join(", ")));
        values.extend(states.iter().map(|s| text(s.as_str())));
    }
    if let Some(before) = query.before {
        conditions.push("task_id < ?".to_owned());
        values.push(Value::Blob(before.0.as_bytes().to_vec()));
    }
    let filter = match conditions.is_empty() {
        true => String::new(),
        false => format!("WHERE {}", conditions.join(" AND ")),
    };
    values.push(Value::Integer(query.page_size().into()));
    let sql = format!("SELECT summary FROM tasks {filter} ORDER BY task_id DESC LIMIT ?");
    let read = || -> rusqlite::Result<Vec<String>> {
        let mut statement = conn.prepare_cached(&sql)?;
        statement.query_map(params_from_iter(values), |row| row.get(0))?.collect()
    };
    let docs = read().map_err(|e| ctx.error(op, e))?;
    Ok(docs
        .iter()
        .filter_map(|doc| {
            // One bad record must not hide all the others.
            let told = |e: &StoreError| tracing::warn!(error = %e.chain(), "left a task out");
            parse(ctx, op, doc).inspect_err(told).ok()
        })
        .collect())
}
