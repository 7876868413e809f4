//! From what waits to what is sent.

use super::{Book, Item, Surroundings};
use crate::{
    id::Name,
    notify::{
        Channel, Class, Delivery, Digest, Incident, Message, Rate, Rule, Told, Turn, group::id_of,
        incident::turn, message::MAX_RECENT,
    },
};
use jiff::Timestamp;
use std::{collections::BTreeSet, time::Duration};

/// Messages that wait for one channel, at most.
const MAX_PENDING: usize = 100;

impl Book {
    /// Does what is due by now: silence is noticed, what lasts is told again, groups become
    /// messages.
    pub fn due(&mut self, around: &dyn Surroundings, now: Timestamp) {
        while let Some((_, key)) = self.timers.first().filter(|(at, _)| *at <= now).cloned() {
            self.silent(&key, around, now);
            self.remind(&key, around, now);
        }
        let ready: Vec<(String, String)> =
            self.groups.iter().filter(|(_, g)| g.due <= now).map(|(k, _)| k.clone()).collect();
        for key in ready {
            let Some(group) = self.groups.remove(&key) else { continue };
            for channel in &group.to {
                let id = format!("{}-{channel}", group.id);
                self.send(id, channel, Some(&key.0), group.digest.clone(), now);
            }
            self.dirty.insert(Item::Group(key.0, key.1));
        }
        let held: Vec<Name> = self.flows.keys().cloned().collect();
        for channel in held {
            let rate = self.rate(&channel);
            let full = self.is_full(&channel);
            let Some(flow) = self.flows.get_mut(&channel) else { continue };
            if flow.ease(rate, now) {
                self.dirty.insert(Item::Flow(channel.clone()));
            }
            if flow.free_at(rate) > now || full {
                continue;
            }
            if flow.held.is_some() {
                let id = format!("{}-{channel}", id_of(&["held", channel.as_str()], now));
                self.send(id, &channel, None, Digest::default(), now);
            } else if flow.spread_until.is_none_or(|until| until <= now) {
                // Nothing of it is of use any more.
                self.flows.remove(&channel);
                self.dirty.insert(Item::Flow(channel));
            }
        }
        self.prune();
    }

    /// Whether so much waits for a channel that more is only counted.
    fn is_full(&self, channel: &Name) -> bool {
        let waits = |m: &&Message| m.state == Delivery::Pending && m.channel == *channel;
        self.messages.values().filter(waits).count() >= MAX_PENDING
    }

    fn rate(&self, channel: &Name) -> Rate {
        self.channels.get(channel).map_or_else(Rate::default, Channel::limit)
    }

    /// Makes a message, or adds to what is held back if the channel's limit is reached.
    fn send(
        &mut self,
        id: String,
        channel: &Name,
        rule: Option<&str>,
        digest: Digest,
        now: Timestamp,
    ) {
        let (rate, full) = (self.rate(channel), self.is_full(channel));
        let flow = self.flows.entry(channel.clone()).or_default();
        self.dirty.insert(Item::Flow(channel.clone()));
        if flow.free_at(rate) > now || full {
            flow.held.get_or_insert_default().merge(digest);
            flow.held_messages += 1;
            *self.throttled.entry(channel.clone()).or_default() += 1;
            return;
        }
        flow.sent(rate, now);
        let held = std::mem::take(&mut flow.held_messages);
        let before = flow.held.take();
        let mut message = match before {
            None => Message::new(id.clone(), channel.clone(), digest, now),
            Some(mut all) => {
                all.merge(digest);
                Message::new(id.clone(), channel.clone(), all, now)
            }
        };
        message.held = held;
        message.rule = rule.filter(|_| held == 0).map(str::to_owned);
        self.messages.insert(id.clone(), message);
        self.dirty.insert(Item::Message(id));
    }

    /// Tells again what lasts.
    fn remind(&mut self, key: &str, around: &dyn Surroundings, now: Timestamp) {
        let Some(subject) = self.subjects.get(key).cloned() else { return self.store(key) };
        for (name, open) in &subject.open {
            let due = |(class, i): &(&Class, &Incident)| {
                class.lasts() && i.again.is_some_and(|at| at <= now)
            };
            for (class, incident) in open.iter().filter(due) {
                let rule = self.rule(name, &subject, around);
                let repeat = rule.as_ref().map_or(Duration::ZERO, Rule::repeat_after);
                let (next, told, _) = turn(Some(incident), Turn::Tick, 1, repeat, now);
                // Without a rule it is not looked at again.
                let next = next.filter(|_| !repeat.is_zero());
                let next = next.unwrap_or(Incident { again: None, ..incident.clone() });
                if let Some(subject) = self.subjects.get_mut(key) {
                    subject.open.entry(name.clone()).or_default().insert(*class, next);
                }
                let Some(rule) = rule.filter(|r| !repeat.is_zero() && !r.disabled) else {
                    continue;
                };
                if told == Told::Now && rule.on.contains(&class.kind()) {
                    let mut what = subject.happening(class.kind(), now);
                    what.since = Some(incident.since);
                    what.message = Some("it is still so".into());
                    self.gather(name, &rule, what, now);
                }
            }
        }
        self.store(key);
    }

    /// Forgets the oldest of the messages that are over.
    fn prune(&mut self) {
        let over = |m: &&Message| m.state != Delivery::Pending;
        let count = self.messages.values().filter(over).count();
        let old: Vec<String> = self
            .messages
            .values()
            .filter(over)
            .take(count.saturating_sub(MAX_RECENT))
            .map(|m| m.id.clone())
            .collect();
        for id in old {
            self.messages.remove(&id);
            self.dirty.insert(Item::Message(id));
        }
    }

    /// When something is due next, messages left aside.
    pub fn next_due(&self) -> Option<Timestamp> {
        let groups = self.groups.values().map(|g| g.due);
        let flows = self.flows.iter().filter(|(channel, _)| !self.is_full(channel));
        let flows = flows.map(|(channel, flow)| {
            let free = flow.free_at(self.rate(channel));
            match &flow.held {
                Some(_) => free,
                None => flow.spread_until.unwrap_or(free),
            }
        });
        let timed = self.timers.first().map(|(at, _)| *at);
        groups.chain(flows).chain(timed).min()
    }

    /// Messages to be sent now, the oldest first, one for each channel that is not `busy`;
    /// and when the next of the others is due.
    pub fn sendable(
        &self,
        busy: &BTreeSet<Name>,
        now: Timestamp,
    ) -> (Vec<Message>, Option<Timestamp>) {
        let mut taken = busy.clone();
        let (mut ready, mut next) = (Vec::new(), None);
        for message in self.messages.values().filter(|m| m.state == Delivery::Pending) {
            if message.due > now {
                next = Some(next.map_or(message.due, |at: Timestamp| at.min(message.due)));
            } else if taken.insert(message.channel.clone()) {
                ready.push(message.clone());
            }
        }
        (ready, next)
    }

    /// A message was sent, or not, with the reason and whether it may go later. Answers what
    /// has become of it.
    pub fn tried(
        &mut self,
        id: &str,
        outcome: Result<(), (String, bool)>,
        now: Timestamp,
    ) -> Option<Delivery> {
        let message = self.messages.get_mut(id)?;
        message.tried(outcome, now);
        self.dirty.insert(Item::Message(id.to_owned()));
        Some(message.state)
    }
}
