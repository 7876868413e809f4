//! Takes assignments in and lets them go.

use super::{
    Agent, CORRECTION,
    table::{Job, Read},
};
use crate::{progress::Holdings, state::SnapshotEntry};
use jiff::Timestamp;
use meepo_coord::{
    Entry, keys,
    watch::{Batch, Change},
};
use meepo_core::{
    code::Code,
    error::Invalid,
    id::Name,
    job::Assignment,
    signing::{Covered, Kind},
};
use std::collections::HashSet;
use tracing::{debug, warn};

/// Writes to the state that go together.
const TOGETHER: usize = 256;

/// What the last life of this worker held at the key of an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing, or it is not known.
    Nothing,
    /// The same schedule, so the slots since then count as missed.
    Same,
    /// The same times, which were not followed or not in the same way.
    SameTimes,
    /// Another schedule.
    Other,
}

impl Agent {
    /// Goes on with the assignments of the last life, as etcd cannot be heard.
    pub(super) async fn load_snapshot(&mut self) {
        let entries: Vec<Entry> = std::mem::take(&mut self.snapshot)
            .into_iter()
            .map(|(key, value)| Entry { key, value, mod_revision: 0, create_revision: 0 })
            .collect();
        if entries.is_empty() {
            return;
        }
        warn!(jobs = entries.len(), "etcd cannot be reached; going on with the last known jobs");
        let now = Timestamp::now();
        for entry in entries {
            self.load(entry, now, Before::Same).await;
        }
        self.cursors.clear();
        self.loaded = true;
        self.write_fresh().await;
        self.tell();
    }

    pub(super) async fn heard(&mut self, batch: Batch) {
        let now = Timestamp::now();
        let revision = match batch {
            Batch::Reset { entries, revision } => {
                self.reset(entries, now).await;
                revision
            }
            Batch::Changes(changes) => {
                let mut last = 0;
                for change in changes {
                    last = match &change {
                        Change::Put(entry) => entry.mod_revision,
                        Change::Delete { revision, .. } => *revision,
                    };
                    self.changed(change, now).await;
                }
                last
            }
        };
        self.write_fresh().await;
        if !self.gone.is_empty() {
            self.gone.clear();
            self.since = now;
        }
        let holdings = Holdings { digest: self.table.digest(), revision };
        self.outlets.progress.holds(holdings);
        self.tell();
    }

    /// Makes the table agree with everything there is.
    async fn reset(&mut self, entries: Vec<Entry>, now: Timestamp) {
        let assignments = keys::assignments_of(&self.engine.node);
        self.unload_others(&entries).await;
        if self.engine.trust.is_strict() {
            let there = entries.iter().map(|e| e.key.clone()).collect();
            self.engine.trust.withdraw_others(&assignments, &there).await;
        }
        let mut changed = Vec::new();
        let mut asked = Vec::new();
        // Each entry is let go as soon as it is taken in: there may be a million.
        for entry in entries {
            if !entry.key.starts_with(&assignments) {
                asked.push(entry);
                continue;
            }
            let known = self.snapshot.remove(&entry.key);
            let kept = known.as_ref().is_some_and(|old| *old == entry.value);
            let before = match known {
                Some(_) if kept => Before::Same,
                Some(old) => before(&old, &entry.value),
                None => Before::Nothing,
            };
            let copy = (!kept).then(|| remember(&entry));
            if self.load(entry, now, before).await {
                changed.extend(copy);
            }
            if changed.len() >= TOGETHER {
                self.keep(std::mem::take(&mut changed)).await;
            }
        }
        self.keep(changed).await;
        // From here on the table itself knows what was there before.
        for key in std::mem::take(&mut self.snapshot).into_keys() {
            self.keep_no_more(key).await;
        }
        for job in std::mem::take(&mut self.cursors).into_keys() {
            if self.table.number(&job).is_none() {
                self.forget(job).await;
            }
        }
        self.loaded = true;
        // Requests that were taken back while nobody watched.
        let keys: HashSet<&str> = asked.iter().map(|e| e.key.as_str()).collect();
        let mut gone = self.waits.asked_by(|key| !keys.contains(key));
        let again = self.overlap.asked_again().into_iter();
        gone.extend(again.filter(|key| !keys.contains(key.as_str())));
        for key in gone {
            self.asked_no_more(&key).await;
        }
        for entry in self.without_served(asked).await {
            self.asked(entry).await;
        }
        let spent = self.table.jobs().filter_map(|job| Some((job.id.clone(), job.spent()?)));
        self.engine.spent.all(spent.collect());
    }

