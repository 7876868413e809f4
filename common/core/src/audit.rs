//! Who did what, when, from where, to which object, and with what result.

use crate::{code::Code, error::Invalid};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};
use uuid::Uuid;

/// Most bytes of one text in a record; more is cut, with `…` at its end.
pub const MAX_TEXT: usize = 512;
/// Most details of a record; more are left out.
pub const MAX_DETAILS: usize = 16;

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum AuditResult {
    /// It was done, or accepted to be done.
    Ok,
    /// It was not, because of what was asked.
    Refused,
    /// It was not, because of something in meepo or beneath it.
    Failed,
    /// Whether it was done is not known.
    Unknown,
}

impl AuditResult {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Refused, Self::Failed, Self::Unknown];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for AuditResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AuditResult {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let problem = || format!("{s:?} is no result");
        Self::ALL.into_iter().find(|r| r.as_str() == s).ok_or_else(|| {
            Invalid::new(Code::BAD_VALUE, "result", problem(), "ok, refused, failed or unknown")
        })
    }
}

/// One request that was to change something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditRecord {
    /// The record's id, a UUIDv7: ids sort by time.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "uuid"))]
    pub id: Uuid,
    /// When the request came. UTC, in milliseconds.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub at: Timestamp,
    /// Who: as the client says, or `anonymous`.
    pub actor: String,
    /// Whether anything but the client's word stands for that.
    pub verified: bool,
    /// Where from: address and port of the connection.
    pub address: String,
    /// What a proxy says of where the request came from before. Nothing stands for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarded_for: Option<String>,
    /// How it came: `POST /v1/jobs`, `meepo.v1.Jobs/Apply`.
    pub method: String,
    /// What was to be done: `job.apply`, `node.drain`, …
    pub operation: String,
    /// To what: `job/backup`, `node/10.0.0.7`, `run/…`. Empty where the request did not get
    /// as far as to name it.
    pub object: String,
    /// What came of it.
    pub result: AuditResult,
    /// The answer's status: of HTTP, as `201`, or of gRPC, as `NotFound`.
    pub status: String,
    /// The outcome code of a refusal or failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u16>))]
    pub code: Option<Code>,
    /// The words of a refusal or failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// More of what was asked for, cut short; no values of environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
    /// The client's id of the request, or the record's own.
    pub request_id: String,
    /// The trace that the request belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The master that served it, by the URL of its API.
    pub master: String,
}

/// A page of records, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditList {
    /// The records.
    pub records: Vec<AuditRecord>,
    /// The cursor of the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A text cut to [`MAX_TEXT`] bytes.
pub fn cut(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.to_owned();
    }
    let end = (0..=MAX_TEXT - '…'.len_utf8()).rev().find(|i| text.is_char_boundary(*i));
    format!("{}…", &text[..end.unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        for long in ["a".repeat(600), "ü".repeat(300), "😀".repeat(200)] {
            let short = cut(&long);
            assert!(short.len() <= MAX_TEXT && short.len() > MAX_TEXT - 8, "{}", short.len());
            assert!(short.ends_with('…') && long.starts_with(short.trim_end_matches('…')));
        }
    }

    #[test]
    fn results_are_read_as_they_are_written() {
        for result in AuditResult::ALL {
            assert_eq!(result.as_str().parse(), Ok(result));
            assert_eq!(serde_json::to_value(result).unwrap(), result.as_str());
        }
        assert!("OK".parse::<AuditResult>().is_err());
    }
}
