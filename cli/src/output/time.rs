//! Times and durations on the screen, and as people type them.

use crate::error::{CliError, CliResult};
use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use meepo_core::duration::HumanDuration;
use std::time::Duration;

/// An instant in the local zone, to the second.
pub(crate) fn local(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// An instant in the local zone, to the millisecond.
pub(crate) fn local_millis(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S.%3f").to_string()
}

/// An instant in `zone` with its offset, so that an hour that comes twice can be
/// told apart.
pub(crate) fn zoned(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// A duration with two units at most: `850ms`, `1.2s`, `3m04s`, `2h05m`, `3d4h`.
pub(crate) fn short(d: Duration) -> String {
    let (millis, secs) = (d.as_millis(), d.as_secs());
    match secs {
        0 => format!("{millis}ms"),
        1..60 => format!("{}.{}s", secs, d.subsec_millis() / 100),
        60..3600 => format!("{}m{:02}s", secs / 60, secs % 60),
        3600..86_400 => format!("{}h{:02}m", secs / 3600, secs % 3600 / 60),
        _ => format!("{}d{}h", secs / 86_400, secs % 86_400 / 3600),
    }
}

/// How far `at` is from `now`: `in 3m04s`, `2h05m ago`.
pub(crate) fn relative(at: Timestamp, now: Timestamp) -> String {
    let d: SignedDuration = at.duration_since(now);
    let size = short(whole_seconds(d.unsigned_abs()));
    if d.is_negative() { format!("{size} ago") } else { format!("in {size}") }
}

fn whole_seconds(d: Duration) -> Duration {
    if d.as_secs() < 1 { d } else { Duration::from_secs(d.as_secs()) }
}

/// An instant as people type it: RFC 3339, or a date with an optional time, read
/// in `zone`.
pub(crate) fn parse_instant(option: &str, text: &str, zone: &TimeZone) -> CliResult<Timestamp> {
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    text.parse::<DateTime>().ok().and_then(|d| d.to_zoned(zone.clone()).ok()).map_or_else(
        || {
            Err(CliError::usage(
                option,
                format!("{text:?} is not a time"),
                "a time such as 2026-03-29T01:00:00Z or \"2026-03-29 01:00\"",
            ))
        },
        |z| Ok(z.timestamp()),
    )
}

/// An instant in the past: as [`parse_instant`], or how long ago (`1h`).
pub(crate) fn parse_since(option: &str, text: &str, now: Timestamp) -> CliResult<Timestamp> {
    if let Ok(HumanDuration(ago)) = text.parse() {
        return SignedDuration::try_from(ago)
            .ok()
            .and_then(|d| now.checked_sub(d).ok())
            .ok_or_else(|| {
                CliError::usage(option, format!("{text:?} is too long ago"), "e.g. 1h or 7d")
            });
    }
    parse_instant(option, text, &TimeZone::system())
        .map_err(|e| e.expected("a duration such as 1h, or a time such as 2026-03-29T01:00:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (millis, text) in [
            (0, "0ms"),
            (850, "850ms"),
            (1_250, "1.2s"),
            (59_999, "59.9s"),
            (184_000, "3m04s"),
            (7_500_000, "2h05m"),
            (273_600_000, "3d4h"),
        ] {
            assert_eq!(short(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn instants_are_read_in_several_forms() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let want: Timestamp = "2026-03-29T00:00:00Z".parse().unwrap();
        for text in ["2026-03-29T00:00:00Z", "2026-03-29T01:00:00+01:00", "2026-03-29 01:00"] {
            assert_eq!(parse_instant("--from", text, &zone).unwrap(), want, "{text}");
        }
        let e = parse_instant("--from", "soon", &zone).unwrap_err().to_string();
        assert!(e.starts_with("--from: \"soon\" is not a time; expected a time such as"), "{e}");
        assert_eq!(parse_since("--since", "1h", want).unwrap().to_string(), "2026-03-28T23:00:00Z");
        assert!(parse_since("--since", "yesterday-ish", want).is_err());
    }

    #[test]
    fn relative_times_say_which_way() {
        let now: Timestamp = "2026-03-29T00:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-03-29T00:03:04.5Z".parse().unwrap();
        assert_eq!(relative(later, now), "in 3m04s");
        assert_eq!(relative(now, later), "3m04s ago");
    }
}
