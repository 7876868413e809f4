//! The slots of one job that runs once in the cluster: claimed in etcd, run, and with
//! `on_node_loss: rerun` run again elsewhere when their node is lost.
//!
//! | here | in the code |
//! |---|---|
//! | [`Action::Claim`], `Land`, `Answer`, `TimeOut` | `coord::claim::Claims::claim_at`, `worker::agent::once` |
//! | `Begin`, `Notice`, `BeginAsked` | `worker::agent::fire`, `worker::agent::asked` |
//! | `Expire`, `Register`, `Guard` | `coord::lease`, `worker::health`, `worker::guard`, `worker::agent::lapse` |
//! | `Release`, `Look` | `worker::custody`, `worker::inherited`, `worker::agent::once::found_claimed` |
//! | `Watch…`, `Wait`, `Elect`, `Settle` | `master::view`, `master::rerun`, `coord::election` |
//!
//! Time is an order only: whatever may take long may happen at any later moment, so a
//! standby's stagger is covered with every other order of claims. The one place where
//! clocks count is [`Action::Wait`]: when the leader has waited long enough, a worker that
//! can act has come back or has ended what it had claimed (`master::rerun::ENDED`). That
//! assumes that who has its lease again writes its health record within these seconds.
//!
//! Every path ends: faults are counted, and cuts, stops and crashes heal by themselves.

pub mod checks;
mod master;
mod worker;

use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};

/// A worker's number.
pub type Node = u8;
/// The slots are 1, 2, …
pub type Slot = u8;
/// etcd's.
pub type Revision = u8;
/// A claim that compares with this wants to be told what is there, and no more.
const READ: Revision = Revision::MAX;

/// A rule without which the protocol would be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safeguard {
    /// A claim compares the revision of the cursor.
    ClaimCompares,
    /// The register refuses an older fence than it has seen.
    RegisterRefuses,
    /// A run that is started again has a fence of its own.
    NewFence,
    /// To start a run again compares the revision of its key.
    KeyCompared,
    /// … and the term of the leader.
    TermCompared,
    /// … and that its node's health record is as the leader saw it.
    HealthCompared,
    /// The leader waits until a node that is only cut off has ended what it had claimed.
    LeaderWaits,
    /// … and waits anew for a key that has come, or was written anew, since.
    WaitsForKey,
    /// A worker without its lease ends what it had claimed.
    WorkerEnds,
    /// A claim that was not answered and was won after all counts only if its key is there.
    KeyThere,
    /// A worker that loses a slot to a claim of its own last life says so.
    OwnClaimTold,
}

/// What is explored.
#[derive(Debug, Clone, Copy)]
pub struct Failover {
    /// So many workers hold the job.
    pub workers: Node,
    /// So many slots are due.
    pub slots: Slot,
    /// So many masters.
    pub masters: u8,
    /// `on_node_loss: rerun`.
    pub rerun: bool,
    /// So many faults happen at most.
    pub faults: u8,
    /// Whether a worker may be stopped as a whole, so that it cannot end anything while its
    /// processes go on, and whether these outlive a crash of it. Then they write to the
    /// register.
    pub stops: bool,
    /// Whether also such a slot counts as lost which a worker claimed without learning of it
    /// (it died, or had no answer) before another claimed a later one: the cursor tells of the
    /// last claim only. With `rerun` the key tells of it.
    pub strict: bool,
    /// The rule that is left out.
    pub without: Option<Safeguard>,
}

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    slot: Slot,
    attempt: u8,
    node: Node,
    /// The life of its worker, or the revision at which it was started again.
    serial: u8,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Done,
    Lost,
    /// Its node had lost the right to it.
    Yielded,
}

/// A slot's claim, as it stands in etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Cursor {
    run: Run,
    revision: Revision,
}

/// The key that stands for a run which may have to be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    revision: Revision,
    /// The life of the worker that has the run.
    life: u8,
    ended: bool,
}

