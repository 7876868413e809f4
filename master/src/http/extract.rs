//! Requests taken apart, with errors that name the field.

use crate::error::ApiError;
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{header, request::Parts},
};
use meepo_core::{
    code::Code,
    error::Invalid,
    id::{Name, RunId},
    input::{from_value, parse_json},
    task::{TaskRef, Verb},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::time::Duration;

/// How long a client may take for a body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// A JSON object as body, or none. A body must say that it is JSON: a web page can send
/// other kinds across origins without being asked.
pub(super) struct Body(pub(super) Value);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).cloned();
        let reading = tokio::time::timeout(BODY_PATIENCE, Bytes::from_request(request, state));
        let late = |_| ApiError::new(Code::MALFORMED, "the body did not arrive within 30 s");
        let bytes = reading.await.map_err(late)?.map_err(|e| {
            if e.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
                ApiError::new(Code::TOO_LARGE, "the body is larger than 1 MiB")
            } else {
                ApiError::new(Code::MALFORMED, "the body could not be read")
            }
        })?;
        if bytes.is_empty() {
            return Ok(Self(Value::Object(Map::new())));
        }
        let kind = kind.as_ref().map_or("", |k| k.to_str().unwrap_or("?"));
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence != "application/json" {
            let problem = if kind.is_empty() { "missing" } else { "not understood" };
            let expected = "Content-Type: application/json";
            return Err(Invalid::new(Code::METHOD, "Content-Type", problem, expected).into());
        }
        Ok(Self(parse_json(&bytes)?))
    }
}

impl Body {
    /// The body as `T`.
    pub(super) fn read<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        from_value(self.0).map_err(Into::into)
    }
}

/// Parameters of the query. Unknown ones are refused by `T`.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(pairs) =
            Query::<Vec<(String, String)>>::from_request_parts(parts, state).await.map_err(
                |e| Invalid::new(Code::MALFORMED, "(query)", e.body_text(), "name=value pairs"),
            )?;
        let mut object = Map::new();
        for (key, value) in pairs {
            if object.insert(key.clone(), Value::String(value)).is_some() {
                let problem = "given twice";
                return Err(
                    Invalid::new(Code::BAD_VALUE, key, problem, "each parameter once").into()
                );
            }
        }
        Ok(Self(from_value(Value::Object(object))?))
    }
}

/// The name in the path.
pub(super) struct NamePath(pub(super) Name);

impl<S: Send + Sync> FromRequestParts<S> for NamePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Self(Name::new(&segment(parts, state).await?)?))
    }
}

/// The task or part in the path.
pub(super) struct TaskPath(pub(super) TaskRef);

impl<S: Send + Sync> FromRequestParts<S> for TaskPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Self(segment(parts, state).await?.parse().map_err(ApiError::from)?))
    }
}

/// The task or part in the path, and what to do to it.
pub(super) struct TaskVerbPath(pub(super) TaskRef, pub(super) Verb);

impl<S: Send + Sync> FromRequestParts<S> for TaskVerbPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((id, verb)) = path.map_err(|_| {
            Invalid::new(Code::BAD_NAME, "(path)", "not UTF-8 once decoded", "an id and a verb")
        })?;
        Ok(Self(id.parse().map_err(ApiError::from)?, verb.parse().map_err(ApiError::from)?))
    }
}

/// The run in the path.
pub(super) struct RunPath(pub(super) RunId);

impl<S: Send + Sync> FromRequestParts<S> for RunPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Self(segment(parts, state).await?.parse().map_err(ApiError::from)?))
    }
}

async fn segment<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, ApiError> {
    let path = Path::<String>::from_request_parts(parts, state).await;
    path.map(|Path(s)| s).map_err(|_| {
        Invalid::new(Code::BAD_NAME, "(path)", "not UTF-8 once decoded", "a name").into()
    })
}

/// Reads what is no text out of the text of a parameter.
pub(super) mod read {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, de::Error};

    /// A whole number, for `#[serde(deserialize_with)]`.
    pub(in crate::http) fn number<'de, D, T>(d: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: std::str::FromStr,
    {
        let text = String::deserialize(d)?;
        text.parse().map(Some).map_err(|_| {
            D::Error::custom(format!("{text:?} is not a number in range; expected a whole number"))
        })
    }

    /// `true` or `false`, for `#[serde(deserialize_with)]`.
    pub(in crate::http) fn flag<'de, D: Deserializer<'de>>(d: D) -> Result<Option<bool>, D::Error> {
        let text = String::deserialize(d)?;
        text.parse()
            .map(Some)
            .map_err(|_| D::Error::custom(format!("{text:?} is neither; expected true or false")))
    }

    /// An instant, for `#[serde(deserialize_with)]`.
    pub(in crate::http) fn instant<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map(Some).map_err(|_| {
            let expected = "expected an instant such as 2026-03-29T01:00:00Z";
            D::Error::custom(format!("{text:?} is not an instant; {expected}"))
        })
    }
}
