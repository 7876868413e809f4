//! Secrets in jobs: a job holds references, `${secret:NAME}`, and only the worker that runs it
//! puts values in their place.

pub mod mask;

use crate::{code::Code, error::Invalid, http_job::HttpRequest, id::Name, job::Assignment};
use std::collections::{BTreeMap, BTreeSet};

/// What a reference begins with; it ends with `}`.
pub const BEGIN: &str = "${secret:";

/// A piece of a text with references.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Secret(Name),
}

/// Takes a text apart. Errors: a reference that names nothing, in words.
fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let Some((name, after)) = after.split_once('}') else {
            return Err(format!("{BEGIN:?} without the \"}}\" that ends it"));
        };
        // A name without a letter or digit would be a folder.
        let named = name.contains(|c: char| c.is_ascii_alphanumeric());
        let name = Name::new(name).ok().filter(|_| named);
        let name = name.ok_or("a reference to a secret without a usable name")?;
        pieces.push(Piece::Text(before));
        pieces.push(Piece::Secret(name));
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

/// Whether a text has a reference in it.
pub fn refers(text: &str) -> bool {
    text.contains(BEGIN)
}

/// `text` with the values of secrets in the place of the references to them.
///
/// # Errors
/// A reference that cannot be read or has no value, in words.
pub fn fill(text: &str, values: &BTreeMap<Name, String>) -> Result<String, String> {
    if !refers(text) {
        return Ok(text.to_owned());
    }
    let mut filled = String::with_capacity(text.len());
    for piece in pieces(text)? {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Secret(name) => match values.get(&name) {
                Some(value) => filled.push_str(value),
                None => return Err(format!("the secret {name} is not known here")),
            },
        }
    }
    Ok(filled)
}

/// Fields of a request in which references are.
fn request_texts(http: &HttpRequest) -> impl Iterator<Item = (String, &str)> {
    let headers = http.headers.iter().map(|(k, v)| (format!("http.headers.{k}"), v.as_str()));
    headers.chain(http.body.as_deref().map(|body| ("http.body".to_owned(), body)))
}

/// The request with values in the place of references.
///
/// # Errors
/// As [`fill`].
pub fn fill_request(
    http: &HttpRequest,
    values: &BTreeMap<Name, String>,
) -> Result<HttpRequest, String> {
    let mut filled = http.clone();
    for value in filled.headers.values_mut().chain(filled.body.as_mut()) {
        *value = fill(value, values)?;
    }
    Ok(filled)
}

/// The texts of a job in which references are put in place, by the names of their fields.
fn texts(job: &Assignment) -> impl Iterator<Item = (String, &str)> {
    let env = job.env.iter().map(|(k, v)| (format!("env.{k}"), v.as_str()));
    let stdin = job.stdin.as_deref().map(|text| ("stdin".to_owned(), text));
    env.chain(stdin).chain(job.http.iter().flat_map(request_texts))
}

/// The secrets that a job needs.
pub fn of(job: &Assignment) -> BTreeSet<Name> {
    let found = texts(job).filter(|(_, text)| refers(text));
    let pieces = found.filter_map(|(_, text)| pieces(text).ok()).flatten();
    pieces
        .filter_map(|piece| match piece {
            Piece::Secret(name) => Some(name),
            Piece::Text(_) => None,
        })
        .collect()
}

/// Checks the references of a job.
pub(crate) fn check(job: &Assignment) -> Result<(), Invalid> {
    let bad = |field: &str, problem: String, expected: &str| {
        Err(Invalid::new(Code::BAD_VALUE, field, problem, expected))
    };
    for (field, text) in texts(job) {
        if let Err(problem) = pieces(text) {
            let expected = "${secret:NAME} with the name of a secret on the node";
            return bad(&field, problem, expected);
        }
    }
    // A script may well use such words of its own; arguments are nobody's script.
    if job.args.iter().any(|arg| refers(arg)) {
        let problem = "a secret in an argument can be seen by every user of the node";
        return bad("args", problem.to_owned(), "it in `env` or `stdin`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(of: &[(&str, &str)]) -> BTreeMap<Name, String> {
        of.iter().map(|(k, v)| (Name::new(k).unwrap(), (*v).to_owned())).collect()
    }

    fn job(value: serde_json::Value) -> Assignment {
        let mut whole = serde_json::json!({"cmd": "true"});
        whole.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn references_become_values_and_all_else_stays() {
        let values = values(&[("db", "s3cret"), ("a.b", "${secret:db}")]);
        let fill = |text| fill(text, &values);
        assert_eq!(fill("plain ${HOME} $1").unwrap(), "plain ${HOME} $1");
        assert_eq!(fill("p://u:${secret:db}@h/${secret:db}").unwrap(), "p://u:s3cret@h/s3cret");
        assert_eq!(fill("${secret:a.b}").unwrap(), "${secret:db}", "once, whatever it holds");
        assert!(fill("${secret:none}").unwrap_err().contains("none"));
    }

    #[test]
    fn a_job_says_what_it_needs() {
        let it = job(serde_json::json!({
            "env": {"A": "${secret:one}${secret:two}", "B": "x"}, "stdin": "${secret:three}",
        }));
        let names: Vec<_> = of(&it).into_iter().map(|n| n.to_string()).collect();
        assert_eq!(names, ["one", "three", "two"]);
        let request = job(serde_json::json!({
            "executor": "http", "cmd": "http://127.0.0.1/",
            "http": {"headers": {"Authorization": "Bearer ${secret:t}"}, "body": "${secret:b}"},
        }));
        assert_eq!(of(&request).len(), 2);
    }

    #[test]
    fn what_names_nothing_or_would_be_seen_is_refused() {
        for (value, field) in [
            (serde_json::json!({"env": {"A": "${secret:}"}}), "env.A"),
            (serde_json::json!({"env": {"A": "${secret:.."}}), "env.A"),
            (serde_json::json!({"env": {"A": "${secret:..}"}}), "env.A"),
            (serde_json::json!({"env": {"A": "${secret:a/b}"}}), "env.A"),
            (serde_json::json!({"stdin": "${secret:a b}"}), "stdin"),
            (serde_json::json!({"args": ["${secret:db}"]}), "args"),
        ] {
            assert_eq!(check(&job(value.clone())).unwrap_err().field, field, "{value}");
        }
        // A variable of a script that happens to have that name.
        check(&job(serde_json::json!({"cmd": "secret=abc; echo ${secret:0:1}"}))).unwrap();
    }
}
