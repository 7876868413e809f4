//! Slots of a schedule: a worker that plans what is due, writes its decisions one by one and
//! dies in between, sleeps, and has a clock that steps.

use crate::{Rng, simulate};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    calendar::{Schedule, time_zone},
    job::{Misfire, When},
    misfire::{GRACE, HORIZON, Policy, due},
};
use std::collections::BTreeSet;

/// Expressions, each with the longest sleep in seconds that leaves slots that can be counted.
const EXPRESSIONS: [(&str, usize); 8] = [
    ("* * * * * *", 60),
    ("*/7 * * * * *", 300),
    ("* * * * *", 3600),
    ("*/5 * * * *", 20_000),
    ("17,48 3-5 * * *", 5 * 86_400),
    ("@hourly", 3 * 86_400),
    ("0 0 1 * *", 40 * 86_400),
    ("@every 90s", 7200),
];

fn when(rng: &mut Rng) -> (When, usize) {
    let (text, sleep) = EXPRESSIONS[rng.below(EXPRESSIONS.len())];
    let zone = ["UTC", "Europe/Berlin", "America/New_York"][rng.below(3)];
    (When::new(Schedule::parse(text).unwrap(), time_zone(zone).unwrap()), sleep)
}

fn history(rng: &mut Rng, talk: bool) -> u64 {
    let (when, longest) = when(rng);
    let misfire = [Misfire::Skip, Misfire::Once, Misfire::All][rng.below(3)];
    let deadline = rng.once_in(3).then(|| SignedDuration::from_secs(rng.below(7200) as i64));
    let policy = Policy { misfire, cap: rng.below(5) as u32, starting_deadline: deadline };
    // A random second of a year that has both changes of the clock.
    let mut now = Timestamp::from_second(1_772_000_000 + rng.below(31_000_000) as i64).unwrap();
    let mut cursor = now;
    let mut settled: BTreeSet<Timestamp> = BTreeSet::new();
    let steps = 20 + rng.below(60) as u64;
    for _ in 0..steps {
        let sleep = match rng.below(10) {
            0 => rng.below(longest),
            1..=3 => rng.below(longest / 10),
            _ => rng.below(longest / 40 + 2),
        };
        now += SignedDuration::from_secs(sleep as i64);
        if rng.once_in(20) {
            // The clock was wrong, and is set back.
            now -= SignedDuration::from_secs(rng.below(3600) as i64);
        }
        let found = due(&when, cursor, now, policy);
        if talk {
            println!("{now}: after {cursor} {found:?}");
        }
        let run: Vec<Timestamp> = found.run.iter().map(|(slot, _)| *slot).collect();
        let all: BTreeSet<Timestamp> = run.iter().chain(&found.missed).copied().collect();
        assert_eq!(all.len(), run.len() + found.missed.len(), "a slot is run and missed");
        assert!(run.is_sorted() && found.missed.is_sorted());
        assert!(all.iter().all(|slot| *slot > cursor && *slot <= now), "a slot of another time");
        assert!(found.next.is_none_or(|next| next > now && next > cursor), "{:?}", found.next);
        let late = run.iter().filter(|slot| now.duration_since(**slot) > GRACE).count();
        let most = match misfire {
            Misfire::Skip => 0,
            Misfire::Once => 1,
            Misfire::All => policy.cap as usize,
        };
        assert!(late <= most, "{late} late slots are run, at most {most} may");
        for slot in &run {
            assert!(deadline.is_none_or(|d| now.duration_since(*slot) <= d), "{slot} is too late");
        }
        // Nothing between two slots was left out, as far back as anybody looks.
        if found.missed_before == 0 && !found.uncounted {
            let from = cursor.max(now - HORIZON);
            let all_there = std::iter::successors(when.next_after(from), |s| when.next_after(*s));
            let there: BTreeSet<Timestamp> = all_there.take_while(|s| *s <= now).collect();
            assert_eq!(all, there, "slots between {from} and {now}");
        }
        // The decisions are written in order, each with the cursor; the worker may die after
        // any of them, and then looks anew.
        let most = all.len() + 1;
        for slot in all.into_iter().take(if rng.once_in(3) { rng.below(most) } else { most }) {
            assert!(settled.insert(slot), "{slot} is decided on twice");
            cursor = cursor.max(slot);
        }
    }
    steps
}

#[test]
fn every_slot_is_decided_on_once_whenever_the_worker_dies() {
    simulate("slots", 400_000, history);
}
