//! From text to masks.

use super::{
    At, FIRST_YEAR, Kind, LAST_YEAR, MAX_EXPRESSION,
    mask::{Bits, Civil, Masks, Rare},
};
use crate::{code::Code, duration::HumanDuration, error::Invalid};
use jiff::{Timestamp, civil::DateTime};
use std::{num::NonZeroU64, sync::Arc};

const FORMS: &str = "5 fields (minute hour day-of-month month weekday), 6 with seconds first, 7 \
                     with the year last, or one of @yearly @annually @monthly @weekly @daily \
                     @midnight @hourly @reboot @every @at";

/// What is particular about a field.
struct Field {
    name: &'static str,
    low: u16,
    high: u16,
    /// Names of the values from `low` on.
    names: &'static [&'static str],
    expected: &'static str,
}

const SECOND: Field = Field { name: "second", low: 0, high: 59, names: &[], expected: "0-59" };
const MINUTE: Field = Field { name: "minute", low: 0, high: 59, names: &[], expected: "0-59" };
const HOUR: Field = Field { name: "hour", low: 0, high: 23, names: &[], expected: "0-23" };
const DAY: Field = Field {
    name: "day of month",
    low: 1,
    high: 31,
    names: &[],
    expected: "1-31, L, L-1 to L-30, 1W to 31W or LW",
};
const MONTH: Field = Field {
    name: "month",
    low: 1,
    high: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    expected: "1-12 or jan-dec",
};
const WEEKDAY: Field = Field {
    name: "weekday",
    low: 0,
    high: 7,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    expected: "0-7 (0 and 7 are Sunday), sun-sat, 1#2 (second Monday) or 5L (last Friday)",
};
const YEAR: Field = Field {
    name: "year",
    low: FIRST_YEAR.unsigned_abs(),
    high: LAST_YEAR.unsigned_abs(),
    names: &[],
    expected: "1970-2199",
};

pub(super) fn parse(expr: &str) -> Result<Kind, Invalid> {
    let expr = expr.trim();
    if expr.len() > MAX_EXPRESSION {
        return Err(bad(
            format!("expression of {} bytes is too long", expr.len()),
            "at most 1024 bytes",
        ));
    }
    if let Some(alias) = expr.strip_prefix('@') {
        return parse_alias(alias);
    }
    let mut fields: Vec<&str> = expr.split_whitespace().collect();
    match fields.as_slice() {
        [] => return Err(bad("empty expression", FORMS)),
        [only] => return Err(bad(format!("only one field, {}", quote(only)), FORMS)),
        _ => {}
    }
    if fields.len() == 5 {
        fields.insert(0, "0");
    }
    if fields.len() == 6 {
        fields.push("*");
    }
    let fields =
        fields.try_into().map_err(|f: Vec<_>| bad(format!("{} fields", f.len()), FORMS))?;
    let masks = compile(fields)?;
    if masks.first_from(Civil::from(jiff::civil::DateTime::ZERO)).is_none() {
        return Err(bad(
            format!("no date ever matches {}", quote(expr)),
            "a day that exists in the given months and years",
        ));
    }
    Ok(Kind::Calendar(masks))
}

fn parse_alias(alias: &str) -> Result<Kind, Invalid> {
    let (word, rest) = alias.split_once(char::is_whitespace).unwrap_or((alias, ""));
    let word = word.to_ascii_lowercase();
    if word == "every" {
        return parse_every(rest.trim());
    }
    if word == "at" {
        return parse_at(rest.trim());
    }
    if !rest.trim().is_empty() {
        return Err(bad(format!("{} after @{word}", quote(rest.trim())), "nothing after it"));
    }
    match word.as_str() {
        "reboot" => Ok(Kind::Reboot),
        "yearly" | "annually" => parse("0 0 1 1 *"),
        "monthly" => parse("0 0 1 * *"),
        "weekly" => parse("0 0 * * 0"),
        "daily" | "midnight" => parse("0 0 * * *"),
        "hourly" => parse("0 * * * *"),
        _ => Err(bad(format!("unknown form {}", quote(&format!("@{alias}"))), FORMS)),
    }
}

