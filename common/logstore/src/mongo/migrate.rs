//! Collections and indexes, described as data in `migrations/mongo` and created in
//! numbered steps.

use super::{MongoStore, error};
use crate::StoreError;
use futures::TryStreamExt;
use mongodb::{
    Collection,
    bson::{self, DateTime, Document, doc},
    error::Error,
};
use serde::Deserialize;
use std::{collections::BTreeSet, time::Duration};

/// Every step: its name and its description as JSON. The number of a step is its
/// place, from 1. Steps must be idempotent: two processes may apply one at once.
pub const STEPS: &[(&str, &str)] = &[
    (
        "0001_runs_and_output",
        include_str!("../../../../migrations/mongo/0001_runs_and_output.json"),
    ),
    ("0002_tasks", include_str!("../../../../migrations/mongo/0002_tasks.json")),
    ("0003_questions", include_str!("../../../../migrations/mongo/0003_questions.json")),
    ("0004_audit", include_str!("../../../../migrations/mongo/0004_audit.json")),
];

const OP: &str = "migrate";
/// Building an index over years of runs takes its time.
const STEP_TIMEOUT: Duration = Duration::from_secs(3600);
/// Server code: the collection is there.
const NAMESPACE_EXISTS: i32 = 48;
/// Server code: there is no such index.
const INDEX_NOT_FOUND: i32 = 27;
/// Server code: a document with this key is there.
const DUPLICATE_KEY: i32 = 11000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    collections: Vec<CollectionSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CollectionSpec {
    name: String,
    indexes: Vec<IndexSpec>,
    /// Indexes that are needed no more.
    #[serde(default)]
    drop: Vec<String>,
    /// What to add to documents that are there.
    update: Option<UpdateSpec>,
    /// What documents must look like, as `$jsonSchema`.
    schema: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateSpec {
    filter: serde_json::Value,
    set: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IndexSpec {
    name: String,
    /// Pairs, because the order of fields is the point of an index.
    keys: Vec<(String, i32)>,
    /// Only documents that match this are in it.
    only: Option<serde_json::Value>,
}

/// The numbers of the steps that were applied.
async fn known(record: &Collection<Document>) -> Result<BTreeSet<i32>, Error> {
    let known: Vec<Document> = record.find(doc! {}).await?.try_collect().await?;
    Ok(known.iter().filter_map(|d| d.get_i32("_id").ok()).collect())
}

impl MongoStore {
    pub(super) async fn apply_migrations(&self) -> Result<Vec<String>, StoreError> {
        let record = self.db.collection::<Document>("meepo_migrations");
        let known = self.context.within(STEP_TIMEOUT, OP, known(&record)).await?;
        let mut applied = Vec::new();
        for (number, (name, json)) in (1i32..).zip(STEPS) {
            if known.contains(&number) {
                continue;
            }
            let step: Step = serde_json::from_str(json)
                .map_err(|e| self.context.unreadable(OP, format!("step {name}"), e))?;
            let apply = async {
                for collection in &step.collections {
                    self.create(collection).await?;
                }
                self.record(&record, number, name).await
            };
            if self.context.within(STEP_TIMEOUT, OP, apply).await? {
                applied.push((*name).to_owned());
            }
        }
        Ok(applied)
    }

    pub(super) async fn missing_migrations(&self) -> Result<Vec<String>, StoreError> {
        let record = self.db.collection::<Document>("meepo_migrations");
        let known = self.context.wait("pending migrations", known(&record)).await?;
        let missing = (1i32..).zip(STEPS).filter(|(number, _)| !known.contains(number));
        Ok(missing.map(|(_, (name, _))| (*name).to_owned()).collect())
    }

    async fn create(&self, spec: &CollectionSpec) -> Result<(), Error> {
        match self.db.run_command(doc! { "create": &spec.name }).await {
            Err(e) if error::code_of(&e) == Some(NAMESPACE_EXISTS) => {}
            other => drop(other?),
        }
        if let Some(update) = &spec.update {
            let set = vec![doc! { "$set": bson::to_bson(&update.set)? }];
            let filter = bson::to_document(&update.filter)?;
            self.db.collection::<Document>(&spec.name).update_many(filter, set).await?;
        }
        let index = |spec: &IndexSpec| {
            let key: Document = spec.keys.iter().map(|(k, v)| (k.clone(), (*v).into())).collect();
            let mut index = doc! { "name": &spec.name, "key": key };
            if let Some(only) = &spec.only {
                index.insert("partialFilterExpression", bson::to_bson(only)?);
            }
            Ok::<_, Error>(index)
        };
        // Creating an index that is there does nothing; one that is being built by
        // somebody else is waited for.
        let indexes: Vec<_> = spec.indexes.iter().map(index).collect::<Result<_, _>>()?;
        if !indexes.is_empty() {
            self.db.run_command(doc! { "createIndexes": &spec.name, "indexes": indexes }).await?;
        }
        for index in &spec.drop {
            match self.db.run_command(doc! { "dropIndexes": &spec.name, "index": index }).await {
                Err(e) if error::code_of(&e) == Some(INDEX_NOT_FOUND) => {}
                other => drop(other?),
            }
        }
        if let Some(schema) = &spec.schema {
            // Of new documents and changes; those that are there are not looked at.
            let validator = doc! { "$jsonSchema": bson::to_bson(schema)? };
            let change = doc! {
                "collMod": &spec.name, "validator": validator,
                "validationLevel": "strict", "validationAction": "error",
            };
            self.db.run_command(change).await?;
        }
        Ok(())
    }

    /// Whether this call was the first to record the step.
    async fn record(
        &self,
        record: &Collection<Document>,
        number: i32,
        name: &str,
    ) -> Result<bool, Error> {
        let step = doc! { "_id": number, "name": name, "applied_at": DateTime::now() };
        let insert = record.insert_one(step).write_concern(self.write_concern.clone());
        match insert.await {
            Ok(_) => Ok(true),
            Err(e) if error::code_of(&e) == Some(DUPLICATE_KEY) => Ok(false),
            Err(e) => Err(e),
        }
    }
}
