//! From what happens to who is told.

use super::{Book, Silence, Subject, Surroundings, job_rule};
use crate::{
    duration::HumanDuration,
    id::{Name, NodeId},
    notify::{
        Class, Happening, Kind, Rule, Tally, Told, Turn,
        group::{Group, MAX_GROUPS, OTHERS, id_of},
        incident::turn,
    },
    run::RunState,
};
use jiff::Timestamp;
use std::{collections::BTreeMap, time::Duration};

/// Runs told as lost that are remembered of one subject.
const LOST: usize = 8;

/// The subject of a job: on a node, or of all its nodes together.
fn of_job(job: &Name, node: Option<&NodeId>) -> String {
    match node {
        Some(node) => format!("job/{job}/{node}"),
        None => format!("job/{job}"),
    }
}

impl Book {
    fn subject(&mut self, key: &str, new: impl FnOnce() -> Subject) -> &mut Subject {
        self.subjects.entry(key.to_owned()).or_insert_with(new)
    }

    /// A worker's tally of a job is there.
    pub fn tally(
        &mut self,
        node: &NodeId,
        job: &Name,
        tally: &Tally,
        around: &dyn Surroundings,
        now: Timestamp,
    ) {
        let own = (!around.is_once(job)).then_some(node);
        let key = of_job(job, own);
        // What ran on each node may run once by now, and the other way round.
        let other = of_job(job, if own.is_some() { None } else { Some(node) });
        let elsewhere = self.subjects.get(&other).and_then(|s| s.seen.get(node)).cloned();
        let subject = self.subjects.get(&key);
        let seen = subject.and_then(|s| s.seen.get(node)).or(elsewhere.as_ref());
        if seen == Some(&tally.cursor()) {
            return;
        }
        let new = tally.since(seen);
        let (job, at) = (job.clone(), node.clone());
        let subject = self.subject(&key, || Subject {
            job: Some(job.clone()),
            node: own.cloned(),
            ..Subject::default()
        });
        subject.seen.insert(at, tally.cursor());
        for noted in new {
            let what = Happening { job: Some(job.clone()), node: Some(node.clone()), ..noted.what };
            self.run(&key, what, around, now);
        }
        // A failure that was told late, when another node had succeeded since.
        let subject = self.subjects.get(&key);
        let past = subject.and_then(|s| s.success.filter(|at| s.failing.is_some_and(|f| f < *at)));
        if let Some(at) = past {
            let what = Happening { job: Some(job), ..Happening::new(Kind::Recovery, at) };
            self.run(&key, what, around, now);
        }
        self.store(&key);
    }

    /// The run of a job on a node that is lost; nobody but the leader says so.
    pub fn lost(&mut self, mut what: Happening, around: &dyn Surroundings, now: Timestamp) {
        let Some(job) = what.job.clone() else { return };
        let own = if around.is_once(&job) { None } else { what.node.clone() };
        let key = of_job(&job, own.as_ref());
        let subject =
            self.subject(&key, || Subject { job: Some(job), node: own, ..Subject::default() });
        if let Some(run_id) = what.run_id {
            if subject.lost.contains(&run_id) {
                return;
            }
            if subject.lost.len() >= LOST {
                subject.lost.remove(0);
            }
            subject.lost.push(run_id);
        }
        (what.kind, what.state) = (Kind::Failure, Some(RunState::Lost));
        subject.failing = Some(what.at);
        self.happened(&key, what, around, now);
        self.store(&key);
    }

    /// Something that a worker has noted of a job's runs.
    fn run(&mut self, key: &str, what: Happening, around: &dyn Surroundings, now: Timestamp) {
        let Some(subject) = self.subjects.get_mut(key) else { return };
        match what.kind {
            Kind::Recovery => {
                subject.success = subject.success.max(Some(what.at));
                subject.failing = None;
                subject.lost.clear();
                if let Some(silence) = &mut subject.silence {
                    silence.since = silence.since.max(what.at);
                    silence.told = false;
                }
                // Slots that were missed need no word.
                self.over(key, &what, &[Class::Run, Class::Silence], around, now);
                self.close(key, Class::Missed);
            }
            Kind::Failure => {
                // The node tells of it, too.
                let known = what.run_id.is_some_and(|id| subject.lost.contains(&id));
                subject.failing = subject.failing.max(Some(what.at));
                if !known {
                    self.happened(key, what, around, now);
                }
            }
            _ => self.happened(key, what, around, now),
        }
    }