    /// Lets go what is not among `entries`.
    async fn unload_others(&mut self, entries: &[Entry]) {
        let node = &self.engine.node;
        let gone: Vec<String> = {
            let keys: HashSet<&str> = entries.iter().map(|e| e.key.as_str()).collect();
            let held = self.table.jobs().map(|job| job.key(node));
            let held = held.chain(self.table.problems.keys().cloned());
            held.filter(|key| !keys.contains(key.as_str())).collect()
        };
        for key in gone {
            self.unload(&key).await;
            self.keep_no_more(key).await;
        }
    }

    async fn changed(&mut self, change: Change, now: Timestamp) {
        let assignments = keys::assignments_of(&self.engine.node);
        match change {
            Change::Put(entry) if entry.key.starts_with(&assignments) => {
                let copy = remember(&entry);
                if self.load(entry, now, Before::Nothing).await {
                    self.keep(vec![copy]).await;
                }
            }
            Change::Put(entry) => self.asked(entry).await,
            Change::Delete { key, .. } if key.starts_with(&assignments) => {
                self.engine.trust.withdraw(&key).await;
                self.unload(&key).await;
                self.keep_no_more(key).await;
            }
            Change::Delete { key, .. } => {
                self.engine.trust.withdraw(&key).await;
                self.asked_no_more(&key).await;
            }
        }
    }

    /// Takes an assignment in. Answers whether it is another than was held before.
    pub(super) async fn load(&mut self, entry: Entry, now: Timestamp, before: Before) -> bool {
        let held = self.table.at_key(&self.engine.node, &entry.key);
        if held.as_ref().and_then(|id| self.table.get(id)).is_some_and(|j| j.is(&entry.value)) {
            return false;
        }
        let read = match Read::new(&self.engine.node, &entry) {
            Ok(read) => read,
            Err(e) => return self.refuse(&entry, &e).await,
        };
        // The oldest form of key may name another job than before.
        if held.is_some_and(|old| old != read.id) {
            self.unload(&entry.key).await;
        }
        let other = self.table.get(&read.id).map(|job| job.key(&self.engine.node));
        if let Some(other) = other.filter(|key| *key != entry.key) {
            let e = Invalid::new(
                Code::CONFLICT,
                "(key)",
                format!("job {} stands at {other} already", read.id),
                "one key per job",
            );
            return self.refuse(&entry, &e).await;
        }
        let a = &read.assignment;
        let admitted =
            self.engine.trust.admit(Kind::Assignment, &entry.key, &a.extra, || a.covered());
        if let Err(e) = admitted.await {
            return self.refuse(&entry, &e.into()).await;
        }
        self.table.refuse_no_more(&entry.key);
        match self.engine.trust.permits(&read.assignment) {
            Ok(()) => drop(self.table.barred.remove(&entry.key)),
            // It stays, so that its runs are recorded as refused.
            Err(why) => drop(self.table.barred.insert(entry.key.clone(), why)),
        }
        self.take_in(read, entry.value, now, before).await;
        true
    }

    async fn take_in(&mut self, read: Read, value: Vec<u8>, now: Timestamp, before: Before) {
        let id = read.id.clone();
        let cursor = self.cursors.get(&id).copied();
        let mut runs = cursor.map_or(0, |c| u32::try_from(c.runs).unwrap_or(u32::MAX));
        // The one slot of `@at` was still to come when this node was given the job: it
        // counts as missed if the worker hears of it too late.
        let is_at = read.is_at();
        let (mut edited, mut new) = (false, false);
        let after = match (self.table.get(&id), cursor) {
            (Some(old), _) => {
                runs = old.runs;
                edited = !old.same_schedule(&read);
                (!edited || is_at && !old.same_times(&read)).then_some(old.after)
            }
            (None, Some(cursor)) if before == Before::Same => Some(cursor.slot),
            (None, _) if !is_at || before == Before::SameTimes => None,
            (None, Some(cursor)) => Some(cursor.slot),
            (None, None) => {
                new = true;
                Some(self.since.min(now)).filter(|_| !self.gone.contains(&id))
            }
        };
        if edited {
            let why = "the job's schedule was changed before the slot began";
            self.drop_slots(&id, why).await;
        }
        // crond(8) takes a change of more than three hours for a correction.
        let after = after.filter(|after| {
            let ahead = *after > now + CORRECTION;
            if ahead {
                warn!(job = %id, %after, "the clock was far ahead; the schedule starts anew");
            }
            !ahead
        });
        debug!(job = %id, express = read.assignment.express, "job loaded");
        let from = after.unwrap_or(now);
        if after.is_none() || edited || new {
            // From here on the worker answers for every slot, also over a restart. A cursor
            // ahead of now, of a clock that went back, would swallow slots.
            self.overlap.forget_cursor(&id);
            self.restart(&id, from).await;
        }
        let was_spent = self.table.get(&id).and_then(Job::spent);
        let number = self.table.insert(&self.engine.node, read, value, from, runs);
        self.agenda.remove(number);
        let Some(job) = self.table.at(number) else { return };
        if self.loaded && job.spent() != was_spent {
            self.engine.spent.post(id.clone(), job.spent());
        }
        if job.is_once() {
            self.ask_claimed(&id);
        } else if job.scheduled().is_some_and(|w| w.schedule.is_reboot()) {
            self.fire_reboot(&id).await;
        } else {
            self.schedule(&id);
        }
    }

