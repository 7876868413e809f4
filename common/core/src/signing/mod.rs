//! What masters sign and what workers check: which bytes a signature covers, how long it
//! holds, and which signature comes after which. The arithmetic of Ed25519 is elsewhere;
//! here is nothing but text and time. `docs/reference/signing.md` is the specification.

mod canonical;
mod floor;
mod refusal;
#[cfg(test)]
mod tests;

pub use canonical::canonical;
pub use floor::{Floor, LONGEST, LONGEST_REQUEST, SKEW, Standing, stand};
pub use refusal::Refusal;

use crate::{id::NodeId, job::Assignment, task::Order, task::Task};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The field of a value in etcd that holds its signature.
pub const FIELD: &str = "signature";

/// The first line of what is signed: other uses of the same key cannot be taken for this
/// one. The number grows when the form changes.
const CONTEXT: &str = "meepo-signature-1\n";

/// What is signed: a signature of one kind is none of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A job's copy on a node.
    Assignment,
    /// A run on request.
    Trigger,
    /// A part of a task for a node.
    Order,
    /// The end of a run.
    Kill,
    /// A synchronous command of the session stream.
    Exec,
    /// The definition of a job.
    Definition,
    /// A task.
    Task,
}

impl Kind {
    /// Its name in what is signed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Assignment => "assignment",
            Self::Trigger => "trigger",
            Self::Order => "order",
            Self::Kill => "kill",
            Self::Exec => "exec",
            Self::Definition => "definition",
            Self::Task => "task",
        }
    }

    /// Whether its signatures run out. What people define stays until they change it.
    pub const fn expires(self) -> bool {
        !matches!(self, Self::Definition | Self::Task)
    }
}

/// A signature as it stands in a value, under [`FIELD`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Which key made it: the first 16 hexadecimal digits of the SHA-256 of the public key.
    pub key: String,
    /// The leader's term, as the signing master knew it.
    pub term: i64,
    /// When it was made. UTC.
    pub issued_at: Timestamp,
    /// Until when it holds. UTC. Absent where it has no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The 64 bytes of Ed25519 (RFC 8032) in base64.
    pub sig: String,
}

impl Signature {
    /// The signature among the unknown fields of a record.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn among(extra: &BTreeMap<String, Value>) -> Result<Self, Refusal> {
        Self::read(extra.get(FIELD))
    }

    /// Reads a signature.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn read(value: Option<&Value>) -> Result<Self, Refusal> {
        let value = value.ok_or(Refusal::Unsigned)?;
        Self::deserialize(value).map_err(|e| Refusal::Unreadable(e.to_string()))
    }
}

/// Where a value stands: its signature holds nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// What it is.
    pub kind: Kind,
    /// The node that it is for, if it is for one.
    pub node: Option<&'a NodeId>,
    /// Its key in etcd; of a command of the session stream `exec/<run_id>`.
    pub key: &'a str,
}

/// The bytes that are signed. `header` is the signature but for `sig`; `value` is
/// [`canonical`].
pub fn message(place: Place<'_>, header: &Signature, value: &str) -> Vec<u8> {
    let text = |s: &str| Value::from(s).to_string();
    let or_null = |s: Option<String>| s.map_or_else(|| "null".to_owned(), |s| text(&s));
    let expires_at = or_null(header.expires_at.map(|at| at.to_string()));
    let node = or_null(place.node.map(ToString::to_string));
    format!(
        "{CONTEXT}{{\"expires_at\":{expires_at},\"issued_at\":{},\"key\":{},\"kind\":{},\
         \"node\":{node},\"signer\":{},\"term\":{},\"value\":{value}}}",
        text(&header.issued_at.to_string()),
        text(place.key),
        text(place.kind.as_str()),
        text(&header.key),
        header.term,
    )
    .into_bytes()
}

/// A record of which a signature covers what is known of it, whatever else stands there:
/// what is checked is exactly what is used.
pub trait Covered {
    /// The covered fields.
    fn covered(&self) -> Value;
}

/// Records have string keys and no fallible `Serialize`.
fn to_value(record: &impl Serialize) -> Value {
    serde_json::to_value(record).unwrap_or_default()
}

impl Covered for Assignment {
    fn covered(&self) -> Value {
        to_value(&Self { extra: BTreeMap::new(), ..self.clone() })
    }
}

impl Covered for Order {
    /// Not where the part stands: the worker that has it writes that itself.
    fn covered(&self) -> Value {
        serde_json::json!({
            "run_id": self.run_id,
            "attempt": self.part.attempt,
            "command": to_value(&self.command),
            "policy": to_value(&self.policy),
            "submitted_at": self.submitted_at,
            "queued": self.queued,
        })
    }
}

impl Covered for Task {
    /// Not what is wanted of it since: that ends or delays, and starts nothing.
    fn covered(&self) -> Value {
        let mut value = to_value(&Self { extra: BTreeMap::new(), ..self.clone() });
        if let Value::Object(fields) = &mut value {
            fields.remove("control");
            fields.remove("pardoned");
        }
        value
    }
}

/// What a signature covers of a definition: everything that stands there but itself.
pub fn definition(fields: &serde_json::Map<String, Value>) -> Value {
    let mut fields = fields.clone();
    fields.remove(FIELD);
    Value::Object(fields)
}
