use super::*;
use crate::{code::Code, node::Facts};
use proptest::prelude::*;

fn node(id: &str, online: bool, labels: &[(&str, &str)], facts: Facts) -> NodeInfo {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    NodeInfo { id: Name::new(id).unwrap(), online, drained: false, labels, facts }
}

fn fleet() -> Vec<NodeInfo> {
    const GB: u64 = 1_000_000_000;
    let debian = Facts {
        hostname: "alpha.example.org".into(),
        os: "debian".into(),
        os_version: "12".into(),
        kernel: "6.1.0-13-amd64".into(),
        arch: "x86_64".into(),
        cpu_cores: 8,
        load1: 0.5,
        mem_total: 16 * GB,
        mem_free: 4 << 30,
        disk_total: 2000 * GB,
        disk_free: 1000 * GB,
        ..Default::default()
    };
    let alpine = Facts {
        hostname: "beta".into(),
        os: "alpine".into(),
        os_version: "3.19.1".into(),
        kernel: "5.15.2".into(),
        arch: "aarch64".into(),
        cpu_cores: 2,
        load1: 3.25,
        disk_free: 10 * GB,
        ..debian.clone()
    };
    vec![
        node(
            "web-2",
            true,
            &[("group", "web"), ("zone", "eu west")],
            Facts { cpu_use: Some(30.5), running: Some(2), load1: 0.75, ..alpine.clone() },
        ),
        node("web-1", false, &[("group", "web"), ("tree", "shop/cart/api")], debian.clone()),
        node(
            "10.0.0.7",
            true,
            &[("role", "db"), ("os", "mine")],
            Facts { cpu_use: Some(0.0), running: Some(0), ..debian },
        ),
        node(
            "10.0.0.17",
            true,
            &[("role", "db"), ("all", "x")],
            Facts { cpu_use: Some(90.0), running: Some(3), ..alpine },
        ),
        node("all", false, &[], Facts::default()),
    ]
}

fn selected(target: &str) -> String {
    let target = Target::parse(target).unwrap_or_else(|e| panic!("{target}: {e}"));
    let fleet = fleet();
    let ids: Vec<&str> = target.select(&fleet).iter().map(|n| n.id.as_str()).collect();
    ids.join(" ")
}

