//! Deterministic simulation of the pure planners: random histories of events, in which
//! whoever performs a plan may die between any two of its effects, and what must hold is
//! looked at after each step.
//!
//! A history follows from its seed. One that fails prints it; to see it again:
//! `MEEPO_SIM_SEED=<seed> cargo test -p meepo-core --test simulation <name> -- --nocapture`.
//! `MEEPO_SIM_STEPS` makes a run longer than it is in CI.

#![allow(clippy::unwrap_used, clippy::expect_used)] // All of it is test code.

mod book;
mod slots;
mod tasks;

use std::{
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Instant,
};

/// Numbers that look random and follow from a seed (SplitMix64).
pub(crate) struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Once in `n` times.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of several, if there are any.
    pub(crate) fn pick<T: Clone>(&mut self, from: impl IntoIterator<Item = T>) -> Option<T> {
        let from: Vec<T> = from.into_iter().collect();
        (!from.is_empty()).then(|| from[self.below(from.len())].clone())
    }
}

/// Runs histories until they come to `steps` steps. `history` answers how many it had.
pub(crate) fn simulate(what: impl Display, steps: u64, history: impl Fn(&mut Rng, bool) -> u64) {
    let set = |name| std::env::var(name).ok().and_then(|v: String| v.parse::<u64>().ok());
    let (only, steps) = (set("MEEPO_SIM_SEED"), set("MEEPO_SIM_STEPS").unwrap_or(steps));
    let (started, mut done, mut seed) = (Instant::now(), 0, only.unwrap_or(1));
    while done < steps {
        let run = || history(&mut Rng(seed), only.is_some());
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(n) => done += n,
            Err(panic) => {
                eprintln!(
                    "{what}: the history of seed {seed} fails; MEEPO_SIM_SEED={seed} shows it"
                );
                resume_unwind(panic);
            }
        }
        if only.is_some() {
            break;
        }
        seed += 1;
    }
    println!("{what}: {done} steps in {} histories, {:.1?}", seed - 1, started.elapsed());
}
