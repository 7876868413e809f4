//! What is due when: pops what is due without touching the rest.

use jiff::Timestamp;
use std::collections::BTreeSet;

/// Not in the agenda.
const NEVER: i64 = i64::MAX;

/// When each of many numbered jobs is due next. A job is in it at most once. Entering,
/// moving and taking out cost a fraction of a microsecond among a million, and 40
/// bytes a job.
#[derive(Debug, Default)]
pub struct Agenda {
    /// Milliseconds since 1970 and number.
    queue: BTreeSet<(i64, u32)>,
    /// By number: what stands in the queue.
    due: Vec<i64>,
}

impl Agenda {
    /// Enters a job, or moves it. Times are kept to the millisecond, rounded up.
    pub fn set(&mut self, job: u32, at: Timestamp) {
        self.remove(job);
        let early = at.as_millisecond();
        let exact = at.subsec_nanosecond() % 1_000_000 == 0;
        let at = early + i64::from(!exact);
        let index = job as usize;
        if self.due.len() <= index {
            self.due.resize(index + 1, NEVER);
        }
        self.due[index] = at;
        self.queue.insert((at, job));
    }

    /// Takes a job out.
    pub fn remove(&mut self, job: u32) {
        if let Some(due) = self.due.get_mut(job as usize).filter(|due| **due != NEVER) {
            self.queue.remove(&(*due, job));
            *due = NEVER;
        }
    }

    /// When the first job is due.
    pub fn head(&self) -> Option<Timestamp> {
        let (at, _) = self.queue.first()?;
        Timestamp::from_millisecond(*at).ok()
    }

    /// Takes out the first job if it is due at `now`.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<u32> {
        let (at, job) = *self.queue.first()?;
        if at > now.as_millisecond() {
            return None;
        }
        self.queue.pop_first();
        self.due[job as usize] = NEVER;
        Some(job)
    }

    /// How many jobs wait for a slot.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn pops_what_is_due_in_order_and_leaves_the_rest() {
        let (a, b, c) = (0, 1, 7);
        let mut agenda = Agenda::default();
        agenda.set(b, at(20));
        agenda.set(a, at(10));
        agenda.set(c, at(30));
        agenda.set(c, at(40));
        assert_eq!((agenda.head(), agenda.len()), (Some(at(10)), 3));
        assert_eq!(agenda.pop_due(at(9)), None);
        let due: Vec<_> = std::iter::from_fn(|| agenda.pop_due(at(25))).collect();
        assert_eq!(due, [a, b]);
        assert_eq!(agenda.head(), Some(at(40)));
        agenda.set(b, at(50));
        agenda.remove(c);
        assert_eq!((agenda.head(), agenda.len()), (Some(at(50)), 1));
        agenda.remove(b);
        agenda.remove(b);
        agenda.remove(99);
        assert!(agenda.is_empty() && agenda.head().is_none());
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut agenda = Agenda::default();
        let exact = Timestamp::new(5, 1).unwrap();
        agenda.set(0, exact);
        assert_eq!(agenda.pop_due(Timestamp::new(5, 0).unwrap()), None);
        assert!(agenda.head().unwrap() >= exact);
    }
}
