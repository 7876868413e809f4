//! Which signature comes after which, so that an old value cannot be put back.
//!
//! A node remembers for each key the newest signature it has accepted, until no older one
//! could hold any more: that is why each must run out.

use super::{Kind, Refusal, Signature};
use jiff::{SignedDuration, Timestamp};

/// How much the clocks of masters and nodes may differ.
pub const SKEW: SignedDuration = SignedDuration::from_mins(5);
/// Longest time that a signature holds.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(31 * 24);
/// … of a run on request, which may wait for its node for a year.
pub const LONGEST_REQUEST: SignedDuration = SignedDuration::from_hours(397 * 24);

/// What is remembered of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// The term of the newest signature that was accepted.
    pub term: i64,
    /// When it was made. UTC.
    pub issued_at: Timestamp,
    /// What it stood for is gone: it is not accepted again.
    pub closed: bool,
    /// Until when this is to be remembered. UTC.
    pub keep_until: Timestamp,
}

/// How a signature stands to what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is newer: this is to be remembered from now on.
    New(Floor),
    /// It is the one that was accepted last. `expired`: it has run out since.
    Known {
        /// Whether it has run out.
        expired: bool,
    },
}

/// Whether a signature, which is genuine, is to be accepted `now`.
///
/// # Errors
/// Why it is not.
pub fn stand(
    kind: Kind,
    signature: &Signature,
    floor: Option<&Floor>,
    now: Timestamp,
) -> Result<Standing, Refusal> {
    let issued_at = signature.issued_at;
    let longest = match kind {
        Kind::Trigger => LONGEST_REQUEST,
        _ => LONGEST,
    };
    let after = |span| issued_at.checked_add(span).unwrap_or(Timestamp::MAX);
    let expires_at = match signature.expires_at {
        Some(at) if at <= after(longest) => at,
        None if !kind.expires() => Timestamp::MAX,
        _ => return Err(Refusal::TooLong),
    };
    let expired = now >= expires_at;
    if let Some(floor) = floor {
        let (is, newest) = ((signature.term, issued_at), (floor.term, floor.issued_at));
        if is < newest {
            return Err(Refusal::Replayed { is, newest });
        }
        if is == newest {
            return match floor.closed {
                true => Err(Refusal::Withdrawn),
                false => Ok(Standing::Known { expired }),
            };
        }
    }
    if issued_at > now.checked_add(SKEW).unwrap_or(Timestamp::MAX) {
        return Err(Refusal::Early(issued_at));
    }
    if expired {
        return Err(Refusal::Expired(expires_at));
    }
    // Of a key that is used again, older signatures may hold for longer than the newest.
    let keep_until = match kind {
        Kind::Assignment | Kind::Order => after(LONGEST),
        Kind::Definition | Kind::Task => Timestamp::MAX,
        Kind::Trigger | Kind::Kill | Kind::Exec => expires_at,
    };
    Ok(Standing::New(Floor { term: signature.term, issued_at, closed: false, keep_until }))
}
