//! From tokens to expressions: recursive descent, bounded in depth.

use super::{
    MAX_DEPTH, MAX_TARGET, Prefer, Target,
    expr::{Expr, Id, KEYWORDS, NumberFact, Op, TextFact},
    glob,
    lex::{self, Kind, Token},
};
use crate::{code::Code, error::Invalid, id::Name};
use std::num::NonZeroUsize;

const TERM: &str = "`all`, a node id or pattern, a condition such as group=web, `not` or `(`";
const SIZES: [&str; 11] = ["B", "KB", "MB", "GB", "TB", "PB", "KiB", "MiB", "GiB", "TiB", "PiB"];

pub(super) fn parse(text: &str) -> Result<Target, Invalid> {
    if text.len() > MAX_TARGET {
        return Err(Invalid::new(
            Code::BAD_TARGET,
            "target",
            format!("target of {} bytes is too long", text.len()),
            format!("at most {MAX_TARGET} bytes"),
        ));
    }
    let tokens =
        lex::tokens(text).map_err(|(column, problem, expected)| bad(column, problem, expected))?;
    let mut parser =
        Parser { end: text.chars().count() + 1, tokens: tokens.into_iter().peekable(), depth: 0 };
    let expr = parser.or()?;
    let (mut prefer, mut limit) = (None, None);
    loop {
        if limit.is_none() && parser.keyword("limit") {
            limit = Some(parser.limit()?);
        } else if prefer.is_none() && parser.keyword("prefer") {
            prefer = Some(parser.prefer()?);
        } else {
            break;
        }
    }
    if parser.tokens.peek().is_some() {
        let expected = match (&prefer, limit) {
            (None, None) => "`and`, `or`, `prefer`, `limit` or the end",
            (None, Some(_)) => "`prefer` or the end after the limit",
            (Some(_), None) => "`limit` or the end after the preference",
            (Some(_), Some(_)) => "nothing after limit and preference",
        };
        return Err(parser.unexpected(expected));
    }
    Ok(Target { expr, prefer: prefer.unwrap_or_default(), limit })
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    /// The column after the last character.
    end: usize,
    depth: usize,
}

impl Parser {
    fn or(&mut self) -> Result<Expr, Invalid> {
        let mut parts = vec![self.and()?];
        while self.keyword("or") {
            parts.push(self.and()?);
        }
        Ok(one_or(parts, Expr::Or))
    }

    fn and(&mut self) -> Result<Expr, Invalid> {
        let mut parts = vec![self.not()?];
        while self.keyword("and") {
            parts.push(self.not()?);
        }
        Ok(one_or(parts, Expr::And))
    }

