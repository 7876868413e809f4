//! The states of a part and every way from one to another. What is not in
//! [`TRANSITIONS`] does not happen; `docs/reference/tasks.md` shows the same table and is
//! held against this one by a test.

use crate::{code::Code, error::Invalid};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

use Event as E;
use PartState as S;

/// Every way from one state to another.
pub const TRANSITIONS: &[(PartState, Event, PartState)] = &[
    (S::Pending, E::Put, S::Ready),
    (S::Pending, E::PutDelayed, S::Delayed),
    (S::Pending, E::Revoke, S::Revoked),
    (S::Delayed, E::Due, S::Ready),
    (S::Delayed, E::Kick, S::Ready),
    (S::Delayed, E::Revoke, S::Revoked),
    (S::Ready, E::Reserve, S::Reserved),
    (S::Ready, E::Expire, S::Revoked),
    (S::Ready, E::Revoke, S::Revoked),
    (S::Reserved, E::Succeed, S::Success),
    (S::Reserved, E::Fail, S::Failed),
    (S::Reserved, E::Release, S::Ready),
    (S::Reserved, E::ReleaseDelayed, S::Delayed),
    (S::Reserved, E::Bury, S::Buried),
    (S::Reserved, E::Touch, S::Reserved),
    (S::Reserved, E::Delete, S::Failed),
    (S::Buried, E::Kick, S::Ready),
    (S::Buried, E::Delete, S::Failed),
    (S::Buried, E::Revoke, S::Revoked),
];

/// Where a part of a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum PartState {
    /// Kept with its task, not yet looked at.
    Pending,
    /// Waits for its time.
    Delayed,
    /// May begin; waits for a worker that is suitable and has a slot free.
    Ready,
    /// A worker has it.
    Reserved,
    /// Failed for the last time; waits for somebody to look.
    Buried,
    /// It was done.
    Success,
    /// It was tried and not done.
    Failed,
    /// It was withdrawn, or not begun in time.
    Revoked,
}

impl PartState {
    /// Every state, in the order of a life.
    pub const ALL: [PartState; 8] = [
        S::Pending,
        S::Delayed,
        S::Ready,
        S::Reserved,
        S::Buried,
        S::Success,
        S::Failed,
        S::Revoked,
    ];

    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            S::Pending => "pending",
            S::Delayed => "delayed",
            S::Ready => "ready",
            S::Reserved => "reserved",
            S::Buried => "buried",
            S::Success => "success",
            S::Failed => "failed",
            S::Revoked => "revoked",
        }
    }

    /// Whether nothing more happens to the part.
    pub const fn is_final(self) -> bool {
        matches!(self, S::Success | S::Failed | S::Revoked)
    }

    /// The state after an event; `None` if it does not happen in this one.
    pub fn after(self, event: Event) -> Option<PartState> {
        let found = TRANSITIONS.iter().find(|(from, by, _)| (*from, *by) == (self, event));
        found.map(|(_, _, to)| *to)
    }
}

impl fmt::Display for PartState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PartState {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|e| e.as_str() == s).ok_or_else(|| {
            Invalid::new(
                Code::BAD_VALUE,
                "state",
                format!("unknown state {s:?}"),
                "one of pending, delayed, ready, reserved, buried, success, failed, revoked",
            )
        })
    }
}

/// What happens to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// It is taken up and may begin.
    Put,
    /// It is taken up and may begin later.
    PutDelayed,
    /// Its time has come.
    Due,
    /// A worker is given it.
    Reserve,
    /// It was not begun in time.
    Expire,
    /// Its run succeeded.
    Succeed,
    /// Its run failed, and that is the end of it.
    Fail,
    /// It is given back, to be tried again.
    Release,
    /// It is given back, to be tried again later.
    ReleaseDelayed,
    /// It failed for the last time, or somebody put it aside.
    Bury,
    /// It gets its whole time to run again.
    Touch,
    /// Somebody wants it tried again now.
    Kick,
    /// Somebody gives it up.
    Delete,
    /// Somebody withdraws it.
    Revoke,
}

impl Event {
    /// Every event.
    pub const ALL: [Event; 14] = [
        E::Put,
        E::PutDelayed,
        E::Due,
        E::Reserve,
        E::Expire,
        E::Succeed,
        E::Fail,
        E::Release,
        E::ReleaseDelayed,
        E::Bury,
        E::Touch,
        E::Kick,
        E::Delete,
        E::Revoke,
    ];

    /// Its name in the documentation.
    pub const fn as_str(self) -> &'static str {
        match self {
            E::Put => "put",
            E::PutDelayed => "put with delay",
            E::Due => "due",
            E::Reserve => "reserve",
            E::Expire => "expire",
            E::Succeed => "succeed",
            E::Fail => "fail",
            E::Release => "release",
            E::ReleaseDelayed => "release with delay",
            E::Bury => "bury",
            E::Touch => "touch",
            E::Kick => "kick",
            E::Delete => "delete",
            E::Revoke => "revoke",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair: the rows are states, the columns events as in [`Event::ALL`], the
    /// letters the first of the state that follows (`R` ready, `V` reserved, `X` revoked).
    const MATRIX: [(PartState, &str); 8] = [
        (S::Pending, "R D . . . . . . . . . . . X"),
        (S::Delayed, ". . R . . . . . . . . R . X"),
        (S::Ready, ". . . V X . . . . . . . . X"),
        (S::Reserved, ". . . . . S F R D B V . F ."),
        (S::Buried, ". . . . . . . . . . . R F X"),
        (S::Success, ". . . . . . . . . . . . . ."),
        (S::Failed, ". . . . . . . . . . . . . ."),
        (S::Revoked, ". . . . . . . . . . . . . ."),
    ];

    #[test]
    fn every_state_and_event() {
        let letter = |s| match s {
            None => ".",
            Some(S::Pending) => "P",
            Some(S::Delayed) => "D",
            Some(S::Ready) => "R",
            Some(S::Reserved) => "V",
            Some(S::Buried) => "B",
            Some(S::Success) => "S",
            Some(S::Failed) => "F",
            Some(S::Revoked) => "X",
        };
        for (state, row) in MATRIX {
            let is = Event::ALL.map(|event| letter(state.after(event))).join(" ");
            assert_eq!(is, row, "{state}");
        }
        assert_eq!(MATRIX.map(|(s, _)| s), PartState::ALL);
    }

    #[test]
    fn a_transition_stands_once_and_ends_are_ends() {
        for (i, (from, event, _)) in TRANSITIONS.iter().enumerate() {
            let same = |(f, e, _): &&(S, E, S)| (f, e) == (from, event);
            assert_eq!(TRANSITIONS.iter().filter(same).count(), 1, "{i}");
            assert!(!from.is_final());
        }
        for state in PartState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
            assert_eq!(state.as_str().parse::<PartState>().unwrap(), state);
        }
    }
}
