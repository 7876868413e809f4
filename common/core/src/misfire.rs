//! Which slots of a schedule are due now, which were missed, and what the policy
//! makes of these. Pure: the worker hands in the cursor and the clock.

use crate::{
    job::{Assignment, Misfire, When},
    run::Cause,
};
use jiff::{SignedDuration, Timestamp};
use std::collections::VecDeque;

/// A slot that starts no later than this after its instant is on time.
pub const GRACE: SignedDuration = SignedDuration::from_secs(10);
/// How far back missed slots are looked for. Earlier ones are forgotten.
pub const HORIZON: SignedDuration = SignedDuration::from_hours(7 * 24);
/// At most so many slots are looked at one by one; of a longer absence under a dense
/// schedule only the end is.
const MAX_WALK: usize = 10_000;
/// At most so many missed slots get a record of their own; the others are counted.
pub const MAX_RECORDED: usize = 100;
/// Default of `misfire_cap`.
pub const DEFAULT_CAP: u32 = 10;

/// What to do about late slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The policy.
    pub misfire: Misfire,
    /// For [`Misfire::All`]: how many are made up for.
    pub cap: u32,
    /// A slot later than this is missed whatever the policy.
    pub starting_deadline: Option<SignedDuration>,
}

impl From<&Assignment> for Policy {
    fn from(a: &Assignment) -> Self {
        Self {
            misfire: a.misfire,
            cap: a.misfire_cap.unwrap_or(DEFAULT_CAP),
            starting_deadline: a.starting_deadline.and_then(|d| d.0.try_into().ok()),
        }
    }
}

/// What is to be done about the slots up to now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    /// To be started, oldest first.
    pub run: Vec<(Timestamp, Cause)>,
    /// Missed: to be recorded, oldest first, at most [`MAX_RECORDED`].
    pub missed: Vec<Timestamp>,
    /// Missed slots older than those in `missed`.
    pub missed_before: u64,
    /// There are older ones still, too many to be counted.
    pub uncounted: bool,
    /// The first slot after now; `None` when the schedule has ended.
    pub next: Option<Timestamp>,
}

/// Looks at the slots in `(after, now]`, `after` being the last slot dealt with.
pub fn due(when: &When, after: Timestamp, now: Timestamp, policy: Policy) -> Due {
    let next_after = |t| when.next_after(t);
    let in_time = |slot| policy.starting_deadline.is_none_or(|d| now.duration_since(slot) <= d);
    let oldest = after.max(now.checked_sub(HORIZON).unwrap_or(Timestamp::MIN));
    let keep = MAX_RECORDED + usize::try_from(policy.cap).unwrap_or(usize::MAX);
    let start = recent(next_after, oldest, now, keep);
    let mut out = Due { uncounted: start > oldest, ..Due::default() };
    let mut late: VecDeque<Timestamp> = VecDeque::new();
    let mut at = next_after(start);
    while let Some(slot) = at.filter(|s| *s <= now) {
        if now.duration_since(slot) <= GRACE && in_time(slot) {
            out.run.push((slot, Cause::Schedule));
        } else {
            late.push_back(slot);
            if late.len() > keep {
                late.pop_front();
                out.missed_before += 1;
            }
        }
        at = next_after(slot);
    }
    out.next = at;

    let wanted = match policy.misfire {
        Misfire::Skip => 0,
        // A slot that is on time makes up for those before it.
        Misfire::Once => usize::from(out.run.is_empty()),
        Misfire::All => usize::try_from(policy.cap).unwrap_or(usize::MAX),
    };
    let mut make_up = Vec::new();
    while make_up.len() < wanted {
        let Some(slot) = late.back().copied() else { break };
        if !in_time(slot) {
            break;
        }
        late.pop_back();
        make_up.push((slot, Cause::Misfire));
    }
    make_up.reverse();
    make_up.append(&mut out.run);
    out.run = make_up;
    while late.len() > MAX_RECORDED {
        late.pop_front();
        out.missed_before += 1;
    }
    out.missed = late.into();
    out
}

