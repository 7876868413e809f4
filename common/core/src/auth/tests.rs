use super::*;
use crate::{
    id::{Name, NodeId},
    job::Assignment,
    node::{Facts, NodeInfo},
    target::Target,
};
use proptest::prelude::*;
use serde_json::json;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

fn node(id: &str, labels: &[(&str, &str)]) -> NodeInfo {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let facts = Facts { arch: "x86_64".into(), ..Facts::default() };
    NodeInfo { id: Name::new(id).unwrap(), online: true, drained: false, labels, facts }
}

fn access(grants: &[GrantSpec], from: Option<IpAddr>) -> Access {
    let grants = grants.iter().map(|g| Arc::new(Grant::new(g).unwrap())).collect();
    Access::new(grants, from)
}

#[test]
fn the_built_in_roles_are_each_more_than_the_one_before() {
    let of = |name: &str| Access::new(grants(&Role::built_in(name).unwrap()), None);
    let (viewer, operator, admin) = (of(VIEWER), of(OPERATOR), of(ADMIN));
    for p in Permission::ALL {
        assert!(admin.may_everywhere(*p), "{p}");
        assert!(!viewer.may(*p) || operator.may(*p), "{p}");
    }
    assert!(!viewer.may(Permission::Exec) && operator.may(Permission::Exec));
    for p in ["user.write", "role.write", "token.write", "audit.read"] {
        assert!(!operator.may(p.parse().unwrap()), "{p}");
    }
    // What a viewer has only looks.
    for p in Permission::ALL.iter().filter(|p| viewer.may(**p)) {
        assert!(p.as_str().ends_with(".read"), "{p}");
    }
    // A bit for each.
    assert!(Permission::ALL.len() <= 64);
    assert!(Role::built_in("root").is_none());
}

#[test]
fn roles_of_users_are_validated() {
    let good = json!({"name": "web", "grants": [{"permissions": ["job.*", "exec"], "target": "group=web",
        "commands": ["uptime"], "users": ["www"], "from": ["10.0.0.0/8", "::1"]}]});
    let role = Role::from_user(good.clone()).unwrap();
    assert_eq!(serde_json::to_value(&role).unwrap(), good);
    for (grants, field) in [
        (json!([]), "grants"),
        (json!([{"permissions": []}]), "grants[0].permissions"),
        (json!([{"permissions": ["job.fly"]}]), "grants[0].permissions"),
        (json!([{"permissions": ["job*"]}]), "grants[0].permissions"),
        (json!([{"permissions": ["*"], "target": "all"}]), "grants[0].permissions"),
        (json!([{"permissions": ["audit.read"], "users": ["x"]}]), "grants[0].permissions"),
        (json!([{"permissions": ["exec"], "target": "group=web limit 3"}]), "grants[0].target"),
        (json!([{"permissions": ["exec"], "target": "load1 < 1"}]), "grants[0].target"),
        (json!([{"permissions": ["exec"], "target": "group="}]), "grants[0].target"),
        (json!([{"permissions": ["exec"], "commands": []}]), "grants[0].commands"),
    ] {
        let e = Role::from_user(json!({"name": "web", "grants": grants})).unwrap_err();
        assert_eq!(e.field, field, "{e:?}");
    }
    for (grant, want) in [
        (json!({"permissions": ["exec"], "from": ["10.0.0.0/33"]}), "10.0.0.0/8"),
        (json!({"permissions": ["exec"], "form": ["10.0.0.0/8"]}), "from"),
    ] {
        let e = Role::from_user(json!({"name": "web", "grants": [grant]})).unwrap_err();
        assert!(e.expected.contains(want), "{e:?}");
    }
    for name in BUILT_IN {
        let role = json!({"name": name, "grants": [{"permissions": ["exec"]}]});
        assert_eq!(Role::from_user(role).unwrap_err().field, "name");
    }
}

#[test]
fn ranges_hold_for_both_ways_to_write_an_address() {
    let range: Range = "10.1.2.3/8".parse().unwrap();
    assert_eq!(range.to_string(), "10.0.0.0/8");
    for (address, want) in [("10.9.9.9", true), ("::ffff:10.9.9.9", true), ("11.0.0.1", false)] {
        assert_eq!(range.contains(address.parse().unwrap()), want, "{address}");
    }
    let single: Range = "::1".parse().unwrap();
    assert!(single.contains("::1".parse().unwrap()) && !single.contains("::2".parse().unwrap()));
    let grant = GrantSpec {
        permissions: vec!["exec".into()],
        from: Some(vec![range]),
        ..GrantSpec::default()
    };
    assert!(
        access(std::slice::from_ref(&grant), Some("10.0.0.1".parse().unwrap()))
            .may(Permission::Exec)
    );
    // Nobody knows where it comes from.
    assert!(!access(&[grant], None).may(Permission::Exec));
}