#[test]
fn what_is_meant() {
    const EVERY: &str = "10.0.0.17 10.0.0.7 all web-1 web-2";
    for (target, nodes) in [
        // Ids and patterns.
        ("10.0.0.7", "10.0.0.7"),
        ("10.0.0.9", ""),
        ("web-*", "web-1 web-2"),
        ("10.0.0.?", "10.0.0.7"),
        ("*.1*", "10.0.0.17"),
        ("web-1,10.0.0.7 , 10.0.0.9", "10.0.0.7 web-1"),
        ("all", EVERY),
        ("ALL", EVERY),
        ("\"all\"", "all"),
        ("*", EVERY),
        // Labels.
        ("group=web", "web-1 web-2"),
        ("group = w?b", "web-1 web-2"),
        ("group == web", "web-1 web-2"),
        ("group=*", "web-1 web-2"),
        ("group!=web", "10.0.0.17 10.0.0.7 all"),
        ("group=WEB", ""),
        ("zone=\"eu west\"", "web-2"),
        ("tree=shop/cart/**", "web-1"),
        ("tree=shop/*", ""),
        ("tree=shop/**", "web-1"),
        ("tree=shop/*/api", "web-1"),
        ("tree=**/api", "web-1"),
        ("tree!=shop/**", "10.0.0.17 10.0.0.7 all web-2"),
        ("label.tree = /shop/cart/api/**", "web-1"),
        ("tree in (shop, shop/cart/*)", "web-1"),
        // Sets.
        ("group in (web, db)", "web-1 web-2"),
        ("group not in (web,db)", "10.0.0.17 10.0.0.7 all"),
        ("group IN (w*)", "web-1 web-2"),
        ("os in (alpine, \"\")", "10.0.0.17 all web-2"),
        ("os.version in (12, 3.19.1)", "10.0.0.17 10.0.0.7 web-1 web-2"),
        ("not group in (web) and zone not in (x)", "10.0.0.17 10.0.0.7 all"),
        ("all=x", "10.0.0.17"),
        ("label.os=mine", "10.0.0.7"),
        ("nosuch=x", ""),
        // Facts.
        ("os=debian", "10.0.0.7 web-1"),
        ("os != debian", "10.0.0.17 all web-2"),
        ("os=\"\"", "all"),
        ("arch=x86*", "10.0.0.7 web-1"),
        ("hostname=*.example.org", "10.0.0.7 web-1"),
        ("cpu.cores >= 8", "10.0.0.7 web-1"),
        ("cpu.cores<8", "10.0.0.17 all web-2"),
        ("load1 < 0.5", "all"),
        ("load1 <= .5", "10.0.0.7 all web-1"),
        ("load1=3.25", "10.0.0.17"),
        ("cpu.use < 50", "10.0.0.7 web-2"),
        ("cpu.use >= 30.5%", "10.0.0.17 web-2"),
        ("cpu.use != 90", "10.0.0.7 all web-1 web-2"),
        ("not cpu.use < 50", "10.0.0.17 all web-1"),
        ("running = 0", "10.0.0.7"),
        ("running > 2", "10.0.0.17"),
        ("disk.free > 1TB", ""),
        ("disk.free >= 1TB", "10.0.0.7 web-1"),
        ("disk.free >= 1 tb", "10.0.0.7 web-1"),
        ("disk.free >= 0.9TiB", "10.0.0.7 web-1"),
        ("disk.free >= 1TiB", ""),
        ("disk.free = 10000000000", "10.0.0.17 web-2"),
        ("disk.free = 10GB", "10.0.0.17 web-2"),
        ("mem.free = 4GiB", "10.0.0.17 10.0.0.7 web-1 web-2"),
        ("mem.total != 16GB", "all"),
        ("disk.total > 1.5TB", "10.0.0.17 10.0.0.7 web-1 web-2"),
        // Versions.
        ("os.version >= 9", "10.0.0.7 web-1"),
        ("os.version > 3.9", "10.0.0.17 10.0.0.7 web-1 web-2"),
        ("os.version < 3.19.1", "all"),
        ("os.version = 3.*", "10.0.0.17 web-2"),
        ("kernel >= 6.1.0-9", "10.0.0.7 web-1"),
        // Combinations.
        ("group=web and os=debian", "web-1"),
        ("group=web or role=db", "10.0.0.17 10.0.0.7 web-1 web-2"),
        ("web-2 or role=db and os=debian", "10.0.0.7 web-2"),
        ("(web-2 or role=db) and os=debian", "10.0.0.7"),
        ("(web-2 or role=db)and(os=alpine)", "10.0.0.17 web-2"),
        ("not group=web", "10.0.0.17 10.0.0.7 all"),
        ("not web-1,web-2", "10.0.0.17 10.0.0.7 all"),
        ("not not web-1", "web-1"),
        ("all and not (web-* or \"all\")", "10.0.0.17 10.0.0.7"),
        ("web-1,web-2 AND Os=alpine", ""),
        ("web-1,web-2 AND os=alpine", "web-2"),
        // Preferences: the order in which they are asked.
        ("all prefer least-loaded", "10.0.0.7 web-2 10.0.0.17 all web-1"),
        ("all prefer least-loaded limit 2", "10.0.0.7 web-2"),
        ("all limit 1 prefer least-loaded", "10.0.0.7"),
        ("all prefer spread(role)", "10.0.0.17 web-2 10.0.0.7 all web-1"),
        ("all prefer spread(role) limit 2", "10.0.0.17 web-2"),
        ("all prefer SPREAD(label.role), least-loaded", "10.0.0.7 web-2 10.0.0.17 all web-1"),
        ("all prefer spread", "10.0.0.17 web-2 10.0.0.7 all web-1"),
        // Limits: online before offline, then by id.
        ("all limit 2", "10.0.0.17 10.0.0.7"),
        ("group=web limit 1", "web-2"),
        ("group=web limit 2", "web-1 web-2"),
        ("all limit 99", EVERY),
        ("web-1 limit 1", "web-1"),
        ("group=web or role=db and disk.free > 1GB limit 3", "10.0.0.17 10.0.0.7 web-2"),
    ] {
        assert_eq!(selected(target), nodes, "{target}");
    }
}

