mod clock;

use super::*;
use std::time::{Duration, Instant};

fn ts(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn parsed(expr: &str) -> Schedule {
    Schedule::parse(expr).unwrap_or_else(|e| panic!("{expr}: {e}"))
}

/// Each row: expression, zone, after, the next slots. Slots are written in the zone's
/// civil time with offset, so that a reader sees what the clock on the wall says.
/// Rows that start with `#` are comments.
fn check(table: &str) {
    let rows = table.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("# "));
    for row in rows {
        let [expr, zone, after, slots] = row.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{row}: not a row");
        };
        let tz = time_zone(zone).unwrap();
        let want: Vec<Timestamp> = slots.split_whitespace().map(ts).collect();
        assert!(!want.is_empty(), "{row}");
        let schedule = parsed(expr);
        let got: Vec<Timestamp> = schedule.iter_after(ts(after), &tz).take(want.len()).collect();
        let shown: Vec<String> =
            got.iter().map(|t| t.display_with_offset(tz.to_offset(*t)).to_string()).collect();
        assert_eq!(got, want, "{expr} in {zone} after {after}: got {shown:#?}");
    }
}

#[test]
fn a_schedule_is_small() {
    assert!(size_of::<Schedule>() <= 48, "{}", size_of::<Schedule>());
}

#[test]
fn fields_lists_ranges_and_steps() {
    check(
        r"
        * * * * * | UTC | 2026-01-01T00:00:00Z | 2026-01-01T00:01:00Z 2026-01-01T00:02:00Z
        * * * * * | UTC | 2026-01-01T00:00:59.999999999Z | 2026-01-01T00:01:00Z
        * * * * * | UTC | 1969-12-31T23:59:59.5Z | 1970-01-01T00:00:00Z
        * * * * * | UTC | -000044-03-15T12:00:00Z | 1970-01-01T00:00:00Z
        */20 * * * * | UTC | 2026-01-01T00:10:00Z | 2026-01-01T00:20:00Z 2026-01-01T00:40:00Z 2026-01-01T01:00:00Z
        10-40/15 3 * * * | UTC | 2026-01-01T00:00:00Z | 2026-01-01T03:10:00Z 2026-01-01T03:25:00Z 2026-01-01T03:40:00Z 2026-01-02T03:10:00Z
        40/15 3 * * * | UTC | 2026-01-01T00:00:00Z | 2026-01-01T03:40:00Z 2026-01-01T03:55:00Z 2026-01-02T03:40:00Z
        */90 3 * * * | UTC | 2026-01-01T00:00:00Z | 2026-01-01T03:00:00Z 2026-01-02T03:00:00Z
        0,30,15 22-23 * * * | UTC | 2026-01-01T22:20:00Z | 2026-01-01T22:30:00Z 2026-01-01T23:00:00Z 2026-01-01T23:15:00Z
          5 4  *  *   *  | UTC | 2026-01-01T00:00:00Z | 2026-01-01T04:05:00Z
        30 2 * jan,MAR-apr * | UTC | 2026-01-31T03:00:00Z | 2026-03-01T02:30:00Z
        0 0 1 12 * | UTC | 2026-12-01T00:00:00Z | 2027-12-01T00:00:00Z
        */20 30 4 * * * | UTC | 2026-01-01T00:00:00Z | 2026-01-01T04:30:00Z 2026-01-01T04:30:20Z 2026-01-01T04:30:40Z 2026-01-02T04:30:00Z
        0 0 0 1 1 * 2030-2034/2 | UTC | 2026-01-01T00:00:00Z | 2030-01-01T00:00:00Z 2032-01-01T00:00:00Z 2034-01-01T00:00:00Z
        0 0 0 29 2 * 2026-2031 | UTC | 2026-01-01T00:00:00Z | 2028-02-29T00:00:00Z
        0 0 29 2 * | UTC | 2096-03-01T00:00:00Z | 2104-02-29T00:00:00Z
        0 9 * * * | Asia/Shanghai | 2026-01-01T00:00:00Z | 2026-01-01T09:00:00+08:00 2026-01-02T09:00:00+08:00
        0 9 * * * | Asia/Kathmandu | 2026-01-01T00:00:00Z | 2026-01-01T09:00:00+05:45
        ",
    );
    let tz = TimeZone::UTC;
    assert_eq!(parsed("0 0 0 1 1 * 2020").next_after(ts("2026-01-01T00:00:00Z"), &tz), None);
    assert_eq!(parsed("* * * * *").next_after(ts("2199-12-31T23:59:00Z"), &tz), None);
    assert_eq!(parsed("* * * * *").next_after(Timestamp::MAX, &tz), None);
    assert!(parsed("* * * * *").next_after(Timestamp::MIN, &tz).is_some());
    assert_eq!(parsed("@every 90s").next_after(Timestamp::MAX, &tz), None);
}

