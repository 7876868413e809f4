use super::*;
use crate::{node::NodeInfo, tree::Definition};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

mod properties;

pub(super) fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

pub(super) fn node(s: &str, online: bool) -> NodeInfo {
    NodeInfo {
        id: name(s),
        online,
        drained: false,
        labels: BTreeMap::new(),
        facts: Default::default(),
    }
}

pub(super) fn define(f: &mut Fleet, value: Value, revision: i64) {
    let Value::Object(fields) = value else { unreachable!() };
    let job = name(fields["name"].as_str().unwrap());
    let path = fields.get("tree").map_or("/", |t| t.as_str().unwrap());
    let definition = Some(Definition { revision, fields: fields.clone() });
    f.set_definition(job, TreePath::new(path).unwrap(), definition);
}

fn job(n: &str, placement: &str) -> Value {
    json!({"name": n, "cmd": "date", "schedule": "* * * * *", "placement": placement})
}

/// Plans everything.
pub(super) fn full(f: &Fleet, waiting: &Waiting) -> Vec<Effect> {
    f.names().iter().flat_map(|n| f.plan_job(n, waiting)).collect()
}

/// Performs effects as etcd would.
pub(super) fn perform(f: &mut Fleet, effects: Vec<Effect>) {
    let there = |f: &Fleet, node: &NodeId, job: &Name| {
        f.holders(job).find(|(n, _)| *n == node).map_or(0, |(_, at)| at.revision)
    };
    for e in effects {
        match e {
            Effect::Put { node, job, assignment, expect, .. } => {
                assert_eq!(there(f, &node, &job), expect);
                // As it comes back by the watch.
                let read = Arc::new((*assignment).clone());
                f.set_assignment(
                    node,
                    job,
                    At { value: Held::Ours(read, u32::MAX), revision: expect + 1 },
                );
            }
            Effect::Delete { node, job, expect } => {
                assert_eq!(there(f, &node, &job), expect);
                f.remove_assignment(&node, &job);
            }
        }
    }
}

/// Plans everything and performs it; answers the number of writes.
fn apply(f: &mut Fleet) -> usize {
    let effects = full(f, &Waiting::new());
    let n = effects.len();
    perform(f, effects);
    n
}

fn holders(f: &Fleet, job: &str) -> BTreeSet<String> {
    f.holders(&name(job)).map(|(n, _)| n.to_string()).collect()
}

fn change(f: &mut Fleet, id: &str, change: impl FnOnce(&mut NodeInfo)) {
    let mut node = f.nodes()[id].clone();
    change(&mut node);
    f.set_node(node);
}

fn fleet(ids: &[&str], jobs: &[Value]) -> Fleet {
    let mut f = Fleet::default();
    ids.iter().for_each(|n| f.set_node(node(n, true)));
    jobs.iter().for_each(|j| define(&mut f, j.clone(), 1));
    f
}

#[test]
fn each_goes_everywhere_and_follows_changes_and_deletion() {
    let mut f = fleet(&["n1"], &[job("a", "each")]);
    f.set_node(node("n2", false));
    assert_eq!(apply(&mut f), 2);
    assert_eq!(apply(&mut f), 0);
    define(&mut f, job("a", "each"), 9);
    assert_eq!(apply(&mut f), 2);
    f.set_node(node("n3", true));
    assert_eq!(apply(&mut f), 1);
    f.remove_definition(&name("a"), &TreePath::ROOT);
    assert_eq!(apply(&mut f), 3);
    assert_eq!(f.names(), BTreeSet::new());
}

#[test]
fn once_has_standbys_and_leaves_dead_nodes() {
    let mut f = fleet(&["n1", "n2", "n3", "n4", "n5"], &[job("a", "once")]);
    assert_eq!(apply(&mut f), ONCE_HOLDERS);
    let order = |f: &Fleet| match &f.holders(&name("a")).next().unwrap().1.value {
        Held::Ours(a, _) => a.once.clone(),
        Held::Foreign => unreachable!(),
    };
    let first = order(&f)[0].clone();
    change(&mut f, first.as_str(), |n| n.online = false);
    // Not while it may be back in a moment.
    assert_eq!(full(&f, &[first.clone()].into()), []);
    apply(&mut f);
    assert!(!order(&f).contains(&first));
    assert_eq!(holders(&f, "a").len(), ONCE_HOLDERS);
    // One that is drained is as good as away, until it is back.
    let second = order(&f)[0].clone();
    change(&mut f, second.as_str(), |n| n.drained = true);
    apply(&mut f);
    assert!(!order(&f).contains(&second));
    change(&mut f, second.as_str(), |n| n.drained = false);
    apply(&mut f);
    assert_eq!(order(&f)[0], second);
    let before = holders(&f, "a");
    for id in ["n1", "n2", "n3", "n4", "n5"] {
        change(&mut f, id, |n| n.online = false);
    }
    assert_eq!(apply(&mut f), 0, "kept while nobody is there");
    // One comes back: the others stay in line.
    let last = order(&f)[ONCE_HOLDERS - 1].clone();
    change(&mut f, last.as_str(), |n| n.online = true);
    apply(&mut f);
    assert_eq!(order(&f)[0], last);
    assert_eq!(holders(&f, "a").len(), ONCE_HOLDERS);
    assert!(holders(&f, "a").intersection(&before).count() > 0);
}

