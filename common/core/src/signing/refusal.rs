//! Why a value is not believed.

use crate::{code::Code, error::Invalid};
use jiff::Timestamp;

/// Why the signature of a value does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is none.
    Unsigned,
    /// It has not the form of one.
    Unreadable(String),
    /// Made by a key that is not trusted.
    UnknownKey {
        /// Its id.
        key: String,
        /// Those that are.
        trusted: Vec<String>,
    },
    /// It is not that of this value at this place.
    Forged {
        /// Fields of the value that this version does not know: a newer one may have signed
        /// them.
        unknown: Vec<String>,
    },
    /// It has run out.
    Expired(Timestamp),
    /// It is of a time that has not come.
    Early(Timestamp),
    /// It holds for longer than any may.
    TooLong,
    /// A newer one was accepted before.
    Replayed {
        /// Its term and time.
        is: (i64, Timestamp),
        /// Those of the newest.
        newest: (i64, Timestamp),
    },
    /// What it stood for was taken away meanwhile.
    Withdrawn,
}

impl Refusal {
    /// One word, for metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Unreadable(_) => "unreadable",
            Self::UnknownKey { .. } => "unknown_key",
            Self::Forged { .. } => "forged",
            Self::Expired(_) => "expired",
            Self::Early(_) => "early",
            Self::TooLong => "too_long",
            Self::Replayed { .. } => "replayed",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl From<Refusal> for Invalid {
    fn from(refusal: Refusal) -> Self {
        let at = |(term, time): (i64, Timestamp)| format!("{time} in term {term}");
        let (problem, expected) = match refusal {
            Refusal::Unsigned => (
                "missing".to_owned(),
                "that of a master with a trusted key: nothing else is believed here".to_owned(),
            ),
            Refusal::Unreadable(why) => {
                (format!("unreadable ({why})"), "one as a master makes it".to_owned())
            }
            Refusal::UnknownKey { key, trusted } => (
                format!("made with key {key}, which is not trusted"),
                match trusted.is_empty() {
                    true => "a key of trusted_keys, of which there is none".to_owned(),
                    false => format!("a key of trusted_keys: {}", trusted.join(", ")),
                },
            ),
            Refusal::Forged { unknown } => (
                match unknown.is_empty() {
                    true => "it does not fit the value, the key or the node".to_owned(),
                    false => format!(
                        "it does not fit the value, the key or the node, or it covers fields that \
                         this version does not know: {}",
                        unknown.join(", ")
                    ),
                },
                "the value as it was signed, at the key and node it was signed for".to_owned(),
            ),
            Refusal::Expired(at) => (
                format!("it has run out at {at}"),
                "one that holds; the leading master renews them, and clocks must agree".to_owned(),
            ),
            Refusal::Early(at) => {
                (format!("made at {at}, which is still to come"), "clocks that agree".to_owned())
            }
            Refusal::TooLong => (
                "it holds for longer than any may, or for ever".to_owned(),
                "31 days at most, of requests 397".to_owned(),
            ),
            Refusal::Replayed { is, newest } => (
                format!("made at {}, and one of {} was accepted before", at(is), at(newest)),
                "one that is as new; this value was put back".to_owned(),
            ),
            Refusal::Withdrawn => (
                "what it stood for was taken away since".to_owned(),
                "a new signature; this value was put back".to_owned(),
            ),
        };
        Invalid::new(Code::UNTRUSTED, "signature", problem, expected)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Invalid::from(self.clone()).fmt(f)
    }
}