#[test]
fn the_order_of_the_nodes_does_not_matter() {
    let mut fleet = fleet();
    fleet.reverse();
    let target = Target::parse("all limit 3").unwrap();
    let ids: Vec<_> = target.select(&fleet).iter().map(|n| n.id.to_string()).collect();
    assert_eq!(ids, ["10.0.0.17", "10.0.0.7", "web-2"]);
}

#[test]
fn ids_written_out() {
    for (target, ids) in [
        ("b,a,c-*,all or (a and x=y)", &["a", "b"][..]),
        ("all and not a", &[]),
        ("group=web", &[]),
        ("\"all\" limit 1", &["all"]),
    ] {
        let target = Target::parse(target).unwrap();
        let found: Vec<_> = target.ids().iter().map(ToString::to_string).collect();
        assert_eq!(found, ids, "{target}");
    }
}

/// Each row: the target, its problem, part of what is expected.
#[test]
fn errors_say_where_and_what() {
    for (target, problem, expected) in [
        ("", "column 1: found the end", "`all`, a node id"),
        ("   ", "column 4: found the end", "`all`, a node id"),
        ("and and", "column 1: found \"and\"", "`all`, a node id"),
        ("a and", "column 6: found the end", "`all`, a node id"),
        ("a b", "column 3: found \"b\"", "`and`, `or`, `prefer`, `limit` or the end"),
        ("(a", "column 3: found the end", "`)`"),
        ("a)", "column 2: found `)`", "`and`, `or`"),
        ("()", "column 2: found `)`", "`all`, a node id"),
        ("a,", "column 3: found the end", "a node id or pattern"),
        ("a,,b", "column 3: found `,`", "a node id or pattern"),
        ("a,g=b", "column 4: found `=` in a list of ids", "with `or`"),
        ("g=a,b", "column 4: found `,`", "group in (web, db)"),
        ("group=", "column 7: found the end", "a value"),
        ("=x", "column 1: found `=`", "`all`, a node id"),
        ("label.=x", "column 1: found no label", "a label"),
        ("a ! b", "column 3: found `!`", "`!=` or `not`"),
        ("a/b", "column 1: \"a/b\" contains '/'", "letters, digits"),
        ("é*", "column 1: \"éx\" contains 'é'", "letters, digits"),
        ("é or b c", "column 1: \"é\" contains 'é'", "letters, digits"),
        ("g=é and b c", "column 11: found \"c\"", "`and`, `or`"),
        ("g=\"x", "column 3: the quote is not closed", "`\"`"),
        ("g=\"\\n\"", "column 4: found a lone `\\` in quotes", "`\\\"`"),
        ("disk.free > much", "column 13: found \"much\"", "KiB"),
        ("disk.free > 1T", "column 13: found \"1T\"", "TB"),
        ("disk.free > -1", "column 13: found \"-1\"", "a number"),
        ("disk.free > 1e9", "column 13: found \"1e9\"", "a number"),
        ("disk.free > .", "column 13: found \".\"", "a number"),
        ("cpu.cores > 1GB", "column 13: found \"1GB\"", "a number"),
        ("cpu.cores > ", "column 13: found the end", "a number"),
        ("os > debian", "column 1: `>` does not apply to os", "`=` or `!=`"),
        ("group < web", "column 1: `<` does not apply to the label \"group\"", "`=` or `!=`"),
        ("os.version > 1*", "column 14: \"1*\" is not a version", "12"),
        ("all limit", "column 10: found the end", "a number of nodes"),
        ("all limit 0", "column 11: found \"0\"", "at least 1"),
        ("all limit +3", "column 11: found \"+3\"", "at least 1"),
        ("all limit 3 and a", "column 13: found \"and\"", "`prefer` or the end"),
        ("all limit 3 limit 4", "column 13: found \"limit\"", "`prefer` or the end"),
        ("all prefer", "column 11: found the end", "`least-loaded`, `spread`"),
        ("all prefer cheap", "column 12: found \"cheap\"", "`least-loaded`, `spread`"),
        ("all prefer spread(", "column 19: found the end", "a label"),
        ("all prefer spread(a", "column 20: found the end", "`)`"),
        ("all prefer spread(label.)", "column 19: found no label", "a label"),
        ("all prefer spread, spread", "column 20: \"spread\" stands there twice", "once"),
        ("all prefer spread x", "column 19: found \"x\"", "`limit` or the end"),
        ("all prefer spread limit 1 x", "column 27: found \"x\"", "nothing after"),
        ("prefer spread", "column 1: found \"prefer\"", "`all`, a node id"),
        ("g in web", "column 6: found \"web\"", "`(`, as in group in (web, db)"),
        ("g in ()", "column 7: found `)`", "a value"),
        ("g in (a,)", "column 9: found `)`", "a value"),
        ("g in (a b)", "column 9: found \"b\"", "`,` or `)`"),
        ("g in (a", "column 8: found the end", "`,` or `)`"),
        ("g not (a)", "column 7: found `(`", "`in`"),
        ("label. in (a)", "column 1: found no label", "a label"),
        ("load1 in (1)", "column 1: `in` does not apply to the number load1", "comparisons"),
        ("cpu.use > 1GB", "column 11: found \"1GB\"", "per cent"),
        ("running < 5%", "column 11: found \"5%\"", "a number"),
        ("(all limit 3)", "column 6: found \"limit\"", "`and`, `or` or `)`"),
        ("limit 3", "column 1: found \"limit\"", "`all`, a node id"),
        ("a\0", "column 2: found '\\0'", "printable"),
    ] {
        let e = Target::parse(target).expect_err(target);
        assert_eq!((e.code, e.field.as_str()), (Code::BAD_TARGET, "target"), "{target}");
        assert_eq!(e.problem, problem, "{target}: {e}");
        assert!(e.expected.contains(expected), "{target}: {e}");
    }
}

