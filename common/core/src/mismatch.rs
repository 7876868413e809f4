//! What a worker says against what etcd and the log store say, and what is done where
//! they differ. Nothing is done about a single look: words and records travel by
//! different ways, and most differences are gone with the next one.

use crate::{
    digest::Digest,
    id::{NodeId, RunId},
};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// A kind of mismatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A worker holds other assignments than etcd has for it.
    StaleAssignments,
    /// The log store has a run as running of which its worker knows nothing.
    UnknownRun,
    /// A worker runs something of which the log store knows nothing.
    UnlistedRun,
    /// A worker wants the session of a node as which another one is registered.
    TwoSessions,
    /// A request to run waits for a node that has been forgotten.
    OrphanOrder,
    /// It is told of a job that it has used up its runs on a node that has it no more.
    OrphanSpent,
}

/// Every kind with its name, when it is one, and its remedy.
pub const TABLE: &[(Kind, &str, &str, &str)] = &[
    (
        Kind::StaleAssignments,
        "stale_assignments",
        "the digest in two heartbeats in a row differs from that of the assignments in etcd, which \
         have not changed in between",
        "the worker is asked to read all its assignments anew, now",
    ),
    (
        Kind::UnknownRun,
        "unknown_run",
        "a run is recorded as running for three lease times or longer, and two heartbeats that \
         list all runs of its worker do not name it",
        "it is marked `lost`; what its worker may still tell of its end replaces that",
    ),
    (
        Kind::UnlistedRun,
        "unlisted_run",
        "two heartbeats in a row name a run of which the log store has no record",
        "its worker is asked to send the record again, once",
    ),
    (
        Kind::TwoSessions,
        "two_sessions",
        "a worker opens a session as a node whose health record is of another worker process",
        "the session is refused; that of the registered worker stays",
    ),
    (
        Kind::OrphanOrder,
        "orphan_order",
        "a request to run waits for a node without a record in `/meepo/nodes/`",
        "the request is deleted, unless the node has come meanwhile",
    ),
    (
        Kind::OrphanSpent,
        "orphan_spent",
        "`/meepo/spent/` tells of a job and a node that is away and to which the job is not assigned",
        "the key is deleted, unless the job has been assigned meanwhile",
    ),
];

impl Kind {
    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        TABLE.iter().find(|(kind, ..)| *kind == self).map_or("", |(_, name, ..)| name)
    }
}

/// What a worker said in a heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// When.
    pub at: Timestamp,
    /// Of the assignments it holds; none until it has heard etcd.
    pub digest: Option<Digest>,
    /// The runs that it named.
    pub running: BTreeSet<RunId>,
    /// Whether these are all of its runs.
    pub all: bool,
}

/// What was seen of a node at the last look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Before {
    at: Option<Timestamp>,
    /// The digest of etcd that the worker's differed from.
    differed: Option<Digest>,
    missed: BTreeSet<RunId>,
    named: BTreeSet<RunId>,
    /// Those of them that need no further look.
    settled: BTreeSet<RunId>,
}

/// What is found in a word.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    /// The worker's assignments are stale.
    pub stale: bool,
    /// Runs that are recorded as running and that it does not know.
    pub unknown: Vec<RunId>,
    /// Runs that it has named twice by now. The log store should have them; see
    /// [`Before::settle`].
    pub named: Vec<RunId>,
}

impl Before {
    /// A run that was [named](Found::named) was looked for; that is done once.
    pub fn settle(&mut self, run: RunId) {
        self.settled.insert(run);
    }

    /// Whether this word has been looked at already.
    pub fn seen(&self, word: &Word) -> bool {
        self.at == Some(word.at)
    }
}

/// Compares one word of a worker with the digest of what etcd has for it and with its
/// runs that are recorded as running for long enough.
pub fn compare(word: &Word, held: Digest, recorded: &[RunId], before: &mut Before) -> Found {
    let differs = word.digest.is_some_and(|d| d != held);
    let stale = differs && before.differed == Some(held);
    let missed: BTreeSet<RunId> = match word.all {
        true => recorded.iter().filter(|r| !word.running.contains(r)).copied().collect(),
        false => BTreeSet::new(),
    };
    let unknown = missed.intersection(&before.missed).copied().collect();
    let settled: BTreeSet<RunId> = before.settled.intersection(&word.running).copied().collect();
    let twice = word.running.intersection(&before.named);
    let named = twice.filter(|run| !settled.contains(run)).copied().collect();
    *before = Before {
        at: Some(word.at),
        // Once asked, it gets as long again.
        differed: (differs && !stale).then_some(held),
        missed,
        named: word.running.clone(),
        settled,
    };
    Found { stale, unknown, named }
}

/// Whether a session is opened by another worker than the one that is registered.
/// `registered` is the instance in the node's health record; old workers have none.
pub fn two_sessions(hello: &str, registered: Option<&str>) -> bool {
    registered.is_some_and(|r| !r.is_empty() && r != hello)
}

/// The nodes for which requests wait although nobody knows them any more.
pub fn orphans<'a>(
    waiting: impl IntoIterator<Item = &'a NodeId>,
    known: impl Fn(&NodeId) -> bool,
) -> BTreeSet<&'a NodeId> {
    waiting.into_iter().filter(|node| !known(node)).collect()
}

