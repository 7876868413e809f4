use super::*;
use crate::job::JobSpec;
use proptest::prelude::*;
use serde_json::{Value, json};

fn path(s: &str) -> TreePath {
    TreePath::new(s).unwrap()
}

fn definitions(all: &[(&str, Value)]) -> Definitions {
    let mut definitions = Definitions::default();
    for (i, (at, value)) in all.iter().enumerate() {
        let Value::Object(fields) = value.clone() else { unreachable!() };
        definitions.0.insert(path(at), Definition { fields, revision: i as i64 + 1 });
    }
    definitions
}

#[test]
fn paths_are_names_joined_by_slashes() {
    for good in ["shop", "shop/cart", "a/b/c/d", "shop.eu/cart_1"] {
        assert_eq!(path(good).to_string(), good);
    }
    assert!(path("/").is_root());
    assert_eq!(path("/").to_string(), "/");
    let deep = vec!["a"; MAX_DEPTH + 1].join("/");
    for bad in ["", "/shop", "shop/", "shop//cart", "shop/..", "a b", "ü", &deep] {
        assert_eq!(TreePath::new(bad).unwrap_err().field, "tree", "{bad:?}");
    }
    assert_eq!(above("a/b/c").collect::<Vec<_>>(), ["a/b/c", "a/b", "a", ""]);
    assert_eq!(above("").collect::<Vec<_>>(), [""]);
    for (at, place, covers) in [
        ("shop", "shop", true),
        ("shop", "shop/cart", true),
        ("shop", "shopping", false),
        ("shop/cart", "shop", false),
        ("/", "shop", true),
        ("/", "", true),
        ("shop", "", false),
    ] {
        assert_eq!(path(at).covers(place), covers, "{at} {place}");
    }
}

#[test]
fn fields_are_inherited_one_by_one_and_null_is_the_default() {
    let all = definitions(&[
        ("/", json!({"name": "a", "cmd": "date", "timeout": "1m", "schedule": "@hourly"})),
        ("shop", json!({"name": "a", "tree": "shop", "cmd": "uptime"})),
        ("shop/cart", json!({"name": "a", "tree": "shop/cart", "timeout": null})),
    ]);
    let cart = all.resolve(&path("shop/cart")).unwrap();
    assert_eq!((cart.spec.cmd.as_str(), cart.spec.timeout), ("uptime", None));
    assert_eq!(cart.spec.schedule.as_deref(), Some("@hourly"));
    let from = |field: &str| cart.origins[field].to_string();
    assert_eq!(
        ["schedule", "cmd", "timeout"].map(from),
        ["/", "shop", "shop/cart"].map(str::to_owned)
    );
    assert_eq!(cart.revision(), 3);
    assert_eq!(cart.spec.extra.len(), 0, "{:?}", cart.spec.extra);
    assert_eq!(all.deepest("shop/cart/web"), Some(&path("shop/cart")));
    assert_eq!(all.deepest("blog"), Some(&TreePath::ROOT));
    assert_eq!(definitions(&[("shop", json!({}))]).deepest("blog"), None);
}

#[test]
fn every_definition_must_make_a_job_with_those_above() {
    let ok = [
        ("shop", json!({"name": "a", "disabled": true})),
        ("shop/cart", json!({"name": "a", "cmd": "date", "disabled": false})),
    ];
    definitions(&ok).check(&path("shop")).unwrap();
    let no_command = [("shop", json!({"name": "a", "schedule": "@hourly"}))];
    assert_eq!(definitions(&no_command).check(&path("shop")).unwrap_err().field, "cmd");
    // A change above that those below cannot live with names them.
    let below = [
        ("/", json!({"name": "a", "cmd": "http://x/", "executor": "http"})),
        ("shop", json!({"name": "a", "env": {"A": "b"}})),
    ];
    let e = definitions(&below).check(&TreePath::ROOT).unwrap_err();
    assert!(e.field == "env" && e.problem.starts_with("at shop of the tree"), "{e:?}");
}

#[test]
fn a_part_of_a_definition_is_checked_field_by_field() {
    check_partial(&json!({"name": "a", "tree": "shop", "timeout": "5s", "user": null})).unwrap();
    for (bad, field) in [
        (json!({"name": "a", "timeuot": "5s"}), "timeuot"),
        (json!({"name": "a", "timeout": 7}), "timeout"),
        (json!({"name": "a", "placement": "some"}), "placement"),
        (json!({"cmd": "x"}), "name"),
        (json!([]), "(document)"),
    ] {
        assert_eq!(check_partial(&bad).unwrap_err().field, field);
    }
}

proptest! {
    /// Whatever the order in which definitions come, each field has the value of the
    /// deepest definition that names it.
    #[test]
    fn the_deepest_wins_whatever_the_order(
        cells in prop::collection::vec(
            (0..5usize, prop::option::of(0..3u8), prop::option::of(prop::option::of(1..4u64))),
            1..12,
        ),
        shuffled in any::<prop::sample::Index>(),
    ) {
        let paths = ["/", "shop", "shop/cart", "shop/cart/web", "blog"];
        let mut given = std::collections::BTreeMap::new();
        for (at, cmd, limit) in &cells {
            let mut value = json!({"name": "a"});
            if let Some(cmd) = cmd {
                value["cmd"] = format!("c{cmd}").into();
            }
            if let Some(limit) = limit {
                value["output_limit"] = json!(limit);
            }
            given.insert(paths[*at], value);
        }
        given.entry("/").or_insert_with(|| json!({"name": "a"}))["cmd"] = "base".into();
        let mut list: Vec<_> = given.iter().map(|(p, v)| (*p, v.clone())).collect();
        let straight = definitions(&list);
        let turn = shuffled.index(list.len());
        list.rotate_left(turn);
        let turned = definitions(&list);
        for at in given.keys() {
            let (a, b): (JobSpec, JobSpec) = (
                straight.resolve(&path(at)).unwrap().spec,
                turned.resolve(&path(at)).unwrap().spec,
            );
            prop_assert_eq!(&a, &b);
            let place = path(at);
            let deepest = |field: &str| {
                let mut above = above(place.as_str());
                above.find_map(|p| given.get(if p.is_empty() { "/" } else { p })?.get(field))
            };
            prop_assert_eq!(Some(a.cmd.as_str()), deepest("cmd").and_then(Value::as_str));
            let limit = deepest("output_limit").and_then(Value::as_u64);
            prop_assert_eq!(a.output_limit, limit);
        }
    }
}
