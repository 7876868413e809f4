//! Log lines as a terminal may show them: names and messages from elsewhere stand in them, and
//! must neither do anything to it nor pass for lines of their own.

use meepo_core::shown::is_unsafe;
use std::{
    fmt::Write as _,
    io::{self, Write},
};

/// Writes to `to` what is safe. Each write is one line, as loggers make them.
pub(super) struct Shown<W> {
    pub(super) to: W,
    /// The form of a character by its number: that of JSON, or for people.
    pub(super) json: bool,
}

impl<W: Write> Write for Shown<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match safe(line, self.json) {
            None => self.to.write_all(line)?,
            Some(safe) => self.to.write_all(safe.as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The line without what is unsafe; `None` if there is nothing of the kind. Colours, which the
/// logger itself sets, stay.
fn safe(line: &[u8], json: bool) -> Option<String> {
    let body = line.strip_suffix(b"\n").unwrap_or(line);
    if body.iter().all(|b| (0x20..0x7f).contains(b)) {
        return None;
    }
    let text = String::from_utf8_lossy(body);
    let mut out = String::with_capacity(line.len() + 16);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '\u{1b}'
            && let Some(color) = color(rest.as_str())
        {
            out.push(c);
            out.push_str(color);
            rest = rest.as_str()[color.len()..].chars();
        } else if is_unsafe(c) {
            // Writing to a String cannot fail.
            let _ = match json {
                true => write!(out, "\\u{:04x}", u32::from(c)),
                false => write!(out, "\\u{{{:x}}}", u32::from(c)),
            };
        } else {
            out.push(c);
        }
    }
    out.push_str(if body.len() < line.len() { "\n" } else { "" });
    Some(out)
}

/// What follows an escape character if the two set a colour: `[`, digits and `;`, `m`.
fn color(rest: &str) -> Option<&str> {
    let end = rest.strip_prefix('[')?.find(|c: char| !c.is_ascii_digit() && c != ';')? + 1;
    rest[end..].starts_with('m').then(|| &rest[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str, json: bool) -> String {
        let mut out = Shown { to: Vec::new(), json };
        out.write_all(line.as_bytes()).unwrap();
        String::from_utf8(out.to).unwrap()
    }

    #[test]
    fn a_line_is_one_line_that_does_nothing() {
        for (given, want) in [
            ("plain\n", "plain\n"),
            ("ü\n", "ü\n"),
            ("a\nINFO forged\n", "a\\u{a}INFO forged\n"),
            ("\u{1b}[2J\u{9b}2J\u{202e}x\n", "\\u{1b}[2J\\u{9b}2J\\u{202e}x\n"),
            ("\u{1b}[32m INFO\u{1b}[0m ok\n", "\u{1b}[32m INFO\u{1b}[0m ok\n"),
            ("\u{1b}[", "\\u{1b}["),
        ] {
            assert_eq!(shown(given, false), want);
        }
        let json = "{\"a\":\"\u{9b}2J\u{202e}\"}\n";
        let value: serde_json::Value = serde_json::from_str(&shown(json, true)).unwrap();
        assert_eq!(value["a"], "\u{9b}2J\u{202e}");
        assert!(!shown(json, true).contains('\u{9b}'));
    }
}
