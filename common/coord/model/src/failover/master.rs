//! What masters do: `master::rerun`, on views that may be old.

use super::{Action, End, Failover, Key, Lease, Master, Process, Run, Safeguard, State, Worker};

/// What is to be done about a key.
#[derive(PartialEq, Eq)]
enum Step {
    /// Nothing yet.
    Leave,
    /// Its run has ended: the key goes.
    Forget,
    /// It is started again.
    Move,
}

impl Failover {
    pub(super) fn master_actions(&self, s: &State, n: u8, m: &Master, out: &mut Vec<Action>) {
        if !self.rerun {
            return;
        }
        if m.term.is_none() {
            if s.faults > 0 {
                out.push(Action::Elect(n));
            }
            return;
        }
        if m.keys != s.etcd.keys {
            out.push(Action::WatchKeys(n));
        }
        if m.health != s.etcd.health {
            out.push(Action::WatchHealth(n));
        }
        for (node, w) in (0..).zip(&s.workers) {
            let i = usize::from(node);
            let acts = w.process == Process::Alive && self.has(Safeguard::WorkerEnds);
            let may_be_over = !acts || w.lease == Lease::Held || w.has_yielded();
            let new = |run: &Run| run.node == node && !m.waited_for.contains(run);
            let waits = !m.waited[i] || m.keys.keys().any(new);
            if m.health[i].life.is_none() && waits && may_be_over {
                out.push(Action::Wait(n, node));
            }
        }
        for (run, key) in &m.keys {
            let due = |knows: &bool| self.step(s, m, *run, key, *knows) != Step::Leave;
            let known = s.log.contains_key(run);
            let due = [true, false].into_iter().filter(|knows| known || !knows).filter(due);
            out.extend(due.map(|knows| Action::Settle(n, *run, knows)));
        }
    }

    pub(super) fn master_acts(&self, s: &mut State, n: usize, action: Action) {
        let m = &mut s.masters[n];
        match action {
            Action::WatchKeys(_) => {
                let (old, new) = (&m.keys, &s.etcd.keys);
                // What a worker says of the end of a run makes nobody wait longer.
                m.waited_for.retain(|run| match (old.get(run), new.get(run)) {
                    (Some(old), Some(new)) => old.revision == new.revision || new.ended,
                    (_, there) => there.is_some(),
                });
                m.keys.clone_from(new);
            }
            Action::WatchHealth(_) => {
                // The watch tells of every change, also of one that was taken back since.
                for (i, now) in s.etcd.health.iter().enumerate() {
                    if *now != m.health[i] {
                        m.waited[i] = false;
                        m.waited_for.retain(|run| usize::from(run.node) != i);
                    }
                }
                m.health.clone_from(&s.etcd.health);
            }
            Action::Wait(_, node) => {
                m.waited[usize::from(node)] = true;
                m.waited_for.extend(m.keys.keys().filter(|run| run.node == node));
            }
            Action::Elect(_) => {
                s.faults -= 1;
                s.etcd.revision += 1;
                s.etcd.term = s.etcd.revision;
                m.term = Some(s.etcd.term);
            }
            Action::Settle(_, run, knows) => self.settle(s, n, run, knows),
            _ => {}
        }
    }

    /// `rerun::look` and `decide`; without knowing what the log store knows if it is away.
    fn step(&self, s: &State, m: &Master, run: Run, key: &Key, knows: bool) -> Step {
        let node = usize::from(run.node);
        let there = match m.health[node].life {
            Some(life) if life == key.life && !key.ended => return Step::Leave,
            Some(_) => true,
            None if self.waits(m, run) => return Step::Leave,
            None => false,
        };
        let lost = match s.log.get(&run).filter(|_| knows) {
            Some(End::Lost | End::Yielded) => true,
            Some(End::Done) => return Step::Forget,
            // A worker that lives tells what became of its last life's runs.
            None => !there || key.ended,
        };
        match lost && successor(m, run).is_some() {
            true => Step::Move,
            false => Step::Leave,
        }
    }

    /// Whether the leader has not yet waited long enough for a node that it does not see.
    fn waits(&self, m: &Master, run: Run) -> bool {
        let waited = match self.has(Safeguard::WaitsForKey) {
            true => m.waited_for.contains(&run),
            false => m.waited[usize::from(run.node)],
        };
        !waited && self.has(Safeguard::LeaderWaits)
    }

    /// One transaction.
    fn settle(&self, s: &mut State, n: usize, run: Run, knows: bool) {
        let m = s.masters[n].clone();
        let Some(key) = m.keys.get(&run) else { return };
        let step = self.step(s, &m, run, key, knows);
        let leads = m.term == Some(s.etcd.term);
        let same = s.etcd.keys.get(&run).is_some_and(|k| k.revision == key.revision);
        let node = usize::from(run.node);
        // One that it does not see must not have come back.
        let away = step == Step::Forget
            || m.health[node].life.is_some()
            || s.etcd.health[node].life.is_none();
        let may = (leads || !self.has(Safeguard::TermCompared))
            && (same || !self.has(Safeguard::KeyCompared))
            && (away || !self.has(Safeguard::HealthCompared));
        if !leads && self.has(Safeguard::TermCompared) {
            s.masters[n].term = None;
        }
        if !may {
            return;
        }
        s.deposed_decided |= !leads;
        let done = |w: &Worker| w.journal.get(&run).is_some_and(|e| e.end == Some(End::Done));
        s.ended_again |= step == Step::Move && !same && s.workers.iter().any(done);
        s.etcd.keys.remove(&run);
        s.etcd.triggers.remove(&run);
        if let (Step::Move, Some(to)) = (step, successor(&m, run)) {
            s.etcd.revision += 1;
            let revision = s.etcd.revision;
            let life = m.health[usize::from(to)].life.unwrap_or_default();
            let again = Run { attempt: run.attempt + 1, node: to, serial: revision, ..run };
            s.etcd.keys.insert(again, Key { revision, life, ended: false });
            let fence = if self.has(Safeguard::NewFence) { revision } else { key.revision };
            s.etcd.triggers.insert(again, fence);
        }
    }
}

/// The node that is to run it: any other that is there.
fn successor(m: &Master, run: Run) -> Option<u8> {
    let there = (0..).zip(&m.health).filter(|(_, h)| h.life.is_some());
    there.map(|(n, _)| n).find(|n| *n != run.node)
}