    /// A node is there, or not.
    pub fn node(&mut self, id: &NodeId, there: bool, around: &dyn Surroundings, now: Timestamp) {
        let key = format!("node/{id}");
        self.lasting(&key, !there, Class::Node, around, now, || Subject {
            node: Some(id.clone()),
            ..Subject::default()
        });
    }

    /// A task has parts that are buried, or has not.
    pub fn buried(&mut self, task: &str, is: bool, around: &dyn Surroundings, now: Timestamp) {
        let key = format!("task/{task}");
        self.lasting(&key, is, Class::Buried, around, now, || Subject {
            task: Some(task.to_owned()),
            ..Subject::default()
        });
    }

    /// Something that is so or is not.
    fn lasting(
        &mut self,
        key: &str,
        bad: bool,
        class: Class,
        around: &dyn Surroundings,
        now: Timestamp,
        new: impl FnOnce() -> Subject,
    ) {
        let was = self.subjects.get(key).is_some_and(|s| s.down);
        if was == bad {
            return;
        }
        let subject = self.subject(key, new);
        subject.down = bad;
        if bad {
            let what = Happening { since: Some(now), ..subject.happening(class.kind(), now) };
            self.happened(key, what, around, now);
        } else {
            // Only nodes are worth a word when they are back.
            let what = subject.happening(Kind::NodeBack, now);
            self.over(key, &what, &[class], around, now);
        }
        self.store(key);
    }

    /// What a subject was about is gone: nothing is told.
    pub fn forget(&mut self, key: &str) {
        if self.subjects.remove(key).is_some() {
            self.store(key);
        }
    }

    /// The tally of a job on a node is gone: it counts from the beginning when it comes back.
    pub fn tally_gone(&mut self, node: &NodeId, job: &Name) {
        for key in [of_job(job, Some(node)), of_job(job, None)] {
            if let Some(subject) = self.subjects.get_mut(&key)
                && subject.seen.remove(node).is_some()
            {
                if subject.seen.is_empty() {
                    (subject.failing, subject.success) = (None, None);
                    subject.lost.clear();
                    for class in [Class::Run, Class::Missed] {
                        self.close(&key, class);
                    }
                }
                self.store(&key);
            }
        }
    }

    /// Something that stands for itself.
    pub fn event(&mut self, what: Happening, around: &dyn Surroundings, now: Timestamp) {
        self.happened("", what, around, now);
    }

    /// The jobs that must succeed now and then: on a node, or all its nodes together. Others
    /// need not any more.
    pub fn watch(&mut self, jobs: &BTreeMap<(Name, Option<NodeId>), Duration>, now: Timestamp) {
        let mut wanted = std::collections::BTreeSet::new();
        for ((job, node), within) in jobs {
            let key = of_job(job, node.as_ref());
            wanted.insert(key.clone());
            let there = self.subjects.get(&key).and_then(|s| s.silence.as_ref());
            if there.is_some_and(|s| s.within.0 == *within) {
                continue;
            }
            let (job, node) = (job.clone(), node.clone());
            let subject =
                self.subject(&key, || Subject { job: Some(job), node, ..Subject::default() });
            let since = subject.silence.as_ref().map_or(now, |s| s.since);
            let told = subject.silence.as_ref().is_some_and(|s| s.told);
            subject.silence = Some(Silence { within: HumanDuration(*within), since, told });
            self.store(&key);
        }
        let over = |(key, s): (&String, &Subject)| {
            (s.silence.is_some() && !wanted.contains(key)).then(|| key.clone())
        };
        let over: Vec<String> = self.subjects.iter().filter_map(over).collect();
        for key in over {
            if let Some(subject) = self.subjects.get_mut(&key) {
                subject.silence = None;
            }
            self.close(&key, Class::Silence);
            self.store(&key);
        }
    }

    /// Jobs that have been silent for too long by now.
    pub(super) fn silent(&mut self, key: &str, around: &dyn Surroundings, now: Timestamp) {
        let Some(subject) = self.subjects.get_mut(key) else { return };
        let due = subject.silence.as_ref().is_some_and(|s| !s.told && s.due() <= now);
        if !due {
            return;
        }
        let success = subject.success;
        let mut what = subject.happening(Kind::NoSuccess, now);
        if let Some(silence) = &mut subject.silence {
            silence.told = true;
            what.since = Some(silence.since);
            let last = match success {
                Some(at) => format!("the last success was at {at}"),
                None => "there was none since it is watched".to_owned(),
            };
            what.message = Some(format!("no success within {}; {last}", silence.within));
        }
        self.happened(key, what, around, now);
        self.store(key);
    }