/// A node's health record, and how often it was written under a new lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Health {
    life: Option<u8>,
    registrations: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Etcd {
    revision: Revision,
    cursor: Option<Cursor>,
    keys: BTreeMap<Run, Key>,
    /// Requests to start a run again, with their revisions: the fences.
    triggers: BTreeMap<Run, Revision>,
    health: Vec<Health>,
    term: Revision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Process {
    Alive,
    /// Stopped as a whole; what it started goes on.
    Stopped,
    /// Will start again.
    Dead,
    /// Will not.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lease {
    Held,
    Over,
}

/// A claim under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Claim {
    run: Run,
    /// An earlier try was not answered.
    unanswered: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// On its way to etcd, comparing with this revision.
    Sent(Revision),
    /// The answer is on its way: written at this revision.
    Done(Revision),
    /// The answer is on its way: this stands there.
    Conflict(Option<Cursor>),
    /// The slot is ours, with this fence.
    Won(Revision),
}

/// What a worker's disk has of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    began: bool,
    end: Option<End>,
    /// The log store knows the end.
    told: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Worker {
    process: Process,
    life: u8,
    /// Whether etcd can be reached.
    linked: bool,
    lease: Lease,
    /// It has ended what others may run.
    guarded: bool,
    /// This life has looked at what the last one left in etcd.
    looked: bool,
    cached: Option<Cursor>,
    /// The last slot dealt with, on disk.
    dealt: Slot,
    /// A run whose claim was not answered.
    open: Option<Run>,
    claim: Option<Claim>,
    /// Runs it was asked to start again, with their fences.
    asked: BTreeMap<Run, Revision>,
    journal: BTreeMap<Run, Entry>,
    /// Processes of runs, with the fence of each and whether it has written.
    processes: BTreeMap<Run, (Revision, bool)>,
    /// Keys to be deleted, or with `true` to be handed to the leader.
    release: BTreeMap<Run, bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Master {
    /// The term with which it believes to lead.
    term: Option<Revision>,
    keys: BTreeMap<Run, Key>,
    health: Vec<Health>,
    /// It has waited long enough for these nodes, and since it saw these keys.
    waited: Vec<bool>,
    waited_for: BTreeSet<Run>,
}

/// Everything there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    etcd: Etcd,
    workers: Vec<Worker>,
    masters: Vec<Master>,
    /// Claims on their way whose senders do not wait for them any more.
    strays: BTreeSet<(Run, Revision, u8)>,
    log: BTreeMap<Run, End>,
    /// What the register has taken, in order.
    register: Vec<(Revision, Run)>,
    faults: u8,
    /// For the checks: every claim that took effect, whether a master decided anything when
    /// another led, and whether what had ended was started again.
    claimed: Vec<Run>,
    deposed_decided: bool,
    ended_again: bool,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A worker asks for its next slot.
    Claim(Node),
    /// The claim reaches etcd.
    Land(Node),
    /// The answer reaches the worker.
    Answer(Node),
    /// It is not waited for any longer.
    TimeOut(Node),
    /// A claim that nobody waits for reaches etcd after all, or never does.
    LandStray(Run, Revision, u8, bool),
    /// A slot that was won begins.
    Begin(Node),
    /// A worker learns that it is to start a run again.
    Notice(Node, Run),
    /// It does.
    BeginAsked(Node, Run),
    /// A run writes to the register that its fence protects.
    Write(Node, Run),
    /// A run ends by itself.
    Finish(Node, Run),
    /// The key of a run is taken back, or handed to the leader; the log store learns how it
    /// ended.
    Release(Node, Run),
    /// The log store learns how a run ended whose key is no longer there to be taken back.
    Deliver(Node, Run),
    /// A new life looks at what the last one left in etcd.
    Look(Node),
    /// A worker's lease is over: in etcd, and by then long since by the worker's own clock.
    Expire(Node),
    /// A worker has a lease again and writes its health record.
    Register(Node),
    /// A worker without a lease ends what others may run.
    Guard(Node),
    /// The worker's process dies; with `true` for good.
    Crash(Node, bool),
    /// It starts again.
    Restart(Node),
    /// The network between a worker and etcd breaks, or is well again.
    Link(Node, bool),
    /// The worker's process is stopped, or goes on.
    Stop(Node, bool),
    /// A master sees the keys of runs as they are now.
    WatchKeys(u8),
    /// … the health records.
    WatchHealth(u8),
    /// A master has waited for a node.
    Wait(u8, Node),
    /// A master takes the lead; who led before does not know yet.
    Elect(u8),
    /// The leader, or who believes to be it, acts on a key it sees; with `true` knowing what
    /// the log store knows.
    Settle(u8, Run, bool),
}

