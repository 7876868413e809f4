//! `meepo cron next`: the calendar without a master.

use crate::{
    error::{CliError, CliResult, exit},
    output::{
        Out,
        table::{Table, cell},
        time,
    },
};
use jiff::{Timestamp, tz::TimeZone};
use meepo_core::calendar::{self, Schedule};

/// Prints the next `n` slots of an expression.
pub(crate) fn next(
    out: &Out,
    expr: &[String],
    tz: Option<&str>,
    from: Option<&str>,
    n: u32,
) -> CliResult<u8> {
    let [expr] = expr else {
        return Err(CliError::usage(
            "EXPR",
            format!("{} arguments", expr.len()),
            format!("the expression as one argument: meepo cron next '{}'", guess(expr)),
        ));
    };
    let schedule = Schedule::parse(expr).map_err(|e| CliError::from(e.at("EXPR")))?;
    let zone = match tz {
        Some(name) => calendar::time_zone(name).map_err(|e| CliError::from(e.at("--tz")))?,
        None => TimeZone::UTC,
    };
    let after = match from {
        Some(text) => time::parse_instant("--from", text, &zone)?,
        None => Timestamp::now(),
    };
    let slots: Vec<Timestamp> = schedule.iter_after(after, &zone).take(n as usize).collect();
    if schedule.is_reboot() {
        out.note("@reboot fires when a worker's host starts: it has no slots");
    } else if slots.is_empty() {
        out.note(&format!("no slot after {after}"));
    }
    out.value(&slots, |out| {
        if slots.is_empty() { String::new() } else { table(out, &slots, tz.map(|t| (t, &zone))) }
    })?;
    Ok(exit::OK)
}

fn table(out: &Out, slots: &[Timestamp], zone: Option<(&str, &TimeZone)>) -> String {
    let mut header = vec!["UTC"];
    header.extend(zone.map(|(name, _)| name));
    let mut table = Table::new(out, &header);
    for slot in slots {
        let mut row = vec![cell(slot.to_string())];
        row.extend(zone.map(|(_, z)| cell(time::zoned(*slot, z))));
        table.row(row);
    }
    table.render()
}

/// What was probably meant: a shell replaces a bare `*` by the names of files.
fn guess(words: &[String]) -> String {
    let field = |w: &String| {
        !w.is_empty() && w.chars().all(|c| c.is_ascii_alphanumeric() || "*/,-#?".contains(c))
    };
    if (5..=7).contains(&words.len()) && words.iter().all(field) {
        words.join(" ")
    } else {
        "*/5 * * * *".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    const OUT: Out = Out {
        format: Format::Table,
        terminal: false,
        color: false,
        err_terminal: false,
        err_color: false,
    };

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn an_expression_in_pieces_is_put_together_in_the_message() {
        let e = next(&OUT, &words(&["0", "3", "*", "*", "1-5"]), None, None, 1).unwrap_err();
        assert_eq!(e.exit, exit::USAGE);
        assert!(e.to_string().ends_with("meepo cron next '0 3 * * 1-5'"), "{e}");
        let e = next(&OUT, &words(&["Cargo.toml", "src"]), None, None, 1).unwrap_err();
        assert!(e.to_string().ends_with("'*/5 * * * *'"), "{e}");
    }

    #[test]
    fn errors_name_the_option() {
        for (expr, tz, from, place) in [
            ("61 * * * *", None, None, "EXPR"),
            ("* * * * *", Some("Mars/Base"), None, "--tz"),
            ("* * * * *", None, Some("soon"), "--from"),
        ] {
            let e = next(&OUT, &words(&[expr]), tz, from, 1).unwrap_err();
            assert_eq!((e.exit, e.place.as_deref()), (exit::USAGE, Some(place)), "{e}");
        }
    }

    #[test]
    fn the_zone_shows_its_offset() {
        let zone = calendar::time_zone("Europe/Berlin").unwrap();
        let slots = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"].map(|t| t.parse().unwrap());
        let text = table(&OUT, &slots, Some(("Europe/Berlin", &zone)));
        assert!(text.contains("2026-10-25T00:30:00Z  2026-10-25 02:30:00 +02:00"), "{text}");
        assert!(text.contains("2026-10-25T01:30:00Z  2026-10-25 02:30:00 +01:00"), "{text}");
    }
}