/// From where on to walk to `now`: `oldest`, unless more than [`MAX_WALK`] slots lie
/// between; then a later instant after which there are fewer, but at least `keep`.
fn recent(
    next_after: impl Fn(Timestamp) -> Option<Timestamp>,
    oldest: Timestamp,
    now: Timestamp,
    keep: usize,
) -> Timestamp {
    let count = |from| {
        let slots = std::iter::successors(next_after(from), |t| next_after(*t));
        slots.take_while(|s| *s <= now).take(MAX_WALK + 1).count()
    };
    let (mut many, mut few) = (oldest, now);
    if count(oldest) <= MAX_WALK {
        return oldest;
    }
    // Slots have whole seconds, so this ends: at the latest with neighbours.
    while few.duration_since(many) > SignedDuration::from_secs(1) {
        let middle = many + few.duration_since(many) / 2;
        match count(middle) {
            n if n > MAX_WALK => many = middle,
            n if n < keep => few = middle,
            _ => return middle,
        }
    }
    many
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::Schedule;
    use jiff::tz::TimeZone;

    fn t(s: &str) -> Timestamp {
        format!("2026-03-01T{s}Z").parse().unwrap()
    }

    fn minutely() -> When {
        When::new(Schedule::parse("* * * * *").unwrap(), TimeZone::UTC)
    }

    fn policy(misfire: Misfire) -> Policy {
        Policy { misfire, cap: 2, starting_deadline: None }
    }

    fn slots(due: &Due) -> Vec<(String, Cause)> {
        due.run.iter().map(|(s, c)| (s.to_string()[11..16].to_owned(), *c)).collect()
    }

    #[test]
    fn a_slot_on_time_runs_whatever_the_policy() {
        for misfire in [Misfire::Skip, Misfire::Once, Misfire::All] {
            let d = due(&minutely(), t("10:00:00"), t("10:01:00.010"), policy(misfire));
            assert_eq!(slots(&d), [("10:01".into(), Cause::Schedule)]);
            assert_eq!((d.missed.len(), d.next), (0, Some(t("10:02:00"))));
        }
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let d = due(&minutely(), t("10:00:00"), t("10:00:59.999"), policy(Misfire::All));
        assert_eq!(d, Due { next: Some(t("10:01:00")), ..Due::default() });
    }

    #[test]
    fn late_slots_follow_the_policy() {
        let at = |misfire| due(&minutely(), t("10:00:00"), t("10:05:30"), policy(misfire));
        let skip = at(Misfire::Skip);
        assert_eq!((skip.run.len(), skip.missed.len()), (0, 5));
        let once = at(Misfire::Once);
        assert_eq!(slots(&once), [("10:05".into(), Cause::Misfire)]);
        assert_eq!(once.missed.len(), 4);
        let all = at(Misfire::All);
        assert_eq!(
            slots(&all),
            [("10:04".into(), Cause::Misfire), ("10:05".into(), Cause::Misfire)],
            "the newest, up to the cap, oldest first"
        );
        assert_eq!(all.missed.len(), 3);
        assert_eq!(all.next, Some(t("10:06:00")));
    }

    #[test]
    fn a_slot_on_time_makes_up_for_earlier_ones_under_once() {
        let d = due(&minutely(), t("10:00:00"), t("10:05:02"), policy(Misfire::Once));
        assert_eq!(slots(&d), [("10:05".into(), Cause::Schedule)]);
        assert_eq!(d.missed.len(), 4);
    }

    #[test]
    fn the_starting_deadline_bounds_making_up() {
        let mut p = policy(Misfire::All);
        p.starting_deadline = Some(SignedDuration::from_secs(45));
        let d = due(&minutely(), t("10:00:00"), t("10:05:30"), p);
        assert_eq!(slots(&d), [("10:05".into(), Cause::Misfire)]);
        assert_eq!(d.missed.len(), 4);
    }

    #[test]
    fn a_long_absence_is_counted_not_listed() {
        let every_second = When::new(Schedule::parse("* * * * * *").unwrap(), TimeZone::UTC);
        let d = due(&every_second, t("08:00:00"), t("10:00:00"), policy(Misfire::All));
        let total = 7200;
        assert_eq!(
            d.run.len() as u64 + d.missed.len() as u64 + d.missed_before,
            total,
            "every slot is accounted for"
        );
        assert_eq!(d.missed.len(), MAX_RECORDED);
    }

    #[test]
    fn the_starting_deadline_holds_for_slots_that_are_hardly_late() {
        let mut p = policy(Misfire::All);
        p.starting_deadline = Some(SignedDuration::from_secs(1));
        let at = |now| due(&minutely(), t("10:00:00"), t(now), p);
        assert_eq!(slots(&at("10:01:01")), [("10:01".into(), Cause::Schedule)]);
        let late = at("10:01:09");
        assert_eq!((late.run.len(), late.missed.len()), (0, 1));
    }

    #[test]
    fn a_week_of_seconds_is_not_walked_through() {
        let every_second = When::new(Schedule::parse("* * * * * *").unwrap(), TimeZone::UTC);
        let now = t("10:00:00");
        let asked = std::cell::Cell::new(0);
        let next_after = |t| {
            asked.set(asked.get() + 1);
            every_second.next_after(t)
        };
        let keep = MAX_RECORDED + 2;
        let start = recent(next_after, now - HORIZON, now, keep);
        assert!(asked.get() < 20 * MAX_WALK, "{}", asked.get());
        let left = now.duration_since(start).as_secs();
        assert!(left >= keep as i64 && left <= MAX_WALK as i64, "{left}");
        let d = due(&every_second, now - HORIZON, now, policy(Misfire::All));
        assert_eq!((d.missed.len(), d.uncounted), (MAX_RECORDED, true));
        assert_eq!(d.run.last(), Some(&(now, Cause::Schedule)));
    }

    #[test]
    fn the_end_of_a_dense_schedule_that_rests_now_is_still_found() {
        // A second-by-second hour, long ago and within the horizon.
        let busy = When::new(Schedule::parse("* * 3-6 1 * *").unwrap(), TimeZone::UTC);
        let now = t("10:00:00") + SignedDuration::from_hours(72);
        let d = due(&busy, now - HORIZON, now, policy(Misfire::Once));
        assert_eq!(d.run, [(t("06:59:59"), Cause::Misfire)]);
        assert!(d.uncounted && d.missed.len() == MAX_RECORDED);
    }
}
