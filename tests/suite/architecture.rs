//! The dependency rule: edges between the crates of the workspace point down only,
//! and the core stays pure.

use meepo_tests::workspace_root;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

/// What each crate of the workspace may depend on within the workspace.
const ALLOWED: &[(&str, &[&str])] = &[
    ("meepo-core", &[]),
    ("meepo-proto", &[]),
    // Back-off is one thing for all: coord takes it from runtime.
    ("meepo-coord", &["meepo-core", "meepo-runtime"]),
    // Models stand for the code and use none of it.
    ("meepo-model", &[]),
    ("meepo-logstore", &["meepo-core"]),
    ("meepo-runtime", &["meepo-core"]),
    ("meepo-master", BELOW_SERVICES),
    ("meepo-worker", BELOW_SERVICES),
    (
        "meepo",
        &[
            "meepo-core",
            "meepo-proto",
            "meepo-coord",
            "meepo-logstore",
            "meepo-runtime",
            "meepo-master",
            "meepo-worker",
        ],
    ),
    // What comes from outside is read by these.
    ("meepo-fuzzing", &["meepo-core", "meepo-proto", "meepo-coord"]),
    // Tests may see everything.
    (
        "meepo-tests",
        &[
            "meepo",
            "meepo-core",
            "meepo-proto",
            "meepo-coord",
            "meepo-logstore",
            "meepo-runtime",
            "meepo-master",
            "meepo-worker",
        ],
    ),
];

const BELOW_SERVICES: &[&str] =
    &["meepo-core", "meepo-proto", "meepo-coord", "meepo-logstore", "meepo-runtime"];

/// What would bring I/O, a clock, or a thread into the core.
const NOT_IN_CORE: &[&str] = &[
    "axum",
    "etcd-client",
    "mongodb",
    "nix",
    "reqwest",
    "rusqlite",
    "sysinfo",
    "tokio",
    "tokio-stream",
    "tokio-util",
    "tonic",
];

/// Normal and build dependencies of each crate.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Every edge that breaks the rule, as a sentence.
fn violations(graph: &Graph) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut found = Vec::new();
    for (krate, dependencies) in graph {
        let Some(may) = allowed.get(krate.as_str()) else {
            found.push(format!("{krate} is not in the table of allowed dependencies"));
            continue;
        };
        for dependency in dependencies {
            let of_workspace = graph.contains_key(dependency);
            if of_workspace && !may.contains(&dependency.as_str()) {
                found.push(format!("{krate} must not depend on {dependency}"));
            }
            if krate == "meepo-core" && NOT_IN_CORE.contains(&dependency.as_str()) {
                found.push(format!("the core must stay pure: it depends on {dependency}"));
            }
        }
    }
    found
}

/// What cargo says of the packages of the workspace.
pub(crate) fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(workspace_root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn workspace_graph() -> Graph {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().map(|p| (text(&p["name"]), dependencies(p))).collect()
}

fn dependencies(package: &Value) -> BTreeSet<String> {
    let all = package["dependencies"].as_array().unwrap();
    // Tests of a crate may look sideways; what is shipped may not.
    all.iter().filter(|d| d["kind"] != "dev").map(|d| text(&d["name"])).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

#[test]
fn dependencies_point_down() {
    let graph = workspace_graph();
    assert_eq!(graph.len(), ALLOWED.len(), "crates: {:?}", graph.keys());
    let found = violations(&graph);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A workspace that uses every edge the table allows.
fn allowed_graph() -> Graph {
    let edges = |may: &&[&str]| may.iter().map(|&d| d.to_owned()).collect();
    ALLOWED.iter().map(|(krate, may)| ((*krate).to_owned(), edges(may))).collect()
}

/// The rule is worth something only if breaking it is seen.
#[test]
fn a_broken_edge_is_seen() {
    let good = allowed_graph();
    assert!(violations(&good).is_empty());
    for (from, to, message) in [
        ("meepo-master", "meepo-worker", "meepo-master must not depend on meepo-worker"),
        ("meepo-worker", "meepo-master", "meepo-worker must not depend on meepo-master"),
        ("meepo-core", "meepo-coord", "meepo-core must not depend on meepo-coord"),
        ("meepo-coord", "meepo-logstore", "meepo-coord must not depend on meepo-logstore"),
        ("meepo-logstore", "meepo-runtime", "meepo-logstore must not depend on meepo-runtime"),
        ("meepo-runtime", "meepo", "meepo-runtime must not depend on meepo"),
        ("meepo-coord", "meepo-tests", "meepo-coord must not depend on meepo-tests"),
        ("meepo-core", "tokio", "the core must stay pure: it depends on tokio"),
    ] {
        let mut bad = good.clone();
        bad.get_mut(from).unwrap().insert(to.to_owned());
        assert!(violations(&bad).contains(&message.to_owned()), "{from} -> {to}");
    }
    let mut bad = good;
    bad.insert("meepo-new".to_owned(), BTreeSet::new());
    assert_eq!(violations(&bad), ["meepo-new is not in the table of allowed dependencies"]);
}

/// What `deny.toml` bans, held against the lock file: this needs no cargo-deny.
#[test]
fn banned_crates_and_foreign_sources_stay_out() {
    let read = |file: &str| -> toml::Table {
        std::fs::read_to_string(workspace_root().join(file)).unwrap().parse().unwrap()
    };
    let (deny, lock) = (read("deny.toml"), read("Cargo.lock"));
    let locked = lock["package"].as_array().unwrap();
    let name = |v: &toml::Value| v["name"].as_str().unwrap().to_owned();
    let names: BTreeSet<String> = locked.iter().map(name).collect();
    for ban in deny["bans"]["deny"].as_array().unwrap() {
        let banned = name(ban);
        if ban.get("wrappers").is_none() {
            assert!(!names.contains(&banned), "{banned}: {}", ban["reason"]);
            continue;
        }
        // Allowed below some crates only.
        let wrappers = ban["wrappers"].as_array().unwrap();
        for package in locked {
            let dependencies = package.get("dependencies").and_then(toml::Value::as_array);
            let uses = dependencies.is_some_and(|all| {
                all.iter().any(|d| d.as_str().unwrap().split(' ').next() == Some(&banned))
            });
            let allowed = wrappers.iter().any(|w| w.as_str() == Some(&name(package)));
            assert!(!uses || allowed, "{} uses {banned}: {}", name(package), ban["reason"]);
        }
    }
    let registry = deny["sources"]["allow-registry"][0].as_str().unwrap();
    for package in locked {
        if let Some(source) = package.get("source").and_then(toml::Value::as_str) {
            assert_eq!(source, format!("registry+{registry}"), "{}", name(package));
        }
    }
}