    fn not(&mut self) -> Result<Expr, Invalid> {
        let column = self.column();
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let expected = format!("at most {MAX_DEPTH} levels of parentheses and `not`");
            return Err(bad(column, "nested too deeply", expected));
        }
        let expr = if self.keyword("not") {
            Expr::Not(Box::new(self.not()?))
        } else if self.tokens.next_if(|t| t.kind == Kind::Open).is_some() {
            let inner = self.or()?;
            if self.tokens.next_if(|t| t.kind == Kind::Close).is_none() {
                return Err(self.unexpected("`and`, `or` or `)`"));
            }
            inner
        } else {
            self.term()?
        };
        self.depth -= 1;
        Ok(expr)
    }

    /// A condition or a list of ids.
    fn term(&mut self) -> Result<Expr, Invalid> {
        let (column, word, quoted) = self.word(TERM)?;
        let condition = if let Some(op) = self.op() {
            Some(self.condition(column, &word, op)?)
        } else if self.keyword("in") {
            Some(self.set(column, &word, true)?)
        } else if self.keyword("not") {
            if !self.keyword("in") {
                return Err(self.unexpected("`in`, as in group not in (web, db)"));
            }
            Some(self.set(column, &word, false)?)
        } else {
            None
        };
        if let Some(expr) = condition {
            if self.tokens.peek().is_some_and(|t| t.kind == Kind::Comma) {
                let expected = "`and` or `or`; for several values group in (web, db)";
                return Err(self.unexpected(expected));
            }
            return Ok(expr);
        }
        let mut ids = vec![id(column, word, quoted)?];
        while self.tokens.next_if(|t| t.kind == Kind::Comma).is_some() {
            let (column, word, quoted) = self.word("a node id or pattern")?;
            if let Some(Token { column, kind: Kind::Op(op) }) = self.tokens.peek() {
                let problem = format!("found `{}` in a list of ids", op.as_str());
                return Err(bad(*column, problem, "ids only; join conditions with `or`"));
            }
            ids.push(id(column, word, quoted)?);
        }
        Ok(Expr::Ids(ids))
    }

    /// What follows `group in`.
    fn set(&mut self, column: usize, key: &str, equal: bool) -> Result<Expr, Invalid> {
        if NumberFact::by_key(key).is_some() {
            let problem = format!("`in` does not apply to the number {key}");
            return Err(bad(column, problem, "comparisons, joined with `and` or `or`"));
        }
        if self.tokens.next_if(|t| t.kind == Kind::Open).is_none() {
            return Err(self.unexpected("`(`, as in group in (web, db)"));
        }
        let mut patterns = Vec::new();
        loop {
            patterns.push(self.value("a value")?.1);
            if self.tokens.next_if(|t| t.kind == Kind::Close).is_some() {
                break;
            }
            if self.tokens.next_if(|t| t.kind == Kind::Comma).is_none() {
                return Err(self.unexpected("`,` or `)`"));
            }
        }
        match TextFact::by_key(key) {
            Some(fact) => Ok(Expr::Text { fact, equal, patterns }),
            None => Ok(Expr::Label { key: label(column, key)?, equal, patterns }),
        }
    }

    /// What follows `prefer`.
    fn prefer(&mut self) -> Result<Prefer, Invalid> {
        const EXPECTED: &str = "`least-loaded`, `spread` or `spread(LABEL)`";
        let mut prefer = Prefer::default();
        loop {
            let (column, word, _) = self.value(EXPECTED)?;
            let twice = |there: bool| match there {
                true => Err(bad(column, format!("{word:?} stands there twice"), "it once")),
                false => Ok(()),
            };
            if word.eq_ignore_ascii_case("least-loaded") {
                twice(prefer.least_loaded)?;
                prefer.least_loaded = true;
            } else if word.eq_ignore_ascii_case("spread") {
                twice(prefer.spread.is_some())?;
                prefer.spread = Some(self.spread()?);
            } else {
                return Err(bad(column, format!("found {}", Kind::Word(word)), EXPECTED));
            }
            if self.tokens.next_if(|t| t.kind == Kind::Comma).is_none() {
                return Ok(prefer);
            }
        }
    }

    /// The label after `spread`.
    fn spread(&mut self) -> Result<String, Invalid> {
        if self.tokens.next_if(|t| t.kind == Kind::Open).is_none() {
            return Ok(Prefer::SPREAD.to_owned());
        }
        let (column, word, _) = self.value("a label, as in spread(zone)")?;
        if self.tokens.next_if(|t| t.kind == Kind::Close).is_none() {
            return Err(self.unexpected("`)`"));
        }
        label(column, &word)
    }

    fn condition(&mut self, column: usize, key: &str, op: Op) -> Result<Expr, Invalid> {
        if let Some(fact) = NumberFact::by_key(key) {
            return self.number(fact, op);
        }
        let value_column = self.column();
        let (_, value, _) = self.value("a value")?;
        let equal = match op {
            Op::Equal => Some(true),
            Op::NotEqual => Some(false),
            _ => None,
        };
        let not_here = |what: String| {
            bad(column, format!("`{}` does not apply to {what}", op.as_str()), "`=` or `!=`")
        };
        match (TextFact::by_key(key), equal) {
            (Some(fact), Some(equal)) => Ok(Expr::Text { fact, equal, patterns: vec![value] }),
            (Some(fact), None) if fact.is_version() => {
                if glob::is_pattern(&value) || !value.contains(|c: char| c.is_alphanumeric()) {
                    let problem = format!("{value:?} is not a version");
                    return Err(bad(value_column, problem, "a version such as 12 or 6.1"));
                }
                Ok(Expr::Version { fact, op, version: value })
            }
            (Some(fact), None) => Err(not_here(fact.key().to_owned())),
            (None, equal) => {
                let key = label(column, key)?;
                let Some(equal) = equal else { return Err(not_here(format!("the label {key:?}"))) };
                Ok(Expr::Label { key, equal, patterns: vec![value] })
            }
        }
    }

    fn number(&mut self, fact: NumberFact, op: Op) -> Result<Expr, Invalid> {
        let expected = if fact.is_size() {
            "a number with or without a unit (B KB MB GB TB PB, KiB MiB GiB TiB PiB)"
        } else if fact == NumberFact::CpuUse {
            "a number of per cent, with or without %"
        } else {
            "a number"
        };
        let (column, mut text, _) = self.value(expected)?;
        // `1 TB`
        if let Some(Token { kind: Kind::Word(unit), .. }) = self.tokens.next_if(
            |t| matches!(&t.kind, Kind::Word(w) if SIZES.iter().any(|s| s.eq_ignore_ascii_case(w))),
        ) {
            text.push_str(&unit);
        }
        let number = text.strip_suffix('%').filter(|_| fact == NumberFact::CpuUse);
        match amount(number.unwrap_or(&text), fact.is_size()) {
            Some(value) => Ok(Expr::Number { fact, op, text, value }),
            None => Err(bad(column, format!("found {}", Kind::Word(text)), expected)),
        }
    }

    fn limit(&mut self) -> Result<NonZeroUsize, Invalid> {
        const EXPECTED: &str = "a number of nodes, at least 1";
        let (column, text, _) = self.value(EXPECTED)?;
        // No sign: `+3` is a number to Rust.
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| bad(column, format!("found {}", Kind::Word(text)), EXPECTED))
    }

    /// A word that is no keyword, or one that is but is followed by an operator, its
    /// column and whether it was quoted.
    fn word(&mut self, expected: &str) -> Result<(usize, String, bool), Invalid> {
        if let Some(Token { kind: Kind::Word(w), .. }) = self.tokens.peek()
            && KEYWORDS[1..].iter().any(|k| k.eq_ignore_ascii_case(w))
        {
            return Err(self.unexpected(expected));
        }
        self.value(expected)
    }

    /// Any word.
    fn value(&mut self, expected: &str) -> Result<(usize, String, bool), Invalid> {
        match self.tokens.next_if(|t| matches!(t.kind, Kind::Word(_) | Kind::Quoted(_))) {
            Some(Token { column, kind: Kind::Word(w) }) => Ok((column, w, false)),
            Some(Token { column, kind: Kind::Quoted(w) }) => Ok((column, w, true)),
            _ => Err(self.unexpected(expected)),
        }
    }

    fn op(&mut self) -> Option<Op> {
        match self.tokens.next_if(|t| matches!(t.kind, Kind::Op(_)))?.kind {
            Kind::Op(op) => Some(op),
            _ => None,
        }
    }

    fn keyword(&mut self, keyword: &str) -> bool {
        self.tokens
            .next_if(|t| matches!(&t.kind, Kind::Word(w) if w.eq_ignore_ascii_case(keyword)))
            .is_some()
    }

    fn column(&mut self) -> usize {
        self.tokens.peek().map_or(self.end, |t| t.column)
    }

    fn unexpected(&mut self, expected: &str) -> Invalid {
        match self.tokens.peek() {
            Some(token) => bad(token.column, format!("found {}", token.kind), expected),
            None => bad(self.end, "found the end", expected),
        }
    }
}

