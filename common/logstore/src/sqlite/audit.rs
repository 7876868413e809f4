//! The audit in SQLite.

use super::error::Context;
use crate::{
    StoreError,
    audit::{AuditQuery, Texts},
    items,
};
use meepo_core::audit::AuditRecord;
use rusqlite::{Connection, TransactionBehavior, params, params_from_iter, types::Value};
use uuid::Uuid;

/// Keeps all of them or none. One that is there stays as it is.
pub(super) fn append(conn: &mut Connection, records: &[AuditRecord]) -> rusqlite::Result<()> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut insert = tx.prepare_cached(
            "INSERT OR IGNORE INTO audit (audit_id, at, actor, operation, object, result, doc)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        for r in records {
            let doc = serde_json::to_string(r)
                .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
            let (id, at, result) = (r.id.as_bytes(), items::millis(r.at), r.result.as_str());
            insert.execute(params![id, at, r.actor, r.operation, r.object, result, doc])?;
        }
    }
    tx.commit()
}

/// One more than the page holds, if there is more.
pub(super) fn list(
    conn: &Connection,
    ctx: &Context,
    query: &AuditQuery,
    before: Option<Uuid>,
) -> Result<Vec<AuditRecord>, StoreError> {
    let op = "list audit";
    let (mut conditions, mut values) = (Vec::new(), Vec::new());
    let mut and = |condition: String, value: Value| {
        conditions.push(condition);
        values.push(value);
    };
    if let Some(before) = before {
        and("audit_id < ?".into(), Value::Blob(before.as_bytes().to_vec()));
    }
    if let Some(since) = query.since {
        and("at >= ?".into(), Value::Integer(items::millis_ceil(since)));
    }
    if let Some(until) = query.until {
        and("at < ?".into(), Value::Integer(items::millis_ceil(until)));
    }
    let (operation, object) = (query.operation.as_ref(), query.object.as_ref());
    let texts = [
        ("actor", query.actor.clone().map(Texts::One)),
        ("operation", operation.map(|o| Texts::of(o, '.'))),
        ("object", object.map(|o| Texts::of(o, '/'))),
        ("result", query.result.map(|r| Texts::One(r.as_str().to_owned()))),
    ];
    for (column, text) in texts {
        match text {
            None => {}
            Some(Texts::One(text)) => and(format!("{column} = ?"), Value::Text(text)),
            Some(Texts::Range(from, to)) => {
                and(format!("{column} >= ?"), Value::Text(from));
                and(format!("{column} < ?"), Value::Text(to));
            }
        }
    }
    let filter = match conditions.is_empty() {
        true => String::new(),
        false => format!("WHERE {}", conditions.join(" AND ")),
    };
    values.push(Value::Integer(query.page_size() as i64 + 1));
    let sql = format!("SELECT doc FROM audit {filter} ORDER BY audit_id DESC LIMIT ?");
    let read = || -> rusqlite::Result<Vec<String>> {
        let mut statement = conn.prepare_cached(&sql)?;
        statement.query_map(params_from_iter(values), |row| row.get(0))?.collect()
    };
    let docs = read().map_err(|e| ctx.error(op, e))?;
    let parse = |doc: &String| {
        serde_json::from_str(doc).map_err(|e| {
            let begin: String = doc.chars().take(60).collect();
            ctx.unreadable(op, format!("audit record {begin}"), e)
        })
    };
    // One that is left out would look as if it had never been.
    docs.iter().map(parse).collect()
}
