//! The whole keyspace. Each key is made and read here and nowhere else.
//!
//! | key | value | life |
//! |---|---|---|
//! | `/cron/jobs/<ip>/<job_id>` | [`meepo_core::job::Assignment`] | until removed |
//! | `/cron/jobs/<ip>/` | the same; the oldest form, the id stands in `task_id` | until removed |
//! | `/cron/cronid/jobs/<ip>/<task_id>` | [`meepo_core::api::CronId`] | the worker's lease |
//! | `/cron/trigger/<ip>/<run_id>` | [`crate::records::TriggerRecord`] | until taken; its lease |
//! | `/cron/kill/<ip>/<run_id>` | [`crate::records::KillRecord`] | a short lease of its own |
//! | `/cron/lock/slot/<job_id>` | [`crate::records::ClaimRecord`] | as long as the job, and ten minutes |
//! | `/cron/lock/slot/<job_id>/<path…>` | the same, of a definition in the product tree | the same |
//! | `/cron/lock/mutex/<name>/<lease>` | [`crate::records::LockRecord`] | the holder's lease |
//! | `/agent/health/<ip>` | [`meepo_core::node::Health`] | the worker's lease |
//! | `/meepo/jobs/<name>` | [`meepo_core::job::JobSpec`] | until deleted |
//! | `/meepo/treejobs/<name>/<path…>` | the fields of [`meepo_core::job::JobSpec`] that are given there | until deleted |
//! | `/meepo/nodes/<ip>` | [`meepo_core::node::NodeRecord`] | until forgotten |
//! | `/meepo/drain/<ip>` | [`crate::records::DrainRecord`] | until the node may take work again |
//! | `/meepo/labels/<ip>` | [`crate::records::LabelsRecord`] | until removed |
//! | `/meepo/tasks/<task_id>` | [`meepo_core::task::Task`] | until it is over and in the log store |
//! | `/meepo/parts/<task_id>/<n>` | [`meepo_core::task::Part`] | with its task |
//! | `/meepo/taskkeys/<idempotency key>` | [`crate::records::TaskKeyRecord`] | a day |
//! | `/cron/tasks/<ip>/<part_id>` | [`meepo_core::task::Order`] | while the node has the part |
//! | `/meepo/spent/<ip>/<job_id>` | [`crate::records::SpentRecord`] | until the job is removed or may run again |
//! | `/meepo/rerun/<ip>/<run_id>` | [`crate::records::RerunRecord`] | until the run has ended |
//! | `/meepo/outcomes/<ip>/<job_id>` | [`meepo_core::notify::Tally`] | as long as the node has the job, and an hour |
//! | `/meepo/notify/channels/<name>` | [`meepo_core::notify::Channel`] | until deleted |
//! | `/meepo/notify/rules/<name>` | [`meepo_core::notify::Rule`] | until deleted |
//! | `/meepo/notify/inbox/<id>` | [`meepo_core::notify::Happening`] | until the leader has taken it in |
//! | `/meepo/notify/subjects/<subject>` | [`meepo_core::notify::Subject`] | while there is something to remember |
//! | `/meepo/notify/groups/<rule>/<group>` | [`meepo_core::notify::Group`] | until it is told |
//! | `/meepo/notify/flow/<channel>` | [`meepo_core::notify::Flow`] | while its limit counts |
//! | `/meepo/notify/outbox/<id>` | [`meepo_core::notify::Message`] | until sent; the newest 200 after |
//! | `/meepo/users/<name>` | [`meepo_core::auth::User`] | until deleted |
//! | `/meepo/tokens/<id>` | [`meepo_core::auth::Token`] | until revoked; its lease, as long as it is worth something |
//! | `/meepo/roles/<name>` | [`meepo_core::auth::Role`] | until deleted |
//! | `/meepo/auth/key` | [`crate::records::AuthKeyRecord`] | for ever |
//! | `/meepo/join/<id>` | [`crate::records::JoinRecord`] | until spent or expired |
//! | `/meepo/leader` | [`crate::records::LeaderRecord`] | the leader's lease |

use meepo_core::{
    id::{Name, NodeId, RunId},
    notify::Item,
    task::{PartId, TaskId},
    tree::TreePath,
};

