//! What workers do.

use super::{
    Action, Claim, Cursor, End, Entry, Failover, Lease, Node, Process, READ, Revision, Run,
    Safeguard, Stage, State, Worker,
};

impl Failover {
    pub(super) fn worker_actions(&self, s: &State, n: Node, w: &Worker, out: &mut Vec<Action>) {
        let alive = w.process == Process::Alive;
        let reaches = alive && w.linked;
        let fault = s.faults > 0;
        // Processes write whether or not their worker can do anything.
        let silent = w.processes.iter().filter(|(_, (_, wrote))| self.stops && !wrote);
        out.extend(silent.map(|(run, _)| Action::Write(n, *run)));
        match w.claim.map(|claim| claim.stage) {
            Some(Stage::Won(_)) if alive && w.lease == Lease::Held => out.push(Action::Begin(n)),
            Some(Stage::Won(_)) => {}
            Some(stage) => {
                match stage {
                    Stage::Sent(_) => out.push(Action::Land(n)),
                    _ if reaches => out.push(Action::Answer(n)),
                    _ => {}
                }
                if alive && (fault || !w.linked) {
                    out.push(Action::TimeOut(n));
                }
            }
            None if reaches && w.looked && w.dealt < self.slots => out.push(Action::Claim(n)),
            None => {}
        }
        if reaches {
            self.talks(s, n, w, out);
        }
        if alive {
            if w.lease == Lease::Held {
                out.extend(w.asked.keys().map(|run| Action::BeginAsked(n, *run)));
            } else if self.has(Safeguard::WorkerEnds) && !(w.guarded && w.has_nothing()) {
                out.push(Action::Guard(n));
            }
            out.extend(w.processes.keys().map(|run| Action::Finish(n, *run)));
        }
        // Nobody renews it.
        let held = s.etcd.health[usize::from(n)].life.is_some();
        if held && !(w.process == Process::Alive && w.linked) {
            out.push(Action::Expire(n));
        }
        match w.process {
            Process::Alive if fault => {
                out.push(Action::Crash(n, false));
                if s.workers.iter().filter(|o| o.process != Process::Gone).count() > 1 {
                    out.push(Action::Crash(n, true));
                }
                if w.linked {
                    out.push(Action::Link(n, false));
                }
                if self.stops {
                    out.push(Action::Stop(n, true));
                }
            }
            Process::Stopped => out.push(Action::Stop(n, false)),
            Process::Dead => out.push(Action::Restart(n)),
            Process::Alive | Process::Gone => {}
        }
        if !w.linked && w.process != Process::Gone {
            out.push(Action::Link(n, true));
        }
    }

    /// What needs etcd.
    fn talks(&self, s: &State, n: Node, w: &Worker, out: &mut Vec<Action>) {
        let mine = s.etcd.triggers.keys().filter(|run| run.node == n);
        let new = mine.filter(|run| !w.asked.contains_key(*run));
        out.extend(new.map(|run| Action::Notice(n, *run)));
        out.extend(w.release.keys().map(|run| Action::Release(n, *run)));
        let untold = w.journal.iter().filter(|(_, e)| e.end.is_some() && !e.told);
        let untold = untold.filter(|(run, _)| !w.release.contains_key(*run));
        out.extend(untold.map(|(run, _)| Action::Deliver(n, *run)));
        let registered = w.lease == Lease::Held && s.etcd.health[usize::from(n)].life.is_some();
        if !registered {
            out.push(Action::Register(n));
        } else if !w.looked {
            out.push(Action::Look(n));
        }
    }