#[test]
fn weekdays_and_their_union_with_days() {
    // 2026-01-01 is a Thursday.
    check(
        r"
        0 0 * * 0 | UTC | 2026-01-01T00:00:00Z | 2026-01-04T00:00:00Z 2026-01-11T00:00:00Z
        0 0 * * 7 | UTC | 2026-01-01T00:00:00Z | 2026-01-04T00:00:00Z 2026-01-11T00:00:00Z
        0 0 * * 1-5 | UTC | 2026-01-01T00:00:00Z | 2026-01-02T00:00:00Z 2026-01-05T00:00:00Z
        0 0 * * 5-7 | UTC | 2026-01-01T00:00:00Z | 2026-01-02T00:00:00Z 2026-01-03T00:00:00Z 2026-01-04T00:00:00Z 2026-01-09T00:00:00Z
        0 0 * * FRI-Sun | UTC | 2026-01-01T00:00:00Z | 2026-01-02T00:00:00Z 2026-01-03T00:00:00Z 2026-01-04T00:00:00Z 2026-01-09T00:00:00Z
        0 0 * * */2 | UTC | 2026-01-01T00:00:00Z | 2026-01-03T00:00:00Z 2026-01-04T00:00:00Z 2026-01-06T00:00:00Z
        0 0 * * 1/2 | UTC | 2026-01-01T00:00:00Z | 2026-01-02T00:00:00Z 2026-01-05T00:00:00Z 2026-01-07T00:00:00Z 2026-01-09T00:00:00Z
        # Neither starts with a star: either is enough.
        0 0 13 * 5 | UTC | 2026-01-01T00:00:00Z | 2026-01-02T00:00:00Z 2026-01-09T00:00:00Z 2026-01-13T00:00:00Z 2026-01-16T00:00:00Z
        # One starts with a star, even with a step: both must match.
        0 0 */2 * 5 | UTC | 2026-01-01T00:00:00Z | 2026-01-09T00:00:00Z 2026-01-23T00:00:00Z 2026-02-13T00:00:00Z
        0 0 1-7 * */7 | UTC | 2026-01-01T00:00:00Z | 2026-01-04T00:00:00Z 2026-02-01T00:00:00Z
        0 0 *,13 * 5 | UTC | 2026-01-01T00:00:00Z | 2026-01-02T00:00:00Z 2026-01-09T00:00:00Z
        # A star later in the list is no leading star.
        0 0 13,* * 5 | UTC | 2026-01-01T00:00:00Z | 2026-01-02T00:00:00Z 2026-01-03T00:00:00Z
        0 0 ? * 5 | UTC | 2026-01-01T00:00:00Z | 2026-01-02T00:00:00Z 2026-01-09T00:00:00Z
        0 0 13 * ? | UTC | 2026-01-01T00:00:00Z | 2026-01-13T00:00:00Z 2026-02-13T00:00:00Z
        0 0 13 2 1 | UTC | 2026-01-01T00:00:00Z | 2026-02-02T00:00:00Z 2026-02-09T00:00:00Z 2026-02-13T00:00:00Z
        ",
    );
}