/// All assignments.
pub const ASSIGNMENTS: &str = "/cron/jobs/";
/// What runs now, on all nodes.
pub const CRONIDS: &str = "/cron/cronid/jobs/";
/// On-demand runs not yet taken, for all nodes.
pub const TRIGGERS: &str = "/cron/trigger/";
/// Stop requests, for all nodes.
pub const KILLS: &str = "/cron/kill/";
/// Holders of, and waiters for, named locks.
pub const LOCKS: &str = "/cron/lock/mutex/";
/// Cursors of claimed slots.
pub const CLAIMS: &str = "/cron/lock/slot/";
/// Health records.
pub const HEALTH: &str = "/agent/health/";
/// Job definitions.
pub const JOBS: &str = "/meepo/jobs/";
/// Definitions of jobs at places in the product tree.
pub const TREE_JOBS: &str = "/meepo/treejobs/";
/// Nodes ever seen.
pub const NODES: &str = "/meepo/nodes/";
/// Nodes that take nothing new.
pub const DRAINS: &str = "/meepo/drain/";
/// Labels set by the API.
pub const LABELS: &str = "/meepo/labels/";
/// Tasks that are not over.
pub const TASKS: &str = "/meepo/tasks/";
/// Their parts.
pub const PARTS: &str = "/meepo/parts/";
/// Idempotency keys of tasks.
pub const TASK_KEYS: &str = "/meepo/taskkeys/";
/// Parts of tasks that nodes have, for all nodes.
pub const ORDERS: &str = "/cron/tasks/";
/// Runs that are started again elsewhere should their node be lost.
pub const RERUNS: &str = "/meepo/rerun/";
/// Jobs that have used up their `max_runs`, by node.
pub const SPENT: &str = "/meepo/spent/";
/// What workers tell of the runs of their jobs.
pub const OUTCOMES: &str = "/meepo/outcomes/";
/// Where messages go.
pub const CHANNELS: &str = "/meepo/notify/channels/";
/// Who is told of what.
pub const RULES: &str = "/meepo/notify/rules/";
/// What masters have noticed and is to be told.
pub const INBOX: &str = "/meepo/notify/inbox/";
/// What is remembered of what was told.
pub const SUBJECTS: &str = "/meepo/notify/subjects/";
/// What waits to go into one message.
pub const GROUPS: &str = "/meepo/notify/groups/";
/// How much channels may be sent.
pub const FLOWS: &str = "/meepo/notify/flow/";
/// Messages.
pub const OUTBOX: &str = "/meepo/notify/outbox/";
/// Who may ask.
pub const USERS: &str = "/meepo/users/";
/// By what they are known.
pub const TOKENS: &str = "/meepo/tokens/";
/// What they may, besides the roles that are always there.
pub const ROLES: &str = "/meepo/roles/";
/// What masters know each other's word by.
pub const AUTH_KEY: &str = "/meepo/auth/key";
/// The leading master.
pub const LEADER: &str = "/meepo/leader";
/// Tokens with which nodes may join.
pub const JOIN_TOKENS: &str = "/meepo/join/";

/// First key of meepo, and the first after all of them, for whoever watches everything at
/// once: only a single watch tells of different families in the order of what happened.
pub const EVERYTHING: (&str, &str) = ("/agent/", "/meepo0");

/// The assignment of a job to a node.
pub fn assignment(node: &NodeId, job: &Name) -> String {
    format!("{ASSIGNMENTS}{node}/{job}")
}

/// All assignments of a node.
pub fn assignments_of(node: &NodeId) -> String {
    format!("{ASSIGNMENTS}{node}/")
}

/// What a job runs on a node.
pub fn cronid(node: &NodeId, job: &Name) -> String {
    format!("{CRONIDS}{node}/{job}")
}

/// A run asked for on a node.
pub fn trigger(node: &NodeId, run: RunId) -> String {
    format!("{TRIGGERS}{node}/{run}")
}

/// A run that is started again elsewhere should its node be lost.
pub fn rerun(node: &NodeId, run: RunId) -> String {
    format!("{RERUNS}{node}/{run}")
}

/// All runs of a node that are started again elsewhere should it be lost.
pub fn reruns_of(node: &NodeId) -> String {
    format!("{RERUNS}{node}/")
}

/// A job that has used up its `max_runs` on a node.
pub fn spent(node: &NodeId, job: &Name) -> String {
    format!("{SPENT}{node}/{job}")
}

/// All jobs that have used up their `max_runs` on a node.
pub fn spent_of(node: &NodeId) -> String {
    format!("{SPENT}{node}/")
}

/// All runs asked for on a node.
pub fn triggers_of(node: &NodeId) -> String {
    format!("{TRIGGERS}{node}/")
}

/// A stop request.
pub fn kill(node: &NodeId, run: RunId) -> String {
    format!("{KILLS}{node}/{run}")
}