    pub(super) fn worker_acts(&self, s: &mut State, n: Node, action: Action) {
        // Taken out while it acts on the rest of the world.
        let mut w = s.workers[usize::from(n)].clone();
        match action {
            Action::Claim(_) => {
                let slot = w.dealt + 1;
                let new = Run { slot, attempt: 1, node: n, serial: w.life };
                // A remembered cursor may speed a claim up, but never refuse it.
                let expected = match w.cached {
                    Some(known) if known.run.slot >= slot => READ,
                    known => known.map_or(0, |c| c.revision),
                };
                let (run, unanswered) = (w.open.unwrap_or(new), w.open.is_some());
                w.claim = Some(Claim { run, unanswered, stage: Stage::Sent(expected) });
            }
            Action::Land(_) => {
                if let Some(claim) = &mut w.claim
                    && let Stage::Sent(expected) = claim.stage
                {
                    claim.stage = self.land(s, claim.run, expected);
                }
            }
            Action::Answer(_) => self.answered(s, &mut w),
            Action::TimeOut(_) => {
                // Without a link that is no further fault.
                s.faults -= u8::from(w.linked);
                give_up(s, &mut w);
            }
            Action::Begin(_) => {
                if let Some(Claim { run, stage: Stage::Won(fence), .. }) = w.claim.take() {
                    (w.open, w.dealt) = (None, run.slot);
                    w.begin(run, fence);
                }
            }
            Action::Notice(_, run) => match s.etcd.triggers.get(&run) {
                Some(fence) if !w.journal.contains_key(&run) => drop(w.asked.insert(run, *fence)),
                // An earlier life has served it.
                _ => drop(s.etcd.triggers.remove(&run)),
            },
            Action::BeginAsked(_, run) => {
                if let Some(fence) = w.asked.remove(&run) {
                    w.begin(run, fence);
                    if w.linked {
                        s.etcd.triggers.remove(&run);
                    }
                }
            }
            Action::Write(_, run) => self.write(s, &mut w, run),
            Action::Finish(_, run) => {
                w.processes.remove(&run);
                w.end(run, End::Done);
                self.release(&mut w, run, false);
            }
            Action::Release(_, run) => {
                if let Some(ended) = w.release.remove(&run) {
                    s.etcd.put_there(run, ended.then_some(true));
                }
                deliver(s, &mut w, run);
            }
            Action::Deliver(_, run) => deliver(s, &mut w, run),
            Action::Look(_) => self.look(s, n, &mut w),
            Action::Expire(_) => {
                w.lease = Lease::Over;
                s.etcd.health[usize::from(n)].life = None;
            }
            Action::Register(_) => {
                let health = &mut s.etcd.health[usize::from(n)];
                health.life = Some(w.life);
                health.registrations += 1;
                (w.lease, w.guarded) = (Lease::Held, false);
            }
            Action::Guard(_) => self.guard(&mut w),
            Action::Crash(_, for_good) => {
                s.faults -= 1;
                give_up(s, &mut w);
                w.process = if for_good { Process::Gone } else { Process::Dead };
                // With the host that dies, what ran on it has ended.
                if !self.stops {
                    w.processes.clear();
                }
                (w.cached, w.open) = (None, None);
                w.asked.clear();
                w.release.clear();
            }
            Action::Restart(_) => {
                w.process = Process::Alive;
                w.life += 1;
                // It has no lease of its own yet.
                (w.looked, w.lease, w.guarded) = (false, Lease::Over, false);
                // `worker::recover`: what is left is killed before anything begins.
                w.processes.clear();
                for entry in w.journal.values_mut() {
                    entry.end.get_or_insert(End::Lost);
                }
            }
            Action::Link(_, up) => {
                s.faults -= u8::from(!up);
                w.linked = up;
            }
            Action::Stop(_, stops) => {
                s.faults -= u8::from(stops);
                w.process = if stops { Process::Stopped } else { Process::Alive };
            }
            _ => {}
        }
        s.workers[usize::from(n)] = w;
    }

    /// `Claims::claim_at` and what `worker::agent::once` makes of its answer.
    fn answered(&self, s: &mut State, w: &mut Worker) {
        let Some(Claim { run, unanswered, stage }) = w.claim else { return };
        let won = match stage {
            Stage::Done(revision) => {
                w.cached = Some(Cursor { run, revision });
                Some(revision)
            }
            Stage::Conflict(there) => {
                w.cached = there;
                match there {
                    Some(there) if there.run == run => Some(there.revision),
                    Some(there) if there.run.slot >= run.slot => {
                        if self.has(Safeguard::OwnClaimTold) {
                            lost_to(w, run, there);
                        }
                        None
                    }
                    there => {
                        let expected = there.map_or(0, |c| c.revision);
                        w.claim = Some(Claim { run, unanswered, stage: Stage::Sent(expected) });
                        return;
                    }
                }
            }
            Stage::Sent(_) | Stage::Won(_) => return,
        };
        // It may have been won long ago, and the leader have moved the slot since, or be about
        // to: the key is written anew, if it is there.
        let checked = self.rerun && unanswered && self.has(Safeguard::KeyThere);
        let won = won.filter(|_| !checked || s.etcd.keys.contains_key(&run));
        if won.is_some() && checked {
            s.etcd.put_there(run, Some(false));
        }
        match won {
            Some(fence) => w.claim = Some(Claim { run, unanswered, stage: Stage::Won(fence) }),
            None => {
                (w.claim, w.open, w.dealt) = (None, None, run.slot);
                if unanswered {
                    self.release(w, run, true);
                }
            }
        }
    }

