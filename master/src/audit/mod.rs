//! Who did what: one record for every request that is to change something.
//!
//! Records are made around the requests, whatever their transport, so that no operation can
//! be forgotten: whatever does not only read is recorded, also what nobody has entered into
//! the [table of operations](operations). What an operation is about only it knows; it
//! [notes](object) that while it is served.

mod asked;
mod note;
pub mod operations;
mod spill;
mod writer;

pub use asked::Asked;
pub use note::{detail, object, object_at_first, operation};
pub use writer::write;

use crate::{error::Refusal, metrics::Metrics};
use axum::response::Response;
use meepo_core::{
    audit::{AuditRecord, AuditResult, cut},
    code::Code,
};
use note::Note;
use std::{future::Future, sync::Arc};
use tokio::sync::mpsc;
use tonic::Status;
use tracing::{error, info};

/// Records that may wait to be written. They take a kilobyte or so each.
const QUEUE: usize = 4096;
/// The header of an answer that tells the id of its request.
const REQUEST_ID: &str = "x-request-id";

/// Takes records. Cloning is cheap.
#[derive(Clone)]
pub struct Audit {
    records: mpsc::Sender<AuditRecord>,
    metrics: Arc<Metrics>,
    /// This master, as records name it.
    master: Arc<str>,
}

impl Audit {
    /// The audit of the master with this URL, and what [`write()`] is to write.
    pub fn new(master: &str, metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<AuditRecord>) {
        let (records, queue) = mpsc::channel(QUEUE);
        (Self { records, metrics, master: master.into() }, queue)
    }

    /// This master, by the URL of its API.
    pub fn master(&self) -> &str {
        &self.master
    }

    /// Serves a request and records it, if it is one to be recorded; also when whoever asked
    /// goes away before the answer.
    pub async fn around(
        &self,
        asked: Option<Asked>,
        serve: impl Future<Output = Response>,
    ) -> Response {
        let Some(asked) = asked else { return serve.await };
        let note = Note::default();
        let mut open = Open { audit: self, asked: Some(asked), note: note.clone() };
        let mut response = note.while_serving(serve).await;
        if let Some(asked) = open.asked.take() {
            let id = asked.request_id.parse();
            let outcome = Outcome::of(&response, asked.grpc);
            let record = asked.record(&note, outcome, &self.master);
            self.take(record);
            if let Ok(id) = id {
                response.headers_mut().insert(REQUEST_ID, id);
            }
        }
        response
    }

    /// Logs a record and has it written.
    fn take(&self, r: AuditRecord) {
        info!(
            target: "audit",
            id = %r.id, actor = r.actor, address = r.address, operation = r.operation,
            object = r.object, result = %r.result, status = r.status, method = r.method,
            request_id = r.request_id, details = ?r.details, "request"
        );
        let label = crate::metrics::Outcome { result: r.result.as_str() };
        self.metrics.audited.get_or_create(&label).inc();
        if let Err(e) = self.records.try_send(r) {
            self.metrics.audit_dropped.inc();
            error!(target: "audit", error = %e, "a record is in this log alone");
        }
    }
}

/// A request that is being served.
struct Open<'a> {
    audit: &'a Audit,
    asked: Option<Asked>,
    note: Note,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.audit.take(asked.record(&self.note, Outcome::GONE, &self.audit.master));
        }
    }
}

/// What came of a request.
struct Outcome {
    result: AuditResult,
    status: String,
    code: Option<Code>,
    message: Option<String>,
}

impl Outcome {
    const GONE: Self =
        Self { result: AuditResult::Unknown, status: String::new(), code: None, message: None };

    fn of(response: &Response, grpc: bool) -> Self {
        if grpc {
            return Self::of_grpc(response);
        }
        let status = response.status();
        let refusal = response.extensions().get::<Refusal>();
        let code = refusal.map(|r| r.code);
        let result = match status.as_u16() {
            _ if code == Some(Code::UNKNOWN_OUTCOME) => AuditResult::Unknown,
            0..400 => AuditResult::Ok,
            400..500 => AuditResult::Refused,
            _ => AuditResult::Failed,
        };
        let message = refusal.map(|r| cut(&r.message));
        Self { result, status: status.as_u16().to_string(), code, message }
    }

    fn of_grpc(response: &Response) -> Self {
        use tonic::Code as Grpc;
        let status = Status::from_header_map(response.headers());
        let kind = status.as_ref().map_or(Grpc::Ok, Status::code);
        let code = response.headers().get("meepo-code").and_then(|c| c.to_str().ok()?.parse().ok());
        let result = match kind {
            Grpc::Ok => AuditResult::Ok,
            Grpc::Unknown | Grpc::Cancelled | Grpc::DeadlineExceeded => AuditResult::Unknown,
            Grpc::Unavailable | Grpc::Internal | Grpc::DataLoss => AuditResult::Failed,
            _ => AuditResult::Refused,
        };
        let message = status.filter(|s| s.code() != Grpc::Ok).map(|s| cut(s.message()));
        Self { result, status: format!("{kind:?}"), code: code.map(Code), message }
    }
}
