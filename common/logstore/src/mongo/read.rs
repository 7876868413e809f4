//! Reading: filters as documents, answers decoded from raw ones.

use super::{
    MongoStore, docs,
    error::{self, Context},
};
use crate::{
    LIST_PATIENCE, MAX_OUTPUT_BYTES, RunPage, RunQuery, StoreError, items, names,
    plan::{Plan, parts_of},
    query::Position,
};
use futures::TryStreamExt;
use meepo_core::{
    id::{Name, RunId},
    run::{OutputChunk, RunRecord},
};
use mongodb::{
    Cursor,
    bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc},
    options::Hint,
};
use std::collections::BTreeMap;

/// Newest first.
pub(super) fn newest() -> Document {
    doc! { "slot": -1, "_id": -1 }
}

fn run(ctx: &Context, op: &'static str, raw: &RawDocument) -> Result<RunRecord, StoreError> {
    docs::run_of(raw).map_err(|e| ctx.unreadable(op, format!("run {:?}", raw.get("_id")), e))
}

pub(super) async fn get_run(
    store: &MongoStore,
    run_id: RunId,
) -> Result<Option<RunRecord>, StoreError> {
    let op = "get run";
    let find = async { store.runs.find_one(doc! { "_id": docs::run_key(run_id) }).await };
    let found = store.context.wait(op, find).await?;
    found.map(|raw| run(&store.context, op, &raw)).transpose()
}

pub(super) async fn list_runs(store: &MongoStore, query: &RunQuery) -> Result<RunPage, StoreError> {
    let (ctx, op) = (&store.context, "list runs");
    let from = query.position()?;
    let Some(index) = index(&Plan::of(query)) else { return Ok(RunPage::default()) };
    let filter = filter(query, from);
    let page = query.page_size();
    let read = async {
        // One more than the page tells whether there is another.
        let limit = u32::try_from(page + 1).unwrap_or(u32::MAX);
        let find = || {
            let find = store.runs.find(filter.clone()).sort(newest());
            find.limit(limit.into()).batch_size(limit).max_time(LIST_PATIENCE)
        };
        let cursor = match find().hint(hint(index)).await {
            // Somebody has dropped it, or the migration that makes it is not over yet.
            Err(e) if error::no_such_index(&e) => find().await?,
            other => other?,
        };
        cursor.try_collect::<Vec<_>>().await
    };
    let found = ctx.wait_briefly(op, read).await?;
    let mut rows = Vec::with_capacity(found.len());
    for raw in found {
        let position = position(&raw)
            .map_err(|e| ctx.unreadable(op, format!("run {:?}", raw.get("_id")), e))?;
        rows.push((position, raw));
    }
    let next = Position::cut(&mut rows, page);
    let mut runs = Vec::with_capacity(rows.len());
    for (_, raw) in rows {
        match run(ctx, op, &raw) {
            Ok(run) => runs.push(run),
            // One bad record must not hide all the others.
            Err(e) => tracing::warn!(error = %e.chain(), "left a run out of a list"),
        }
    }
    Ok(RunPage { runs, next })
}

fn position(raw: &RawDocument) -> Result<Position, crate::BoxError> {
    let slot = raw.get_datetime("slot")?.timestamp_millis();
    Ok(Position { slot, run_id: docs::key_of(raw)? })
}

/// Names an index to be used whatever the planner thinks.
pub(super) fn hint(index: &str) -> Hint {
    Hint::Name(index.to_owned())
}

/// The index that serves a plan; none if there is nothing to look for.
pub(super) fn index(plan: &Plan) -> Option<&'static str> {
    Some(match plan {
        Plan::Nothing => return None,
        Plan::Time => "by_slot",
        Plan::Job(_) | Plan::Task(_) => "by_job_newest",
        Plan::JobState(..) => "by_job_state",
        Plan::NodeState(..) => "by_node_state",
        Plan::State(_) => "by_state",
        Plan::Code(_) => "by_code",
        Plan::User(_) => "by_user",
    })
}

