//! The documentation says what the program does: tables, links and examples are held
//! against the code and the binaries.

use meepo_coord::keys;
use meepo_core::{
    code::TABLE,
    event::{Event as Happening, What},
    job::{Assignment, JobSpec},
    task::{Event, PartState, Verb, record::TaskCommand, state::TRANSITIONS},
    tree::JobDocument,
};
use meepo_tests::{binary, workspace_root};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn reference(name: &str) -> String {
    read(&workspace_root().join("docs/reference").join(name))
}

/// Every page: those at the top and all under `docs/`.
fn pages() -> Vec<PathBuf> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "md") {
                out.push(path);
            }
        }
    }
    let root = workspace_root();
    let mut out = vec![root.join("README.md"), root.join("CHANGELOG.md")];
    walk(&root.join("docs"), &mut out);
    assert!(out.len() > 10, "{out:?}");
    out
}

/// The bodies of the fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut open: Option<Option<String>> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(name)) => open = Some((name == language).then(String::new)),
            (None, None) => {}
            (Some(body), Some(_)) => {
                out.extend(body.take());
                open = None;
            }
            (Some(Some(body)), None) => {
                body.push_str(line);
                body.push('\n');
            }
            (Some(None), None) => {}
        }
    }
    assert!(open.is_none(), "a fenced block is not closed");
    out
}

/// The text without fenced blocks and inline code.
fn prose(text: &str) -> String {
    let mut out = String::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            // Every second part stands between back-quotes.
            out.extend(line.split('`').step_by(2));
            out.push('\n');
        }
    }
    out
}