#[test]
fn any_replaces_who_is_gone_and_does_not_move_back() {
    let mut f = fleet(&["n1", "n2", "n3", "n4", "n5"], &[job("a", "any(2)")]);
    assert_eq!(apply(&mut f), 2);
    let before = holders(&f, "a");
    let gone = before.first().unwrap().clone();
    change(&mut f, &gone, |n| n.online = false);
    assert_eq!(full(&f, &[name(&gone)].into()), [], "it may be back in a moment");
    assert_eq!(apply(&mut f), 2, "one is taken away, one is put");
    let after = holders(&f, "a");
    assert!(!after.contains(&gone) && before.intersection(&after).count() == 1);
    change(&mut f, &gone, |n| n.online = true);
    assert_eq!(apply(&mut f), 0, "back again, it is not needed");
    let drained = after.first().unwrap().clone();
    change(&mut f, &drained, |n| n.drained = true);
    apply(&mut f);
    assert!(!holders(&f, "a").contains(&drained));
    // Fewer, and then more than there are.
    define(&mut f, job("a", "any(1)"), 7);
    apply(&mut f);
    assert_eq!(holders(&f, "a").len(), 1);
    define(&mut f, job("a", "any(99)"), 8);
    apply(&mut f);
    assert_eq!(holders(&f, "a").len(), 5);
    // Nobody is there: who has it keeps it.
    define(&mut f, job("a", "any(2)"), 9);
    apply(&mut f);
    for id in ["n1", "n2", "n3", "n4", "n5"] {
        change(&mut f, id, |n| n.online = false);
    }
    assert_eq!(apply(&mut f), 0);
}

