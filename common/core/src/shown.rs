//! Text from elsewhere (what jobs print, what people and hosts are called), made safe for
//! whatever shows it: it may neither do anything to a terminal, nor change the order in which
//! the rest is read, nor pass for a line of its own.

use std::fmt::Write;

/// Whether a character may do something to a terminal or to the reading order.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Shows a character by its number: `\x1b`, `\u{202e}`.
pub fn push_escaped(out: &mut String, c: char) {
    // Writing to a String cannot fail.
    let _ = match u32::from(c) {
        n if n < 0x100 => write!(out, "\\x{n:02x}"),
        n => write!(out, "\\u{{{n:x}}}"),
    };
}

/// `s` on one line: whitespace other than spaces becomes a space, what is unsafe is shown by its
/// number.
pub fn line(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '\n' | '\t' | '\r' => out.push(' '),
            c if is_unsafe(c) => push_escaped(&mut out, c),
            c => out.push(c),
        }
    }
    out
}

/// `s` over as many lines as it has; what is unsafe is shown by its number.
pub fn lines(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' if chars.peek() == Some(&'\n') => {}
            c if is_unsafe(c) => push_escaped(&mut out, c),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_and_nothing_is_hidden() {
        let evil = "a\u{1b}]0;x\u{7}\u{9b}2J\u{202e}b\r\nc\td\re\u{2028}f\u{7f}";
        assert_eq!(line(evil), r"a\x1b]0;x\x07\x9b2J\u{202e}b  c d e\u{2028}f\x7f");
        assert_eq!(lines(evil), "a\\x1b]0;x\\x07\\x9b2J\\u{202e}b\nc\td\\x0de\\u{2028}f\\x7f");
        assert_eq!(lines("ü ok\n"), "ü ok\n");
    }
}
