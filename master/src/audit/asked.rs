//! What a request itself says: when, who, from where, what.

use super::{Outcome, note::Note, operations};
use crate::{auth::Caller, ops::FORWARDED, peer};
use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, Method},
};
use jiff::Timestamp;
use meepo_core::{
    audit::{AuditRecord, cut},
    run::to_millis,
};
use meepo_runtime::{telemetry::trace, tls::Peer};
use std::collections::BTreeMap;
use tracing::Span;
use uuid::Uuid;

/// Who the client says that it is.
const USER: &str = "meepo-user";
/// Longest such name, and longest id of a request that is taken over, in bytes.
const MAX_NAME: usize = 128;
/// The actor of a request that names none.
const ANONYMOUS: &str = "anonymous";

/// A request that is to be recorded.
pub struct Asked {
    at: Timestamp,
    id: Uuid,
    actor: String,
    /// Whether this master knows that it is so.
    verified: bool,
    address: String,
    forwarded_for: Option<String>,
    method: String,
    operation: String,
    /// What its path names, for requests that do not get as far as to say it themselves.
    object: String,
    pub(super) request_id: String,
    pub(super) grpc: bool,
    details: BTreeMap<String, String>,
    trace_id: Option<String>,
}

impl Asked {
    /// A request over HTTP, unless it only reads.
    pub fn http(request: &Request) -> Option<Self> {
        if [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) {
            return None;
        }
        let path = request.uri().path();
        let route = request.extensions().get::<MatchedPath>().map_or(path, MatchedPath::as_str);
        let operation = operations::http(request.method().as_str(), route);
        let peer = peer::of(request.extensions());
        let method = format!("{} {}", request.method(), path);
        Some(Self { object: named(path), ..Self::new(request.headers(), peer, method, operation) })
    }

    /// A call over gRPC, unless it only reads or is one of meepo's own.
    pub fn grpc(request: &Request) -> Option<Self> {
        let method = request.uri().path().trim_start_matches('/');
        let operation = operations::grpc(method.strip_prefix("meepo.v1.")?)?;
        let peer = peer::of(request.extensions());
        let method = method.to_owned();
        Some(Self { grpc: true, ..Self::new(request.headers(), peer, method, operation) })
    }

    fn new(headers: &HeaderMap, peer: Option<&Peer>, method: String, operation: String) -> Self {
        let id = Uuid::now_v7();
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
        let short = |s: &&str| !s.is_empty() && s.len() <= MAX_NAME;
        let mut details = BTreeMap::new();
        // It is in the audit of the master that was asked, too; but anybody can say that.
        if headers.contains_key(FORWARDED) {
            details.insert("forwarded".to_owned(), "by another master".to_owned());
        }
        Self {
            at: to_millis(Timestamp::now()),
            id,
            actor: text(USER).filter(short).unwrap_or(ANONYMOUS).to_owned(),
            verified: false,
            address: peer.map(|p| p.address.to_string()).unwrap_or_default(),
            forwarded_for: text("x-forwarded-for").map(cut),
            method: cut(&method),
            operation: cut(&operation),
            object: String::new(),
            request_id: text("x-request-id")
                .filter(short)
                .map_or_else(|| id.to_string(), str::to_owned),
            grpc: false,
            details,
            // Also where nobody collects traces here, it is of use to whoever does elsewhere.
            trace_id: trace::id(&Span::current())
                .or_else(|| text("traceparent").and_then(trace::id_of)),
        }
    }

    /// The same, of a caller that is known, whatever the client says.
    pub fn by(mut self, caller: &Caller) -> Self {
        self.actor = cut(&caller.name);
        self.verified = true;
        self.details.insert("via".to_owned(), caller.via.as_str().to_owned());
        if let Some(token) = &caller.token {
            self.details.insert("token_used".to_owned(), token.clone());
        }
        self
    }

    /// The record, now that the request has been served.
    pub(super) fn record(self, note: &Note, outcome: Outcome, master: &str) -> AuditRecord {
        let mut note = note.read();
        let mut details = self.details;
        details.append(&mut note.details);
        AuditRecord {
            id: self.id,
            at: self.at,
            actor: self.actor,
            verified: self.verified,
            address: self.address,
            forwarded_for: self.forwarded_for,
            method: self.method,
            operation: note.operation.take().unwrap_or(self.operation),
            object: note.object.take().unwrap_or(self.object),
            result: outcome.result,
            status: outcome.status,
            code: outcome.code,
            message: outcome.message,
            details,
            request_id: self.request_id,
            trace_id: self.trace_id,
            master: master.to_owned(),
        }
    }
}

/// What paths name, in the singular.
const KINDS: [&str; 9] = ["channel", "job", "node", "role", "rule", "run", "task", "token", "user"];

/// `job/backup` of `/v1/jobs/backup/trigger`.
fn named(path: &str) -> String {
    let path = path.strip_prefix("/v1/").unwrap_or_default();
    let mut parts = path.strip_prefix("notify/").unwrap_or(path).split('/');
    let kind = parts.next().map(|k| k.strip_suffix('s').unwrap_or(k));
    match (kind, parts.next()) {
        (Some(kind), Some(name)) if KINDS.contains(&kind) && !name.is_empty() => {
            cut(&format!("{kind}/{name}"))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http};

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request {
        let mut builder = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(Body::empty()).unwrap()
    }

    #[test]
    fn what_only_reads_is_not_recorded() {
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert!(Asked::http(&request(method, "/v1/jobs/a", &[])).is_none());
        }
        for method in ["POST", "PUT", "PATCH", "DELETE", "TRACE", "NEW"] {
            assert!(Asked::http(&request(method, "/whatever", &[])).is_some(), "{method}");
        }
        for (path, recorded) in [
            ("/meepo.v1.Jobs/List", false),
            ("/meepo.v1.Jobs/Apply", true),
            ("/meepo.v1.Jobs/OfANewerVersion", true),
            ("/meepo.internal.v1.Workers/Deliver", false),
            ("/grpc.health.v1.Health/Check", false),
        ] {
            assert_eq!(Asked::grpc(&request("POST", path, &[])).is_some(), recorded, "{path}");
        }
    }

    #[test]
    fn a_request_says_who_and_from_where_within_bounds() {
        let headers = [
            ("meepo-user", "ann"),
            ("x-forwarded-for", "10.9.8.7"),
            ("x-request-id", "r-1"),
            (FORWARDED, "1"),
        ];
        let asked = Asked::http(&request("POST", "/v1/jobs/backup/trigger", &headers)).unwrap();
        let record = asked.record(&Note::default(), Outcome::GONE, "http://m");
        assert_eq!((record.actor.as_str(), record.verified), ("ann", false));
        assert_eq!(record.forwarded_for.as_deref(), Some("10.9.8.7"));
        assert_eq!((record.object.as_str(), record.request_id.as_str()), ("job/backup", "r-1"));
        assert!(record.details.contains_key("forwarded"));
        let long = "x".repeat(2000);
        let headers =
            [("meepo-user", &*long), ("x-forwarded-for", &*long), ("x-request-id", &*long)];
        let asked = Asked::http(&request("POST", &format!("/v1/jobs/{long}"), &headers)).unwrap();
        let record = asked.record(&Note::default(), Outcome::GONE, "http://m");
        assert_eq!(
            (record.actor.as_str(), &record.request_id),
            ("anonymous", &record.id.to_string())
        );
        assert!(serde_json::to_string(&record).unwrap().len() < 4000, "{record:?}");
    }
}