#[test]
fn a_stored_target_is_allowed_only_if_it_can_mean_nothing_else() {
    let nodes: BTreeMap<NodeId, NodeInfo> =
        [node("web-1", &[("group", "web")]), node("db-1", &[("group", "db")])]
            .into_iter()
            .map(|n| (n.id.clone(), n))
            .collect();
    for (inner, outer, want) in [
        ("group=web", "all", true),
        ("group=web", "group=web", true),
        ("group=web and arch=x86_64", "group=web", true),
        ("group=web or group=db", "group=web", false),
        ("group in (web, db)", "group in (db, web, api)", true),
        ("group=web", "group=w*", true),
        ("group=w*", "group=w*", true),
        ("group=w*", "group=web", false),
        ("group!=db", "group=web", false),
        ("not group=db", "group=web", false),
        ("all", "group=web", false),
        ("web-1", "group=web", true),
        ("web-1, db-1", "group=web", false),
        ("web-1, db-1", "group=web or group=db", true),
        ("web-9", "group=web", false),
        ("web-9", "web-*", true),
        ("web-*", "group=web", false),
        ("web-*", "web-*, db-*", true),
        ("group=web", "group=web and arch=x86_64", false),
        ("group=web and arch=x86_64", "group=web and arch=x86_64", true),
        ("arch=x86_64 and group=web", "group=web and arch=x86_64", true),
        ("group=web limit 3", "group=web", true),
        ("tree=shop/cart", "tree=shop/**", true),
        ("tree=shop/**", "tree=shop/cart", false),
        ("cpu.cores > 8", "cpu.cores > 4", false),
    ] {
        let (i, o) = (Target::parse(inner).unwrap(), Target::parse(outer).unwrap());
        assert_eq!(i.within(&o, &nodes), want, "{inner} within {outer}");
    }
}

#[test]
fn texts_of_tokens_come_apart_and_say_nothing_in_logs() {
    let text = format!("meepo_{}_{}", "0a".repeat(10), "x_-".repeat(14) + "y");
    let token: TokenText = text.parse().unwrap();
    assert_eq!((token.id.as_str(), token.reveal()), ("0a0a0a0a0a0a0a0a0a0a", text.clone()));
    assert!(!format!("{token:?}").contains("x_-"));
    for bad in
        ["", "meepo_", "meepo_0a_x", &text[..text.len() - 1], &format!("{text}x"), &text[1..]]
    {
        let e = bad.parse::<TokenText>().unwrap_err();
        assert!(!e.problem.contains("x_-"), "{e:?}");
    }
    let ann = Name::new("annabelle-anna").unwrap();
    for bad in ["short", "Annabelle-Anna", &"x".repeat(1025)] {
        assert!(check_password(&ann, bad).is_err(), "{bad}");
    }
    assert!(check_password(&ann, "correct horse").is_ok());
}

fn labels() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let one = (
        prop_oneof![Just("group"), Just("zone"), Just("tree")],
        prop_oneof![Just("web"), Just("db"), Just("w1"), Just("shop/cart"), Just("shop")],
    );
    proptest::collection::vec(one, 0..3)
}

fn fleet() -> impl Strategy<Value = Vec<NodeInfo>> {
    let ids = ["web-1", "web-2", "db-1", "10.0.0.1"];
    proptest::collection::vec(labels(), 4)
        .prop_map(move |all| ids.iter().zip(all).map(|(id, labels)| node(id, &labels)).collect())
}

fn target() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("all"),
        Just("web-1"),
        Just("web-*"),
        Just("db-1,web-2"),
        Just("\"10.0.0.?\""),
        Just("group=web"),
        Just("group=w*"),
        Just("group in (web,db)"),
        Just("group!=web"),
        Just("zone=db"),
        Just("tree=shop/**"),
        Just("tree=shop"),
        Just("tree=shop/cart"),
        Just("arch=x86_64"),
        Just("arch=x*"),
        Just("cpu.cores > 0"),
    ]
    .prop_map(str::to_owned);
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) and ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) or ({b})")),
            inner.prop_map(|a| format!("not ({a})")),
        ]
    })
}

fn grant() -> impl Strategy<Value = GrantSpec> {
    let permission = prop_oneof![
        Just("job.read"),
        Just("job.*"),
        Just("exec"),
        Just("run.*"),
        Just("job.write"),
        Just("node.read"),
        Just("audit.read"),
        Just("*"),
    ];
    let command = prop_oneof![Just("uptime"), Just("systemctl restart *"), Just("*")];
    let from = prop_oneof![Just("10.0.0.0/8"), Just("127.0.0.1"), Just("::/0")];
    (
        proptest::collection::vec(permission, 1..3),
        proptest::option::of(target()),
        proptest::option::of(proptest::collection::vec(command, 1..3)),
        proptest::option::of(Just(vec!["www".to_owned()])),
        proptest::option::of(proptest::collection::vec(from, 1..3)),
    )
        .prop_map(|(permissions, target, commands, users, from)| GrantSpec {
            permissions: permissions.into_iter().map(str::to_owned).collect(),
            target,
            commands: commands.map(|c| c.into_iter().map(str::to_owned).collect()),
            users,
            from: from.map(|f| f.into_iter().map(|r| r.parse().unwrap()).collect()),
        })
}

