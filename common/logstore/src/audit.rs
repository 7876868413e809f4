//! The audit: what every store keeps of a record, and which ones are asked for. Records are
//! added and read; nothing changes one.

use crate::StoreError;
use jiff::Timestamp;
use meepo_core::audit::{AuditRecord, AuditResult};
use uuid::Uuid;

/// Records on a page unless asked otherwise.
pub const DEFAULT_AUDIT: u32 = 50;
/// Most records on a page; a higher limit is cut to it.
pub const MAX_AUDIT: u32 = 1_000;

/// Which records to list. All filters must hold; an absent one holds for every record.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AuditQuery {
    /// Records from then on.
    pub since: Option<Timestamp>,
    /// Records from before then.
    pub until: Option<Timestamp>,
    /// Records of this actor.
    pub actor: Option<String>,
    /// Records of this operation, or with a `.` at its end of all that begin so.
    pub operation: Option<String>,
    /// Records of this object, or with a `/` at its end of all that begin so.
    pub object: Option<String>,
    /// Records with this result.
    pub result: Option<AuditResult>,
    /// Most records on the page: 1 to [`MAX_AUDIT`], [`DEFAULT_AUDIT`] if absent.
    pub limit: Option<u32>,
    /// Where the page before ended: [`AuditPage::next`] of the same query.
    pub cursor: Option<String>,
}

/// Records, newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AuditPage {
    /// At most [`AuditQuery::limit`] records by id, descending.
    pub records: Vec<AuditRecord>,
    /// The cursor of the next page; absent on the last.
    pub next: Option<String>,
}

impl AuditQuery {
    /// The limit that holds.
    pub(crate) fn page_size(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_AUDIT).clamp(1, MAX_AUDIT) as usize
    }

    /// The record after which to go on.
    pub(crate) fn before(&self) -> Result<Option<Uuid>, StoreError> {
        let parse = |text: &String| {
            text.parse().map_err(|_| StoreError::Refused {
                op: "list audit",
                problem: format!("{:?} is not a cursor", text.chars().take(64).collect::<String>()),
                expected: "the `next` of an earlier page, unchanged".into(),
            })
        };
        self.cursor.as_ref().map(parse).transpose()
    }

    /// What was read (one more than the page holds, if there is more) as a page.
    pub(crate) fn page(&self, mut records: Vec<AuditRecord>) -> AuditPage {
        let size = self.page_size();
        let more = records.len() > size;
        records.truncate(size);
        let next = records.last().filter(|_| more).map(|r| r.id.to_string());
        AuditPage { records, next }
    }
}

/// Which texts are meant: this one, or those from the first up to, without, the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Texts {
    One(String),
    Range(String, String),
}

impl Texts {
    /// `text`, or everything that begins with it where it ends in `separator`.
    pub(crate) fn of(text: &str, separator: char) -> Self {
        match text.strip_suffix(separator) {
            Some(stem) => {
                // The character after the separator; both are ASCII.
                let end = char::from(separator as u8 + 1);
                Self::Range(text.to_owned(), format!("{stem}{end}"))
            }
            None => Self::One(text.to_owned()),
        }
    }
}