/// The filter of a list that starts after `from`.
pub(super) fn filter(query: &RunQuery, from: Option<Position>) -> Document {
    let plan = Plan::of(query);
    let mut filter = Document::new();
    let mut job = Document::new();
    if let Some(jobs) = query.distinct_jobs() {
        job = one_of(jobs.iter().map(|j| j.as_str()));
    }
    if let Some(task) = query.task {
        let (first, end) = parts_of(task);
        job.extend(doc! { "$gte": first, "$lt": end });
    }
    if !job.is_empty() {
        filter.insert("job", job);
    }
    if let Some(node) = &query.node {
        filter.insert("node", node.as_str());
    }
    let states = match &plan {
        // All of them, where none is asked for: the index is entered at each.
        Plan::NodeState(_, states) => states.clone(),
        _ => query.distinct_states(),
    };
    if !states.is_empty() {
        filter.insert("state", one_of(states.iter().map(|s| s.as_str())));
    }
    let codes = query.distinct_codes();
    if !codes.is_empty() {
        let mut code = one_of(codes.iter().map(|c| i32::from(c.0)));
        if let Plan::Code(_) = plan {
            // As the partial index says.
            code.insert("$gt", 0);
        }
        filter.insert("code", code);
    }
    if let Some(user) = &query.user {
        filter.insert("user", user.as_str());
    }
    let mut took = Document::new();
    let (min, max) = query.took();
    took.extend(min.map(|ms| ("$gte".to_owned(), Bson::Int64(ms))));
    took.extend(max.map(|ms| ("$lte".to_owned(), Bson::Int64(ms))));
    if !took.is_empty() {
        filter.insert("took_ms", took);
    }
    if let Some(cause) = query.cause {
        filter.insert("cause", names::cause(cause));
    }
    let mut slot = Document::new();
    if let Some(since) = query.since {
        slot.insert("$gte", DateTime::from_millis(items::millis_ceil(since)));
    }
    if let Some(until) = query.until {
        slot.insert("$lt", DateTime::from_millis(items::millis_ceil(until)));
    }
    if let Some(p) = from {
        // Not an `$or` of two ranges: with this the planner sees one range of one
        // index, from which the part of the cursor's slot already shown is left out.
        let at = DateTime::from_millis(p.slot);
        slot.insert("$lte", at);
        let shown = doc! { "slot": at, "_id": { "$gte": docs::run_key_of(p.run_id) } };
        filter.insert("$nor", vec![shown]);
    }
    if !slot.is_empty() {
        filter.insert("slot", slot);
    }
    filter
}

/// A condition that holds for each of `values`.
fn one_of<T: Into<Bson>>(values: impl Iterator<Item = T>) -> Document {
    let values: Vec<Bson> = values.map(Into::into).collect();
    match values.as_slice() {
        [one] => doc! { "$eq": one },
        _ => doc! { "$in": values },
    }
}

pub(super) async fn last_runs(
    store: &MongoStore,
    jobs: &[Name],
) -> Result<BTreeMap<Name, RunRecord>, StoreError> {
    let (ctx, op) = (&store.context, "last runs");
    let mut last = BTreeMap::new();
    if jobs.is_empty() {
        return Ok(last);
    }
    let read = async {
        let cursor = store.runs.aggregate(last_runs_pipeline(jobs)).await?;
        cursor.with_type::<RawDocumentBuf>().try_collect::<Vec<_>>().await
    };
    for raw in ctx.wait(op, read).await? {
        let found = raw
            .get_document("run")
            .map_err(|e| ctx.unreadable(op, "a group of runs".into(), e))
            .and_then(|raw| run(ctx, op, raw));
        match found {
            Ok(run) => {
                if let Some(job) = run.job.clone() {
                    last.insert(job, run);
                }
            }
            Err(e) => tracing::warn!(error = %e.chain(), "left a run out of the last runs"),
        }
    }
    Ok(last)
}

/// Sorted as the index `by_job_newest` is and grouped by its first field, so that the server
/// jumps from job to job in the index and fetches one run for each.
pub(super) fn last_runs_pipeline(jobs: &[Name]) -> Vec<Document> {
    let names: Vec<_> = jobs.iter().map(|j| Bson::from(j.as_str())).collect();
    vec![
        doc! { "$match": { "job": { "$in": names } } },
        doc! { "$sort": { "job": 1, "slot": -1, "_id": -1 } },
        doc! { "$group": { "_id": "$job", "run": { "$first": "$$ROOT" } } },
    ]
}

pub(super) async fn output(
    store: &MongoStore,
    run_id: RunId,
    after_seq: Option<u64>,
    limit: usize,
) -> Result<Vec<OutputChunk>, StoreError> {
    let (ctx, op) = (&store.context, "read output");
    let first = match after_seq {
        None => 0,
        Some(u64::MAX) => return Ok(Vec::new()),
        Some(after) => after + 1,
    };
    let keys = doc! {
        "$gte": docs::chunk_key_value(run_id, first),
        "$lte": docs::chunk_key_value(run_id, u64::MAX),
    };
    let read = async {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let find = store.output.find(doc! { "_id": keys }).sort(doc! { "_id": 1 });
        let mut cursor: Cursor<RawDocumentBuf> = find.limit(limit).await?;
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        while bytes < MAX_OUTPUT_BYTES && cursor.advance().await? {
            let chunk = match docs::chunk_of(cursor.current(), run_id) {
                Ok(chunk) => chunk,
                Err(e) => return Ok(Err(e)),
            };
            bytes += chunk.data.len();
            chunks.push(chunk);
        }
        Ok(Ok(chunks))
    };
    ctx.wait(op, read)
        .await?
        .map_err(|e| ctx.unreadable(op, format!("a chunk of run {run_id} after {after_seq:?}"), e))
}