/// All stop requests of a node.
pub fn kills_of(node: &NodeId) -> String {
    format!("{KILLS}{node}/")
}

/// The cursor of the last claimed slot of a job.
pub fn claim(job: &Name) -> String {
    format!("{CLAIMS}{job}")
}

/// The cursor of a job whose definition stands at a place in the product tree: its slots are
/// claimed among the nodes for which that definition decides.
pub fn claim_at(job: &Name, path: &TreePath) -> String {
    if path.is_root() { claim(job) } else { format!("{CLAIMS}{job}/{}", path.as_str()) }
}

/// All holders and waiters of a named lock.
pub fn lock(name: &Name) -> String {
    format!("{LOCKS}{name}/")
}

/// The health record of a node.
pub fn health(node: &NodeId) -> String {
    format!("{HEALTH}{node}")
}

/// The definition of a job.
pub fn job(name: &Name) -> String {
    format!("{JOBS}{name}")
}

/// The definition of a job at a place in the product tree; the root is [`job`].
pub fn job_at(name: &Name, path: &TreePath) -> String {
    if path.is_root() { job(name) } else { format!("{TREE_JOBS}{name}/{}", path.as_str()) }
}

/// All definitions of a job below the root of the tree.
pub fn tree_jobs_of(name: &Name) -> String {
    format!("{TREE_JOBS}{name}/")
}

/// The record of a node.
pub fn node(id: &NodeId) -> String {
    format!("{NODES}{id}")
}

/// Asks a node to take nothing new.
pub fn drain(id: &NodeId) -> String {
    format!("{DRAINS}{id}")
}

/// A token with which a node may join.
pub fn join_token(id: &str) -> String {
    format!("{JOIN_TOKENS}{id}")
}

/// The labels that the API set on a node.
pub fn labels(id: &NodeId) -> String {
    format!("{LABELS}{id}")
}

/// A task.
pub fn task(id: TaskId) -> String {
    format!("{TASKS}{id}")
}

/// A part of a task.
pub fn part(id: PartId) -> String {
    format!("{PARTS}{}/{}", id.task, id.n)
}

/// All parts of a task.
pub fn parts_of(task: TaskId) -> String {
    format!("{PARTS}{task}/")
}

/// An idempotency key of tasks.
pub fn task_key(key: &Name) -> String {
    format!("{TASK_KEYS}{key}")
}

/// A part that a node has.
pub fn order(node: &NodeId, part: PartId) -> String {
    format!("{ORDERS}{node}/{part}")
}

/// All parts that a node has.
pub fn orders_of(node: &NodeId) -> String {
    format!("{ORDERS}{node}/")
}

/// What a worker tells of a job's runs.
pub fn outcome(node: &NodeId, job: &Name) -> String {
    format!("{OUTCOMES}{node}/{job}")
}

/// A user.
pub fn user(name: &Name) -> String {
    format!("{USERS}{name}")
}

/// A token, by its id.
pub fn token(id: &str) -> String {
    format!("{TOKENS}{id}")
}

/// A role.
pub fn role(name: &Name) -> String {
    format!("{ROLES}{name}")
}

/// A channel.
pub fn channel(name: &Name) -> String {
    format!("{CHANNELS}{name}")
}

/// A rule of notifications.
pub fn rule(name: &Name) -> String {
    format!("{RULES}{name}")
}

/// Something that a master has noticed; `id` keeps it apart from others.
pub fn inbox(id: impl std::fmt::Display) -> String {
    format!("{INBOX}{id}")
}

/// Where a part of what is remembered of notifications stands.
pub fn notify_item(item: &Item) -> String {
    match item {
        Item::Subject(subject) => format!("{SUBJECTS}{subject}"),
        Item::Group(rule, group) => format!("{GROUPS}{rule}/{group}"),
        Item::Flow(channel) => format!("{FLOWS}{channel}"),
        Item::Message(id) => format!("{OUTBOX}{id}"),
    }
}

/// The part of what is remembered of notifications that stands at a key.
pub fn item_of(key: &str) -> Option<Item> {
    if let Some(subject) = key.strip_prefix(SUBJECTS) {
        return Some(Item::Subject(subject.to_owned()));
    }
    if let Some((rule, group)) = key.strip_prefix(GROUPS).and_then(|k| k.split_once('/')) {
        return Some(Item::Group(rule.to_owned(), group.to_owned()));
    }
    if let Some(id) = key.strip_prefix(OUTBOX) {
        return Some(Item::Message(id.to_owned()));
    }
    last(key, FLOWS).map(Item::Flow)
}

