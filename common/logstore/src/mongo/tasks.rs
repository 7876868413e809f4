//! Tasks in MongoDB: what is sought by stands in fields, the rest as JSON.

use super::{MongoStore, docs};
use crate::{
    StoreError,
    tasks::{Row, TaskQuery},
};
use futures::TryStreamExt;
use meepo_core::task::{TaskId, TaskView};
use mongodb::{
    Collection,
    bson::{Binary, Bson, DateTime, Document, doc},
};

fn key(id: TaskId) -> Binary {
    docs::run_key_of(*id.0.as_bytes())
}

impl MongoStore {
    fn tasks(&self) -> Collection<Document> {
        self.db.collection("tasks")
    }

    fn task(
        &self,
        op: &'static str,
        found: &Document,
        field: &str,
    ) -> Result<TaskView, StoreError> {
        let parse = || -> Result<TaskView, crate::BoxError> {
            Ok(serde_json::from_str(found.get_str(field)?)?)
        };
        parse().map_err(|e| self.context.unreadable(op, format!("task {:?}", found.get("_id")), e))
    }

    pub(super) async fn keep_tasks(&self, rows: &[Row]) -> Result<(), StoreError> {
        let op = "keep tasks";
        for row in rows {
            let id = docs::run_key_of(row.id);
            let task = doc! {
                "_id": id.clone(),
                "queue": row.queue.clone(),
                "state": row.state,
                "ended_at": DateTime::from_millis(row.ended_at),
                "summary": &row.summary,
                "doc": &row.doc,
            };
            let put = async {
                self.tasks()
                    .replace_one(doc! { "_id": id }, task)
                    .upsert(true)
                    .write_concern(self.write_concern.clone())
                    .await
            };
            self.context.wait(op, put).await?;
        }
        Ok(())
    }

    pub(super) async fn find_task(&self, id: TaskId) -> Result<Option<TaskView>, StoreError> {
        let op = "get task";
        let find = async { self.tasks().find_one(doc! { "_id": key(id) }).await };
        let found = self.context.wait(op, find).await?;
        found.map(|d| self.task(op, &d, "doc")).transpose()
    }

    pub(super) async fn find_tasks(&self, query: &TaskQuery) -> Result<Vec<TaskView>, StoreError> {
        let op = "list tasks";
        let mut filter = Document::new();
        if let Some(queue) = &query.queue {
            filter.insert("queue", queue.as_str());
        }
        let states: Vec<&str> = query.distinct_states().iter().map(|s| s.as_str()).collect();
        if !states.is_empty() {
            filter.insert("state", doc! { "$in": states });
        }
        if let Some(before) = query.before {
            filter.insert("_id", doc! { "$lt": Bson::Binary(key(before)) });
        }
        let read = async {
            let tasks = self.tasks();
            let find = tasks.find(filter).sort(doc! { "_id": -1 });
            let find = find.projection(doc! { "summary": 1 }).limit(query.page_size().into());
            find.await?.try_collect::<Vec<_>>().await
        };
        let found = self.context.wait(op, read).await?;
        // One bad record must not hide all the others.
        let told = |e: &StoreError| tracing::warn!(error = %e.chain(), "left a task out of a list");
        Ok(found
            .iter()
            .filter_map(|d| self.task(op, d, "summary").inspect_err(told).ok())
            .collect())
    }
}