#[test]
fn any_spreads_jobs_and_all_masters_agree() {
    let ids: Vec<String> = (0..20).map(|i| format!("n{i}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let jobs: Vec<Value> = (0..200).map(|i| job(&format!("j{i}"), "any(2)")).collect();
    let mut f = fleet(&ids, &jobs);
    let mut other = fleet(&ids, &jobs);
    apply(&mut f);
    apply(&mut other);
    let mut load: BTreeMap<String, usize> = BTreeMap::new();
    for n in f.names() {
        assert_eq!(holders(&f, n.as_str()), holders(&other, n.as_str()));
        holders(&f, n.as_str()).into_iter().for_each(|id| *load.entry(id).or_default() += 1);
    }
    // 20 each on average.
    assert!(load.len() == 20 && load.values().all(|n| (5..=45).contains(n)), "{load:?}");
}

#[test]
fn a_definition_that_cannot_be_read_keeps_what_it_has() {
    let mut f = fleet(&["n1"], &[job("a", "each")]);
    apply(&mut f);
    f.set_definition(name("a"), TreePath::ROOT, None);
    assert_eq!(apply(&mut f), 0);
    // Two that do not go together do no harm either.
    define(&mut f, job("a", "each"), 2);
    change(&mut f, "n1", |n| drop(n.labels.insert("tree".into(), "shop".into())));
    apply(&mut f);
    define(&mut f, json!({"name": "a", "tree": "shop", "executor": "http"}), 3);
    assert_eq!(apply(&mut f), 0);
}

#[test]
fn what_people_put_is_never_touched() {
    let mut f = fleet(&["n1"], &[job("a", "each")]);
    f.set_assignment(name("n1"), name("a"), At { value: Held::Foreign, revision: 3 });
    f.set_assignment(name("n1"), name("b"), At { value: Held::Foreign, revision: 4 });
    assert_eq!(apply(&mut f), 0);
}

#[test]
fn definitions_in_the_tree_decide_below_their_path() {
    let mut f = fleet(&["top", "shop", "cart", "web", "other"], &[job("a", "each")]);
    for (id, tree) in [("shop", "shop"), ("cart", "shop/cart"), ("web", "shop/cart/web")] {
        change(&mut f, id, |n| drop(n.labels.insert("tree".into(), tree.into())));
    }
    change(&mut f, "other", |n| drop(n.labels.insert("tree".into(), "shopping".into())));
    define(&mut f, json!({"name": "a", "tree": "shop", "cmd": "uptime"}), 5);
    define(&mut f, json!({"name": "a", "tree": "shop/cart", "disabled": true}), 6);
    apply(&mut f);
    let held: BTreeMap<String, (String, String, i64)> = f
        .holders(&name("a"))
        .map(|(n, at)| match &at.value {
            Held::Ours(a, _) => {
                let what = (a.cmd.clone(), a.tree.to_string(), a.spec_revision.unwrap());
                (n.to_string(), what)
            }
            Held::Foreign => unreachable!(),
        })
        .collect();
    let root = ("date".to_owned(), "/".to_owned(), 1);
    let shop = ("uptime".to_owned(), "shop".to_owned(), 5);
    let want = [("other", &root), ("shop", &shop), ("top", &root)];
    assert_eq!(held, want.map(|(n, what)| (n.to_owned(), what.clone())).into());
    // Placement counts among the nodes for which a definition decides.
    define(&mut f, json!({"name": "a", "tree": "shop/cart", "placement": "any(1)"}), 7);
    apply(&mut f);
    let below = ["cart", "web"].iter().filter(|n| holders(&f, "a").contains(**n)).count();
    assert_eq!(below, 1);
    assert_eq!(holders(&f, "a").len(), 4);
}

#[test]
fn equal_assignments_are_kept_once() {
    let mut f = fleet(&["n1", "n2"], &[job("a", "each")]);
    apply(&mut f);
    let held: Vec<_> = f.holders(&name("a")).map(|(_, at)| at.value.clone()).collect();
    let [Held::Ours(a, _), Held::Ours(b, _)] = &held[..] else { panic!("{held:?}") };
    assert!(Arc::ptr_eq(a, b));
}

#[test]
fn what_is_due_is_written_again_and_nothing_else_is() {
    let mut f = fleet(&["n1", "n2"], &[job("a", "each"), job("b", "each")]);
    apply(&mut f);
    let held = |f: &Fleet, job: &str, node: &str| {
        f.holders(&name(job)).find(|(n, _)| n.as_str() == node).map(|(_, at)| at.clone()).unwrap()
    };
    for (job, node, renew_at) in [("a", "n1", 100), ("a", "n2", 50), ("b", "n2", 100)] {
        let At { value: Held::Ours(assignment, _), revision } = held(&f, job, node) else {
            panic!()
        };
        let value = Held::Ours(assignment, renew_at);
        f.set_assignment(name(node), name(job), At { value, revision });
    }
    f.take_dirty();
    let pairs = |f: &Fleet| f.due_again(None, 9);
    assert!(pairs(&f).is_empty());
    f.set_clock(99);
    assert_eq!(pairs(&f), [(name("a"), name("n2"))]);
    f.set_clock(100);
    let all = [("a", "n1"), ("a", "n2"), ("b", "n2")].map(|(j, n)| (name(j), name(n)));
    assert_eq!(pairs(&f), all);
    // Step by step.
    assert_eq!(f.due_again(Some(&all[0]), 1), all[1..2]);
    assert_eq!(f.due_again(Some(&all[1]), 9), all[2..]);
    let dirty = Dirty { pairs: pairs(&f).into_iter().collect(), ..Dirty::default() };
    let (jobs, writes) = f.narrow(&dirty, &Waiting::new());
    assert_eq!((jobs.len(), writes.len()), (0, 3));
    assert!(writes.iter().all(|e| matches!(e, Effect::Put { .. })));
    let whole: Vec<_> =
        [name("a"), name("b")].iter().flat_map(|job| f.plan_job(job, &Waiting::new())).collect();
    assert_eq!(whole.len(), 3, "planning everything comes to the same");
}

#[test]
fn a_definition_that_is_not_believed_changes_nothing_and_says_why() {
    let mut f = fleet(&["n1"], &[job("a", "each")]);
    apply(&mut f);
    let why = crate::error::Invalid::from(crate::signing::Refusal::Unsigned);
    f.refuse_definition(name("a"), TreePath::ROOT, why);
    assert!(f.plan_job(&name("a"), &Waiting::new()).is_empty(), "nodes keep what they have");
    assert_eq!(f.problems(&name("a")).count(), 1);
    let told = f.explain(&name("a"), [&name("n1")]);
    assert!(told[0].text.contains("not believed") && told[0].text.contains("missing"));
}