    /// `worker::inherited` and `found_claimed`: what the last life claimed and never began.
    fn look(&self, s: &State, n: Node, w: &mut Worker) {
        w.looked = true;
        for run in s.etcd.keys.keys().filter(|run| run.node == n) {
            // What it is asked for it will begin.
            if !w.journal.contains_key(run) && !s.etcd.triggers.contains_key(run) {
                self.release(w, *run, true);
            }
        }
        if let Some(Cursor { run, .. }) = s.etcd.cursor {
            w.dealt = w.dealt.max(run.slot);
            if run.node == n && !w.journal.contains_key(&run) {
                w.not_begun(run, End::Lost);
            }
        }
    }

    /// What was claimed and runs is ended; what has not begun, if another node may get it.
    fn guard(&self, w: &mut Worker) {
        w.guarded = true;
        for run in std::mem::take(&mut w.processes).into_keys() {
            w.end(run, End::Yielded);
            self.release(w, run, true);
        }
        if !self.rerun {
            return;
        }
        let mut waiting: Vec<Run> = std::mem::take(&mut w.asked).into_keys().collect();
        if let Some(Claim { run, stage: Stage::Won(_), .. }) = w.claim {
            (w.claim, w.open, w.dealt) = (None, None, run.slot);
            waiting.push(run);
        }
        for run in waiting {
            w.not_begun(run, End::Yielded);
            self.release(w, run, true);
        }
    }

    fn release(&self, w: &mut Worker, run: Run, ended: bool) {
        if self.rerun {
            w.release.insert(run, ended);
        }
    }

    fn write(&self, s: &mut State, w: &mut Worker, run: Run) {
        let Some((fence, wrote)) = w.processes.get_mut(&run) else { return };
        *wrote = true;
        let newest = s.register.iter().map(|(fence, _)| *fence).max().unwrap_or(0);
        if *fence >= newest || !self.has(Safeguard::RegisterRefuses) {
            s.register.push((*fence, run));
        }
    }
}

impl Worker {
    /// Whether the guard would find nothing to end.
    fn has_nothing(&self) -> bool {
        let won = self.claim.is_some_and(|c| matches!(c.stage, Stage::Won(_)));
        self.processes.is_empty() && self.asked.is_empty() && !won
    }

    /// Whether a worker that can act has, some time after it lost its lease, ended what it
    /// had, and waits for no answer any more.
    pub(super) fn has_yielded(&self) -> bool {
        self.guarded && self.has_nothing() && self.claim.is_none()
    }

    fn begin(&mut self, run: Run, fence: Revision) {
        self.journal.insert(run, Entry { began: true, end: None, told: false });
        self.processes.insert(run, (fence, false));
    }

    fn end(&mut self, run: Run, end: End) {
        if let Some(entry) = self.journal.get_mut(&run) {
            entry.end.get_or_insert(end);
        }
    }

    fn not_begun(&mut self, run: Run, end: End) {
        self.journal.insert(run, Entry { began: false, end: Some(end), told: false });
    }
}

fn deliver(s: &mut State, w: &mut Worker, run: Run) {
    if let Some(entry) = w.journal.get_mut(&run) {
        entry.told = true;
        s.log.extend(entry.end.map(|end| (run, end)));
    }
}

/// Another claim has the slot. One of this worker's last life may have reached etcd only after
/// this life had looked.
fn lost_to(w: &mut Worker, run: Run, there: Cursor) {
    if there.run.node == run.node && !w.journal.contains_key(&there.run) {
        w.not_begun(there.run, End::Lost);
    }
}

/// A claim is not waited for any longer; it may still reach etcd.
fn give_up(s: &mut State, w: &mut Worker) {
    let Some(Claim { run, stage, .. }) = w.claim.take() else { return };
    if let Stage::Sent(expected) = stage
        && expected != READ
    {
        let same = s.strays.range((run, expected, 0)..=(run, expected, u8::MAX)).count();
        s.strays.insert((run, expected, u8::try_from(same).unwrap_or(u8::MAX)));
    }
    w.open = Some(run);
}