#[test]
fn length_and_depth_are_bounded() {
    let nested = |n: usize| format!("{}a{}", "(".repeat(n), ")".repeat(n));
    assert!(Target::parse(&nested(MAX_DEPTH - 1)).is_ok());
    let e = Target::parse(&nested(MAX_DEPTH)).unwrap_err();
    assert!(e.problem.contains("nested too deeply"), "{e}");
    assert!(Target::parse(&"not ".repeat(1000)).is_err());
    assert!(Target::parse(&format!("a{}", " or (a)".repeat(500))).is_ok(), "wide is fine");
    assert!(Target::parse(&"a".repeat(MAX_TARGET + 1)).unwrap_err().problem.contains("too long"));
}

#[test]
fn written_as_read() {
    for (target, written) in [
        ("( a )and( b or c )", "a and (b or c)"),
        ("a , b ,\"all\", all", "a,b,\"all\",all"),
        ("((a and b) and c)", "(a and b) and c"),
        ("NOT NOT (a or b)", "not not (a or b)"),
        ("not (a,b)", "not a,b"),
        ("\"g\"==\"\"", "g=\"\""),
        ("\"a b\" != \"x\\\"\\\\y\"", "\"a b\"!=\"x\\\"\\\\y\""),
        ("\"not\"=not", "\"not\"=not"),
        ("label.os=x and label.free=y", "label.os=x and free=y"),
        ("disk.free>1 TB limit 03", "disk.free > 1TB limit 3"),
        ("kernel<6.1", "kernel < 6.1"),
        ("g IN (a)", "g=a"),
        ("g not  in (a,\"b c\" )", "g not in (a, \"b c\")"),
        ("label.os in (x,y)", "label.os in (x, y)"),
        ("a limit 2 prefer least-loaded,spread", "a prefer spread(zone), least-loaded limit 2"),
        ("a prefer spread(\"x y\")", "a prefer spread(\"x y\")"),
        ("a prefer spread(label.label.x)", "a prefer spread(label.label.x)"),
        ("cpu.use<50%", "cpu.use < 50%"),
        ("in in (in, not)", "in in (in, not)"),
    ] {
        let parsed = Target::parse(target).unwrap_or_else(|e| panic!("{target}: {e}"));
        assert_eq!(parsed.to_string(), written);
        assert_eq!(Target::parse(written).unwrap(), parsed);
    }
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[a-c*?.]{1,4}",
        1 => "\"[a-c ()=,!é/]{0,4}\"",
        1 => prop::sample::select(&["all", "\"limit\"", "ALL"][..]).prop_map(str::to_owned),
    ]
}

