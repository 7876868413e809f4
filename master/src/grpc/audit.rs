//! The audit, to be read.

use super::{
    convert,
    public::{Answer, Public, invalid, optional},
};
use meepo_core::audit::AuditRecord;
use meepo_logstore::AuditQuery;
use meepo_proto::v1::{self as pb, audit_server::Audit};
use tonic::{Request, Response};

#[tonic::async_trait]
impl Audit for Public {
    async fn list(&self, request: Request<pb::ListAuditRequest>) -> Answer<pb::AuditList> {
        let r = request.into_inner();
        let query = AuditQuery {
            since: r.since.map(|t| convert::time_from("since", t)).transpose().map_err(invalid)?,
            until: r.until.map(|t| convert::time_from("until", t)).transpose().map_err(invalid)?,
            actor: optional(r.actor),
            operation: optional(r.operation),
            object: optional(r.object),
            result: optional(r.result).map(|r| r.parse()).transpose().map_err(invalid)?,
            limit: Some(r.limit).filter(|l| *l > 0),
            cursor: optional(r.cursor),
        };
        let list = self.ops.list_audit(&query).await?;
        Ok(Response::new(pb::AuditList {
            records: list.records.into_iter().map(record).collect(),
            next: list.next.unwrap_or_default(),
        }))
    }
}

fn record(r: AuditRecord) -> pb::AuditRecord {
    pb::AuditRecord {
        id: r.id.to_string(),
        at: Some(convert::time(r.at)),
        actor: r.actor,
        verified: r.verified,
        address: r.address,
        forwarded_for: r.forwarded_for.unwrap_or_default(),
        method: r.method,
        operation: r.operation,
        object: r.object,
        result: r.result.as_str().to_owned(),
        status: r.status,
        code: r.code.map(|c| c.0.into()),
        message: r.message.unwrap_or_default(),
        details: r.details.into_iter().collect(),
        request_id: r.request_id,
        trace_id: r.trace_id.unwrap_or_default(),
        master: r.master,
    }
}
