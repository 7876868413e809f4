//! The audit in MongoDB: what is sought by stands in fields, the whole record as JSON.

use super::{MongoStore, docs, error::code_of};
use crate::{
    AuditPage, StoreError,
    audit::{AuditQuery, Texts},
    items,
};
use futures::TryStreamExt;
use jiff::Timestamp;
use meepo_core::audit::AuditRecord;
use mongodb::{
    Collection,
    bson::{Bson, DateTime, Document, doc},
    error::{Error, ErrorKind},
};

/// Server code: a document with this key is there.
const DUPLICATE_KEY: i32 = 11000;

fn ceil(at: Timestamp) -> DateTime {
    DateTime::from_millis(items::millis_ceil(at))
}

/// Whether all that went wrong is that documents were there already.
fn only_duplicates(e: &Error) -> bool {
    match &*e.kind {
        ErrorKind::InsertMany(failed) => {
            failed.write_concern_error.is_none()
                && failed
                    .write_errors
                    .as_ref()
                    .is_some_and(|all| all.iter().all(|e| e.code == DUPLICATE_KEY))
        }
        _ => code_of(e) == Some(DUPLICATE_KEY),
    }
}

impl MongoStore {
    fn audit(&self) -> Collection<Document> {
        self.db.collection("audit")
    }

    pub(super) async fn keep_audit(&self, records: &[AuditRecord]) -> Result<(), StoreError> {
        let op = "append audit";
        let mut all = Vec::with_capacity(records.len());
        for r in records {
            let json = serde_json::to_string(r);
            let json = json.map_err(|e| self.context.failed(op, e))?;
            all.push(doc! {
                "_id": docs::run_key_of(*r.id.as_bytes()),
                "at": DateTime::from_millis(items::millis(r.at)),
                "actor": &r.actor,
                "operation": &r.operation,
                "object": &r.object,
                "result": r.result.as_str(),
                "doc": json,
            });
        }
        let insert = async {
            let done = self
                .audit()
                .insert_many(all)
                .ordered(false)
                .write_concern(self.write_concern.clone())
                .await;
            match done {
                Err(e) if only_duplicates(&e) => Ok(()),
                other => other.map(drop),
            }
        };
        self.context.wait(op, insert).await
    }

    pub(super) async fn find_audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let op = "list audit";
        let mut filter = Document::new();
        if let Some(before) = query.before()? {
            let key = docs::run_key_of(*before.as_bytes());
            filter.insert("_id", doc! { "$lt": Bson::Binary(key) });
        }
        let mut at = Document::new();
        at.extend(query.since.map(|t| ("$gte".to_owned(), Bson::from(ceil(t)))));
        at.extend(query.until.map(|t| ("$lt".to_owned(), Bson::from(ceil(t)))));
        if !at.is_empty() {
            filter.insert("at", at);
        }
        let (operation, object) = (query.operation.as_ref(), query.object.as_ref());
        for (field, text) in [
            ("actor", query.actor.clone().map(Texts::One)),
            ("operation", operation.map(|o| Texts::of(o, '.'))),
            ("object", object.map(|o| Texts::of(o, '/'))),
            ("result", query.result.map(|r| Texts::One(r.as_str().to_owned()))),
        ] {
            match text {
                None => {}
                Some(Texts::One(text)) => drop(filter.insert(field, text)),
                Some(Texts::Range(from, to)) => {
                    filter.insert(field, doc! { "$gte": from, "$lt": to });
                }
            }
        }
        let read = async {
            let limit = query.page_size() as i64 + 1;
            let audit = self.audit();
            let find = audit.find(filter).sort(doc! { "_id": -1 });
            find.projection(doc! { "doc": 1 }).limit(limit).await?.try_collect::<Vec<_>>().await
        };
        let found = self.context.wait(op, read).await?;
        let parse = |d: &Document| -> Result<AuditRecord, crate::BoxError> {
            Ok(serde_json::from_str(d.get_str("doc")?)?)
        };
        let read = |d: &Document| {
            let what = || format!("audit record {:?}", d.get("_id"));
            parse(d).map_err(|e| self.context.unreadable(op, what(), e))
        };
        // One that is left out would look as if it had never been.
        Ok(query.page(found.iter().map(read).collect::<Result<_, _>>()?))
    }
}
