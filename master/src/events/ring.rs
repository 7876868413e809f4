//! The newest events, in memory, bounded.

use jiff::Timestamp;
use meepo_core::event::{Event, EventId, Filter};
use std::{collections::VecDeque, sync::Arc};

/// All events after [`Ring::after`], up to [`Ring::head`].
pub(super) struct Ring {
    events: VecDeque<Arc<Event>>,
    capacity: usize,
    after: EventId,
    head: i64,
    /// Grows when the ring begins anew.
    generation: u64,
}

/// What a reader gets.
pub(super) enum Read {
    /// What comes next; the reader stands at the given place then.
    Events(Vec<Arc<Event>>, EventId),
    /// There is nothing new.
    Nothing(EventId),
    /// What comes next is not here any more.
    Older,
}

impl Ring {
    pub(super) fn new(capacity: usize) -> Self {
        let after = EventId::through(0);
        Self { events: VecDeque::new(), capacity, after, head: 0, generation: 0 }
    }

    /// Everything after this is here.
    pub(super) fn after(&self) -> EventId {
        self.after
    }

    /// Everything up to the end of this revision is known.
    pub(super) fn head(&self) -> i64 {
        self.head
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Begins anew behind a revision: what was between is not known.
    pub(super) fn reset(&mut self, revision: i64) {
        self.events.clear();
        self.after = EventId::through(revision);
        self.head = revision;
        self.generation += 1;
    }

    /// Takes in events, in order, and that nothing else happened up to `through`. Those
    /// after the revision `before` happened just now.
    pub(super) fn push(&mut self, events: Vec<Event>, through: i64, before: i64) {
        for mut event in events {
            if event.id.revision > before && event.at.is_none() {
                event.at = Some(meepo_core::run::to_millis(Timestamp::now()));
            }
            if self.events.len() == self.capacity
                && let Some(oldest) = self.events.pop_front()
            {
                self.after = oldest.id;
            }
            self.events.push_back(Arc::new(event));
        }
        self.head = self.head.max(through);
    }

    /// At most `most` events after `cursor` are looked at, those that pass are answered.
    pub(super) fn read(&self, cursor: EventId, filter: &Filter, most: usize) -> Read {
        if cursor < self.after {
            return Read::Older;
        }
        let from = self.events.partition_point(|e| e.id <= cursor);
        let next: Vec<_> = self.events.range(from..).take(most).collect();
        let Some(last) = next.last() else {
            return Read::Nothing(cursor.max(EventId::through(self.head)));
        };
        let cursor = last.id;
        let wanted = next.into_iter().filter(|e| filter.matches(e)).cloned().collect();
        Read::Events(wanted, cursor)
    }

    /// The place before the last `n` events that pass.
    pub(super) fn before_last(&self, n: usize, filter: &Filter) -> EventId {
        let newest_first = self.events.iter().enumerate().rev();
        let mut first = None;
        for (i, _) in newest_first.filter(|(_, e)| filter.matches(e)).take(n) {
            first = Some(i);
        }
        match first {
            None => EventId::through(self.head),
            Some(0) => self.after,
            Some(i) => self.events[i - 1].id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::event::What;

    fn event(revision: i64, index: u32) -> Event {
        Event { id: EventId { revision, index }, ..Event::new(What::NodeOnline) }
    }

    fn ids(ring: &Ring, cursor: &str) -> Option<Vec<String>> {
        match ring.read(cursor.parse().unwrap(), &Filter::default(), 100) {
            Read::Events(events, _) => Some(events.iter().map(|e| e.id.to_string()).collect()),
            Read::Nothing(_) => Some(Vec::new()),
            Read::Older => None,
        }
    }

    #[test]
    fn what_was_pushed_out_is_not_passed_over() {
        let mut ring = Ring::new(3);
        ring.reset(10);
        assert_eq!(ids(&ring, "9"), None);
        assert_eq!(ids(&ring, "10"), Some(vec![]));
        ring.push(vec![event(12, 0), event(12, 1)], 12, 0);
        assert_eq!(ids(&ring, "10"), Some(vec!["12.0".into(), "12.1".into()]));
        assert_eq!(ids(&ring, "12.0"), Some(vec!["12.1".into()]));
        assert_eq!(ids(&ring, "12"), Some(vec![]));
        ring.push(vec![event(14, 0), event(15, 0)], 20, 0);
        assert_eq!((ring.after().to_string(), ring.head()), ("12.0".into(), 20));
        // In the middle of a revision, too.
        assert_eq!(ids(&ring, "11"), None);
        assert_eq!(ids(&ring, "12.0"), Some(vec!["12.1".into(), "14.0".into(), "15.0".into()]));
        let Read::Nothing(at) = ring.read(EventId::through(15), &Filter::default(), 9) else {
            panic!()
        };
        assert_eq!(at.to_string(), "20", "nothing happened up to there");
    }

    #[test]
    fn the_last_ones_are_found() {
        let mut ring = Ring::new(3);
        ring.reset(10);
        let filter = Filter::default();
        assert_eq!(ring.before_last(5, &filter).to_string(), "10");
        ring.push(vec![event(12, 0), event(12, 1), event(13, 0)], 14, 0);
        for (n, place) in [(0, "14"), (1, "12.1"), (2, "12.0"), (3, "10"), (9, "10")] {
            assert_eq!(ring.before_last(n, &filter).to_string(), place, "{n}");
        }
        ring.push(vec![event(15, 0)], 15, 0);
        assert_eq!(ring.before_last(9, &filter).to_string(), "12.0");
        let jobs = Filter::parse(Some("job"), None, None, None).unwrap();
        assert_eq!(ring.before_last(9, &jobs).to_string(), "15");
    }

    #[test]
    fn only_what_happens_now_is_given_the_time_of_now() {
        let mut ring = Ring::new(3);
        ring.push(vec![event(1, 0)], 1, 1);
        ring.push(vec![event(2, 0)], 2, 1);
        let Read::Events(events, _) = ring.read(EventId::through(0), &Filter::default(), 9) else {
            panic!()
        };
        assert_eq!([events[0].at.is_some(), events[1].at.is_some()], [false, true]);
    }
}
