//! Counting a job's runs, on an index that holds all that it takes.

use super::{error::Context, read::Select};
use crate::{
    StoreError, TallyRow, items,
    stats::{DAY, TALLY_RUNS, units},
};
use jiff::Timestamp;
use meepo_core::id::Name;
use rusqlite::{Connection, types::Value};

/// The statement and what it reads from.
pub(super) fn statement(
    job: &Name,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
) -> (String, Select) {
    let mut runs = Select::through("runs_by_job");
    runs.and("job = ?", [Value::Text(job.as_str().to_owned())]);
    if let Some(since) = since {
        runs.and("slot >= ?", [Value::Integer(items::millis_ceil(since))]);
    }
    if let Some(until) = until {
        runs.and("slot < ?", [Value::Integer(items::millis_ceil(until))]);
    }
    let mut rounded = String::from("CASE WHEN took IS NULL THEN NULL");
    let all: Vec<_> = units().collect();
    for (from, unit) in all.iter().rev() {
        rounded.push_str(&format!(" WHEN took >= {from} THEN took / {unit} * {unit}"));
    }
    rounded.push_str(" ELSE took END");
    let sql = format!(
        "SELECT state, slot / {DAY} AS day, {rounded} AS bucket, count(*), max(took), min(slot)
         FROM ({}) GROUP BY state, day, bucket",
        runs.sql("state, slot, took")
    );
    (sql, runs)
}

pub(super) fn tally(
    conn: &Connection,
    ctx: &Context,
    job: &Name,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
) -> Result<Vec<TallyRow>, StoreError> {
    let (sql, runs) = statement(job, since, until);
    let limit = usize::try_from(TALLY_RUNS).unwrap_or(usize::MAX);
    let read = || -> rusqlite::Result<Vec<TallyRow>> {
        let mut stmt = conn.prepare_cached(&sql)?;
        let rows = stmt.query_map(runs.with_limit(limit), |row| {
            Ok(TallyRow {
                state: row.get(0)?,
                day: row.get(1)?,
                took: row.get(2)?,
                runs: row.get::<_, i64>(3)?.unsigned_abs(),
                longest: row.get(4)?,
                oldest: row.get(5)?,
            })
        })?;
        rows.collect()
    };
    read().map_err(|e| ctx.error("tally", e))
}
