//! `meepo job apply`: definitions from files to the master.

use super::documents::{self, Document};
use crate::{
    client::Client,
    error::{CliError, CliResult, exit},
    output::{Out, text},
};
use meepo_core::{
    api::{Action, Applied},
    id::Name,
    job::JobSpec,
    tree::{JobDocument, TreePath},
};
use reqwest::Method;
use std::{collections::BTreeMap, path::PathBuf};

/// A definition that is valid, and where it stood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Definition {
    /// For messages.
    pub(crate) place: String,
    /// The definition.
    pub(crate) spec: JobSpec,
}

/// A document that is valid, and where it stood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Given {
    /// For messages.
    pub(crate) place: String,
    /// The definition, at the root or at a place in the product tree.
    pub(crate) job: JobDocument,
}

impl From<Definition> for Given {
    fn from(d: Definition) -> Self {
        Self { place: d.place, job: d.spec.into() }
    }
}

/// Validates every definition first; applies them only if all are valid.
pub(crate) async fn run(out: &Out, client: &Client, files: &[PathBuf]) -> CliResult<u8> {
    let (documents, mut errors) = documents::load(files);
    let (definitions, invalid) = validate(documents);
    errors.extend(invalid);
    match errors.len() {
        0 => apply(out, client, definitions).await,
        1 => Err(errors.remove(0)),
        n => {
            for e in &errors {
                out.note(&format!("error: {e}"));
            }
            let problem = format!("nothing was applied: {}", text::count(n, "error"));
            Err(CliError::new(exit::USAGE, problem))
        }
    }
}

/// Splits documents into valid definitions and what is wrong with the others.
pub(crate) fn validate(documents: Vec<Document>) -> (Vec<Given>, Vec<CliError>) {
    let (mut definitions, mut errors) = (Vec::new(), Vec::new());
    let mut seen: BTreeMap<(Name, TreePath), String> = BTreeMap::new();
    for Document { place, value } in documents {
        match JobDocument::from_user(value) {
            Ok(job) => {
                let key = (job.name.clone(), job.tree.clone());
                if let Some(first) = seen.insert(key, place.clone()) {
                    errors.push(CliError::usage(
                        format!("{place}: name"),
                        format!("job {:?} is defined in {first} too", job.name.as_str()),
                        "one definition of each name at each place in the tree",
                    ));
                }
                definitions.push(Given { place, job });
            }
            Err(e) => errors.push(CliError::from(e).at(place)),
        }
    }
    // Those above first: what stands below is checked with what it inherits.
    definitions.sort_by_key(|d| d.job.tree.as_str().split_terminator('/').count());
    (definitions, errors)
}

/// Sends definitions; goes on after one that is refused, not after a master that
/// is away.
pub(crate) async fn apply(out: &Out, client: &Client, definitions: Vec<Given>) -> CliResult<u8> {
    let (mut done, mut code) = (Vec::new(), exit::OK);
    for Given { place, job } in definitions {
        let path = ["jobs", job.name.as_str()];
        match client.call::<Applied>(Method::PUT, &path, &[], Some(&job)).await {
            Ok(applied) => {
                if out.is_table() {
                    let at = match job.tree.is_root() {
                        true => String::new(),
                        false => format!(" at {}", job.tree),
                    };
                    out.text(&format!("job {}{at} {}\n", applied.name, action(applied.action)))?;
                }
                done.push(applied);
            }
            Err(e) => {
                let e = e.at(place);
                if !matches!(e.exit, exit::USAGE | exit::CONFLICT) {
                    return Err(e);
                }
                out.note(&format!("error: {e}"));
                code = e.exit;
            }
        }
    }
    if !out.is_table() {
        out.value(&done, |_| String::new())?;
    } else if done.is_empty() && code == exit::OK {
        out.note(&format!("{} to apply", text::count(0, "job")));
    }
    Ok(code)
}

/// What happened, in a word.
pub(crate) fn action(a: Action) -> &'static str {
    match a {
        Action::Created => "created",
        Action::Updated => "updated",
        Action::Unchanged => "unchanged",
        Action::Deleted => "deleted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        output::Format,
        testing::{Reply, fake_master},
    };
    use serde_json::json;

    fn out() -> Out {
        Out {
            format: Format::Table,
            terminal: false,
            color: false,
            err_terminal: false,
            err_color: false,
        }
    }

    fn document(place: &str, value: serde_json::Value) -> Document {
        Document { place: place.into(), value }
    }

    #[test]
    fn errors_name_place_field_and_what_is_right() {
        let (definitions, errors) = validate(vec![
            document("f.yaml, document 1", json!({"name": "a", "cmd": "x"})),
            document(
                "f.yaml, document 2",
                json!({"name": "b", "cmd": "x", "scedule": "* * * * *"}),
            ),
            document("f.yaml, document 3", json!({"name": "c", "cmd": " "})),
            document("f.yaml, document 4", json!({"name": "a", "cmd": "y"})),
            document("f.yaml, document 5", json!("text")),
        ]);
        assert_eq!(definitions.len(), 2);
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts[0],
            "f.yaml, document 2: scedule: unknown field; expected perhaps `schedule`?"
        );
        assert!(
            texts[1].starts_with("f.yaml, document 3: cmd: empty command; expected"),
            "{texts:?}"
        );
        assert!(texts[2].contains("document 1 too"), "{texts:?}");
        assert_eq!(texts.len(), 4);
    }

    #[tokio::test]
    async fn every_definition_is_put_under_its_name() {
        let ok = |name: &str| {
            Reply::new(
                "200 OK",
                json!({"name": name, "action": "created", "revision": 7}).to_string(),
            )
        };
        let conflict =
            json!({"error": {"code": 0x030a, "name": "conflict", "message": "m", "retry": false}});
        let master =
            fake_master(vec![ok("a"), Reply::new("409 Conflict", conflict.to_string()), ok("c")])
                .await;
        let (definitions, _) =
            validate(["a", "b", "c"].map(|n| document(n, json!({"name": n, "cmd": "x"}))).to_vec());
        assert_eq!(apply(&out(), &master.client(), definitions).await, Ok(exit::CONFLICT));
        let requests = master.requests();
        assert_eq!(requests.len(), 3);
        assert!(requests[1].starts_with("PUT /v1/jobs/b ") && requests[1].contains(r#""cmd":"x""#));
    }
}
