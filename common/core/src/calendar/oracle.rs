//! Property tests: against croner where it is right, and against plain enumeration
//! where it is not.
//!
//! croner treats a schedule as fixed-time only if second, minute and hour are single
//! values; with lists and ranges it loses the slots of a gap and doubles those of a
//! repeated stretch. It is therefore compared where no clock changes, and across
//! changes only for single values and for leading stars. What it does with the rest is
//! checked by enumeration. Nor does croner count `*/n` in a day field as a star.

use super::{mask::Masks, *};
use croner::parser::{CronParser, Seconds, Year};
use jiff::{SignedDuration, ToSpan, civil::DateTime, tz::AmbiguousOffset};
use proptest::{prelude::*, sample::select};
use std::collections::BTreeSet;

/// A list, range or step within `low..=high`; never a leading star.
fn listed(low: u16, high: u16) -> impl Strategy<Value = String> {
    let value = low..=high;
    let item = prop_oneof![
        4 => value.clone().prop_map(|v| v.to_string()),
        2 => (value.clone(), value.clone()).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        1 => (value.clone(), value, 1..=high).prop_map(|(a, b, s)| {
            format!("{}-{}/{s}", a.min(b), a.max(b))
        }),
    ];
    prop::collection::vec(item, 1..4).prop_map(|v| v.join(","))
}

fn starred(high: u16) -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("*".to_owned()),
        1 => (1..=high / 2).prop_map(|s| format!("*/{s}")),
    ]
}

fn any_field(low: u16, high: u16) -> impl Strategy<Value = String> {
    prop_oneof![starred(high), listed(low, high)]
}

fn one(low: u16, high: u16) -> impl Strategy<Value = String> {
    (low..=high).prop_map(|v| v.to_string())
}

fn day() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => any_field(1, 31),
        1 => Just("L".to_owned()),
        1 => (1..=31).prop_map(|d| format!("{d}W")),
    ]
}

fn weekday() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => any_field(0, 7),
        1 => (0..=6, 1..=5).prop_map(|(d, n)| format!("{d}#{n}")),
        1 => (0..=6).prop_map(|d| format!("{d}L")),
        1 => select(&["mon-fri", "SAT,Sun", "tue"][..]).prop_map(str::to_owned),
    ]
}

/// Day of month, month and weekday.
fn dates() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just("* * *".to_owned()),
        3 => (day(), any_field(1, 12), weekday()).prop_map(|(d, m, w)| format!("{d} {m} {w}")),
    ]
}

fn zone() -> impl Strategy<Value = TimeZone> {
    let names: Vec<String> = ZONES.available().map(|n| n.to_string()).collect();
    select(names).prop_map(|name| time_zone(&name).unwrap())
}

fn instant() -> impl Strategy<Value = Timestamp> {
    // 1980 to 2060.
    (315_532_800i64..2_840_140_800).prop_map(|s| Timestamp::from_second(s).unwrap())
}

/// An instant shortly before or after a change of the zone's clock, if it has any.
fn near_change() -> impl Strategy<Value = (TimeZone, Timestamp)> {
    (zone(), instant(), -90_000i64..90_000).prop_map(|(tz, t, shift)| {
        let change = tz.following(t).next().map(|c| c.timestamp());
        let t = change.unwrap_or(t).checked_add(shift.seconds()).unwrap();
        (tz, t)
    })
}

fn croner_slots(expr: &str, after: Timestamp, tz: &TimeZone, n: usize) -> Vec<Timestamp> {
    let cron = CronParser::builder()
        .seconds(Seconds::Optional)
        .year(Year::Optional)
        .build()
        .parse(expr)
        .unwrap_or_else(|e| panic!("croner refuses {expr}: {e}"));
    cron.iter_after(after.to_zoned(tz.clone())).take(n).map(|z| z.timestamp()).collect()
}

