//! Counting a job's runs on the server, on an index that holds all that it takes.

use super::{MongoStore, docs, read};
use crate::{
    StoreError, TallyRow, items,
    stats::{DAY, TALLY_RUNS, units},
};
use futures::TryStreamExt;
use jiff::Timestamp;
use meepo_core::id::Name;
use mongodb::bson::{Bson, DateTime, Document, doc};

const OP: &str = "tally";

pub(super) async fn tally(
    store: &MongoStore,
    job: &Name,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
) -> Result<Vec<TallyRow>, StoreError> {
    let pipeline = pipeline(job, since, until);
    let read = async {
        let aggregate = store.runs.aggregate(pipeline).hint(read::hint("by_job_newest"));
        let cursor = aggregate.max_time(crate::LIST_PATIENCE).await?;
        cursor.with_type::<Document>().try_collect::<Vec<_>>().await
    };
    let rows = store.context.wait_briefly(OP, read).await?;
    rows.iter()
        .map(|d| row(d).map_err(|e| store.context.unreadable(OP, format!("a count: {d}"), e)))
        .collect()
}

fn row(d: &Document) -> Result<TallyRow, crate::BoxError> {
    let by = d.get_document("_id")?;
    Ok(TallyRow {
        state: by.get_str("state")?.to_owned(),
        day: docs::integer(by.get("day")).ok_or("no day")?,
        took: docs::integer(by.get("took")),
        runs: docs::integer(d.get("runs")).ok_or("no number")?.unsigned_abs(),
        longest: docs::integer(d.get("longest")),
        oldest: d.get_datetime("oldest")?.timestamp_millis(),
    })
}

/// What the server does; in the order of the index `by_job_newest`, and from it alone.
pub(super) fn pipeline(
    job: &Name,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
) -> Vec<Document> {
    let mut matching = doc! { "job": job.as_str() };
    let mut slot = Document::new();
    if let Some(since) = since {
        slot.insert("$gte", DateTime::from_millis(items::millis_ceil(since)));
    }
    if let Some(until) = until {
        slot.insert("$lt", DateTime::from_millis(items::millis_ceil(until)));
    }
    if !slot.is_empty() {
        matching.insert("slot", slot);
    }
    let all: Vec<_> = units().collect();
    let rounded = all.iter().rev().map(|(from, unit)| {
        let rest = doc! { "$mod": ["$took_ms", unit] };
        doc! {
            "case": { "$gte": ["$took_ms", from] },
            "then": { "$subtract": ["$took_ms", rest] },
        }
    });
    let none = doc! { "case": { "$lte": ["$took_ms", Bson::Null] }, "then": Bson::Null };
    let branches: Vec<_> = std::iter::once(none).chain(rounded).collect();
    let millis = doc! { "$toLong": "$slot" };
    vec![
        doc! { "$match": matching },
        doc! { "$sort": read::newest() },
        doc! { "$limit": i64::try_from(TALLY_RUNS).unwrap_or(i64::MAX) },
        doc! { "$group": {
            "_id": {
                "state": "$state",
                "day": { "$toLong": { "$trunc": { "$divide": [millis, DAY] } } },
                "took": { "$switch": { "branches": branches, "default": "$took_ms" } },
            },
            "runs": { "$sum": 1 },
            "longest": { "$max": "$took_ms" },
            "oldest": { "$min": "$slot" },
        } },
    ]
}