fn parse_every(text: &str) -> Result<Kind, Invalid> {
    const EXPECTED: &str = "a duration of whole seconds, at least one, such as 90s, 5m or 1h30m";
    let HumanDuration(every) = text
        .parse()
        .map_err(|_| bad(format!("@every {} is not a duration", quote(text)), EXPECTED))?;
    match NonZeroU64::new(every.as_secs()) {
        Some(seconds) if every.subsec_nanos() == 0 => Ok(Kind::Every(seconds)),
        Some(_) => Err(bad(format!("@every {} has a part of a second", quote(text)), EXPECTED)),
        None => Err(bad(format!("@every {} is under a second", quote(text)), EXPECTED)),
    }
}

fn parse_at(text: &str) -> Result<Kind, Invalid> {
    const EXPECTED: &str = "an instant in whole seconds such as 2026-12-24T18:00:00Z, or \
                            2026-12-24T18:00 in the job's time zone";
    let whole = |nanoseconds: i32| match nanoseconds {
        0 => Ok(()),
        _ => Err(bad(format!("@at {} has a part of a second", quote(text)), EXPECTED)),
    };
    // The longer form first: as a civil time it would lose its offset.
    if let Ok(instant) = text.parse::<Timestamp>() {
        whole(instant.subsec_nanosecond())?;
        return Ok(Kind::At(At::Instant(instant)));
    }
    let civil = text
        .parse::<DateTime>()
        .ok()
        .filter(|_| !text.contains(['Z', 'z', '[']))
        .ok_or_else(|| bad(format!("@at {} is not an instant", quote(text)), EXPECTED))?;
    whole(civil.subsec_nanosecond())?;
    Ok(Kind::At(At::Civil(civil)))
}

fn compile(fields: [&str; 7]) -> Result<Masks, Invalid> {
    let [seconds, minutes, hours, days, months, weekdays, years] = fields;
    let mut rare = Rare::NONE;
    let star = |text: &str| text.starts_with(['*', '?']);
    let mut masks = Masks {
        seconds: list(&SECOND, seconds)?[0],
        minutes: list(&MINUTE, minutes)?[0],
        hours: list(&HOUR, hours)?[0] as u32,
        days: 0,
        months: list(&MONTH, months)?[0] as u16,
        weekdays: 0,
        rare: None,
        either_day: !star(days) && !star(weekdays),
        wildcard: star(minutes) || star(hours),
    };
    let mut bits = Bits::default();
    for item in days.split(',') {
        if !special_day(item, &mut masks, &mut rare)? {
            plain(&DAY, item, &mut bits)?;
        }
    }
    masks.days |= bits[0] as u32;
    let mut bits = Bits::default();
    for item in weekdays.split(',') {
        if !special_weekday(item, &mut rare)? {
            plain(&WEEKDAY, item, &mut bits)?;
        }
    }
    // 7 is Sunday too.
    masks.weekdays = (bits[0] | bits[0] >> 7) as u8 & 0x7F;
    if years != "*" {
        rare.years = list(&YEAR, years)?;
    }
    if rare != Rare::NONE {
        masks.rare = Some(Arc::new(rare));
    }
    Ok(masks)
}

/// The values of a field as bits; years are counted from [`FIRST_YEAR`].
fn list(field: &Field, text: &str) -> Result<Bits, Invalid> {
    let mut bits = Bits::default();
    for item in text.split(',') {
        plain(field, item, &mut bits)?;
    }
    Ok(bits)
}

/// Adds `*`, `a`, `a-b` and their steps.
fn plain(field: &Field, item: &str, bits: &mut Bits) -> Result<(), Invalid> {
    let (base, step) = match item.split_once('/') {
        Some((base, step)) => (base, Some(parse_step(field, item, step)?)),
        None => (item, None),
    };
    let last = last_of(field);
    let (low, high) = match base {
        "" => return Err(wrong(field, item, "lacks a value")),
        "*" => (field.low, last),
        "?" if step.is_none() && (field.name == DAY.name || field.name == WEEKDAY.name) => {
            (field.low, last)
        }
        _ => match base.split_once('-') {
            Some((low, high)) => range(field, item, low, high)?,
            None => {
                let value = value(field, item, base)?;
                // `7/2` is Sunday alone.
                (value, if step.is_some() { last.max(value) } else { value })
            }
        },
    };
    let origin = if field.name == YEAR.name { field.low } else { 0 };
    for v in (low..=high).step_by(usize::from(step.unwrap_or(1))) {
        let i = usize::from(v - origin);
        bits[i / 64] |= 1 << (i % 64);
    }
    Ok(())
}

