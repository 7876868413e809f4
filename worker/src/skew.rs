//! A test aid and nothing else: how far the wall clock of this process is off the kernel's.
//!
//! The tests give one process a wrong clock by a library that is loaded before the C library.
//! The kernel's timers know nothing of that clock. So a worker that was built with debug
//! assertions and started with `MEEPO_TEST_CLOCK` in its environment has its alarm set to the
//! instant by the kernel's clock, five times a second at least, and finds out by itself that its
//! clock was set. A release build has no such code and ignores the variable. Nothing but the
//! tests may rely on any of this.

use jiff::Timestamp;

/// What the kernel's alarm is to be set to; nothing else than `at` in a release build.
#[cfg(not(debug_assertions))]
pub(crate) const fn alarm(at: Option<Timestamp>) -> Option<Timestamp> {
    at
}

/// Whether the clock was set since this was asked last; never in a release build.
#[cfg(not(debug_assertions))]
pub(crate) const fn was_set() -> bool {
    false
}

#[cfg(debug_assertions)]
pub(crate) use armed::{alarm, was_set};

#[cfg(debug_assertions)]
mod armed {
    use super::Timestamp;
    use jiff::SignedDuration;
    use rustix::time::{ClockId, clock_gettime};
    use std::sync::{LazyLock, Mutex, PoisonError};

    /// Longest time without a look at the clock.
    const LOOK: SignedDuration = SignedDuration::from_millis(200);
    /// What two readings of one clock may lie apart.
    const SAME: SignedDuration = SignedDuration::from_millis(100);

    static WRONG: LazyLock<bool> = LazyLock::new(|| std::env::var_os("MEEPO_TEST_CLOCK").is_some());
    static LAST: Mutex<Option<SignedDuration>> = Mutex::new(None);

    /// The kernel's clock, which is not asked through the C library.
    fn kernel() -> Timestamp {
        let now = clock_gettime(ClockId::Realtime);
        let nanos = i32::try_from(now.tv_nsec).unwrap_or(0);
        Timestamp::new(now.tv_sec, nanos).unwrap_or(Timestamp::MAX)
    }

    /// See the release build's twin.
    pub(crate) fn alarm(at: Option<Timestamp>) -> Option<Timestamp> {
        if !*WRONG {
            return at;
        }
        let now = kernel();
        let look = now + LOOK;
        let off = Timestamp::now().duration_since(now);
        Some(at.and_then(|at| at.checked_sub(off).ok()).map_or(look, |at| at.min(look)))
    }

    /// See the release build's twin.
    pub(crate) fn was_set() -> bool {
        if !*WRONG {
            return false;
        }
        let off = Timestamp::now().duration_since(kernel());
        let last = LAST.lock().unwrap_or_else(PoisonError::into_inner).replace(off);
        last.is_some_and(|last| (off - last).abs() > SAME)
    }
}
