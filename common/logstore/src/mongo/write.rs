//! Appending: `insert` for chunks and `update` for runs, some megabytes in each, built
//! as raw commands so that bytes are copied and never parsed on their way.

use super::{MongoStore, docs, error};
use crate::{LogItem, StoreError, items};
use meepo_core::run::RunRecord;
use mongodb::bson::{self, Bson, Document, RawArrayBuf, RawDocumentBuf, rawdoc};

const OP: &str = "append";
/// Server code: a document with this key is there already.
const DUPLICATE_KEY: i32 = 11000;
/// Bytes of documents in a command, unless one alone is larger. The server takes
/// 16 MB, the largest item is half of that.
const COMMAND_BYTES: usize = 8 * 1024 * 1024;
/// Documents in a command.
const COMMAND_ITEMS: usize = 5_000;
/// How often runs are tried again that others inserted at the same instant.
const RACES: usize = 8;

impl MongoStore {
    /// Keeps the chunks of a batch. Those that are there stay as they are.
    pub(super) async fn append_output(&self, batch: &[LogItem]) -> Result<(), StoreError> {
        let chunks = batch.iter().filter_map(|item| match item {
            LogItem::Output(c) => Some(c),
            LogItem::Run(_) => None,
        });
        let mut part = Part::default();
        for chunk in chunks {
            let doc = docs::chunk_doc(chunk);
            if part.is_full(&doc) {
                self.insert_output(std::mem::take(&mut part)).await?;
            }
            part.push(doc);
        }
        self.insert_output(part).await
    }

    async fn insert_output(&self, part: Part) -> Result<(), StoreError> {
        if part.count == 0 {
            return Ok(());
        }
        let reply = self.write("insert", self.output.name(), "documents", part).await?;
        match write_errors(&reply).find(|e| !e.is_known_key()) {
            None => Ok(()),
            Some(e) => Err(self.context.code(OP, e.code, e.message)),
        }
    }

    /// Keeps the runs of a batch, each if it outranks what is there.
    pub(super) async fn append_runs(&self, batch: &[LogItem]) -> Result<(), StoreError> {
        let runs = items::runs_of(batch);
        let mut rest = runs.as_slice();
        while !rest.is_empty() {
            let mut part = Part::default();
            for run in rest {
                let update = run_update(run);
                if part.is_full(&update) {
                    break;
                }
                part.push(update);
            }
            let (now, later) = rest.split_at(part.count);
            self.update_runs(now, part).await?;
            rest = later;
        }
        Ok(())
    }

    /// Two upserts of one new run may both see it absent; one of them then fails for
    /// its key, unless the server tries again by itself. The next try finds the run.
    async fn update_runs(&self, runs: &[RunRecord], part: Part) -> Result<(), StoreError> {
        let mut part = part;
        let mut runs: Vec<&RunRecord> = runs.iter().collect();
        for _ in 0..RACES {
            let reply = self.write("update", self.runs.name(), "updates", part).await?;
            let (lost, bad): (Vec<_>, Vec<_>) =
                write_errors(&reply).partition(WriteError::is_known_key);
            if let Some(e) = bad.into_iter().next() {
                return Err(self.context.code(OP, e.code, e.message));
            }
            runs = lost.iter().filter_map(|e| runs.get(e.index).copied()).collect();
            if runs.is_empty() {
                return Ok(());
            }
            part = Part::default();
            runs.iter().for_each(|run| part.push(run_update(run)));
        }
        Err(self.context.unavailable(OP, "others keep inserting the same runs"))
    }

    /// Sends a write command and returns the reply, which may hold errors of single
    /// documents. A connection that broke is tried once more on another: all writes
    /// here may be repeated.
    async fn write(
        &self,
        command: &str,
        collection: &str,
        field: &str,
        part: Part,
    ) -> Result<Document, StoreError> {
        let mut body = RawDocumentBuf::new();
        body.append_ref(command, collection);
        body.append_ref("ordered", false);
        let concern = bson::to_raw_document_buf(&self.write_concern)
            .map_err(|e| self.context.failed(OP, e))?;
        body.append_ref("writeConcern", &concern);
        body.append_ref(field, &part.docs);
        drop(part);
        let send = async {
            match self.db.run_raw_command(body.clone()).await {
                Err(e) if error::again_at_once(&e) => self.db.run_raw_command(body).await,
                other => other,
            }
        };
        let reply = self.context.wait(OP, send).await?;
        self.refuse_concern(OP, &reply)?;
        Ok(reply)
    }

    /// The error of a write that was made, but not as safely as asked for.
    fn refuse_concern(&self, op: &'static str, reply: &Document) -> Result<(), StoreError> {
        let Some(Bson::Document(e)) = reply.get("writeConcernError") else { return Ok(()) };
        let e = WriteError::of(e);
        Err(self.context.code(op, e.code, e.message))
    }

    /// The first error that the reply to a write holds.
    pub(super) fn refuse_errors(
        &self,
        op: &'static str,
        reply: &Document,
    ) -> Result<(), StoreError> {
        match write_errors(reply).next() {
            Some(e) => Err(self.context.code(op, e.code, e.message)),
            None => self.refuse_concern(op, reply),
        }
    }
}

/// The documents of one command.
#[derive(Default)]
struct Part {
    docs: RawArrayBuf,
    count: usize,
    bytes: usize,
}

impl Part {
    fn is_full(&self, next: &RawDocumentBuf) -> bool {
        let more = self.bytes + next.as_bytes().len() > COMMAND_BYTES;
        self.count > 0 && (more || self.count == COMMAND_ITEMS)
    }

    fn push(&mut self, doc: RawDocumentBuf) {
        self.count += 1;
        self.bytes += doc.as_bytes().len();
        self.docs.push(doc);
    }
}

/// Replaces the run's document if its rank is lower or it is not there. The record
/// stands under `$literal`: a command may contain what the server would take for an
/// expression.
fn run_update(r: &RunRecord) -> RawDocumentBuf {
    let rank = i32::from(r.state.rank());
    rawdoc! {
        "q": { "_id": docs::run_key(r.run_id) },
        "u": [{ "$replaceWith": { "$cond": [
            { "$gt": [rank, { "$ifNull": ["$rank", 0] }] },
            { "$literal": docs::run_doc(r) },
            "$$ROOT",
        ] } }],
        "upsert": true,
    }
}

/// Why one document of a command was not written.
struct WriteError {
    index: usize,
    code: i32,
    message: String,
    /// Whether the key of the collection was the reason, as far as the server says.
    by_id: bool,
}

impl WriteError {
    fn of(e: &Document) -> Self {
        let number = |name: &str| match e.get(name) {
            Some(Bson::Int32(n)) => Some(i64::from(*n)),
            Some(Bson::Int64(n)) => Some(*n),
            _ => None,
        };
        let pattern = e.get_document("keyPattern").ok();
        Self {
            index: number("index").and_then(|n| n.try_into().ok()).unwrap_or(usize::MAX),
            code: number("code").and_then(|n| n.try_into().ok()).unwrap_or(0),
            message: e.get_str("errmsg").unwrap_or("no message").to_owned(),
            by_id: pattern.is_none_or(|p| p.len() == 1 && p.contains_key("_id")),
        }
    }

    /// Whether the document was there already. A duplicate in an index that somebody
    /// added by hand is another matter: such a document is not kept.
    fn is_known_key(&self) -> bool {
        self.code == DUPLICATE_KEY && self.by_id
    }
}

fn write_errors(reply: &Document) -> impl Iterator<Item = WriteError> {
    let errors = reply.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
    errors.iter().filter_map(Bson::as_document).map(WriteError::of)
}