fn range(field: &Field, item: &str, low: &str, high: &str) -> Result<(u16, u16), Invalid> {
    let from = value(field, item, low)?;
    let mut to = value(field, item, high)?;
    // The week may end with Sunday: `fri-sun`, but `0-0` is what it says.
    if field.name == WEEKDAY.name && to == 0 && from > 0 {
        to = 7;
    }
    if from > to {
        return Err(bad(
            format!("{} {} runs backwards; ranges do not wrap around", field.name, quote(item)),
            format!(
                "two ranges in a list, such as `{low}-{},{}-{high}`",
                last_of(field),
                field.low
            ),
        ));
    }
    Ok((from, to))
}

/// Where `*` and an open range end: the week ends with Saturday.
fn last_of(field: &Field) -> u16 {
    if field.name == WEEKDAY.name { 6 } else { field.high }
}

fn parse_step(field: &Field, item: &str, text: &str) -> Result<u16, Invalid> {
    match number(text) {
        Some(0) => {
            Err(bad(format!("{} {} has a step of zero", field.name, quote(item)), "1 or more"))
        }
        Some(step) => Ok(step),
        None => Err(bad(
            format!("{} {}: {} is not a step", field.name, quote(item), quote(text)),
            "a number of 1 or more after the `/`",
        )),
    }
}

/// A number or a name, within the field's range.
fn value(field: &Field, item: &str, text: &str) -> Result<u16, Invalid> {
    if let Some(i) = field.names.iter().position(|n| n.eq_ignore_ascii_case(text)) {
        return Ok(field.low + i as u16);
    }
    if text.is_empty() {
        return Err(wrong(field, item, "lacks a value"));
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return number(text)
            .filter(|v| (field.low..=field.high).contains(v))
            .ok_or_else(|| wrong(field, text, "is out of range"));
    }
    Err(wrong(field, item, "is not understood"))
}

/// `L`, `L-3`, `15W`, `LW`; whether `item` was one of them.
fn special_day(item: &str, masks: &mut Masks, rare: &mut Rare) -> Result<bool, Invalid> {
    let upper = item.to_ascii_uppercase();
    if upper == "L" {
        masks.days |= 1;
    } else if upper == "LW" {
        rare.nearest |= 1;
    } else if let Some(back) = upper.strip_prefix("L-") {
        match number(back) {
            Some(back @ 0..=30) => rare.before_last |= 1 << back,
            Some(_) => return Err(wrong(&DAY, item, "is out of range")),
            None => return Err(wrong(&DAY, item, "is not understood")),
        }
    } else if let Some(day) = upper.strip_suffix('W') {
        rare.nearest |= 1 << value(&DAY, item, day)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// `1#2` and `5L`, also with names; whether `item` was one of them.
fn special_weekday(item: &str, rare: &mut Rare) -> Result<bool, Invalid> {
    if let Some((day, nth)) = item.split_once('#') {
        let day = value(&WEEKDAY, item, day)? % 7;
        match number(nth) {
            Some(nth @ 1..=5) => rare.nth[usize::from(nth) - 1] |= 1 << day,
            _ => {
                return Err(bad(
                    format!("weekday {}: {} is out of range", quote(item), quote(nth)),
                    "1-5 after the `#`",
                ));
            }
        }
        return Ok(true);
    }
    match item.strip_suffix(['l', 'L']) {
        // Some programs read it as Saturday, some as the last day of the month.
        Some("") => Err(bad(
            "weekday \"L\" does not say which weekday",
            "for example 5L for the last Friday of the month, or L in the day of month",
        )),
        Some(day) => {
            rare.last |= 1 << (value(&WEEKDAY, item, day)? % 7);
            Ok(true)
        }
        None => Ok(false),
    }
}

/// Digits only: no sign, no blanks. Too large a number is the largest there is.
fn number(text: &str) -> Option<u16> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().unwrap_or(u16::MAX))
}

fn wrong(field: &Field, text: &str, how: &str) -> Invalid {
    bad(format!("{} {} {how}", field.name, quote(text)), field.expected)
}

fn bad(problem: impl Into<String>, expected: impl Into<String>) -> Invalid {
    Invalid::new(Code::BAD_SCHEDULE, "schedule", problem, expected)
}

/// The text in quotes, cut where it is long.
fn quote(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("\"{}…\"", text[..end].escape_debug()),
        None => format!("\"{}\"", text.escape_debug()),
    }
}