/// Valid targets.
fn target() -> impl Strategy<Value = String> {
    let id = prop_oneof![4 => "[a-c*?.-]{1,4}[a-c]", 1 => Just("all".to_owned()), 1 => Just("\"and\"".to_owned())];
    let leaf = prop_oneof![
        prop::collection::vec(id, 1..4).prop_map(|ids| ids.join(",")),
        (word(), "!?=", word()).prop_map(|(k, op, v)| format!("{k}z{op}{v}").replace("\"z", "z\"")),
        ("[a-c]{1,3}|os|tree", " in | not in ", prop::collection::vec(word(), 1..4))
            .prop_map(|(k, op, v)| format!("{k}{op}({})", v.join(", "))),
        ("[<>]=?|!=|=", "[0-9]{1,2}%?").prop_map(|(op, v)| format!("cpu.use {op}{v}")),
        ("(disk|mem)\\.free", "[<>]=?|!=|=", "[0-9]{1,3}(\\.[0-9])?( ?[KMGT]i?B)?")
            .prop_map(|(k, op, v)| format!("{k} {op}{v}")),
        ("os\\.version|kernel", "[<>]=?|!=|=", "[0-9a-c.]{0,4}[0-9]")
            .prop_map(|(k, op, v)| format!("{k}{op} {v}")),
    ];
    let expr = leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4)
                .prop_map(|p| format!("({})", p.join(" and "))),
            prop::collection::vec(inner.clone(), 2..4)
                .prop_map(|p| format!("({})", p.join(" or "))),
            inner.prop_map(|p| format!("not ({p})")),
        ]
    });
    let prefer = prop::sample::select(
        &["", " prefer least-loaded", " prefer spread", " prefer spread(\"a b\"), least-loaded"][..],
    );
    (expr, prefer, prop::option::of(1u32..9)).prop_map(|(e, prefer, limit)| match limit {
        Some(n) => format!("{e}{prefer} limit {n}"),
        None => format!("{e}{prefer}"),
    })
}

#[test]
fn what_asks_for_the_load_of_the_moment() {
    for (target, load, live) in [
        ("all", None, false),
        ("cpu.cores > 2 and mem.total > 1GB prefer spread", None, false),
        ("group=web or not (a or disk.free > 1GB)", None, true),
        ("all and not (running > 3)", Some("running"), true),
        ("load1 < 1", Some("load1"), true),
        ("cpu.use < 1 prefer least-loaded", Some("cpu.use"), true),
        ("all prefer least-loaded limit 1", Some("prefer least-loaded"), true),
    ] {
        let target = Target::parse(target).unwrap();
        assert_eq!(
            (target.asks_for_load(), target.asks_for_live_facts()),
            (load, live),
            "{target}"
        );
    }
    let (rest, limit) = Target::parse("a prefer spread limit 3").unwrap().without_limit();
    assert_eq!((rest.to_string().as_str(), limit.unwrap().get()), ("a prefer spread(zone)", 3));
}

