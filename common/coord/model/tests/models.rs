//! The protocols hold in every state that a few faults can lead to, and the checker finds
//! what each of their safeguards is there for when it is taken out.

use meepo_model::{
    election::{self, Election},
    failover::{
        Failover,
        Safeguard::{self, *},
        checks::*,
    },
};
use stateright::{Checker, HasDiscoveries, Model};
use std::{
    fmt::Debug,
    hash::Hash,
    time::{Duration, Instant},
};

/// Far more than any of these takes; a model that has grown too large fails instead of
/// passing with half of its states seen.
const LIMIT: Duration = Duration::from_secs(300);

/// Visits every state.
fn check<M>(what: &str, model: M)
where
    M: Model + Debug + Send + Sync + 'static,
    M::State: Debug + Clone + PartialEq + Hash + Send + Sync,
    M::Action: Debug + Clone + PartialEq,
{
    let started = Instant::now();
    let checker = model.checker().threads(2).timeout(LIMIT);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (states, took) = (checker.unique_state_count(), started.elapsed());
    println!("{what}: {states} states, {} deep, {took:.1?}", checker.max_depth());
    assert!(took < LIMIT, "not every state was seen");
    checker.assert_properties();
}

/// Visits states until it finds one that breaks `property`.
fn breaks<M>(model: M, property: &'static str)
where
    M: Model + Debug + Send + Sync + 'static,
    M::State: Debug + Clone + PartialEq + Hash + Send + Sync,
    M::Action: Debug + Clone + PartialEq,
{
    let (started, what) = (Instant::now(), format!("{model:?}"));
    let checker = model.checker().threads(2).timeout(LIMIT);
    let wanted = HasDiscoveries::AnyOf([property].into());
    let checker = checker.finish_when(wanted).spawn_bfs().join();
    let Some(path) = checker.discovery(property) else {
        panic!("{what}: {property} holds in all {} states", checker.unique_state_count());
    };
    let (steps, took) = (path.into_actions(), started.elapsed());
    println!("{what}: {property} broken after {} steps, {took:.1?}: {steps:?}", steps.len());
}

const CLAIMS: Failover = Failover {
    workers: 2,
    slots: 2,
    masters: 0,
    rerun: false,
    faults: 2,
    stops: true,
    strict: false,
    without: None,
};
const RERUNS: Failover =
    Failover { slots: 1, masters: 1, faults: 1, rerun: true, stops: false, ..CLAIMS };
const MASTERS: Failover = Failover { masters: 2, faults: 2, ..RERUNS };

#[test]
fn slots_are_claimed_once_and_none_is_lost() {
    check("two workers, a slot", Failover { slots: 1, strict: true, ..CLAIMS });
    check("two workers, two slots", Failover { faults: 1, ..CLAIMS });
    check("three workers, a slot", Failover { workers: 3, slots: 1, faults: 1, ..CLAIMS });
}

#[test]
fn lost_runs_are_started_again_once() {
    check("lost runs", RERUNS);
    check("lost runs, workers that are stopped", Failover { stops: true, ..RERUNS });
    check("lost runs, two masters", Failover { faults: 1, ..MASTERS });
}

#[test]
fn one_master_leads() {
    check("election", Election { masters: 2, until: 4, without: None });
}

/// The cursor tells of the last claim only. A worker that dies, or has no answer, between the
/// claim of a slot and its beginning does not learn that it has won if another has claimed a
/// later slot meanwhile. With `on_node_loss: rerun` the run's key tells of it.
#[test]
fn a_claim_that_was_passed_is_not_told_of() {
    breaks(Failover { strict: true, ..CLAIMS }, NONE_LOST);
}

/// A leader whose view is behind by more than a lease takes a node for away that has come back
/// and is away again, and waits for less than the second time takes.
#[test]
fn a_leader_that_sees_nothing_for_a_whole_lease_may_be_early() {
    breaks(Failover { faults: 2, ..RERUNS }, NEVER_BESIDE);
}

/// A model is worth something only if it can fail.
#[test]
fn without_any_of_its_safeguards_the_failover_is_wrong() {
    let without = |model: Failover, safeguard: Safeguard, property| {
        breaks(Failover { without: Some(safeguard), ..model }, property);
    };
    without(CLAIMS, ClaimCompares, ONE_CLAIM);
    without(CLAIMS, ClaimCompares, ONE_EFFECT);
    without(CLAIMS, RegisterRefuses, FENCES_GROW);
    without(Failover { slots: 1, ..CLAIMS }, OwnClaimTold, NONE_LOST);
    let stops = Failover { stops: true, ..RERUNS };
    without(stops, RegisterRefuses, FENCES_GROW);
    without(stops, NewFence, FENCES_DIFFER);
    without(RERUNS, LeaderWaits, NEVER_BESIDE);
    without(RERUNS, WaitsForKey, NEVER_BESIDE);
    without(RERUNS, WorkerEnds, NEVER_BESIDE);
    without(RERUNS, HealthCompared, NEVER_BESIDE);
    without(RERUNS, KeyThere, NEVER_BESIDE);
    without(RERUNS, KeyCompared, NOT_AGAIN);
    without(MASTERS, TermCompared, ONE_LEADER);
}

#[test]
fn without_any_of_its_safeguards_the_election_is_wrong() {
    for (safeguard, property) in [
        (election::Safeguard::FromSending, election::ONE_LEADER),
        (election::Safeguard::ByTheClock, election::ONE_LEADER),
        (election::Safeguard::TermChecked, election::NEVER_BACK),
    ] {
        breaks(Election { masters: 2, until: 4, without: Some(safeguard) }, property);
    }
}
