//! From matching civil times to instants: what the clock changes do to them.

use super::mask::Masks;
use jiff::{
    SignedDuration, Timestamp,
    tz::{AmbiguousOffset, TimeZone},
};
use std::num::NonZeroU64;

const SECOND: SignedDuration = SignedDuration::from_secs(1);
/// No zone changes its offset and changes it back within this time.
const CALM: SignedDuration = SignedDuration::from_hours(2);

/// The first multiple of `seconds` since the Unix epoch that is after `after`.
pub(super) fn next_multiple(seconds: NonZeroU64, after: Timestamp) -> Option<Timestamp> {
    let step = i64::try_from(seconds.get()).ok()?;
    let slot = floor(after)?.as_second().div_euclid(step).checked_add(1)?.checked_mul(step)?;
    Timestamp::from_second(slot).ok()
}

/// The first slot of `masks` strictly after `after`.
pub(super) fn next_after(masks: &Masks, after: Timestamp, tz: &TimeZone) -> Option<Timestamp> {
    // Slots are whole seconds, so one is after `after` exactly if it is after its floor.
    let after = floor(after)?;
    if masks.wildcard { next_elapsed(masks, after, tz) } else { next_fixed(masks, after, tz) }
}

/// A fixed-time schedule: of a repeated stretch the first pass counts, and what a gap
/// swallows becomes one slot at its end.
fn next_fixed(masks: &Masks, after: Timestamp, tz: &TimeZone) -> Option<Timestamp> {
    // Not the civil time of the next second: if a gap lies between, it must be seen.
    let mut from = tz.to_datetime(after).checked_add(SECOND).ok()?;
    loop {
        let civil = masks.first_from(from.into())?.datetime()?;
        // In a well-formed zone only a fold can name an instant that has passed; the
        // other two checks keep slots increasing whatever the data.
        let slot = match tz.to_ambiguous_timestamp(civil).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(civil).ok()?,
            AmbiguousOffset::Gap { before, after } => {
                change(tz, after.to_timestamp(civil).ok()?, before.to_timestamp(civil).ok()?)?
            }
            AmbiguousOffset::Fold { before, after: later } => {
                let first = before.to_timestamp(civil).ok()?;
                if first <= after {
                    // We are in the second pass; all of it has had its turn.
                    let end = change(tz, first, later.to_timestamp(civil).ok()?)?;
                    from = before.to_datetime(end);
                    continue;
                }
                first
            }
        };
        if slot > after {
            return Some(slot);
        }
        from = civil.checked_add(SECOND).ok()?;
    }
}

/// A wildcard schedule: every instant whose civil time matches.
fn next_elapsed(masks: &Masks, after: Timestamp, tz: &TimeZone) -> Option<Timestamp> {
    let offset = tz.to_offset(after);
    let here = offset.to_datetime(after);
    let mut after = after;
    let mut from = here.checked_add(SECOND).ok()?;
    let near = offset.to_timestamp(masks.first_from(from.into())?.datetime()?).ok()?;
    // Most calls end here: a few minutes ahead, no change of the clock in between.
    if near.duration_since(after) <= CALM && tz.to_offset(near) == offset {
        return Some(near);
    }
    if let AmbiguousOffset::Fold { before, after: later } = tz.to_ambiguous_timestamp(here).offset()
        && before == offset
    {
        // In the first pass: what is left of it, then the second from its start.
        let end = change(tz, after, later.to_timestamp(here).ok()?)?;
        if near < end {
            return Some(near);
        }
        after = end.checked_sub(SECOND).ok()?;
        from = later.to_datetime(end);
    }
    loop {
        let civil = masks.first_from(from.into())?.datetime()?;
        match tz.to_ambiguous_timestamp(civil).offset() {
            AmbiguousOffset::Unambiguous { offset } => return offset.to_timestamp(civil).ok(),
            AmbiguousOffset::Gap { before, after } => {
                let end =
                    change(tz, after.to_timestamp(civil).ok()?, before.to_timestamp(civil).ok()?)?;
                from = after.to_datetime(end);
            }
            AmbiguousOffset::Fold { before, after: later } => {
                let first = before.to_timestamp(civil).ok()?;
                if first > after {
                    return Some(first);
                }
                return later.to_timestamp(civil).ok();
            }
        }
    }
}

/// The instant in `(low, high]` at which the offset stops being that of `low`.
pub(super) fn change(tz: &TimeZone, low: Timestamp, high: Timestamp) -> Option<Timestamp> {
    let offset = tz.to_offset(low);
    let (mut low, mut high) = (low.as_second(), high.as_second());
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if tz.to_offset(Timestamp::from_second(middle).ok()?) == offset {
            low = middle;
        } else {
            high = middle;
        }
    }
    Timestamp::from_second(high).ok()
}

/// `t` without its fraction of a second, towards the past.
fn floor(t: Timestamp) -> Option<Timestamp> {
    let second = t.as_second() - i64::from(t.subsec_nanosecond() < 0);
    Timestamp::from_second(second).ok()
}