#[test]
fn zones_take_turns_and_a_node_that_is_drained_waits() {
    let mut fleet: Vec<NodeInfo> = (0..6)
        .map(|i| {
            node(
                &format!("n{i}"),
                true,
                &[("zone", if i < 4 { "a" } else { "b" })],
                Facts::default(),
            )
        })
        .collect();
    let select = |fleet: &[NodeInfo], target: &str| {
        let target = Target::parse(target).unwrap();
        target.select(fleet).iter().map(|n| n.id.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(select(&fleet, "all prefer spread"), "n0 n4 n1 n5 n2 n3");
    fleet[0].drained = true;
    fleet[4].online = false;
    assert_eq!(select(&fleet, "all prefer spread"), "n1 n5 n2 n3 n0 n4");
    assert_eq!(select(&fleet, "all limit 5"), "n0 n1 n2 n3 n5");
}

/// The slow and obvious way.
fn naive_tree(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        (["**", p @ ..], _) => (0..=path.len()).any(|i| naive_tree(p, &path[i..])),
        ([a, p @ ..], [b, t @ ..]) => glob::matches(a, b) && naive_tree(p, t),
        _ => false,
    }
}

/// The slow and obvious way.
fn naive_glob(pattern: &[char], text: &[char]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        (['*', p @ ..], _) => (0..=text.len()).any(|i| naive_glob(p, &text[i..])),
        (['?', p @ ..], [_, t @ ..]) => naive_glob(p, t),
        ([a, p @ ..], [b, t @ ..]) => a == b && naive_glob(p, t),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_written_is_read_back(text in target()) {
        let parsed = Target::parse(&text).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
        let written = parsed.to_string();
        prop_assert_eq!(Target::parse(&written).unwrap(), parsed, "{} was written {}", text, written);
    }

    #[test]
    fn any_text_is_parsed_or_refused(
        text in prop_oneof![
            "\\PC{0,60}",
            prop::collection::vec(any::<u8>(), 0..60)
                .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            prop::collection::vec(prop::sample::select(&[
                "and", "or", "not", "(", ")", ",", "all", "limit", "3", "a", "os", "load1",
                "=", "!=", "<", "\"", "\\", "*", "é", "1TB", "disk.free", "label.", "\t", "in",
                "prefer", "spread", "least-loaded", "spread(a)", "tree", "**", "/", "cpu.use", "9%",
            ][..]), 0..20).prop_map(|v| v.join(" ")),
        ],
    ) {
        match Target::parse(&text) {
            Ok(target) => {
                let fleet = fleet();
                prop_assert!(target.select(&fleet).len() <= fleet.len());
                prop_assert_eq!(&Target::parse(&target.to_string()).unwrap(), &target);
            }
            Err(e) => prop_assert!(e.problem.starts_with("column "), "{}", e),
        }
    }

    #[test]
    fn patterns_match_as_the_obvious_way_does(pattern in "[ab*?é]{0,8}", text in "[abé]{0,8}") {
        let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
        prop_assert_eq!(glob::matches(&pattern, &text), naive_glob(&p, &t));
    }

    #[test]
    fn paths_match_as_the_obvious_way_does(
        pattern in prop::collection::vec(prop::sample::select(&["**", "*", "a", "a*", "b"][..]), 1..6),
        path in prop::collection::vec(prop::sample::select(&["a", "b", "ab"][..]), 1..6),
    ) {
        let (p, t) = (pattern.join("/"), path.join("/"));
        prop_assert_eq!(tree::matches(&p, &t), naive_tree(&pattern, &path), "{} {}", p, t);
    }
}
