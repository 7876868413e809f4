//! What waits to go into one message.

use super::{Happening, Kind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Happenings that a message lists; the others are counted.
pub const MAX_LISTED: usize = 20;
/// Of these so many with the end of their output.
const MAX_TAILS: usize = 3;
/// Groups of one rule that wait at the same time; what belongs to others goes into one more.
pub const MAX_GROUPS: usize = 50;
/// That one.
pub(super) const OTHERS: &str = "~";

/// Happenings, some of them with all that is known, the others counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Digest {
    /// How many there are of each kind.
    pub kinds: BTreeMap<Kind, u64>,
    /// The first of them.
    pub events: Vec<Happening>,
    /// How many there are besides.
    #[serde(default)]
    pub more: u64,
}

impl Digest {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.kinds.values().sum()
    }

    /// One more.
    pub fn add(&mut self, mut what: Happening) {
        let kind = self.kinds.entry(what.kind).or_default();
        *kind = kind.saturating_add(what.times);
        if self.events.len() >= MAX_LISTED {
            self.more = self.more.saturating_add(what.times);
            return;
        }
        if self.events.iter().filter(|e| e.tail.is_some()).count() >= MAX_TAILS {
            what.tail = None;
        }
        self.events.push(what);
    }

    /// Those of another, too.
    pub fn merge(&mut self, other: Self) {
        let Self { mut kinds, events, more } = other;
        for what in events {
            if let Some(n) = kinds.get_mut(&what.kind) {
                *n = n.saturating_sub(what.times);
            }
            self.add(what);
        }
        // What was only counted there.
        self.more = self.more.saturating_add(more);
        for (kind, n) in kinds.into_iter().filter(|(_, n)| *n > 0) {
            let there = self.kinds.entry(kind).or_default();
            *there = there.saturating_add(n);
        }
    }
}

/// Happenings of one rule that go into one message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Of its message, for each channel with the channel's name behind it.
    pub id: String,
    /// When it is told, UTC.
    pub due: Timestamp,
    /// Where to, as of its rule when it began.
    pub to: Vec<crate::id::Name>,
    /// What.
    pub digest: Digest,
}

/// An id that depends on what it is for, and sorts by time.
pub(super) fn id_of(parts: &[&str], at: Timestamp) -> String {
    // FNV-1a: the same on every master.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let bytes = parts.iter().flat_map(|p| p.bytes().chain([0]));
    for byte in bytes.chain(at.as_nanosecond().to_be_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{:012x}-{hash:016x}", at.as_millisecond().max(0))
}
