//! What is due when: a queue by second that pops what is due without touching the rest.

use jiff::Timestamp;
use meepo_core::id::Name;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The next slot of every job. A job is in it at most once.
#[derive(Debug, Default)]
pub struct Agenda {
    by_second: BTreeMap<i64, HashSet<Name>>,
    second_of: HashMap<Name, i64>,
}

impl Agenda {
    /// Enters a job, or moves it.
    pub fn set(&mut self, job: &Name, at: Timestamp) {
        self.remove(job);
        // Slots have whole seconds; whatever has not is due by the next.
        let second = at.as_second() + i64::from(at.subsec_nanosecond() > 0);
        self.by_second.entry(second).or_default().insert(job.clone());
        self.second_of.insert(job.clone(), second);
    }

    /// Takes a job out.
    pub fn remove(&mut self, job: &Name) {
        let Some(second) = self.second_of.remove(job) else { return };
        if let Some(jobs) = self.by_second.get_mut(&second) {
            jobs.remove(job);
            if jobs.is_empty() {
                self.by_second.remove(&second);
            }
        }
    }

    /// When the first job is due.
    pub fn head(&self) -> Option<Timestamp> {
        let (second, _) = self.by_second.first_key_value()?;
        Timestamp::from_second(*second).ok()
    }

    /// Takes out every job that is due at `now`, the earliest first.
    pub fn pop_due(&mut self, now: Timestamp) -> Vec<Name> {
        let mut due = Vec::new();
        while let Some(entry) = self.by_second.first_entry() {
            if *entry.key() > now.as_second() {
                break;
            }
            for job in entry.remove() {
                self.second_of.remove(&job);
                due.push(job);
            }
        }
        due
    }

    /// How many jobs wait for a slot.
    pub fn len(&self) -> usize {
        self.second_of.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.second_of.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).unwrap()
    }

    #[test]
    fn pops_what_is_due_in_order_and_leaves_the_rest() {
        let (a, b, c) = (Name::new("a").unwrap(), Name::new("b").unwrap(), Name::new("c").unwrap());
        let mut agenda = Agenda::default();
        agenda.set(&b, at(20));
        agenda.set(&a, at(10));
        agenda.set(&c, at(30));
        agenda.set(&c, at(40));
        assert_eq!((agenda.head(), agenda.len()), (Some(at(10)), 3));
        assert!(agenda.pop_due(at(9)).is_empty());
        assert_eq!(agenda.pop_due(at(25)), [a, b.clone()]);
        assert_eq!(agenda.head(), Some(at(40)));
        agenda.set(&b, at(50));
        agenda.remove(&c);
        assert_eq!((agenda.head(), agenda.len()), (Some(at(50)), 1));
        agenda.remove(&b);
        assert!(agenda.is_empty() && agenda.head().is_none());
    }
}
