//! Turns what changes in etcd into events. Two tellers that begin at different revisions say
//! the same about what both hear of.

use super::families::{self, Track};
use meepo_coord::{CoordError, Etcd, history::Step, watch::Change};
use meepo_core::event::{Event, EventId};

/// What is remembered of all families, as of one revision.
pub(super) struct Teller {
    families: Vec<Box<dyn Track>>,
    /// Everything up to here is known.
    at: i64,
    /// The revision told last and how many events it has had so far.
    last: (i64, u32),
}

impl Teller {
    /// One that knows what stood in etcd at `revision` and tells what came after. It knows
    /// all families, whoever listens: the place of an event within its revision depends on
    /// all of them.
    pub(super) async fn begin(etcd: &Etcd, revision: i64) -> Result<Self, CoordError> {
        let mut families = families::all();
        for family in &mut families {
            for entry in etcd.list(family.prefix(), Some(revision)).await?.0 {
                family.seed(&entry.key, Some((&entry.value, entry.create_revision)));
            }
        }
        Ok(Self { families, at: revision, last: (revision, 0) })
    }

    /// Everything up to the end of this revision has been told.
    pub(super) fn at(&self) -> i64 {
        self.at
    }

    /// What a step means.
    pub(super) fn tell(&mut self, step: Step) -> Vec<Event> {
        let mut told = Vec::new();
        for change in &step.changes {
            let (key, revision, value) = match change {
                Change::Put(e) => {
                    (&e.key, e.mod_revision, Some((e.value.as_slice(), e.create_revision)))
                }
                Change::Delete { key, revision, .. } => (key, *revision, None),
            };
            if self.last.0 != revision {
                self.last = (revision, 0);
            }
            for family in &mut self.families {
                for mut event in family.change(key, value) {
                    event.id = EventId { revision, index: self.last.1 };
                    self.last.1 += 1;
                    told.push(event);
                }
            }
        }
        self.at = self.at.max(step.through);
        told
    }
}
