//! Every refusal and failure of the API in one shape, whatever the transport.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use meepo_coord::CoordError;
use meepo_core::{
    api::{ErrorBody, ErrorInfo},
    code::{self, Code},
    error::Invalid,
};
use meepo_logstore::{LIST_PATIENCE, StoreError};
use tonic::{Status, metadata::MetadataValue};
use tracing::{debug, error, warn};

/// What the caller is told.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .0.message)]
pub struct ApiError(pub ErrorInfo);

/// Goes along with an answer that is an error, for those who look at answers from outside.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The outcome code.
    pub code: Code,
    /// The sentence for people.
    pub message: String,
}

/// What an operation answers.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error without a field.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(ErrorInfo {
            code,
            name: code.name(),
            message: message.into(),
            field: None,
            expected: None,
            retry: code.retryable(),
        })
    }

    /// After how many seconds it is worth asking again, where it can be of use at all.
    pub fn retry_after(&self) -> Option<u32> {
        match self.status() {
            StatusCode::TOO_MANY_REQUESTS => Some(1),
            // Another leads, or a breaker lets a call through, after some seconds.
            StatusCode::SERVICE_UNAVAILABLE => Some(2),
            _ => None,
        }
    }

    /// There is no such thing.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        Self::new(Code::NOT_FOUND, format!("no {what} {name}"))
    }

    /// The status of HTTP that fits.
    pub fn status(&self) -> StatusCode {
        match self.0.code {
            Code::NOT_FOUND | Code::NO_SUCH_HOST => StatusCode::NOT_FOUND,
            Code::CONFLICT => StatusCode::CONFLICT,
            Code::TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
            Code::METHOD if self.0.field.is_some() => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::METHOD => StatusCode::METHOD_NOT_ALLOWED,
            Code::UNAUTHENTICATED => StatusCode::UNAUTHORIZED,
            Code::FORBIDDEN | Code::DENIED => StatusCode::FORBIDDEN,
            Code::NO_TARGET => StatusCode::UNPROCESSABLE_ENTITY,
            Code::BUSY => StatusCode::TOO_MANY_REQUESTS,
            Code::UNKNOWN_OUTCOME => StatusCode::GATEWAY_TIMEOUT,
            c if c.kind() == code::VALIDATION => StatusCode::BAD_REQUEST,
            c if c.retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<Invalid> for ApiError {
    fn from(e: Invalid) -> Self {
        Self(ErrorInfo::from(&e))
    }
}

impl From<CoordError> for ApiError {
    fn from(e: CoordError) -> Self {
        if e.outcome_unknown() {
            warn!(error = %e, "it is not known whether a request took effect");
            return Self::new(Code::UNKNOWN_OUTCOME, Code::UNKNOWN_OUTCOME.meaning());
        }
        if e.retryable() {
            debug!(error = %e, "etcd did not serve a request");
            return Self::new(Code::ETCD, "etcd cannot be reached or has no leader");
        }
        error!(error = %e, "etcd refused a request");
        Self::new(Code::BUG, "etcd refused the request; the log of the master says why")
    }
}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> Self {
        if let StoreError::Refused { op, problem, expected } = e {
            let field = if op == "search output" { "q" } else { "cursor" };
            return Invalid::new(Code::BAD_VALUE, field, problem, expected).into();
        }
        if let StoreError::TooMuch { .. } = e {
            debug!(error = %e, "a question to the log store took too long");
            let problem = format!("no answer within {} s", LIST_PATIENCE.as_secs());
            let expected = "a narrower question: a job, a node, a shorter time";
            return Invalid::new(Code::BAD_VALUE, "(query)", problem, expected).into();
        }
        if e.retryable() {
            debug!(error = %e, "the log store did not serve a request");
            return Self::new(Code::LOG_STORE, "the log store cannot be reached");
        }
        let chain = anyhow::Error::from(e);
        error!(error = format!("{chain:#}"), "the log store failed");
        Self::new(Code::BUG, "the log store failed; the log of the master says why")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry = self.retry_after();
        let refusal = Refusal { code: self.0.code, message: self.0.message.clone() };
        let mut response = (self.status(), Json(ErrorBody { error: self.0 })).into_response();
        response.extensions_mut().insert(refusal);
        if let Some(seconds) = retry {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"meepo\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<ApiError> for Status {
    fn from(e: ApiError) -> Self {
        let code = match e.status() {
            StatusCode::NOT_FOUND => tonic::Code::NotFound,
            StatusCode::CONFLICT => tonic::Code::FailedPrecondition,
            StatusCode::UNAUTHORIZED => tonic::Code::Unauthenticated,
            StatusCode::FORBIDDEN => tonic::Code::PermissionDenied,
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => {
                tonic::Code::ResourceExhausted
            }
            StatusCode::UNPROCESSABLE_ENTITY => tonic::Code::FailedPrecondition,
            StatusCode::SERVICE_UNAVAILABLE => tonic::Code::Unavailable,
            StatusCode::GATEWAY_TIMEOUT => tonic::Code::Unknown,
            StatusCode::INTERNAL_SERVER_ERROR => tonic::Code::Internal,
            _ => tonic::Code::InvalidArgument,
        };
        let retry = e.retry_after();
        let info = e.0;
        let message = match (&info.field, &info.expected) {
            (Some(field), Some(expected)) => {
                format!("{field}: {}; expected {expected}", info.message)
            }
            _ => info.message.clone(),
        };
        let mut status = Status::new(code, message);
        let metadata = status.metadata_mut();
        metadata.insert("meepo-code", MetadataValue::from(info.code.0));
        if let Some(seconds) = retry {
            metadata.insert("retry-after", MetadataValue::from(seconds));
        }
        // Texts that do not fit into a header stand in the message all the same.
        for (key, text) in [("meepo-field", info.field), ("meepo-expected", info.expected)] {
            if let Some(value) = text.and_then(|t| t.parse().ok()) {
                metadata.insert(key, value);
            }
        }
        status
    }
}
