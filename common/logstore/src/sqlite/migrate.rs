//! The schema, built in numbered steps from `migrations/sqlite`.

use super::error::Context;
use crate::StoreError;
use rusqlite::{Connection, TransactionBehavior, params};
use std::collections::BTreeSet;

/// Every step: its name and its SQL. The number of a step is its place, from 1.
pub const STEPS: &[(&str, &str)] = &[
    (
        "0001_runs_and_output",
        include_str!("../../../../migrations/sqlite/0001_runs_and_output.sql"),
    ),
    ("0002_tasks", include_str!("../../../../migrations/sqlite/0002_tasks.sql")),
    ("0003_questions", include_str!("../../../../migrations/sqlite/0003_questions.sql")),
    ("0004_audit", include_str!("../../../../migrations/sqlite/0004_audit.sql")),
];

/// Applies what is missing and returns the names of it. One transaction that holds
/// the write lock from its start: of several processes one applies the steps, the
/// others wait and find them applied.
pub(super) fn migrate(conn: &mut Connection) -> rusqlite::Result<Vec<String>> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS meepo_migrations (
            number     INTEGER PRIMARY KEY,
            name       TEXT NOT NULL,
            applied_at INTEGER NOT NULL -- milliseconds since 1970
        ) STRICT",
    )?;
    let mut applied = Vec::new();
    for (number, (name, sql)) in (1i64..).zip(STEPS) {
        let known: bool = tx.query_row(
            "SELECT EXISTS (SELECT 1 FROM meepo_migrations WHERE number = ?1)",
            [number],
            |row| row.get(0),
        )?;
        if known {
            continue;
        }
        tx.execute_batch(sql)?;
        tx.execute(
            "INSERT INTO meepo_migrations (number, name, applied_at)
             VALUES (?1, ?2, CAST(unixepoch('subsec') * 1000 AS INTEGER))",
            params![number, name],
        )?;
        applied.push((*name).to_owned());
    }
    tx.commit()?;
    Ok(applied)
}

/// The names of the steps that are missing.
pub(super) fn pending(conn: &Connection, ctx: &Context) -> Result<Vec<String>, StoreError> {
    let known = || -> rusqlite::Result<BTreeSet<i64>> {
        let mut statement = conn.prepare("SELECT number FROM meepo_migrations")?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    let known = match known().map_err(|e| ctx.error("pending migrations", e)) {
        Err(StoreError::NotMigrated { .. }) => BTreeSet::new(),
        other => other?,
    };
    let missing = (1i64..).zip(STEPS).filter(|(number, _)| !known.contains(number));
    Ok(missing.map(|(_, (name, _))| (*name).to_owned()).collect())
}
