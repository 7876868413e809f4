//! Text from elsewhere, made safe for a terminal.

use meepo_core::shown::{is_unsafe, push_escaped};
use std::fmt::Write;

/// JSON that says the same and does nothing to a terminal: JSON itself leaves some control
/// characters as they are. They can only stand within its strings.
pub(crate) fn in_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' => out.push(c),
            // All of them are in the basic plane: four digits.
            c if is_unsafe(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// `s` on one line: whitespace other than spaces becomes a space, control
/// characters are shown as escapes.
pub(crate) fn one_line(s: &str) -> String {
    meepo_core::shown::line(s)
}

/// `s` over as many lines as it has; control characters are shown as escapes.
pub(crate) fn lines(s: &str) -> String {
    String::from_utf8_lossy(&visible(s.as_bytes())).into_owned()
}

/// What a terminal may show of `bytes`: tabs, newlines and carriage returns before
/// newlines stay, other control characters and bytes that are not UTF-8 are shown
/// as escapes such as `\x1b`.
pub(crate) fn visible(bytes: &[u8]) -> Vec<u8> {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let mut chars = chunk.valid().chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\n' | '\t' => out.push(c),
                '\r' if chars.peek() == Some(&'\n') => out.push(c),
                c if is_unsafe(c) => push_escaped(&mut out, c),
                c => out.push(c),
            }
        }
        for b in chunk.invalid() {
            push_escaped(&mut out, char::from(*b));
        }
    }
    out.into_bytes()
}

/// How many bytes at the end of `bytes` may be the beginning of a character (or of
/// a line end) that the next bytes complete.
pub(crate) fn unfinished(bytes: &[u8]) -> usize {
    if bytes.last() == Some(&b'\r') {
        return 1;
    }
    match std::str::from_utf8(bytes) {
        Err(e) if e.error_len().is_none() => bytes.len() - e.valid_up_to(),
        // An error earlier on hides the end; look at the last character alone.
        Err(_) => {
            let tail = &bytes[bytes.len().saturating_sub(3)..];
            (1..=tail.len())
                .find(|n| {
                    let t = &tail[tail.len() - n..];
                    t[0] >= 0xc2 && std::str::from_utf8(t).is_err_and(|e| e.error_len().is_none())
                })
                .unwrap_or(0)
        }
        Ok(_) => 0,
    }
}

/// `s` cut to `max` characters, the last of them `…` if anything was cut.
pub(crate) fn shorten(s: &str, max: usize) -> String {
    if s.chars().count() <= max {
        return s.to_owned();
    }
    let mut out: String = s.chars().take(max.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// `n thing` or `n things`.
pub(crate) fn count(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

/// Bytes as people write them: `512 B`, `1.5 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    #[allow(clippy::cast_precision_loss)] // one decimal is shown
    let mut value = n as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_sees_escapes_not_control_characters() {
        for (given, shown) in [
            (&b"plain\ttext\n"[..], &b"plain\ttext\n"[..]),
            (b"\x1b[31mred\x1b[0m", b"\\x1b[31mred\\x1b[0m"),
            (b"dos\r\nprogress\r50%", b"dos\r\nprogress\\x0d50%"),
            (b"\xff\xfe", b"\\xff\\xfe"),
            ("ü\u{9b}x\u{202e}".as_bytes(), "ü\\x9bx\\u{202e}".as_bytes()),
            (b"bell\x07\x7f\0", b"bell\\x07\\x7f\\x00"),
        ] {
            assert_eq!(visible(given), shown, "{:?}", String::from_utf8_lossy(given));
        }
    }

    #[test]
    fn json_says_the_same_without_doing_anything() {
        let value =
            serde_json::json!({"a\u{9b}2J": ["\u{1b}[31m", "\u{202e}cba", "\u{7f}", "ü\n"]});
        for json in [serde_json::to_string(&value), serde_json::to_string_pretty(&value)] {
            let safe = in_json(&json.unwrap());
            assert!(!safe.chars().any(|c| c != '\n' && is_unsafe(c)), "{safe}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
        }
    }

    #[test]
    fn unfinished_characters_are_waited_for() {
        let euro = "€".as_bytes();
        assert_eq!(unfinished(b"abc"), 0);
        assert_eq!(unfinished(&euro[..2]), 2);
        assert_eq!(unfinished(&[b"a", &euro[..1]].concat()), 1);
        assert_eq!(unfinished(&[b"\xff", &euro[..2]].concat()), 2);
        assert_eq!(unfinished(b"\xff\x80\x80"), 0);
        assert_eq!(unfinished("😀".as_bytes()), 0);
        assert_eq!(unfinished(&"😀".as_bytes()[..3]), 3);
        assert_eq!(unfinished(b"x\r"), 1);
    }

    #[test]
    fn sizes_and_cuts_are_short() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 40), "3.0 TiB");
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(shorten("abcd", 4), "abcd");
        assert_eq!(count(1, "node"), "1 node");
        assert_eq!(count(0, "node"), "0 nodes");
    }
}