#[test]
fn last_nearest_and_nth() {
    check(
        r"
        0 0 L * * | UTC | 2026-01-01T00:00:00Z | 2026-01-31T00:00:00Z 2026-02-28T00:00:00Z 2026-03-31T00:00:00Z 2026-04-30T00:00:00Z
        0 0 l 2 * | UTC | 2028-01-01T00:00:00Z | 2028-02-29T00:00:00Z
        0 0 L-3 * * | UTC | 2026-01-01T00:00:00Z | 2026-01-28T00:00:00Z 2026-02-25T00:00:00Z
        0 0 L-29 * * | UTC | 2026-01-01T00:00:00Z | 2026-01-02T00:00:00Z 2026-03-02T00:00:00Z 2026-04-01T00:00:00Z
        0 0 1,L * * | UTC | 2026-01-01T00:00:00Z | 2026-01-31T00:00:00Z 2026-02-01T00:00:00Z 2026-02-28T00:00:00Z
        # 15 August 2026 is a Saturday, 15 March and 15 November are Sundays.
        0 0 15W 3,8,10,11 * | UTC | 2026-01-01T00:00:00Z | 2026-03-16T00:00:00Z 2026-08-14T00:00:00Z 2026-10-15T00:00:00Z 2026-11-16T00:00:00Z
        # Not into another month: 1 August is a Saturday, 31 May and 31 January 2027 Sundays.
        0 0 1w 8 * | UTC | 2026-01-01T00:00:00Z | 2026-08-03T00:00:00Z
        0 0 31W * * | UTC | 2026-05-01T00:00:00Z | 2026-05-29T00:00:00Z 2026-07-31T00:00:00Z 2026-08-31T00:00:00Z
        0 0 LW * * | UTC | 2026-01-01T00:00:00Z | 2026-01-30T00:00:00Z 2026-02-27T00:00:00Z 2026-03-31T00:00:00Z 2026-04-30T00:00:00Z 2026-05-29T00:00:00Z
        0 0 * * 1#2 | UTC | 2026-01-01T00:00:00Z | 2026-01-12T00:00:00Z 2026-02-09T00:00:00Z
        0 0 * * sun#1,7#3 | UTC | 2026-01-01T00:00:00Z | 2026-01-04T00:00:00Z 2026-01-18T00:00:00Z 2026-02-01T00:00:00Z
        0 0 * * 4#5 | UTC | 2026-01-01T00:00:00Z | 2026-01-29T00:00:00Z 2026-04-30T00:00:00Z
        0 0 * 2 6#5 | UTC | 2026-01-01T00:00:00Z | 2048-02-29T00:00:00Z
        0 0 * * 5L | UTC | 2026-01-01T00:00:00Z | 2026-01-30T00:00:00Z 2026-02-27T00:00:00Z
        0 0 * * friL | UTC | 2026-01-01T00:00:00Z | 2026-01-30T00:00:00Z
        0 0 1 * 5L | UTC | 2026-01-01T00:00:00Z | 2026-01-30T00:00:00Z 2026-02-01T00:00:00Z 2026-02-27T00:00:00Z
        ",
    );
}

#[test]
fn at_forms() {
    check(
        r"
        @yearly | UTC | 2026-03-04T05:06:07Z | 2027-01-01T00:00:00Z
        @annually | UTC | 2026-03-04T05:06:07Z | 2027-01-01T00:00:00Z
        @monthly | UTC | 2026-03-04T05:06:07Z | 2026-04-01T00:00:00Z
        @weekly | UTC | 2026-03-04T05:06:07Z | 2026-03-08T00:00:00Z 2026-03-15T00:00:00Z
        @daily | UTC | 2026-03-04T05:06:07Z | 2026-03-05T00:00:00Z
        @Midnight | Asia/Tokyo | 2026-03-04T05:06:07Z | 2026-03-05T00:00:00+09:00
        @hourly | UTC | 2026-03-04T05:06:07Z | 2026-03-04T06:00:00Z 2026-03-04T07:00:00Z
        @every 90s | UTC | 2026-01-01T00:00:00Z | 2026-01-01T00:01:30Z 2026-01-01T00:03:00Z
        @every 1h30m | Europe/London | 1970-01-01T00:00:00Z | 1970-01-01T01:30:00Z 1970-01-01T03:00:00Z
        @every 7s | UTC | 1969-12-31T23:59:58.5Z | 1970-01-01T00:00:00Z 1970-01-01T00:00:07Z
        ",
    );
    let reboot = parsed(" @reboot ");
    assert!(reboot.is_reboot() && !parsed("@daily").is_reboot());
    assert_eq!(reboot.next_after(ts("2026-03-04T05:06:07Z"), &TimeZone::UTC), None);
}

