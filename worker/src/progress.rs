//! Whether the agent gets on with its work: a worker whose slots pass unseen is not
//! well, however alive its process is.

use jiff::{SignedDuration, Timestamp};
use std::sync::{Mutex, PoisonError};

/// How long a slot may stay unseen.
const OVERDUE: SignedDuration = SignedDuration::from_secs(30);

/// Where the agent stood when it last looked at what is due.
#[derive(Debug, Default)]
pub struct Progress(Mutex<(Option<Timestamp>, Option<Timestamp>)>);

impl Progress {
    /// The agent has looked at everything up to `now`; the next slot is `head`.
    pub fn passed(&self, now: Timestamp, head: Option<Timestamp>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Some(now), head);
    }

    /// What is wrong, if a slot has been due for too long.
    pub fn trouble(&self, now: Timestamp) -> Option<String> {
        let (pass, head) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (pass, head) = (pass?, head?);
        // The second guards against a clock that has just been set forward.
        let late = |t| now.duration_since(t) > OVERDUE;
        (late(head) && late(pass)).then(|| {
            format!(
                "the slot of {head} has not been looked at; the scheduler last did something at \
                 {pass}"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_nobody_looks_at_is_trouble() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let progress = Progress::default();
        assert_eq!(progress.trouble(at(1000)), None);
        progress.passed(at(100), None);
        assert_eq!(progress.trouble(at(1000)), None, "nothing is due");
        progress.passed(at(100), Some(at(110)));
        assert_eq!(progress.trouble(at(140)), None);
        assert!(progress.trouble(at(141)).unwrap().contains("1970-01-01T00:01:50Z"));
        progress.passed(at(141), Some(at(110)));
        assert_eq!(progress.trouble(at(142)), None, "it is at it");
    }
}
