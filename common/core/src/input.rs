//! Reading what people write: errors that name the field.

use crate::{code::Code, error::Invalid};
use serde_json::Value;

/// Parses JSON, saying where it breaks.
pub fn parse_json(bytes: &[u8]) -> Result<Value, Invalid> {
    serde_json::from_slice(bytes).map_err(|e| {
        Invalid::new(Code::MALFORMED, "(document)", format!("not valid JSON: {e}"), "a JSON object")
    })
}

/// Turns a document into `T`, naming the field that does not fit.
pub fn from_value<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Invalid> {
    if !value.is_object() {
        return Err(Invalid::new(
            Code::MALFORMED,
            "(document)",
            "not an object",
            "an object with fields such as `cmd`",
        ));
    }
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let text = e.inner().to_string();
        let field = if path == "." { "(document)".to_owned() } else { path };
        if let Some(missing) = text.strip_prefix("missing field `") {
            let missing = missing.split('`').next().unwrap_or_default();
            return Invalid::new(Code::BAD_VALUE, missing, "missing", "a value");
        }
        if let Some(rest) = text.strip_prefix("unknown field `") {
            let (name, rest) = rest.split_once('`').unwrap_or((rest, ""));
            let expected = rest.trim_start_matches(", expected ").to_owned();
            // A field of an inner object by its path, where that is known.
            let inner = field.strip_suffix(name).is_some_and(|outer| outer.ends_with('.'));
            let field = if inner { field.as_str() } else { name };
            return Invalid::new(Code::UNKNOWN_FIELD, field, "unknown field", expected);
        }
        let code = match field.as_str() {
            "executor" => Code::UNKNOWN_EXECUTOR,
            "name" | "task_id" | "job" | "node" => Code::BAD_NAME,
            _ => Code::BAD_VALUE,
        };
        // serde says "…, expected …"; our own types say "…; expected …".
        let (problem, expected) = text
            .split_once("; expected ")
            .or_else(|| text.split_once(", expected "))
            .unwrap_or((&text, "a value of the documented type"));
        Invalid::new(code, field, problem, expected)
    })
}

/// For `Deserialize` of a type that is written as text and parsed by its `FromStr`.
pub(crate) fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: std::str::FromStr<Err = Invalid>,
    D: serde::Deserializer<'de>,
{
    let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
    text.parse().map_err(|e: Invalid| {
        serde::de::Error::custom(format!("{}; expected {}", e.problem, e.expected))
    })
}

/// The error for a field that does not exist, with the nearest that does.
pub fn unknown_field(field: &str, known: &[&str]) -> Invalid {
    let near = known
        .iter()
        .map(|k| (distance(field, k), *k))
        .min()
        .filter(|(d, _)| *d <= 3)
        .map(|(_, k)| format!("`{k}`?"));
    let expected =
        near.map_or_else(|| format!("one of {}", known.join(", ")), |n| format!("perhaps {n}"));
    Invalid::new(Code::UNKNOWN_FIELD, field, "unknown field", expected)
}

/// Levenshtein distance, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(ca != cb)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}