/// Each row: expression, what the problem says, what the expectation says.
#[test]
fn errors_name_the_field_its_text_and_the_remedy() {
    for (expr, problem, expected) in [
        ("", "empty expression", "5 fields"),
        ("   ", "empty expression", "5 fields"),
        ("daily", "only one field, \"daily\"", "5 fields"),
        ("* * * *", "4 fields", "5 fields"),
        ("* * * * * * * *", "8 fields", "5 fields"),
        ("61 * * * *", "minute \"61\" is out of range", "0-59"),
        ("60 * * * * *", "second \"60\" is out of range", "0-59"),
        ("0 24 * * *", "hour \"24\" is out of range", "0-23"),
        ("0 99999999999999999999 * * *", "out of range", "0-23"),
        ("0 0 0 * *", "day of month \"0\" is out of range", "1-31"),
        ("0 0 32 * *", "day of month \"32\" is out of range", "1-31"),
        ("0 0 * 13 *", "month \"13\" is out of range", "1-12 or jan-dec"),
        ("0 0 * * 8", "weekday \"8\" is out of range", "0-7"),
        ("0 0 0 1 1 * 1969", "year \"1969\" is out of range", "1970-2199"),
        ("0 0 0 1 1 * 2200", "year \"2200\" is out of range", "1970-2199"),
        ("x * * * *", "minute \"x\" is not understood", "0-59"),
        ("-5 * * * *", "minute \"-5\" lacks a value", "0-59"),
        ("5- * * * *", "minute \"5-\" lacks a value", "0-59"),
        ("1,,2 * * * *", "minute \"\" lacks a value", "0-59"),
        ("+5 * * * *", "minute \"+5\" is not understood", "0-59"),
        ("1-2-3 * * * *", "minute \"1-2-3\" is not understood", "0-59"),
        ("5~10 * * * *", "minute \"5~10\" is not understood", "0-59"),
        ("? * * * *", "minute \"?\" is not understood", "0-59"),
        ("*/0 * * * *", "minute \"*/0\" has a step of zero", "1 or more"),
        ("*/ * * * *", "\"\" is not a step", "1 or more"),
        ("*/5/5 * * * *", "\"5/5\" is not a step", "1 or more"),
        ("/5 * * * *", "minute \"/5\" lacks a value", "0-59"),
        ("0 22-2 * * *", "hour \"22-2\" runs backwards; ranges do not wrap around", "`22-23,0-2`"),
        ("0 0 * * sat-mon", "weekday \"sat-mon\" runs backwards", "`sat-6,0-mon`"),
        ("0 0 * dec-jan *", "month \"dec-jan\" runs backwards", "`dec-12,1-jan`"),
        ("0 0 * * monday", "weekday \"monday\" is not understood", "sun-sat"),
        ("0 0 * mon *", "month \"mon\" is not understood", "jan-dec"),
        ("0 0 L-31 * *", "day of month \"L-31\" is out of range", "L-30"),
        ("0 0 L-x * *", "day of month \"L-x\" is not understood", "L-30"),
        ("0 0 W * *", "day of month \"W\" lacks a value", "1W to 31W"),
        ("0 0 32W * *", "day of month \"32\" is out of range", "1W to 31W"),
        ("0 L * * *", "hour \"L\" is not understood", "0-23"),
        ("0 0 * * L", "weekday \"L\" does not say which", "5L"),
        ("0 0 * * 1#6", "weekday \"1#6\": \"6\" is out of range", "1-5"),
        ("0 0 * * 1#0", "weekday \"1#0\": \"0\" is out of range", "1-5"),
        ("0 0 30 2 *", "no date ever matches \"0 0 30 2 *\"", "a day that exists"),
        ("0 0 31 4,6,9,11 *", "no date ever matches", "a day that exists"),
        ("0 0 31W 2,4 *", "no date ever matches", "a day that exists"),
        ("0 0 0 29 2 * 2025-2027", "no date ever matches", "a day that exists"),
        ("0 0 0 29 2 * 2100", "no date ever matches", "a day that exists"),
        ("0 0 L-29 2 *", "no date ever matches", "a day that exists"),
        ("@fortnightly", "unknown form \"@fortnightly\"", "@weekly"),
        ("@", "unknown form \"@\"", "@weekly"),
        ("@daily 5", "\"5\" after @daily", "nothing after it"),
        ("@every", "@every \"\" is not a duration", "90s"),
        ("@every soon", "@every \"soon\" is not a duration", "90s"),
        ("@every -5s", "@every \"-5s\" is not a duration", "90s"),
        ("@every 0s", "@every \"0s\" is under a second", "90s"),
        ("@every 100ms", "@every \"100ms\"", "90s"),
        ("@every 1.5s", "@every \"1.5s\" has a part of a second", "90s"),
    ] {
        let e = Schedule::parse(expr).expect_err(expr);
        assert_eq!((e.code, e.field.as_str()), (Code::BAD_SCHEDULE, "schedule"), "{expr}");
        assert!(e.problem.contains(problem), "{expr}: {e}");
        assert!(e.expected.contains(expected), "{expr}: {e}");
    }
    let long = Schedule::parse(&"1,".repeat(600)).unwrap_err();
    assert!(long.problem.contains("too long"), "{long}");
    let long = Schedule::parse(&format!("{} * * * *", "é".repeat(400))).unwrap_err();
    assert!(long.problem.len() < 200, "{long}");
}