    /// Ends incidents of a class without a word.
    fn close(&mut self, key: &str, class: Class) {
        if let Some(subject) = self.subjects.get_mut(key) {
            for open in subject.open.values_mut() {
                open.remove(&class);
            }
            subject.open.retain(|_, open| !open.is_empty());
        }
    }

    /// Trouble is over: whoever was told of it is told that, once for all `classes`, if he wants
    /// to hear of `what`.
    fn over(
        &mut self,
        key: &str,
        what: &Happening,
        classes: &[Class],
        around: &dyn Surroundings,
        now: Timestamp,
    ) {
        let Some(subject) = self.subjects.get(key).cloned() else { return };
        for (name, open) in &subject.open {
            let Some(rule) = self.rule(name, &subject, around) else { continue };
            let ended = classes.iter().filter_map(|class| open.get(class)).filter(|incident| {
                let (_, told, _) = turn(Some(incident), Turn::Good, 1, rule.repeat_after(), now);
                told == Told::Now
            });
            let since = ended.map(|incident| incident.since).min();
            if since.is_some() && !rule.disabled && rule.on.contains(&what.kind) {
                self.gather(name, &rule, Happening { since, ..what.clone() }, now);
            }
        }
        classes.iter().for_each(|class| self.close(key, *class));
    }

    /// Something is wrong, or stands for itself: finds who is told of it now.
    fn happened(&mut self, key: &str, what: Happening, around: &dyn Surroundings, now: Timestamp) {
        let node = what.node.as_ref().and_then(|id| around.node(id));
        let about = |rule: &&Rule| rule.is_about(&what, node.as_ref());
        let mut rules: Vec<(String, Rule)> = self
            .rules
            .values()
            .filter(about)
            .map(|rule| (rule.name.to_string(), rule.clone()))
            .collect();
        let own = job_rule(what.job.as_ref(), what.node.as_ref(), around);
        rules.extend(own.filter(|r| about(&r)).map(|rule| (format!("job:{}", rule.name), rule)));
        for (name, rule) in rules {
            let Some(class) = what.kind.opens() else {
                if rule.on.contains(&what.kind) {
                    self.gather(&name, &rule, what.clone(), now);
                }
                continue;
            };
            if !rule.follows(class) {
                continue;
            }
            let Some(subject) = self.subjects.get_mut(key) else { continue };
            let there = subject.open.get(&name).and_then(|open| open.get(&class));
            let since = there.map(|i| i.since);
            let repeat = rule.repeat_after();
            let (next, told, times) = turn(there, Turn::Bad, what.times, repeat, now);
            if let Some(incident) = next {
                subject.open.entry(name.clone()).or_default().insert(class, incident);
            }
            if told == Told::Now && rule.on.contains(&what.kind) {
                let since = what.since.or(since);
                self.gather(&name, &rule, Happening { times, since, ..what.clone() }, now);
            }
        }
    }

    /// Adds to what waits to go into one message.
    pub(super) fn gather(&mut self, name: &str, rule: &Rule, what: Happening, now: Timestamp) {
        let mut group = rule.group_of(&what);
        let its = |g: &str| (name.to_owned(), g.to_owned());
        if !self.groups.contains_key(&its(&group)) {
            let of_rule = (its(""), its("\u{10ffff}"));
            if self.groups.range(of_rule.0..of_rule.1).count() >= MAX_GROUPS {
                group = OTHERS.to_owned();
            }
        }
        let key = its(&group);
        let there = self.groups.entry(key.clone()).or_insert_with(|| Group {
            id: id_of(&[name, &group], now),
            due: now.checked_add(rule.group_wait()).unwrap_or(now),
            to: rule.to.clone(),
            digest: Default::default(),
        });
        there.digest.add(what);
        self.dirty.insert(super::Item::Group(key.0, key.1));
    }
}

impl Silence {
    /// When it is too long.
    pub(super) fn due(&self) -> Timestamp {
        self.since.checked_add(self.within.0).unwrap_or(Timestamp::MAX)
    }
}
