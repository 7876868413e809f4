//! A test aid and nothing else: places at which a debug build of the worker dies.
//!
//! A worker that was built with debug assertions and started with
//! `MEEPO_FAILPOINT=<place>` or `MEEPO_FAILPOINT=<place>:<job>` ends itself with SIGKILL
//! when the first run (of that job) comes to the place: as by a crash there, nothing is
//! flushed and nobody is told. A release build has no such code and ignores the variable.
//! Nothing but the tests may rely on any of this.

use meepo_core::id::Name;

/// A place in the life of a run, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Decided on; nothing is written.
    Decided,
    /// The beginning is durable; there is no process, and the request that asked for the
    /// run is in etcd still.
    Begun,
    /// The process is there and nothing says so.
    Spawned,
    /// The process has ended and nothing says so.
    Exited,
    /// The end is durable, and with it a promise of the next attempt if there is one;
    /// nobody has been told.
    Ended,
    /// A batch with the end is about to be delivered.
    Delivering,
    /// It was, and is in the spool still.
    Delivered,
}

/// Ends a debug build here, if that was asked for.
#[cfg(not(debug_assertions))]
pub const fn reach(_place: Place, _job: Option<&Name>) {}

/// Refuses a setting that no run could ever come to. Release builds refuse nothing.
///
/// # Errors
/// `MEEPO_FAILPOINT` names no place.
#[cfg(not(debug_assertions))]
pub const fn check() -> anyhow::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
pub use armed::{check, reach};

#[cfg(debug_assertions)]
mod armed {
    use super::{Name, Place};
    use nix::sys::signal::{Signal, raise};
    use std::sync::LazyLock;

    const VARIABLE: &str = "MEEPO_FAILPOINT";

    const NAMES: [(&str, Place); 7] = [
        ("decided", Place::Decided),
        ("begun", Place::Begun),
        ("spawned", Place::Spawned),
        ("exited", Place::Exited),
        ("ended", Place::Ended),
        ("delivering", Place::Delivering),
        ("delivered", Place::Delivered),
    ];

    /// Where to die, and with whose run if it matters.
    #[derive(Debug, PartialEq, Eq)]
    struct Failpoint {
        place: Place,
        job: Option<String>,
    }

    impl Failpoint {
        fn parse(text: &str) -> Option<Self> {
            let (name, job) = match text.split_once(':') {
                Some((name, job)) => (name, Some(job.to_owned())),
                None => (text, None),
            };
            let (_, place) = NAMES.into_iter().find(|(n, _)| *n == name)?;
            Some(Self { place, job })
        }

        fn is_at(&self, place: Place, job: Option<&Name>) -> bool {
            let wanted = self.job.as_deref();
            self.place == place && wanted.is_none_or(|name| job.is_some_and(|j| j.as_str() == name))
        }
    }

    /// See the release build's twin.
    pub fn reach(place: Place, job: Option<&Name>) {
        static SET: LazyLock<Option<Failpoint>> =
            LazyLock::new(|| Failpoint::parse(&std::env::var(VARIABLE).ok()?));
        if SET.as_ref().is_some_and(|set| set.is_at(place, job)) {
            // Not caught, blocked or ignored by anybody: this is the end of all threads.
            let _ = raise(Signal::SIGKILL);
        }
    }

    /// See the release build's twin.
    pub fn check() -> anyhow::Result<()> {
        match std::env::var(VARIABLE) {
            Ok(text) if Failpoint::parse(&text).is_none() => {
                let names = NAMES.map(|(name, _)| name).join(", ");
                anyhow::bail!("{VARIABLE}={text} names no place; expected one of {names}")
            }
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_place_may_be_that_of_one_job_only() {
            let (mine, other) = (Name::new("a:b").unwrap(), Name::new("a").unwrap());
            let set = Failpoint::parse("begun:a:b").unwrap();
            assert!(set.is_at(Place::Begun, Some(&mine)));
            assert!(!set.is_at(Place::Begun, Some(&other)) && !set.is_at(Place::Begun, None));
            assert!(!set.is_at(Place::Ended, Some(&mine)));
            let any = Failpoint::parse("exited").unwrap();
            assert!(any.is_at(Place::Exited, Some(&mine)) && any.is_at(Place::Exited, None));
            assert_eq!(Failpoint::parse("nowhere:a"), None);
        }

        #[test]
        fn every_place_has_a_name_of_its_own() {
            for (i, (name, place)) in NAMES.into_iter().enumerate() {
                assert_eq!(Failpoint::parse(name), Some(Failpoint { place, job: None }));
                assert_eq!(place as usize, i, "in their order, none left out");
            }
        }
    }
}