/// The state of all nodes' last looks, bounded by the nodes that have a session.
pub type Looks = BTreeMap<NodeId, Before>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::pair;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn digest(of: &str) -> Digest {
        let mut digest = Digest::default();
        digest.add(pair("job", of.as_bytes()));
        digest
    }

    fn run(n: u128) -> RunId {
        RunId(Uuid::from_u128(n))
    }

    fn word(at: i64, held: &str, running: &[u128]) -> Word {
        Word {
            at: Timestamp::from_second(at).unwrap(),
            digest: Some(digest(held)),
            running: running.iter().map(|n| run(*n)).collect(),
            all: true,
        }
    }

    #[test]
    fn every_kind_has_a_row_and_a_name_of_its_own() {
        let names: BTreeSet<&str> = TABLE.iter().map(|(kind, ..)| kind.name()).collect();
        assert_eq!(names.len(), TABLE.len());
        assert!(!names.contains(""));
    }

    #[test]
    fn assignments_are_stale_when_two_words_differ_from_the_same_state() {
        let (mut before, old, new) = (Before::default(), digest("old"), digest("new"));
        assert!(!compare(&word(1, "old", &[]), old, &[], &mut before).stale);
        // Just placed, and still on its way.
        assert!(!compare(&word(2, "old", &[]), new, &[], &mut before).stale);
        // Placed again meanwhile.
        assert!(!compare(&word(3, "old", &[]), digest("newer"), &[], &mut before).stale);
        assert!(compare(&word(4, "old", &[]), digest("newer"), &[], &mut before).stale);
        // It has been asked, and gets time to answer.
        assert!(!compare(&word(5, "old", &[]), digest("newer"), &[], &mut before).stale);
        assert!(compare(&word(6, "old", &[]), digest("newer"), &[], &mut before).stale);
        // One that has not heard etcd yet says nothing.
        let silent = Word { digest: None, ..word(7, "", &[]) };
        assert!(!compare(&silent, new, &[], &mut before).stale);
        assert!(before.seen(&silent) && !before.seen(&word(8, "", &[])));
    }

    #[test]
    fn a_run_is_unknown_when_two_words_that_name_all_do_not_name_it() {
        let (mut before, held) = (Before::default(), digest("x"));
        let look = |word: &Word, recorded: &[u128], before: &mut Before| {
            let recorded: Vec<RunId> = recorded.iter().map(|n| run(*n)).collect();
            compare(word, held, &recorded, before).unknown
        };
        assert_eq!(look(&word(1, "x", &[1]), &[1, 2], &mut before), []);
        assert_eq!(look(&word(2, "x", &[1]), &[1, 2], &mut before), [run(2)]);
        // It ended between the looks: its record is on its way.
        assert_eq!(look(&word(3, "x", &[]), &[1], &mut before), []);
        assert_eq!(look(&word(4, "x", &[]), &[], &mut before), []);
        // A word that does not name all proves nothing.
        let some = Word { all: false, ..word(5, "x", &[]) };
        assert_eq!(look(&word(4, "x", &[]), &[3], &mut before), []);
        assert_eq!(look(&some, &[3], &mut before), []);
        assert_eq!(look(&word(6, "x", &[]), &[3], &mut before), []);
    }

    #[test]
    fn a_run_is_looked_for_once_when_two_words_name_it() {
        let (mut before, held) = (Before::default(), digest("x"));
        let look = |at, runs: &[u128], before: &mut Before| {
            compare(&word(at, "x", runs), held, &[], before).named
        };
        assert_eq!(look(1, &[1, 2], &mut before), []);
        assert_eq!(look(2, &[1, 3], &mut before), [run(1)]);
        // The log store did not answer.
        assert_eq!(look(3, &[1, 3], &mut before), [run(1), run(3)]);
        before.settle(run(1));
        assert_eq!(look(4, &[1, 3], &mut before), [run(3)]);
        assert_eq!(look(5, &[1], &mut before), []);
        // What has ended is forgotten.
        assert_eq!(look(6, &[], &mut before), []);
        assert!(before.settled.is_empty() && before.named.is_empty());
    }

    #[test]
    fn a_session_is_for_the_worker_that_is_registered() {
        assert!(two_sessions("b", Some("a")));
        for registered in [Some("b"), Some(""), None] {
            assert!(!two_sessions("b", registered));
        }
    }

    #[test]
    fn requests_for_nodes_that_nobody_knows_are_orphans() {
        let [a, b] = ["a", "b"].map(|n| NodeId::new(n).unwrap());
        assert_eq!(orphans([&a, &b, &b], |n| *n == a), BTreeSet::from([&b]));
    }

    proptest! {
        /// A worker that names every recorded run is never said to have lost one, and one
        /// that holds what etcd has is never asked.
        #[test]
        fn who_agrees_is_left_alone(looks in prop::collection::vec((any::<u8>(), prop::collection::vec(0u128..20, 0..10)), 0..30)) {
            let mut before = Before::default();
            for (i, (held, runs)) in looks.iter().enumerate() {
                let held = held.to_string();
                let recorded: Vec<RunId> = runs.iter().map(|n| run(*n)).collect();
                let word = word(i as i64, &held, runs);
                let found = compare(&word, digest(&held), &recorded, &mut before);
                prop_assert!(!found.stale && found.unknown.is_empty());
            }
        }
    }
}
