//! Writes of parts and their orders as transactions of etcd.

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use meepo_coord::{etcd::MAX_TXN_BYTES, keys, records::encode};
use meepo_core::task::{
    Part, PartId, TaskId,
    dispatch::{Effect, OrderChange},
};
use std::collections::BTreeMap;

/// Writes in one transaction: each has up to two operations, and etcd takes 128.
const GROUP: usize = 60;

/// The operations that write a part and change its order with it.
pub(crate) fn part_write(id: PartId, part: &Part, order: &OrderChange) -> Vec<TxnOp> {
    let mut operations = vec![TxnOp::put(keys::part(id), encode(part), None)];
    match order {
        OrderChange::None => {}
        OrderChange::Put(node, order) => {
            operations.push(TxnOp::put(keys::order(node, id), encode(order), None));
        }
        OrderChange::Delete(node) => operations.push(TxnOp::delete(keys::order(node, id), None)),
    }
    operations
}

/// The comparisons with which a part is written: it has not changed since.
pub(crate) fn unchanged(id: PartId, expect: i64) -> Compare {
    Compare::mod_revision(keys::part(id), CompareOp::Equal, expect)
}

/// A transaction of one part alone, for any master.
pub(crate) fn transaction(id: PartId, expect: i64, part: &Part, order: &OrderChange) -> Txn {
    // A part must not outlive its task.
    let there = Compare::create_revision(keys::task(id.task), CompareOp::Greater, 0);
    Txn::new().when([unchanged(id, expect), there]).and_then(part_write(id, part, order))
}

/// A part to write, as the plan has it.
pub(super) struct Write {
    pub(super) id: PartId,
    pub(super) expect: i64,
    pub(super) task: i64,
    pub(super) part: Part,
    pub(super) order: OrderChange,
}

/// The leader's transaction of some writes.
pub(super) fn leaders(term: i64, writes: &[Write]) -> Txn {
    let mut compares = vec![Compare::create_revision(keys::LEADER, CompareOp::Equal, term)];
    let tasks: BTreeMap<TaskId, i64> = writes.iter().map(|w| (w.id.task, w.task)).collect();
    let task = |(id, revision)| Compare::mod_revision(keys::task(id), CompareOp::Equal, revision);
    compares.extend(tasks.into_iter().map(task));
    compares.extend(writes.iter().map(|w| unchanged(w.id, w.expect)));
    let operations = writes.iter().flat_map(|w| part_write(w.id, &w.part, &w.order));
    Txn::new().when(compares).and_then(operations.collect::<Vec<_>>())
}

/// Cuts the writes of a plan into groups that etcd takes; answers also what is to be
/// finished.
pub(super) fn groups(effects: Vec<Effect>) -> (Vec<Vec<Write>>, Vec<(TaskId, i64)>) {
    let (mut groups, mut finished) = (Vec::new(), Vec::new());
    let (mut group, mut bytes) = (Vec::new(), 0);
    for effect in effects {
        match effect {
            Effect::Finish { id, expect } => finished.push((id, expect)),
            Effect::Write { id, expect, task, part, order } => {
                let size = |order: &OrderChange| match order {
                    OrderChange::Put(_, order) => {
                        let c = &order.command;
                        let env: usize = c.env.iter().map(|(k, v)| k.len() + v.len()).sum();
                        let args: usize = c.args.iter().map(String::len).sum();
                        let stdin = c.stdin.as_ref().map_or(0, String::len);
                        // Escaped text may take more: twice is nearly always enough, and
                        // a group that is refused is tried one by one.
                        4096 + 2 * (c.cmd.len() + env + args + stdin)
                    }
                    _ => 2048,
                };
                let more = size(&order);
                if !group.is_empty() && (group.len() >= GROUP || bytes + more > MAX_TXN_BYTES) {
                    groups.push(std::mem::take(&mut group));
                    bytes = 0;
                }
                bytes += more;
                group.push(Write { id, expect, task, part: *part, order });
            }
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    (groups, finished)
}
