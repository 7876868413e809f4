//! From text to tokens.

use super::expr::Op;

/// A token and its column, counted in characters from 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) column: usize,
    pub(super) kind: Kind,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Word(String),
    /// A word in quotes: never a keyword.
    Quoted(String),
    Op(Op),
    Comma,
    Open,
    Close,
}

impl std::fmt::Display for Kind {
    /// As in a message: `"and"`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(w) | Self::Quoted(w) => {
                let cut: String = w.chars().take(40).collect();
                write!(f, "{cut:?}")
            }
            Self::Op(op) => write!(f, "`{}`", op.as_str()),
            Self::Comma => f.write_str("`,`"),
            Self::Open => f.write_str("`(`"),
            Self::Close => f.write_str("`)`"),
        }
    }
}

/// Whether `c` ends a bare word.
pub(super) fn is_special(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "()=!<>,\"".contains(c)
}

/// Splits `text`; an error is a column, a problem and what was expected.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, (usize, String, &'static str)> {
    let mut out = Vec::new();
    let mut chars = text.chars().enumerate().peekable();
    while let Some((i, c)) = chars.next() {
        let column = i + 1;
        let kind = match c {
            c if c.is_whitespace() => continue,
            '(' => Kind::Open,
            ')' => Kind::Close,
            ',' => Kind::Comma,
            '=' | '!' | '<' | '>' => {
                let equal = chars.next_if(|(_, next)| *next == '=').is_some();
                Kind::Op(match (c, equal) {
                    // Some are used to writing `==`.
                    ('=', _) => Op::Equal,
                    ('<', false) => Op::Less,
                    ('<', true) => Op::LessOrEqual,
                    ('>', false) => Op::Greater,
                    ('>', true) => Op::GreaterOrEqual,
                    (_, true) => Op::NotEqual,
                    (_, false) => return Err((column, "found `!`".into(), "`!=` or `not`")),
                })
            }
            '"' => {
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some((_, '"')) => break,
                        Some((i, '\\')) => match chars.next() {
                            Some((_, c @ ('"' | '\\'))) => word.push(c),
                            _ => {
                                let problem = "found a lone `\\` in quotes".into();
                                return Err((i + 1, problem, "`\\\"` or `\\\\`"));
                            }
                        },
                        Some((_, c)) => word.push(c),
                        None => return Err((column, "the quote is not closed".into(), "`\"`")),
                    }
                }
                Kind::Quoted(word)
            }
            c if is_special(c) => {
                return Err((column, format!("found {c:?}"), "printable characters"));
            }
            c => {
                let mut word = String::from(c);
                while let Some((_, c)) = chars.next_if(|(_, c)| !is_special(*c)) {
                    word.push(c);
                }
                Kind::Word(word)
            }
        };
        out.push(Token { column, kind });
    }
    Ok(out)
}
