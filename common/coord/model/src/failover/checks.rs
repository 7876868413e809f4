//! What has to hold.

use super::{Action, End, Entry, Failover, Process, Run, Slot, State};
use stateright::{Model, Property};
use std::collections::BTreeSet;

/// No slot is claimed twice.
pub const ONE_CLAIM: &str = "one claim of each slot";
/// No attempt of a slot begins on two nodes, or twice.
pub const ONE_RUN: &str = "one run of each attempt";
/// The register takes at most one run of each slot, if none is run again.
pub const ONE_EFFECT: &str = "one run of each slot takes effect";
/// The register never takes an older fence after a newer one.
pub const FENCES_GROW: &str = "fences grow";
/// No two runs have one fence.
pub const FENCES_DIFFER: &str = "a fence belongs to one run";
/// Two attempts of a slot never run at the same time, unless a worker was stopped as a whole.
pub const NEVER_BESIDE: &str = "never two attempts at once";
/// A master that does not lead any more decides nothing.
pub const ONE_LEADER: &str = "only the leader decides";
/// What has ended and whose key was taken back is not started again.
pub const NOT_AGAIN: &str = "what has ended is not started again";
/// In the end every slot was run, or there is a record of why not. A node that is gone for
/// good takes with it what it had claimed, unless that is to be run again.
pub const NONE_LOST: &str = "no slot is lost";
/// Not a demand: shows that the model gets anywhere.
pub const ALL_DONE: &str = "every slot is done";
/// … and that a run which is lost is done elsewhere.
pub const DONE_AGAIN: &str = "a lost run is done elsewhere";

pub(super) fn all(model: &Failover) -> Vec<Property<Failover>> {
    let mut all = vec![
        Property::always(ONE_CLAIM, |_, s: &State| distinct(s.claimed.iter().map(|r| r.slot))),
        Property::always(ONE_RUN, |_, s: &State| distinct(begun(s).map(|r| (r.slot, r.attempt)))),
        Property::always(FENCES_GROW, |_, s: &State| {
            s.register.is_sorted_by_key(|(fence, _)| *fence)
        }),
        Property::always(FENCES_DIFFER, |_, s: &State| distinct(s.register.iter().map(|(f, _)| f))),
        Property::always(ONE_LEADER, |_, s: &State| !s.deposed_decided),
        Property::always(NOT_AGAIN, |_, s: &State| !s.ended_again),
        Property::always(NONE_LOST, |model: &Failover, s: &State| {
            (1..=model.slots).all(|slot| settled(model, s, slot)) || goes_on(model, s)
        }),
        Property::sometimes(ALL_DONE, |model: &Failover, s: &State| {
            (1..=model.slots).all(|slot| ends(s, slot).any(|end| end == End::Done))
        }),
    ];
    if model.rerun {
        all.push(Property::sometimes(DONE_AGAIN, |_, s: &State| {
            s.log.iter().any(|(run, end)| run.attempt > 1 && *end == End::Done)
        }));
    } else {
        all.push(Property::always(ONE_EFFECT, |_, s: &State| {
            distinct(s.register.iter().map(|(_, run)| run.slot))
        }));
    }
    if !model.stops {
        all.push(Property::always(NEVER_BESIDE, |_, s: &State| {
            distinct(s.workers.iter().flat_map(|w| w.processes.keys()).map(|run| run.slot))
        }));
    }
    all
}

fn distinct<T: Ord>(mut all: impl Iterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    all.all(|one| seen.insert(one))
}

/// Every run that ever began.
fn begun(s: &State) -> impl Iterator<Item = &Run> {
    let journals = s.workers.iter().flat_map(|w| &w.journal);
    journals.filter(|(_, entry)| entry.began).map(|(run, _)| run)
}

fn ends(s: &State, slot: Slot) -> impl Iterator<Item = End> {
    s.log.iter().filter(move |(run, _)| run.slot == slot).map(|(_, end)| *end)
}

fn settled(model: &Failover, s: &State, slot: Slot) -> bool {
    if !model.rerun {
        let gone = |run: &Run| s.workers[usize::from(run.node)].process == Process::Gone;
        let passed = |run: &Run| {
            let known = s.workers[usize::from(run.node)].journal.contains_key(run);
            !model.strict && !known && s.etcd.cursor.is_some_and(|c| c.run.slot > run.slot)
        };
        let mut claims = s.claimed.iter().filter(|run| run.slot == slot);
        return claims.any(|run| gone(run) || passed(run)) || ends(s, slot).next().is_some();
    }
    // What no other node could take waits for one.
    let waits = s.etcd.keys.keys().filter(|run| run.slot == slot).any(|run| {
        let mut others = (0..).zip(&s.etcd.health).filter(|(n, _)| *n != run.node);
        others.all(|(_, h)| h.life.is_none())
    });
    // What a node has done it tells when it comes back.
    let done = |run: &Run, e: &Entry| run.slot == slot && e.end == Some(End::Done);
    waits || s.workers.iter().flat_map(|w| &w.journal).any(|(run, entry)| done(run, entry))
}

/// Whether anything will still happen. Faults need not.
fn goes_on(model: &Failover, s: &State) -> bool {
    let mut actions: Vec<Action> = Vec::new();
    model.actions(&State { faults: 0, ..s.clone() }, &mut actions);
    !actions.is_empty()
}