fn help(program: &str, words: &[String]) -> String {
    let out = Command::new(binary(program)).args(words).arg("--help").output().unwrap();
    assert!(out.status.success(), "{program} {words:?} --help: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn words(text: &[&str]) -> Vec<String> {
    text.iter().map(|s| (*s).to_owned()).collect()
}

/// Long flags and variables that a help text lists.
fn flags_and_variables(help: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in help.lines() {
        if let Some(at) = line.find("[env: ") {
            let name: String = line[at + 6..].chars().take_while(|c| *c != '=').collect();
            found.insert(name);
        }
        let line = line.trim_start();
        let line = line.strip_prefix('-').filter(|l| !l.starts_with('-')).map_or(line, |l| {
            // `-o, --output`
            l.split_once(", ").map_or("", |(_, rest)| rest)
        });
        if let Some(flag) = line.strip_prefix("--") {
            let name: String =
                flag.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            found.insert(format!("--{name}"));
        }
    }
    for known in ["--help", "--version"] {
        found.remove(known);
    }
    assert!(!found.is_empty(), "{help}");
    found
}

/// The subcommands a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|l| *l != "Commands:").skip(1);
    listed
        .take_while(|l| l.starts_with("  "))
        .filter(|l| !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_outcome_code_is_listed_and_no_other() {
    let listed: Vec<(String, String, String, String)> = reference("codes.md")
        .lines()
        .filter(|l| l.starts_with("| `0x"))
        .map(|l| {
            let cells: Vec<&str> = l.trim_matches('|').split('|').map(str::trim).collect();
            let [code, decimal, name, meaning] = cells[..] else { panic!("{l}") };
            let bare = |s: &str| s.trim_matches('`').to_owned();
            (bare(code), decimal.to_owned(), bare(name), meaning.to_owned())
        })
        .collect();
    let table: Vec<_> = TABLE
        .iter()
        .map(|(c, n, m)| (c.to_string(), c.0.to_string(), n.to_lowercase(), (*m).to_owned()))
        .collect();
    assert_eq!(listed, table);
}

#[test]
fn every_event_is_listed_with_an_example() {
    let page = reference("events.md");
    let rows: Vec<String> = page.lines().filter(|l| l.starts_with("| `")).map(Into::into).collect();
    let row = |w: &What| format!("| `{}` | {} |", w.as_str(), w.meaning());
    let first = rows.iter().position(|r| *r == row(&What::ALL[0])).expect("the table of kinds");
    for (what, is) in What::ALL.iter().zip(&rows[first..]) {
        assert_eq!(*is, row(what));
    }
    let examples: Vec<Happening> = blocks(&page, "json")
        .iter()
        .map(|b| serde_json::from_str(b).unwrap_or_else(|e| panic!("{e}: {b}")))
        .collect();
    for what in What::ALL {
        assert!(examples.iter().any(|e| e.what == *what), "no example of {what}");
    }
}

#[test]
fn every_setting_is_listed() {
    let page = reference("config.md");
    let section = |title: &str| {
        let start = page.find(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("{title}"));
        let rest = &page[start + 4..];
        rest[..rest.find("\n## ").unwrap_or(rest.len())].to_owned()
    };
    for (title, program, command) in [
        ("meepo-master", "meepo-master", &[][..]),
        ("meepo-worker", "meepo-worker", &["run"]),
        ("meepo server", "meepo", &["server"]),
    ] {
        let section = section(title);
        for name in flags_and_variables(&help(program, &words(command))) {
            // The options of every client command have a table of their own.
            let place = match name.as_str() {
                "MEEPO_MASTER" => &page,
                _ => &section,
            };
            let found =
                place.contains(&format!("`{name}`")) || place.contains(&format!("`{name} "));
            assert!(found, "{name} of {program} is missing in \"{title}\" of config.md");
        }
    }
}

#[test]
fn every_command_and_option_is_described() {
    let page = reference("cli.md");
    fn check(page: &str, program: &str, path: &[String]) {
        let text = help(program, path);
        let line = [&[program.to_owned()], path].concat().join(" ");
        if !path.is_empty() {
            assert!(page.contains(&line), "{line} is missing in cli.md");
        }
        // The options of the services and of the server stand in config.md.
        if program == "meepo" && path != ["server"] {
            for flag in flags_and_variables(&text) {
                assert!(page.contains(&flag), "{flag} of {line} is missing in cli.md");
            }
        }
        for sub in subcommands(&text) {
            if sub == "help" {
                continue;
            }
            check(page, program, &[path, &[sub]].concat());
        }
    }
    for program in ["meepo", "meepo-master", "meepo-worker"] {
        let top = subcommands(&help(program, &[]));
        assert!(top.len() > 2, "{program}: {top:?}");
        check(&page, program, &[]);
    }
    for code in [0, 1, 2, 3, 4, 5, 6, 130, 141] {
        assert!(page.contains(&format!("| {code} |")), "exit code {code} is missing in cli.md");
    }
}

#[test]
fn every_http_operation_is_described() {
    let page = reference("api.md");
    let document: Value =
        serde_json::from_str(&meepo_master::http::document().to_json().unwrap()).unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let operation = format!("{} {path}", method.to_uppercase());
            assert!(page.contains(&operation), "{operation} is missing in api.md");
        }
    }
}

#[test]
fn every_grpc_method_is_described() {
    let page = reference("api.md");
    let proto = read(&workspace_root().join("proto/meepo/v1/meepo.proto"));
    let (mut service, mut methods) = (String::new(), 0);
    for line in proto.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("service ") {
            service = rest.trim_end_matches([' ', '{']).to_owned();
        }
        if let Some(rest) = line.strip_prefix("rpc ") {
            let method = rest.split('(').next().unwrap();
            let name = format!("`meepo.v1.{service}/{method}`");
            assert!(page.contains(&name), "{name} is missing in api.md");
            methods += 1;
        }
    }
    assert!(methods > 10);
}

