//! Planning what has changed comes to the same as planning everything.

use super::{define, full, name, node, perform};
use crate::{
    placement::{At, Effect, Fleet, Held, Waiting},
    tree::TreePath,
};
use proptest::prelude::*;
use serde_json::json;

/// Something that happens to a fleet.
#[derive(Debug, Clone)]
enum Event {
    Node { id: usize, online: bool, drained: bool, group: u8, tree: usize },
    Forget(usize),
    Define { job: usize, tree: usize, what: usize },
    Undefine { job: usize, tree: usize },
    Foreign { job: usize, node: usize },
    Taken { job: usize, node: usize },
    Waits(usize, bool),
}

const TREES: [&str; 4] = ["/", "shop", "shop/cart", "blog"];

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..12usize, any::<bool>(), prop::bool::weighted(0.2), 0..2u8, 0..4usize).prop_map(
            |(id, online, drained, group, tree)| Event::Node { id, online, drained, group, tree }
        ),
        1 => (0..12usize).prop_map(Event::Forget),
        3 => (0..3usize, 0..4usize, 0..9usize)
            .prop_map(|(job, tree, what)| Event::Define { job, tree, what }),
        1 => (0..3usize, 0..4usize).prop_map(|(job, tree)| Event::Undefine { job, tree }),
        1 => (0..3usize, 0..12usize).prop_map(|(job, node)| Event::Foreign { job, node }),
        1 => (0..3usize, 0..12usize).prop_map(|(job, node)| Event::Taken { job, node }),
        2 => (0..12usize, any::<bool>()).prop_map(|(node, waits)| Event::Waits(node, waits)),
    ]
}

fn id(n: usize) -> crate::id::NodeId {
    name(&format!("n{n}"))
}

fn happen(f: &mut Fleet, waiting: &mut Waiting, event: Event, revision: i64) {
    let job = |n: usize| name(["a", "b", "c"][n]);
    match event {
        Event::Node { id: n, online, drained, group, tree } => {
            let mut info = node(id(n).as_str(), online);
            info.drained = drained;
            info.labels.insert("group".into(), group.to_string());
            if tree > 0 {
                info.labels.insert("tree".into(), TREES[tree].into());
            }
            f.set_node(info);
        }
        Event::Forget(n) => f.remove_node(&id(n)),
        Event::Define { job, tree, what } => {
            let mut value = match what {
                0 => json!({"placement": "each"}),
                1 => json!({"placement": "once"}),
                2 => json!({"placement": "any(2)"}),
                3 => json!({"placement": "any(5)", "target": "group=1"}),
                4 => json!({"placement": "once", "target": "group=0"}),
                5 => json!({"target": "group=1 limit 2"}),
                6 => json!({"disabled": true}),
                7 => json!({"disabled": false, "target": "no target ("}),
                _ => json!({"cmd": "uptime", "disabled": false}),
            };
            value["name"] = ["a", "b", "c"][job].into();
            match tree {
                0 => {
                    value["cmd"] = "date".into();
                }
                n => value["tree"] = TREES[n].into(),
            }
            define(f, value, revision);
        }
        Event::Undefine { job: j, tree } => {
            f.remove_definition(&job(j), &TreePath::new(TREES[tree]).unwrap());
        }
        Event::Foreign { job: j, node } => {
            f.set_assignment(id(node), job(j), At { value: Held::Foreign, revision });
        }
        Event::Taken { job: j, node } => f.remove_assignment(&id(node), &job(j)),
        Event::Waits(node, waits) => {
            let changed = match waits {
                true => waiting.insert(id(node)),
                false => waiting.remove(&id(node)),
            };
            // As the leader does when a node has been away for too long.
            if changed {
                f.dirty.nodes.insert(id(node));
            }
        }
    }
}

fn sorted(mut effects: Vec<Effect>) -> Vec<Effect> {
    effects.sort_by_key(|e| match e {
        Effect::Put { node, job, .. } | Effect::Delete { node, job, .. } => {
            (job.clone(), node.clone())
        }
    });
    effects
}

/// Plans what has changed.
fn changed(f: &mut Fleet, waiting: &Waiting) -> Vec<Effect> {
    let dirty = f.take_dirty();
    let (jobs, mut effects) = f.narrow(&dirty, waiting);
    effects.extend(jobs.iter().flat_map(|n| f.plan_job(n, waiting)));
    effects
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_has_changed_is_all_there_is_to_do(
        bursts in prop::collection::vec(prop::collection::vec(event(), 1..4), 1..40)
    ) {
        let (mut f, mut waiting) = (Fleet::default(), Waiting::new());
        let mut revision = 1000;
        for burst in bursts {
            for event in burst {
                revision += 1000;
                happen(&mut f, &mut waiting, event, revision);
            }
            let due = sorted(full(&f, &waiting));
            let effects = sorted(changed(&mut f, &waiting));
            prop_assert_eq!(&effects, &due);
            perform(&mut f, effects);
            // What was written comes back by the watch and asks for nothing more.
            prop_assert_eq!(changed(&mut f, &waiting), []);
            prop_assert_eq!(full(&f, &waiting), []);
        }
    }
}
