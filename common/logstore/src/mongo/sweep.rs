//! Removing what is old, in steps of some hundred runs.

use super::{MongoStore, docs, read};
use crate::{Retention, StoreError, Swept, items, retention::first_id_of};
use futures::TryStreamExt;
use jiff::Timestamp;
use meepo_core::run::RunState;
use mongodb::{
    bson::{Binary, Bson, DateTime, Document, RawDocumentBuf, doc, spec::BinarySubtype},
    options::WriteConcern,
};

const OP: &str = "sweep";
/// Runs and tasks removed in a step, of each state.
const RUNS: i64 = 500;
/// Chunks of output removed in a step beside those of removed runs.
const CHUNKS: i64 = 5_000;

impl MongoStore {
    /// One step. Deleting again what is gone is no error, so a failure needs no care.
    pub(super) async fn sweep_step(
        &self,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        if let Some(cutoff) = retention.output.cutoff(now) {
            self.sweep_output(cutoff, &mut swept).await?;
        }
        for state in RunState::ALL {
            if let Some(cutoff) = retention.of_state(state).cutoff(now) {
                self.sweep_runs(state, cutoff, &mut swept).await?;
            }
        }
        if let Some(cutoff) = retention.tasks.cutoff(now) {
            self.sweep_tasks(cutoff, &mut swept).await?;
        }
        if let Some(cutoff) = retention.audit.cutoff(now) {
            self.sweep_audit(cutoff, &mut swept).await?;
        }
        Ok(swept)
    }

    /// The keys of what matches, in the order of `sort`.
    async fn keys(
        &self,
        collection: &str,
        filter: Document,
        sort: Document,
        hint: Option<&str>,
        limit: i64,
    ) -> Result<Vec<Bson>, StoreError> {
        let read = async {
            let collection = self.db.collection::<RawDocumentBuf>(collection);
            let find = collection.find(filter).sort(sort).limit(limit);
            let find = find.projection(doc! { "_id": 1 });
            let cursor = match hint {
                Some(index) => find.hint(read::hint(index)).await?,
                None => find.await?,
            };
            cursor.with_type::<Document>().try_collect::<Vec<_>>().await
        };
        let found = self.context.wait(OP, read).await?;
        Ok(found.into_iter().filter_map(|mut d| d.remove("_id")).collect())
    }

    /// Deletes by several filters, and answers how many documents that were.
    async fn delete(&self, collection: &str, filters: Vec<Document>) -> Result<u64, StoreError> {
        if filters.is_empty() {
            return Ok(0);
        }
        let deletes: Vec<_> = filters.into_iter().map(|q| doc! { "q": q, "limit": 0 }).collect();
        let concern = concern(&self.write_concern);
        let command = doc! {
            "delete": collection, "deletes": deletes, "ordered": false, "writeConcern": concern,
        };
        let reply = self.context.wait(OP, async { self.db.run_command(command).await }).await?;
        self.refuse_errors(OP, &reply)?;
        Ok(docs::integer(reply.get("n")).unwrap_or(0).unsigned_abs())
    }

    /// Chunks that are old themselves. Their keys begin with ids that sort by time, so few
    /// are looked at that stay.
    async fn sweep_output(&self, cutoff: Timestamp, swept: &mut Swept) -> Result<(), StoreError> {
        let mut end = first_id_of(cutoff).to_vec();
        end.extend([0; docs::CHUNK_KEY - 16]);
        let end = Binary { subtype: BinarySubtype::Generic, bytes: end };
        let old = doc! { "$lt": DateTime::from_millis(items::millis(cutoff)) };
        let filter = doc! { "_id": { "$lt": end }, "at": old.clone() };
        let keys = self.keys("output", filter, doc! { "_id": 1 }, None, CHUNKS).await?;
        swept.more |= keys.len() as i64 == CHUNKS;
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Ok(()) };
        let range = doc! { "_id": { "$gte": first, "$lte": last }, "at": old };
        swept.chunks += self.delete("output", vec![range]).await?;
        Ok(())
    }

    async fn sweep_runs(
        &self,
        state: RunState,
        cutoff: Timestamp,
        swept: &mut Swept,
    ) -> Result<(), StoreError> {
        let old = DateTime::from_millis(items::millis(cutoff));
        let filter = doc! {
            "state": state.as_str(),
            "slot": { "$lt": old },
            // One that is missing is older than any.
            "$or": [{ "ended_at": { "$exists": false } }, { "ended_at": { "$lt": old } }],
        };
        let sort = doc! { "slot": 1, "_id": 1 };
        let keys = self.keys("runs", filter, sort, Some("by_state"), RUNS).await?;
        if keys.is_empty() {
            return Ok(());
        }
        swept.more |= keys.len() as i64 == RUNS;
        let ids = keys.iter().filter_map(|key| match key {
            Bson::Binary(b) => <[u8; 16]>::try_from(b.bytes.as_slice()).ok(),
            _ => None,
        });
        let chunks = ids.map(docs::chunks_of).map(|keys| doc! { "_id": keys });
        swept.chunks += self.delete("output", chunks.collect()).await?;
        // One that got another state meanwhile is judged by that.
        let runs = doc! { "_id": { "$in": keys }, "state": state.as_str() };
        swept.runs += self.delete("runs", vec![runs]).await?;
        Ok(())
    }

    /// Records of the audit: their ids sort by time.
    async fn sweep_audit(&self, cutoff: Timestamp, swept: &mut Swept) -> Result<(), StoreError> {
        let filter = doc! { "_id": { "$lt": docs::run_key_of(first_id_of(cutoff)) } };
        let keys = self.keys("audit", filter, doc! { "_id": 1 }, None, RUNS).await?;
        if keys.is_empty() {
            return Ok(());
        }
        swept.more |= keys.len() as i64 == RUNS;
        swept.audit += self.delete("audit", vec![doc! { "_id": { "$in": keys } }]).await?;
        Ok(())
    }

    async fn sweep_tasks(&self, cutoff: Timestamp, swept: &mut Swept) -> Result<(), StoreError> {
        let filter = doc! {
            "_id": { "$lt": docs::run_key_of(first_id_of(cutoff)) },
            "ended_at": { "$lt": DateTime::from_millis(items::millis(cutoff)) },
        };
        let keys = self.keys("tasks", filter, doc! { "_id": 1 }, None, RUNS).await?;
        if keys.is_empty() {
            return Ok(());
        }
        swept.more |= keys.len() as i64 == RUNS;
        swept.tasks += self.delete("tasks", vec![doc! { "_id": { "$in": keys } }]).await?;
        Ok(())
    }
}

/// The write concern as a command takes it.
fn concern(concern: &WriteConcern) -> Bson {
    mongodb::bson::to_bson(concern).unwrap_or_else(|_| Bson::Document(doc! { "w": "majority" }))
}