#[test]
fn every_key_of_etcd_is_described() {
    let page = reference("etcd-keys.md");
    for prefix in [
        keys::ASSIGNMENTS,
        keys::CRONIDS,
        keys::TRIGGERS,
        keys::CLAIMS,
        keys::HEALTH,
        keys::JOBS,
        keys::NODES,
        keys::LEADER,
        "/cron/kill/",
        "/cron/lock/mutex/",
    ] {
        assert!(page.contains(&format!("`{prefix}")), "{prefix} is missing in etcd-keys.md");
    }
    // The table of the module that owns the keys and that of the page name the same.
    let source = read(&workspace_root().join("common/coord/src/keys.rs"));
    for line in source.lines().filter_map(|l| l.strip_prefix("//! | `")) {
        let key = line.split('`').next().unwrap();
        let family = key.split('<').next().unwrap();
        assert!(page.contains(family), "{key} of keys.rs is missing in etcd-keys.md");
    }
    for line in source.lines().filter(|l| l.starts_with("pub const ")) {
        let value = line.split('"').nth(1).unwrap();
        assert!(page.contains(value), "{value} of keys.rs is missing in etcd-keys.md");
    }
}

#[test]
fn every_field_of_a_job_is_described() {
    let page = reference("job-files.md");
    for field in JobSpec::FIELDS {
        assert!(page.contains(&format!("\n| `{field}` |")), "{field} is missing in job-files.md");
    }
}

#[test]
fn the_states_of_tasks_are_those_of_the_code() {
    let page = reference("tasks.md");
    let table = page.split("| from | event | to |\n|---|---|---|\n").nth(1).unwrap();
    let rows: Vec<&str> = table.lines().take_while(|l| l.starts_with('|')).collect();
    let row = |(from, event, to): &(PartState, Event, PartState)| {
        format!("| `{from}` | {} | `{to}` |", event.as_str())
    };
    assert_eq!(rows, TRANSITIONS.iter().map(row).collect::<Vec<_>>());
    for state in PartState::ALL {
        assert!(page.contains(&format!("\n| `{state}` | ")), "{state} is missing in tasks.md");
    }
    for verb in Verb::ALL {
        assert!(page.contains(&format!("`{verb}`")), "{verb} is missing in tasks.md");
    }
    for field in TaskCommand::FIELDS.iter().chain(meepo_core::task::request::FIELDS) {
        assert!(page.contains(&format!("`{field}`")), "{field} is missing in tasks.md");
    }
}

#[test]
fn relative_links_lead_somewhere() {
    let mut links = 0;
    for page in pages() {
        let text = prose(&read(&page));
        for part in text.split("](").skip(1) {
            let link = part.split(')').next().unwrap();
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            if !anchor.is_empty() {
                let anchors = anchors(&read(&target));
                assert!(anchors.contains(anchor), "{}: {link}: {anchors:?}", page.display());
            }
            links += 1;
        }
    }
    assert!(links > 40, "{links}");
}

/// The anchors of a page's headings, as forges make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|l| l.starts_with('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_yaml_example_is_a_valid_job() {
    let mut jobs = 0;
    for page in pages() {
        for block in blocks(&read(&page), "yaml") {
            let documents: Vec<Value> = serde_saphyr::from_multiple(&block)
                .unwrap_or_else(|e| panic!("{}: {e}\n{block}", page.display()));
            for document in documents {
                JobDocument::from_user(document)
                    .unwrap_or_else(|e| panic!("{}: {e}\n{block}", page.display()));
                jobs += 1;
            }
        }
    }
    assert!(jobs >= 5, "{jobs}");
}

#[test]
fn every_json_example_parses_and_those_of_jobs_are_valid() {
    let mut jobs = 0;
    for page in pages() {
        for block in blocks(&read(&page), "json") {
            let say = |e: &dyn std::fmt::Display| format!("{}: {e}\n{block}", page.display());
            let value: Value =
                serde_json::from_str(&block).unwrap_or_else(|e| panic!("{}", say(&e)));
            let has = |field| value.get(field).is_some();
            if has("cmd") && has("express") {
                Assignment::from_etcd(block.as_bytes()).unwrap_or_else(|e| panic!("{}", say(&e)));
            } else if has("cmd") && has("name") {
                JobSpec::from_user(value).unwrap_or_else(|e| panic!("{}", say(&e)));
            } else {
                continue;
            }
            jobs += 1;
        }
    }
    assert!(jobs >= 3, "{jobs}");
}
