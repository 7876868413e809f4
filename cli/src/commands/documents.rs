//! Files of job definitions: YAML or JSON, several documents, lists, directories.

use crate::{
    error::{CliError, CliResult, exit},
    output::text,
};
use serde_json::Value;
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// Largest file that is read, in bytes; a definition has 1 MiB at most.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// A definition and where it stood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    /// For messages: `jobs.yaml, document 2`.
    pub(crate) place: String,
    /// What stood there.
    pub(crate) value: Value,
}

/// Reads the definitions of all `paths`; `-` is standard input. Directories give
/// their `*.yaml`, `*.yml` and `*.json` by name. Errors are collected.
pub(crate) fn load(paths: &[PathBuf]) -> (Vec<Document>, Vec<CliError>) {
    let (mut documents, mut errors) = (Vec::new(), Vec::new());
    for path in paths {
        let files = match expand(path) {
            Ok(files) => files,
            Err(e) => {
                errors.push(e);
                continue;
            }
        };
        for file in files {
            let name = if is_stdin(&file) { "stdin".into() } else { file.display().to_string() };
            match read(&file)
                .and_then(|text| parse(&text, file.extension().is_some_and(|e| e == "json")))
            {
                Ok(values) if values.is_empty() => errors.push(CliError::usage(
                    name,
                    "no job definition in it",
                    "at least one object with `name` and `cmd`",
                )),
                Ok(values) => documents.extend(values.into_iter().map(|(place, value)| Document {
                    place: if place.is_empty() { name.clone() } else { format!("{name}, {place}") },
                    value,
                })),
                Err(e) => errors.push(e.at(name)),
            }
        }
    }
    (documents, errors)
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

fn expand(path: &Path) -> CliResult<Vec<PathBuf>> {
    if is_stdin(path) || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let wanted = |p: &Path| {
        p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") && p.is_file()
    };
    let mut files = std::fs::read_dir(path)
        .and_then(|d| d.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .map_err(|e| file_error(&e).at(path.display().to_string()))?;
    files.retain(|p| wanted(p));
    files.sort();
    if files.is_empty() {
        return Err(CliError::usage(
            path.display().to_string(),
            "no *.yaml, *.yml or *.json in this directory",
            "job definitions",
        ));
    }
    Ok(files)
}

fn file_error(e: &std::io::Error) -> CliError {
    CliError::new(exit::USAGE, format!("cannot read: {e}"))
}

/// Reads a file or standard input as text.
pub(crate) fn read(path: &Path) -> CliResult<String> {
    let mut bytes = Vec::new();
    if is_stdin(path) {
        std::io::stdin().take(MAX_FILE + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(MAX_FILE + 1).read_to_end(&mut bytes))
    }
    .map_err(|e| file_error(&e).expected("a file that can be read"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(CliError::new(exit::USAGE, "larger than 16 MiB").expected("a smaller file"));
    }
    String::from_utf8(bytes)
        .map_err(|_| CliError::new(exit::USAGE, "not UTF-8 text").expected("a text file"))
}

/// The definitions in `text`, each with its place within it.
fn parse(text: &str, json: bool) -> CliResult<Vec<(String, Value)>> {
    let documents: Vec<Value> = if json {
        serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().map_err(
            |e| CliError::new(exit::USAGE, format!("not valid JSON: {e}")).expected("JSON objects"),
        )?
    } else {
        // `y`, `on` and `no` are words, as in YAML 1.2.
        let options = serde_saphyr::options! { strict_booleans: true };
        serde_saphyr::from_multiple_with_options(text, options).map_err(|e| {
            let e = text::one_line(&e.without_snippet().to_string());
            CliError::new(exit::USAGE, format!("not valid YAML: {e}")).expected("YAML documents")
        })?
    };
    let many = documents.len() > 1;
    let mut out = Vec::new();
    for (i, document) in documents.into_iter().enumerate() {
        let place = if many { format!("document {}", i + 1) } else { String::new() };
        match document {
            Value::Null => {}
            Value::Array(items) => {
                let comma = if many { ", " } else { "" };
                out.extend(
                    items
                        .into_iter()
                        .enumerate()
                        .map(|(k, v)| (format!("{place}{comma}item {}", k + 1), v)),
                );
            }
            value => out.push((place, value)),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn places(text: &str, json: bool) -> Vec<String> {
        parse(text, json).unwrap().into_iter().map(|(p, _)| p).collect()
    }

    #[test]
    fn documents_and_lists_are_told_apart() {
        assert_eq!(places("name: a", false), [""]);
        assert_eq!(
            places("# hi\n---\nname: a\n---\nname: b\n", false),
            ["document 1", "document 2"]
        );
        assert_eq!(places("- name: a\n- name: b\n", false), ["item 1", "item 2"]);
        assert_eq!(
            places("name: a\n---\n- name: b\n", false),
            ["document 1", "document 2, item 1"]
        );
        assert_eq!(places(r#"[{"a": 1}, {"a": 2}]"#, true), ["item 1", "item 2"]);
        assert_eq!(places("{}\n{}", true), ["document 1", "document 2"]);
        assert_eq!(places("# nothing\n", false), [""; 0]);
    }

    #[test]
    fn values_keep_their_yaml_types() {
        let text =
            "name: y\nschedule: \"*/5 * * * *\"\nenv: {N: 1, S: \"1\"}\ncmd: |\n  one\n  two\n";
        assert_eq!(
            parse(text, false).unwrap()[0].1,
            json!({"name": "y", "schedule": "*/5 * * * *", "env": {"N": 1, "S": "1"}, "cmd": "one\ntwo\n"})
        );
    }

    #[test]
    fn broken_files_say_where() {
        for (text, json, want) in [
            ("a: [1,\nb: 2", false, "not valid YAML"),
            ("a: 1\na: 2", false, "not valid YAML"),
            ("{\"a\": 1,}", true, "line 1"),
            ("*/5: *", false, "not valid YAML"),
        ] {
            let e = parse(text, json).unwrap_err().to_string();
            assert!(e.contains(want) && !e.contains('\n'), "{e}");
        }
    }

    #[test]
    fn directories_give_their_definitions_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in
            [("b.yml", "name: b"), ("a.json", "{}"), ("c.txt", "x"), ("d.yaml", "# none")]
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let (documents, errors) = load(&[dir.path().to_owned(), "/nonexistent/x".into()]);
        let names: Vec<_> = documents
            .iter()
            .map(|d| Path::new(&d.place).file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["a.json", "b.yml"]);
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].to_string().contains("d.yaml: no job definition"), "{}", errors[0]);
        assert!(errors[1].to_string().contains("/nonexistent/x: cannot read"), "{}", errors[1]);
    }
}