impl Model for Failover {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let health = vec![Health { life: Some(1), registrations: 1 }; self.workers.into()];
        let worker = Worker {
            process: Process::Alive,
            life: 1,
            linked: true,
            lease: Lease::Held,
            guarded: false,
            looked: true,
            cached: None,
            dealt: 0,
            open: None,
            claim: None,
            asked: BTreeMap::new(),
            journal: BTreeMap::new(),
            processes: BTreeMap::new(),
            release: BTreeMap::new(),
        };
        let master = |n| Master {
            term: (n == 0).then_some(1),
            keys: BTreeMap::new(),
            health: health.clone(),
            waited: vec![false; self.workers.into()],
            waited_for: BTreeSet::new(),
        };
        vec![State {
            masters: (0..self.masters).map(master).collect(),
            workers: vec![worker; self.workers.into()],
            etcd: Etcd { revision: 1, term: 1, health, ..Etcd::default() },
            strays: BTreeSet::new(),
            log: BTreeMap::new(),
            register: Vec::new(),
            faults: self.faults,
            claimed: Vec::new(),
            deposed_decided: false,
            ended_again: false,
        }]
    }

    fn actions(&self, s: &State, out: &mut Vec<Action>) {
        for &(run, revision, n) in &s.strays {
            out.extend([true, false].map(|lands| Action::LandStray(run, revision, n, lands)));
        }
        for (n, w) in (0..).zip(&s.workers) {
            self.worker_actions(s, n, w, out);
        }
        for (n, m) in (0..).zip(&s.masters) {
            self.master_actions(s, n, m, out);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut s = last.clone();
        match action {
            Action::LandStray(run, expected, n, lands) => {
                s.strays.remove(&(run, expected, n));
                if lands {
                    self.land(&mut s, run, expected);
                }
            }
            Action::WatchKeys(m)
            | Action::WatchHealth(m)
            | Action::Wait(m, _)
            | Action::Elect(m)
            | Action::Settle(m, ..) => self.master_acts(&mut s, m.into(), action),
            _ => self.worker_acts(&mut s, node(action), action),
        }
        (s != *last).then_some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        checks::all(self)
    }
}

impl Failover {
    fn has(&self, safeguard: Safeguard) -> bool {
        self.without != Some(safeguard)
    }

    /// A claim reaches etcd: one transaction that compares, and writes the cursor and with
    /// `rerun` the key.
    fn land(&self, s: &mut State, run: Run, expected: Revision) -> Stage {
        let there = s.etcd.cursor.map_or(0, |c| c.revision);
        let blind = expected != READ && !self.has(Safeguard::ClaimCompares);
        if there != expected && !blind {
            return Stage::Conflict(s.etcd.cursor);
        }
        s.etcd.revision += 1;
        let revision = s.etcd.revision;
        s.etcd.cursor = Some(Cursor { run, revision });
        s.claimed.push(run);
        if self.rerun {
            s.etcd.keys.insert(run, Key { revision, life: run.serial, ended: false });
        }
        Stage::Done(revision)
    }
}

impl Etcd {
    /// Deletes a key, or writes it with what it says of its run's end, if it is there.
    fn put_there(&mut self, run: Run, ended: Option<bool>) {
        let Some(key) = self.keys.get_mut(&run) else { return };
        self.revision += 1;
        match ended {
            Some(ended) => *key = Key { revision: self.revision, ended, ..*key },
            None => drop(self.keys.remove(&run)),
        }
    }
}

/// Whose action it is.
fn node(action: Action) -> Node {
    match action {
        Action::Claim(n)
        | Action::Land(n)
        | Action::Answer(n)
        | Action::TimeOut(n)
        | Action::Begin(n)
        | Action::Notice(n, _)
        | Action::BeginAsked(n, _)
        | Action::Write(n, _)
        | Action::Finish(n, _)
        | Action::Release(n, _)
        | Action::Deliver(n, _)
        | Action::Look(n)
        | Action::Expire(n)
        | Action::Register(n)
        | Action::Guard(n)
        | Action::Crash(n, _)
        | Action::Restart(n)
        | Action::Link(n, _)
        | Action::Stop(n, _)
        | Action::Wait(_, n) => n,
        Action::LandStray(run, ..) | Action::Settle(_, run, _) => run.node,
        Action::WatchKeys(_) | Action::WatchHealth(_) | Action::Elect(_) => 0,
    }
}