/// The task of a task's key.
pub fn task_of(key: &str) -> Option<TaskId> {
    key.strip_prefix(TASKS)?.parse().ok()
}

/// The part of a part's key.
pub fn part_of(key: &str) -> Option<PartId> {
    let (task, n) = key.strip_prefix(PARTS)?.split_once('/')?;
    Some(PartId { task: task.parse().ok()?, n: n.parse().ok()? })
}

/// A key of one of the families, taken apart. Keys of other shapes, which only a
/// person can have made, are `None`.
pub fn last(key: &str, prefix: &str) -> Option<Name> {
    Name::new(key.strip_prefix(prefix)?).ok()
}

/// Node and rest of a key of a per-node family.
pub fn node_and_rest<'a>(key: &'a str, prefix: &str) -> Option<(NodeId, &'a str)> {
    let (node, rest) = key.strip_prefix(prefix)?.split_once('/')?;
    Some((Name::new(node).ok()?, rest))
}

/// Node and job of a key of a per-node family.
pub fn node_and_job(key: &str, prefix: &str) -> Option<(NodeId, Name)> {
    let (node, rest) = node_and_rest(key, prefix)?;
    Some((node, Name::new(rest).ok()?))
}

/// Node and run of a key of a per-node family.
pub fn node_and_run(key: &str, prefix: &str) -> Option<(NodeId, RunId)> {
    let (node, rest) = node_and_rest(key, prefix)?;
    Some((node, rest.parse().ok()?))
}

/// Job and place of a definition in the product tree.
pub fn job_and_path(key: &str) -> Option<(Name, TreePath)> {
    let (name, path) = node_and_rest(key, TREE_JOBS)?;
    Some((name, TreePath::new(path).ok().filter(|p| !p.is_root())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_documented_and_come_apart_again() {
        let (n, j) = (Name::new("127.0.0.1").unwrap(), Name::new("hello").unwrap());
        let r: RunId = "0190a5d2-7c4e-7b1a-8000-000000000001".parse().unwrap();
        assert_eq!(assignment(&n, &j), "/cron/jobs/127.0.0.1/hello");
        assert_eq!(cronid(&n, &j), "/cron/cronid/jobs/127.0.0.1/hello");
        assert_eq!(health(&n), "/agent/health/127.0.0.1");
        let both = Some((n.clone(), j.clone()));
        assert_eq!(node_and_job(&assignment(&n, &j), ASSIGNMENTS), both);
        assert_eq!(node_and_job(&cronid(&n, &j), CRONIDS), both);
        assert_eq!(node_and_run(&trigger(&n, r), TRIGGERS), Some((n.clone(), r)));
        let cart = TreePath::new("shop/cart").unwrap();
        assert_eq!(job_at(&j, &cart), "/meepo/treejobs/hello/shop/cart");
        assert_eq!(job_at(&j, &TreePath::ROOT), job(&j));
        assert_eq!(job_and_path(&job_at(&j, &cart)), Some((j.clone(), cart)));
        assert_eq!(job_and_path("/meepo/treejobs/hello/"), None);
        assert_eq!(claim_at(&j, &TreePath::new("shop").unwrap()), "/cron/lock/slot/hello/shop");
        assert_eq!(last(&job(&j), JOBS), Some(j));
        let id = PartId { task: TaskId(r.0), n: 3 };
        assert_eq!(part(id), format!("/meepo/parts/{r}/3"));
        assert_eq!(order(&n, id), format!("/cron/tasks/127.0.0.1/{r}.3"));
        assert_eq!((part_of(&part(id)), task_of(&task(id.task))), (Some(id), Some(id.task)));
        assert_eq!(part_of(&task(id.task)), None);
        assert_eq!(node_and_rest("/cron/jobs/127.0.0.1/", ASSIGNMENTS), Some((n, "")));
        let name = |s| Name::new(s).unwrap();
        for item in [
            Item::Subject("job/a/127.0.0.1".into()),
            Item::Group("job:a".into(), "~".into()),
            Item::Flow(name("mail")),
            Item::Message("1-2-mail".into()),
        ] {
            assert_eq!(item_of(&notify_item(&item)), Some(item));
        }
        assert_eq!(item_of(&rule(&name("a"))), None);
        for bad in ["/cron/jobs/127.0.0.1", "/cron/jobs/a b/c", "/cron/jobs/a/b/c", "/x"] {
            assert_eq!(node_and_job(bad, ASSIGNMENTS), None, "{bad}");
        }
    }
}