fn our_slots(expr: &str, after: Timestamp, tz: &TimeZone, n: usize) -> Option<Vec<Timestamp>> {
    // Refused: no such date. Nothing to compare.
    let schedule = Schedule::parse(expr).ok()?;
    Some(schedule.iter_after(after, tz).take(n).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn agrees_with_croner_where_no_clock_changes(
        second in any_field(0, 59), minute in any_field(0, 59), hour in any_field(0, 23),
        dates in dates(), after in instant(), offset in -12i8..=14,
    ) {
        let days: Vec<&str> = dates.split(' ').collect();
        if days[0] != "*" && days[2] != "*" && (days[0].starts_with('*') || days[2].starts_with('*')) {
            return Ok(());
        }
        let tz = jiff::tz::offset(offset).to_time_zone();
        let expr = format!("{second} {minute} {hour} {dates}");
        if let Some(ours) = our_slots(&expr, after, &tz, 5) {
            prop_assert_eq!(&ours, &croner_slots(&expr, after, &tz, ours.len()), "{}", expr);
        }
    }

    #[test]
    fn agrees_with_croner_on_changing_clocks(
        times in prop_oneof![
            (one(0, 59), one(0, 23)).prop_map(|(m, h)| format!("{m} {h}")),
            (one(0, 59), starred(23)).prop_map(|(m, h)| format!("{m} {h}")),
            (starred(59), any_field(0, 23)).prop_map(|(m, h)| format!("{m} {h}")),
        ],
        (tz, after) in near_change(),
    ) {
        // croner gives up on gaps of more than two hours, such as a skipped day.
        let offset = |days: i64| tz.to_offset(after + SignedDuration::from_hours(24 * days));
        if (offset(-3).seconds() - offset(3).seconds()).abs() > 7200 {
            return Ok(());
        }
        let expr = format!("{times} * * *");
        if let Some(ours) = our_slots(&expr, after, &tz, 5) {
            prop_assert_eq!(&ours, &croner_slots(&expr, after, &tz, 5), "{} {:?} {}", expr, tz, after);
        }
    }

    #[test]
    fn slots_are_what_enumeration_finds(
        second in prop_oneof![4 => Just("0".to_owned()), 1 => listed(0, 59)],
        minute in any_field(0, 59), hour in any_field(0, 23), (tz, after) in near_change(),
    ) {
        let schedule = parsed(&format!("{second} {minute} {hour} * * *"));
        let Kind::Calendar(masks) = &schedule.0 else { unreachable!() };
        let end = after.checked_add(20.hours()).unwrap();
        let want = enumerate(masks, after, end, &tz);
        let got: Vec<_> = schedule.iter_after(after, &tz).take_while(|t| *t <= end).collect();
        prop_assert_eq!(got, want, "{} {} {} {:?} {}", second, minute, hour, tz, after);
    }

    #[test]
    fn the_next_slot_is_the_same_from_anywhere_before_it(
        times in (any_field(0, 59), any_field(0, 23)), dates in dates(),
        (tz, after) in near_change(), part in 0.0..1.0f64,
    ) {
        let Ok(schedule) = Schedule::parse(&format!("{} {} {dates}", times.0, times.1)) else {
            return Ok(());
        };
        let slots: Vec<_> = schedule.iter_after(after, &tz).take(6).collect();
        for pair in slots.windows(2) {
            prop_assert!(pair[0] < pair[1]);
            let gap = pair[1].duration_since(pair[0]).as_nanos() as f64;
            let within = SignedDuration::from_nanos((gap * part) as i64);
            let almost = SignedDuration::from_nanos(1);
            for from in [pair[0] + within, pair[0], pair[1] - almost] {
                prop_assert_eq!(schedule.next_after(from, &tz), Some(pair[1]));
            }
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "[-*/,#@LW?0-9a-z \\PC]{0,40}") {
        let _ = Schedule::parse(&text);
    }

    #[test]
    fn every_slot_is_a_multiple(seconds in 1u64..1_000_000, after in instant()) {
        let schedule = parsed(&format!("@every {seconds}s"));
        let slot = schedule.next_after(after, &TimeZone::UTC).unwrap();
        prop_assert_eq!(slot.as_second() as u64 % seconds, 0);
        prop_assert!(slot > after && slot.duration_since(after).as_secs() <= seconds as i64);
    }
}

fn parsed(expr: &str) -> Schedule {
    Schedule::parse(expr).unwrap_or_else(|e| panic!("{expr}: {e}"))
}

/// The slots in `(after, end]` by trying every civil minute around, straight from the
/// rules.
fn enumerate(masks: &Masks, after: Timestamp, end: Timestamp, tz: &TimeZone) -> Vec<Timestamp> {
    // Far enough for a skipped day.
    let start = tz.to_datetime(after - SignedDuration::from_hours(30));
    let mut minute = start.with().second(0).subsec_nanosecond(0).build().unwrap();
    let last = tz.to_datetime(end) + 30.hours();
    let mut slots = BTreeSet::new();
    while minute < last {
        let matching = (0..60).filter(|s| masks.seconds >> s & 1 == 1);
        if masks.minutes >> minute.minute() & 1 == 1 && masks.hours >> minute.hour() & 1 == 1 {
            for second in matching {
                slots_of(minute + second.seconds(), masks.wildcard, tz, &mut slots);
            }
        }
        minute += 1.minute();
    }
    slots.into_iter().filter(|t| *t > after && *t <= end).collect()
}

fn slots_of(civil: DateTime, wildcard: bool, tz: &TimeZone, slots: &mut BTreeSet<Timestamp>) {
    let at = |offset: jiff::tz::Offset| offset.to_timestamp(civil).unwrap();
    match tz.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Unambiguous { offset } => {
            slots.insert(at(offset));
        }
        AmbiguousOffset::Gap { after: then, .. } if !wildcard => {
            // The change after the instant that the later offset makes of it.
            let change = tz.following(at(then)).find(|c| c.offset() == then).unwrap();
            slots.insert(change.timestamp());
        }
        AmbiguousOffset::Gap { .. } => {}
        AmbiguousOffset::Fold { before, after: then } => {
            slots.insert(at(before));
            if wildcard {
                slots.insert(at(then));
            }
        }
    }
}
