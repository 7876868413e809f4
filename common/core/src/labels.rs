//! Labels of nodes: those that a worker's configuration sets, and those set by the API,
//! which win.

use crate::{code::Code, error::Invalid};
use std::collections::BTreeMap;

/// Longest key in bytes.
pub const MAX_KEY: usize = 128;
/// Longest value in bytes.
pub const MAX_VALUE: usize = 256;
/// Most labels that the API sets on a node.
pub const MAX_LABELS: usize = 64;

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// The labels that count.
pub fn merged(configured: &Labels, set: &Labels) -> Labels {
    let mut labels = configured.clone();
    labels.extend(set.iter().map(|(key, value)| (key.clone(), value.clone())));
    labels
}

/// The labels set by the API after a change: `None` takes one away. The change is checked
/// as a whole before anything of it is done.
pub fn changed(
    configured: &Labels,
    set: &Labels,
    change: &BTreeMap<String, Option<String>>,
) -> Result<Labels, Invalid> {
    if change.is_empty() {
        return Err(bad("labels", "no change", "at least one label, as {\"zone\": \"a\"}"));
    }
    let mut after = set.clone();
    for (key, value) in change {
        let field = format!("labels.{key}");
        check_key(&field, key)?;
        match value {
            Some(value) => {
                check_value(&field, value)?;
                after.insert(key.clone(), value.clone());
            }
            None if after.remove(key).is_none() && configured.contains_key(key) => {
                let problem = "is set by the worker's configuration";
                let expected = "a value that wins over it, or a change of that configuration";
                return Err(bad(&field, problem, expected));
            }
            None => {}
        }
    }
    if after.len() > MAX_LABELS {
        let problem = format!("{} labels would be set on the node", after.len());
        return Err(bad("labels", problem, format!("at most {MAX_LABELS}")));
    }
    Ok(after)
}

fn check_key(field: &str, key: &str) -> Result<(), Invalid> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    // `key-` takes the label `key` away on the command line.
    let edges = !key.starts_with('-') && !key.ends_with('-');
    if key.is_empty() || key.len() > MAX_KEY || !key.chars().all(fits) || !edges {
        let expected = format!(
            "letters, digits, '.', '_', '-' (not at the ends) and '/', at most {MAX_KEY} bytes"
        );
        return Err(bad(field, format!("{key:?} cannot be the key of a label"), expected));
    }
    Ok(())
}

fn check_value(field: &str, value: &str) -> Result<(), Invalid> {
    if value.len() > MAX_VALUE || value.chars().any(char::is_control) {
        let problem = "the value is too long or contains control characters";
        return Err(bad(field, problem, format!("printable text of at most {MAX_VALUE} bytes")));
    }
    Ok(())
}

fn bad(field: &str, problem: impl Into<String>, expected: impl Into<String>) -> Invalid {
    Invalid::new(Code::BAD_VALUE, field, problem, expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        let pair = |w: &str| w.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        text.split_whitespace().filter_map(pair).collect()
    }

    fn change(text: &str) -> BTreeMap<String, Option<String>> {
        let one = |w: &str| match w.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (w.to_owned(), None),
        };
        text.split_whitespace().map(one).collect()
    }

    #[test]
    fn what_is_set_wins_until_it_is_taken_away() {
        let configured = labels("group=web zone=a");
        let set = changed(&configured, &labels(""), &change("zone=b tree=shop/cart")).unwrap();
        assert_eq!(merged(&configured, &set), labels("group=web zone=b tree=shop/cart"));
        let set = changed(&configured, &set, &change("zone tree role=x none")).unwrap();
        assert_eq!(merged(&configured, &set), labels("group=web zone=a role=x"));
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        let configured = labels("group=web");
        for (text, field, problem) in [
            ("", "labels", "no change"),
            ("group", "labels.group", "worker's configuration"),
            ("a,b=1", "labels.a,b", "cannot be the key"),
            ("=1", "labels.", "cannot be the key"),
            ("a-=1", "labels.a-", "cannot be the key"),
            ("-a", "labels.-a", "cannot be the key"),
            ("a=\u{7}", "labels.a", "control characters"),
            (&format!("a={}", "x".repeat(257)), "labels.a", "too long"),
            (&(0..65).map(|i| format!("a{i}=1 ")).collect::<String>(), "labels", "65 labels"),
        ] {
            let e = changed(&configured, &Labels::new(), &change(text)).expect_err(text);
            assert_eq!(e.field, field);
            assert!(e.problem.contains(problem), "{e}");
        }
    }
}
