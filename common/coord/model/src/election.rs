//! Who leads: one key under a lease, with the revision of its creation as the term
//! (`coord::lease`, `coord::election`), and workers that refuse orders of an older term
//! (`worker::session`).
//!
//! Here time counts: etcd reckons a lease from when a renewal reaches it, a master from when
//! it sent it. Whatever may happen may also happen much later, so this is about messages that
//! take long and masters that are stopped between any two steps.

use stateright::{Model, Property};
use std::collections::BTreeSet;

/// A rule without which the election would be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safeguard {
    /// A master counts its lease from when it sent the renewal.
    FromSending,
    /// A master that was not told otherwise looks at its clock before it acts.
    ByTheClock,
    /// A worker refuses orders of an older term than it knows.
    TermChecked,
}

/// Two masters at a time never lead for certain.
pub const ONE_LEADER: &str = "at most one master leads for certain";
/// A worker never obeys an older leader after a newer one.
pub const NEVER_BACK: &str = "no order of an older leader after one of a newer";
/// Not a demand: shows that the model gets anywhere.
pub const CHANGES: &str = "orders of three terms are obeyed";

/// The time of a lease.
const TTL: u8 = 2;

/// What is explored.
#[derive(Debug, Clone, Copy)]
pub struct Election {
    /// So many masters.
    pub masters: u8,
    /// When the clock stops.
    pub until: u8,
    /// The rule that is left out.
    pub without: Option<Safeguard>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    master: u8,
    term: u8,
    expires: u8,
}

/// A master's word to etcd that it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Renewal {
    Sent { at: u8 },
    Answered { at: u8, term: Option<u8> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Master {
    /// It leads with this term until then.
    mine: Option<(u8, u8)>,
    renewal: Option<Renewal>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Worker {
    /// The term of the leader it knows, whose session it has.
    known: u8,
    obeyed: u8,
    obeyed_older: bool,
    terms: u8,
    orders: BTreeSet<u8>,
}

/// Everything there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    now: u8,
    term: u8,
    key: Option<Key>,
    masters: Vec<Master>,
    worker: Worker,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Time passes.
    Tick,
    /// etcd finds the leader's lease over: late perhaps, but never early.
    Expire,
    /// A master renews its lease, or stands for election.
    Send(u8),
    /// That reaches etcd.
    Land(u8),
    /// The answer reaches the master.
    Answer(u8),
    /// A master learns that another leads.
    Told(u8),
    /// A leader gives an order.
    Order(u8),
    /// The worker learns who leads.
    Learn,
    /// An order reaches the worker.
    Obey(u8),
}

impl Model for Election {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let masters = vec![Master::default(); self.masters.into()];
        vec![State { now: 0, term: 0, key: None, masters, worker: Worker::default() }]
    }

    fn actions(&self, s: &State, out: &mut Vec<Action>) {
        if s.now < self.until {
            out.push(Action::Tick);
        }
        if s.key.is_some_and(|key| key.expires <= s.now) {
            out.push(Action::Expire);
        }
        for (n, m) in (0..).zip(&s.masters) {
            match m.renewal {
                Some(Renewal::Sent { .. }) => out.push(Action::Land(n)),
                Some(Renewal::Answered { .. }) => out.push(Action::Answer(n)),
                None => out.push(Action::Send(n)),
            }
            if m.mine.is_some() && s.key.is_some_and(|key| key.master != n) {
                out.push(Action::Told(n));
            }
            if self.leads(s.now, m) {
                out.push(Action::Order(n));
            }
        }
        if s.key.is_some_and(|key| key.term > s.worker.known) {
            out.push(Action::Learn);
        }
        let orders = s.worker.orders.iter().filter(|term| **term <= s.worker.known);
        out.extend(orders.map(|term| Action::Obey(*term)));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut s = last.clone();
        match action {
            Action::Tick => s.now += 1,
            Action::Expire => s.key = None,
            Action::Send(n) => {
                s.masters[usize::from(n)].renewal = Some(Renewal::Sent { at: s.now })
            }
            Action::Land(n) => self.land(&mut s, n),
            Action::Answer(n) => {
                let m = &mut s.masters[usize::from(n)];
                if let Some(Renewal::Answered { at, term }) = m.renewal.take() {
                    let from = if self.has(Safeguard::FromSending) { at } else { s.now };
                    m.mine = term.map(|term| (term, from + TTL));
                }
            }
            Action::Told(n) => s.masters[usize::from(n)].mine = None,
            Action::Order(n) => {
                let term = s.masters[usize::from(n)].mine.map(|(term, _)| term);
                s.worker.orders.extend(term);
            }
            Action::Learn => s.worker.known = s.key.map_or(s.worker.known, |key| key.term),
            Action::Obey(term) => {
                let w = &mut s.worker;
                w.orders.remove(&term);
                if term >= w.known || !self.has(Safeguard::TermChecked) {
                    w.obeyed_older |= term < w.obeyed;
                    w.terms += u8::from(term > w.obeyed);
                    w.obeyed = w.obeyed.max(term);
                }
            }
        }
        (s != *last).then_some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_LEADER, |model: &Election, s: &State| {
                s.masters.iter().filter(|m| model.leads(s.now, m)).count() <= 1
            }),
            Property::always(NEVER_BACK, |_, s: &State| !s.worker.obeyed_older),
            Property::sometimes(CHANGES, |_, s: &State| s.worker.terms >= 3),
        ]
    }
}

impl Election {
    fn has(&self, safeguard: Safeguard) -> bool {
        self.without != Some(safeguard)
    }

    /// `Leadership::term`.
    fn leads(&self, now: u8, m: &Master) -> bool {
        m.mine.is_some_and(|(_, until)| now < until || !self.has(Safeguard::ByTheClock))
    }

    fn land(&self, s: &mut State, n: u8) {
        let Some(Renewal::Sent { at }) = s.masters[usize::from(n)].renewal else { return };
        let expires = s.now + TTL;
        let term = match &mut s.key {
            Some(key) if key.master == n => {
                key.expires = expires;
                Some(key.term)
            }
            Some(_) => None,
            None => {
                s.term += 1;
                s.key = Some(Key { master: n, term: s.term, expires });
                Some(s.term)
            }
        };
        s.masters[usize::from(n)].renewal = Some(Renewal::Answered { at, term });
    }
}
