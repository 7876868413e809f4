//! Writes of parts and their orders as transactions of etcd.

use crate::seal::Seal;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use meepo_coord::{etcd::MAX_TXN_BYTES, keys, records::encode};
use meepo_core::task::{
    Part, PartId, TaskId,
    dispatch::{Effect, OrderChange},
};
use std::collections::BTreeMap;

/// Writes in one transaction: each has up to two operations, and etcd takes 128.
const GROUP: usize = 60;

/// The operations that write a part and change its order with it, and their bytes.
fn part_write(
    id: PartId,
    part: &Part,
    order: &OrderChange,
    (seal, term): (&Seal, i64),
) -> (Vec<TxnOp>, usize) {
    let mut bytes = 0;
    let mut put = |key: String, value: Vec<u8>| {
        bytes += key.len() + value.len();
        TxnOp::put(key, value, None)
    };
    let mut operations = vec![put(keys::part(id), encode(part))];
    match order {
        OrderChange::None => {}
        OrderChange::Put(node, order) => {
            operations.push(put(keys::order(node, id), seal.order(term, node, id, order)));
        }
        OrderChange::Delete(node) => operations.push(TxnOp::delete(keys::order(node, id), None)),
    }
    (operations, bytes)
}

/// The comparisons with which a part is written: it has not changed since.
pub(crate) fn unchanged(id: PartId, expect: i64) -> Compare {
    Compare::mod_revision(keys::part(id), CompareOp::Equal, expect)
}

/// A transaction of one part alone, for any master.
pub(crate) fn transaction(
    id: PartId,
    expect: i64,
    part: &Part,
    order: &OrderChange,
    by: (&Seal, i64),
) -> Txn {
    // A part must not outlive its task.
    let there = Compare::create_revision(keys::task(id.task), CompareOp::Greater, 0);
    Txn::new().when([unchanged(id, expect), there]).and_then(part_write(id, part, order, by).0)
}

/// A part to write, as the plan has it.
pub(super) struct Write {
    pub(super) id: PartId,
    pub(super) expect: i64,
    pub(super) task: i64,
    pub(super) part: Part,
    operations: Vec<TxnOp>,
}

/// The leader's transaction of some writes.
pub(super) fn leaders(term: i64, writes: &[Write]) -> Txn {
    let mut compares = vec![Compare::create_revision(keys::LEADER, CompareOp::Equal, term)];
    let tasks: BTreeMap<TaskId, i64> = writes.iter().map(|w| (w.id.task, w.task)).collect();
    let task = |(id, revision)| Compare::mod_revision(keys::task(id), CompareOp::Equal, revision);
    compares.extend(tasks.into_iter().map(task));
    compares.extend(writes.iter().map(|w| unchanged(w.id, w.expect)));
    let operations = writes.iter().flat_map(|w| w.operations.iter().cloned());
    Txn::new().when(compares).and_then(operations.collect::<Vec<_>>())
}

/// Cuts the writes of a plan into groups that etcd takes: measured as they are sent, since
/// escaped text may take six times its length. One that is large goes alone.
pub(super) fn groups(effects: Vec<Effect>, by: (&Seal, i64)) -> Vec<Vec<Write>> {
    let mut groups = Vec::new();
    let (mut group, mut bytes) = (Vec::new(), 0);
    for Effect { id, expect, task, part, order } in effects {
        let (operations, more) = part_write(id, &part, &order, by);
        if !group.is_empty() && (group.len() >= GROUP || bytes + more > MAX_TXN_BYTES) {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
        bytes += more;
        group.push(Write { id, expect, task, part: *part, operations });
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::{
        id::Name,
        node::{Facts, NodeInfo},
        placement::At,
        task::{
            TaskRequest,
            dispatch::{Fleet, Tasks, Worker, plan},
        },
    };
    use serde_json::json;
    use std::sync::Arc;

    /// How the parts of a task with these commands are written when one worker takes all.
    fn grouped(commands: serde_json::Value) -> Vec<(usize, usize)> {
        let request = json!({"queue": "q", "commands": commands});
        let id = TaskId(uuid::Uuid::from_u128(1));
        let now = jiff::Timestamp::now();
        let request = TaskRequest::from_user(request).unwrap();
        let task = request.task(id, &BTreeMap::new(), now).unwrap();
        let mut tasks = Tasks::default();
        tasks.tasks.insert(id, At { value: Arc::new(task), revision: 1 });
        let node = NodeInfo {
            id: Name::new("a").unwrap(),
            online: true,
            drained: false,
            labels: BTreeMap::new(),
            facts: Facts::default(),
        };
        let workers = [(node.id.clone(), Worker { node, slots: 1000, load: 0.0 })].into();
        let fleet = Fleet { workers, ..Fleet::default() };
        let groups = groups(plan(&tasks, &fleet, now).effects, (&Seal::default(), 1));
        let measure = |group: Vec<Write>| {
            let bytes = group.iter().map(|w| {
                let part = encode(&w.part).len();
                let whole = w.part.node.is_some().then(|| {
                    let at = &tasks.tasks[&id];
                    let order = meepo_core::task::Order::of(&at.value, 1, w.id, &w.part).unwrap();
                    encode(&order).len()
                });
                part + whole.unwrap_or(0)
            });
            (group.len(), bytes.sum())
        };
        groups.into_iter().map(measure).collect()
    }

    #[test]
    fn groups_are_measured_as_they_are_sent() {
        let body = |n: usize, len: usize, c: &str| -> serde_json::Value {
            let one = json!({"executor": "http", "cmd": "http://127.0.0.1/",
                "http": {"method": "POST", "body": c.repeat(len)}});
            vec![one; n].into()
        };
        let script =
            |n: usize, cmd: &str| -> serde_json::Value { vec![json!({"cmd": cmd}); n].into() };
        for (commands, parts) in [
            (body(60, 36_000, "x"), 60),
            (body(3, 700_000, "x"), 3),
            (script(60, &"\u{1}".repeat(20_000)), 60),
        ] {
            let groups = grouped(commands);
            assert_eq!(groups.iter().map(|(n, _)| n).sum::<usize>(), parts);
            for (n, bytes) in &groups {
                assert!(*n == 1 || *bytes <= MAX_TXN_BYTES, "{groups:?}");
            }
        }
        assert_eq!(grouped(script(130, "true")).len(), 3, "small ones go together");
    }
}
