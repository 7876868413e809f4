//! Telling etcd how a part has ended: until it is told, also by the next life of the
//! worker.

use super::Held;
use crate::{engine::Engine, state::WaitEntry};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use jiff::Timestamp;
use meepo_coord::{
    CoordError, keys,
    records::{decode, encode},
};
use meepo_core::{
    id::RunId,
    run::{RunRecord, to_millis},
    task::{Order, Part, PartId, record::Outcome},
};
use meepo_runtime::backoff::Backoff;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// The end of a part as the state keeps it until etcd knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedEnd {
    /// The part.
    #[serde(rename = "end_of_part")]
    pub(super) part: PartId,
    /// The run.
    pub(super) run_id: RunId,
    /// How it ended.
    pub(super) outcome: Outcome,
}

impl SavedEnd {
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// What the state is to keep along with the end of `record`.
    pub(super) fn entry(part: PartId, record: &RunRecord) -> Option<WaitEntry> {
        let run_id = record.run_id;
        let end = Self { part, run_id, outcome: Outcome::from(record) };
        Some(WaitEntry {
            run_id,
            due: record.ended_at.unwrap_or_else(|| to_millis(Timestamp::now())),
            plan: serde_json::to_string(&end).ok()?,
        })
    }
}

/// What came of a change to an order.
pub(super) enum Change {
    /// It was made, at this revision.
    Done(i64),
    /// The order is gone.
    Gone,
    /// It has changed; this is how it stands.
    Moved(Held),
}

/// The transaction by which this worker changes a part and its order together.
pub(super) async fn change(
    engine: &Engine,
    id: PartId,
    held: &Held,
    more: Option<Compare>,
    part: &Part,
    order: Option<&Order>,
) -> Result<Change, CoordError> {
    let key = keys::order(&engine.node, id);
    let mut compares = vec![Compare::mod_revision(key.clone(), CompareOp::Equal, held.revision)];
    compares.extend(more);
    let order = match order {
        Some(order) => TxnOp::put(key.clone(), encode(order), None),
        None => TxnOp::delete(key.clone(), None),
    };
    let put = TxnOp::put(keys::part(id), encode(part), None);
    let txn = Txn::new().when(compares).and_then([put, order]);
    if let Some(revision) = engine.etcd.txn("part of a task", txn).await? {
        return Ok(Change::Done(revision));
    }
    let entry = engine.etcd.get(&key).await?;
    let Some(entry) = entry.filter(|e| e.create_revision == held.create) else {
        return Ok(Change::Gone);
    };
    Ok(match decode::<Order>(&entry.value) {
        Ok(order) => Change::Moved(Held {
            order: Arc::new(order),
            create: held.create,
            revision: entry.mod_revision,
        }),
        Err(e) => {
            warn!(part = %id, error = %e, "an order cannot be read any more");
            Change::Gone
        }
    })
}

/// Writes what `next` makes of the part and removes the order, trying until it is done, the
/// order is gone, `next` makes nothing of it, or the worker ends. Answers whether etcd knows
/// by now.
pub(super) async fn settle(
    engine: &Engine,
    id: PartId,
    mut held: Held,
    next: impl Fn(&Order) -> Option<Part>,
    stop: &CancellationToken,
) -> bool {
    let mut backoff = Backoff::new(Duration::from_secs(5));
    loop {
        let Some(part) = next(&held.order) else { return false };
        match change(engine, id, &held, None, &part, None).await {
            Ok(Change::Done(_)) => {
                debug!(part = %id, state = %part.state, "a part has ended here");
                return true;
            }
            Ok(Change::Gone) => {
                info!(part = %id, "a part was taken back before its end was told");
                return true;
            }
            Ok(Change::Moved(newer)) => held = newer,
            Err(e) => {
                let wait = backoff.next_wait();
                debug!(part = %id, error = %e, ?wait, "cannot tell the end of a part, will try again");
                tokio::select! {
                    () = stop.cancelled() => return false,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

/// Tells the end of a run. Answers whether etcd knows by now.
pub(super) async fn tell(
    engine: &Engine,
    id: PartId,
    held: Held,
    outcome: &Outcome,
    stop: &CancellationToken,
) -> bool {
    let next = |order: &Order| {
        Some(order.part.clone().ended(id, &order.policy, outcome.clone(), Timestamp::now()))
    };
    settle(engine, id, held, next, stop).await
}

/// Tells the end of a run, and forgets it once etcd knows.
pub(super) async fn end(
    engine: &Engine,
    id: PartId,
    held: Held,
    outcome: Outcome,
    stop: &CancellationToken,
) {
    let run_id = held.order.run_id;
    if tell(engine, id, held, &outcome, stop).await {
        forget(engine, id, run_id).await;
    }
}

/// The end of a run need not be kept any longer.
pub(super) async fn forget(engine: &Engine, id: PartId, run_id: RunId) {
    if let Err(e) = engine.state.remove_wait(run_id).await {
        // It is told again in the next life, and finds the order gone.
        debug!(part = %id, error = %e, "cannot forget the end of a part");
    }
}
