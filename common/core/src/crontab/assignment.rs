//! `NAME = value`, as cronie reads it.

/// A variable and its value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) name: String,
    pub(super) value: String,
}

/// Reads a line without leading blanks; `None` if it is no assignment, an error if it
/// is one that cannot be taken. Quotes around the name or the value are taken off;
/// nothing is expanded.
pub(super) fn parse(line: &str) -> Result<Option<Assignment>, String> {
    let Some((name, rest)) = name(line) else { return Ok(None) };
    let Some(value) = rest.trim_start().strip_prefix('=') else { return Ok(None) };
    if name.is_empty() {
        return Err("no name before the `=`".into());
    }
    let value = value.trim();
    let value = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => match value[1..].split_once(quote) {
            None => return Err(format!("the {quote} is not closed")),
            Some((inner, "")) => inner,
            Some((_, after)) => return Err(format!("{after:?} after the closing {quote}")),
        },
        _ => value,
    };
    Ok(Some(Assignment { name: name.to_owned(), value: value.to_owned() }))
}

/// The possible name of a variable and what follows it.
fn name(line: &str) -> Option<(&str, &str)> {
    if let Some(quote @ ('"' | '\'')) = line.chars().next() {
        let (name, rest) = line[1..].split_once(quote)?;
        return (!name.contains('=')).then_some((name, rest));
    }
    let end = line.find(|c: char| c == '=' || c.is_whitespace())?;
    Some(line.split_at(end))
}