#[test]
fn zones_are_found_without_the_hosts_files_and_without_the_hosts_zone() {
    for good in ["UTC", "utc", "Etc/UTC", "Europe/London", "europe/london", "Asia/Kolkata"] {
        time_zone(good).unwrap();
    }
    for bad in ["", "local", "system", "Mars/Olympus", "/etc/passwd", "../UTC", "UTC+8", "\0"] {
        let e = time_zone(bad).unwrap_err();
        assert_eq!((e.code, e.field.as_str()), (Code::BAD_SCHEDULE, "timezone"), "{bad:?}");
    }
}

#[test]
fn no_expression_takes_long() {
    // The search skips by masks: even what comes once in decades is found at once.
    let tz = time_zone("Europe/London").unwrap();
    let schedule = parsed("59 59 23 29 2 6#5");
    let start = Instant::now();
    for _ in 0..100 {
        assert!(schedule.next_after(ts("2021-01-01T00:00:00Z"), &tz).is_some());
        assert!(Schedule::parse("0 0 30 2 *").is_err());
    }
    // Generous: it is about a millisecond on a slow machine without optimisation.
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn at_is_one_instant_or_one_civil_time() {
    let london = time_zone("Europe/London").unwrap();
    let slots = |expr: &str, tz: &TimeZone| -> Vec<String> {
        let schedule = Schedule::parse(expr).unwrap();
        schedule.iter_after(Timestamp::UNIX_EPOCH, tz).map(|t| t.to_string()).collect()
    };
    assert_eq!(slots("@at 2026-12-24T18:00:00Z", &london), ["2026-12-24T18:00:00Z"]);
    assert_eq!(slots("@at 2026-07-01T18:00:00+02:00", &london), ["2026-07-01T16:00:00Z"]);
    assert_eq!(slots("@at 2026-07-01T18:00", &london), ["2026-07-01T17:00:00Z"]);
    assert_eq!(slots("@at 2026-07-01 18:00", &TimeZone::UTC), ["2026-07-01T18:00:00Z"]);
    // 01:30 does not exist on one day and exists twice on the other.
    assert_eq!(slots("@at 2026-03-29T01:30", &london), ["2026-03-29T01:00:00Z"]);
    assert_eq!(slots("@at 2026-10-25T01:30", &london), ["2026-10-25T00:30:00Z"]);
    for bad in ["@at", "@at soon", "@at 2026-02-30T00:00", "@at 2026-01-01T00:00:00.5Z"] {
        assert_eq!(Schedule::parse(bad).unwrap_err().code, Code::BAD_SCHEDULE, "{bad}");
    }
    assert!(Schedule::parse("@at 2026-12-24T18:00").unwrap().is_at());
}