fn one_or(mut parts: Vec<Expr>, many: fn(Vec<Expr>) -> Expr) -> Expr {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        last => {
            parts.extend(last);
            many(parts)
        }
    }
}

/// The label that a key names.
fn label(column: usize, key: &str) -> Result<String, Invalid> {
    match key.strip_prefix("label.").unwrap_or(key) {
        "" => Err(bad(column, "found no label", "a label before the operator")),
        label => Ok(label.to_owned()),
    }
}

fn id(column: usize, word: String, quoted: bool) -> Result<Id, Invalid> {
    if !quoted && word.eq_ignore_ascii_case("all") {
        return Ok(Id::All);
    }
    // A pattern may stand for anything, but its plain characters must occur in ids.
    let plain = word.replace(['*', '?'], "x");
    let name = Name::new(&plain).map_err(|e| bad(column, e.problem, e.expected))?;
    Ok(if glob::is_pattern(&word) { Id::Pattern(word) } else { Id::Exact(name) })
}

/// A number of up to 20 digits before the point; with `sizes` also with a unit.
fn amount(text: &str, sizes: bool) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if number.len() > 40 || number.split('.').next()?.len() > 20 {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let factor = if unit.is_empty() {
        1.0
    } else {
        let unit = SIZES.iter().position(|s| sizes && s.eq_ignore_ascii_case(unit))?;
        match unit {
            0..=5 => 1000f64.powi(unit as i32),
            _ => 1024f64.powi(unit as i32 - 5),
        }
    };
    Some(number * factor)
}

fn bad(column: usize, problem: impl std::fmt::Display, expected: impl Into<String>) -> Invalid {
    Invalid::new(Code::BAD_TARGET, "target", format!("column {column}: {problem}"), expected)
}