/// One thing that may be asked for.
#[derive(Debug, Clone)]
struct Ask {
    permission: Permission,
    from: Option<IpAddr>,
    node: Option<NodeInfo>,
    target: Target,
    command: Option<Command>,
}

fn ask() -> impl Strategy<Value = Ask> {
    let from = prop_oneof![Just("10.1.1.1"), Just("127.0.0.1"), Just("::1")];
    let cmd = prop_oneof![
        Just("uptime"),
        Just("systemctl restart x"),
        Just("systemctl restart x;id"),
        Just("id")
    ];
    let user = prop_oneof![Just(None), Just(Some("www")), Just(Some("root"))];
    (
        proptest::sample::select(Permission::ALL),
        proptest::option::of(from),
        proptest::option::of(fleet().prop_map(|f| f[0].clone())),
        target(),
        proptest::option::of((cmd, user)),
    )
        .prop_map(|(permission, from, node, target, command)| Ask {
            permission,
            from: from.map(|f| f.parse().unwrap()),
            node,
            target: Target::parse(&target).unwrap(),
            command: command.map(|(cmd, user)| {
                let user = user.map(str::to_owned);
                Command::of(&Assignment { user, ..Assignment::new(cmd) })
            }),
        })
}

/// Every decision there is.
fn decide(grants: &[GrantSpec], ask: &Ask, nodes: &BTreeMap<NodeId, NodeInfo>) -> [bool; 4] {
    let access = access(grants, ask.from);
    [
        access.may(ask.permission),
        access.may_everywhere(ask.permission),
        access.may_on(ask.permission, ask.node.as_ref(), ask.command.as_ref()),
        access.may_at(ask.permission, &ask.target, nodes, ask.command.as_ref()),
    ]
}

proptest! {
    #[test]
    fn a_role_allows_what_its_grants_allow_one_by_one_and_no_grant_allows_nothing(
        grants in proptest::collection::vec(grant(), 0..5), ask in ask(), fleet in fleet()
    ) {
        let nodes = fleet.into_iter().map(|n| (n.id.clone(), n)).collect();
        prop_assert_eq!(decide(&[], &ask, &nodes), [false; 4]);
        let mut sum = [false; 4];
        for grant in &grants {
            let one = decide(std::slice::from_ref(grant), &ask, &nodes);
            sum.iter_mut().zip(one).for_each(|(all, one)| *all |= one);
        }
        prop_assert_eq!(decide(&grants, &ask, &nodes), sum);
    }

    #[test]
    fn a_limit_never_allows_more(grant in grant(), ask in ask(), fleet in fleet()) {
        let nodes = fleet.into_iter().map(|n| (n.id.clone(), n)).collect();
        let limited = decide(std::slice::from_ref(&grant), &ask, &nodes);
        for without in [
            GrantSpec { target: None, ..grant.clone() },
            GrantSpec { commands: None, ..grant.clone() },
            GrantSpec { users: None, ..grant.clone() },
            GrantSpec { from: None, ..grant.clone() },
        ] {
            let wider = decide(&[without], &ask, &nodes);
            prop_assert!(limited.iter().zip(wider).all(|(l, w)| !l || w), "{grant:?}");
        }
    }

    #[test]
    fn what_is_within_a_target_is_meant_by_it(inner in target(), outer in target(), fleet in fleet()) {
        let nodes: BTreeMap<NodeId, NodeInfo> =
            fleet.iter().map(|n| (n.id.clone(), n.clone())).collect();
        let (i, o) = (Target::parse(&inner).unwrap(), Target::parse(&outer).unwrap());
        if i.within(&o, &nodes) {
            for n in &fleet {
                prop_assert!(!i.matches(n) || o.matches(n), "{inner} within {outer}: {n:?}");
            }
        }
    }

    #[test]
    fn without_looking_at_nodes_it_holds_for_every_fleet(inner in target(), outer in target(), fleet in fleet()) {
        let (i, o) = (Target::parse(&inner).unwrap(), Target::parse(&outer).unwrap());
        if i.within(&o, &BTreeMap::new()) {
            for n in &fleet {
                prop_assert!(!i.matches(n) || o.matches(n), "{inner} within {outer}: {n:?}");
            }
        }
    }

    #[test]
    fn a_pattern_never_lets_a_shell_do_more(line in "[a-c ;|&$()<>\n'\"*?~#\\\\{}!`-]{0,12}") {
        let matched = Command::of(&Assignment::new(format!("cat {line}")));
        if matched.fits(&["cat *".to_owned()]) {
            prop_assert!(line.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{line:?}");
            prop_assert!(!line.starts_with('-'));
        }
    }
}