    /// The schedule of a job starts anew at `now`.
    async fn restart(&mut self, id: &Name, now: Timestamp) {
        self.fresh.push((id.clone(), now));
        if self.fresh.len() >= TOGETHER {
            self.write_fresh().await;
        }
    }

    /// Must come before anything of these jobs begins.
    pub(super) async fn write_fresh(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let fresh = std::mem::take(&mut self.fresh);
        if let Err(e) = self.engine.state.restart_cursors_later(fresh).await {
            warn!(error = %e, "cannot keep from where on schedules count");
        }
    }

    async fn refuse(&mut self, entry: &Entry, e: &Invalid) -> bool {
        self.unload(&entry.key).await;
        let told = self.table.refuse(&self.engine.node, entry, e.to_string());
        let news = told.as_ref() != Some(&e.to_string());
        if news {
            warn!(key = entry.key, error = %e, "assignment cannot be used");
        }
        news
    }

    pub(super) async fn unload(&mut self, key: &str) {
        self.table.barred.remove(key);
        self.table.refuse_no_more(key);
        if let Some(id) = self.table.at_key(&self.engine.node, key) {
            debug!(job = %id, "job unloaded");
            if let Some(claim) = self.table.get_mut(&id).map(|job| job.claim_key()) {
                self.table.ahead.remove(&claim);
            }
            if self.table.get(&id).is_some_and(|job| job.spent().is_some()) {
                self.engine.spent.post(id.clone(), None);
            }
            if let Some(number) = self.table.remove(&id) {
                self.agenda.remove(number);
            }
            self.drop_slots(&id, "the job was removed before the slot began").await;
            self.overlap.forget_cursor(&id);
            self.once.forget(&id);
            self.forget(id).await;
        }
    }

    async fn forget(&mut self, job: Name) {
        self.gone.insert(job.clone());
        if let Err(e) = self.engine.state.forget_job_later(job, Timestamp::now()).await {
            warn!(error = %e, "cannot forget the cursor of a job");
        }
    }

    /// Keeps jobs for times without etcd.
    async fn keep(&self, entries: Vec<SnapshotEntry>) {
        if entries.is_empty() {
            return;
        }
        if let Err(e) = self.engine.state.put_snapshots_later(entries).await {
            warn!(error = %e, "cannot keep jobs for times without etcd");
        }
    }

    async fn keep_no_more(&self, key: String) {
        if let Err(e) = self.engine.state.delete_snapshot_later(key).await {
            warn!(error = %e, "cannot forget a job for times without etcd");
        }
    }

    /// Enters a job's next slot, which may be one that has passed.
    pub(super) fn schedule(&mut self, id: &Name) {
        let Some(number) = self.table.number(id) else { return };
        self.agenda.remove(number);
        let next = |job: &Job| {
            let slot = job.scheduled()?.next_after(job.after)?;
            slot.checked_add(job.delay()).ok()
        };
        let job = self.table.at(number).filter(|job| !job.is_exhausted());
        if let Some(at) = job.and_then(next) {
            self.agenda.set(number, at);
        }
    }

    /// Looks at every schedule again after the clock was set. When it went back a
    /// little, slots up to the cursor are not run again; when it went back far, the time
    /// before was wrong and the schedules start anew.
    pub(super) async fn reschedule(&mut self) {
        let now = Timestamp::now();
        let ids: Vec<Name> = self.table.ids().cloned().collect();
        for id in ids {
            let ahead = self.table.get_mut(&id).filter(|job| job.after > now + CORRECTION);
            if let Some(job) = ahead {
                job.after = now;
                self.restart(&id, now).await;
            }
            self.schedule(&id);
        }
        self.write_fresh().await;
    }
}

fn remember(entry: &Entry) -> SnapshotEntry {
    let (key, value) = (entry.key.clone(), entry.value.clone());
    SnapshotEntry { key, mod_revision: entry.mod_revision, value }
}

/// How the schedules of two values of a key stand to each other.
fn before(old: &[u8], new: &[u8]) -> Before {
    match (Assignment::read(old), Assignment::read(new)) {
        (Ok((old, before)), Ok((new, after))) if before == after => {
            match (old.status, old.is_once()) == (new.status, new.is_once()) {
                true => Before::Same,
                false => Before::SameTimes,
            }
        }
        _ => Before::Other,
    }
}
