//! What becomes of a part when its run has ended, or when nobody runs it any more.

use super::{
    id::PartId,
    record::{Ask, OnFailure, OnLoss, Outcome, Part, Policy},
    state::{Event, PartState},
};
use crate::{
    code::Code,
    retry,
    run::{RunRecord, to_millis},
};
use jiff::Timestamp;
use std::time::Duration;

/// How many workers may die with a part or give it up before it is buried: something in it
/// may be what kills them.
pub const MAX_LOSSES: u32 = 5;
/// Wait before a part is tried again whose worker has died; it doubles each time.
pub const LOSS_DELAY: Duration = Duration::from_secs(1);

impl Outcome {
    /// Without a run.
    pub fn new(code: Code, message: Option<String>, now: Timestamp) -> Self {
        let at = to_millis(now);
        Self { code, state: None, exit_code: None, signal: None, message, at }
    }
}

impl From<&RunRecord> for Outcome {
    fn from(r: &RunRecord) -> Self {
        Self {
            code: r.code,
            state: Some(r.state),
            exit_code: r.exit_code,
            signal: r.signal,
            message: r.message.clone(),
            at: r.ended_at.unwrap_or(r.slot),
        }
    }
}

/// The worker did not end it, but gave it up: somebody else may well succeed.
fn is_given_up(code: Code) -> bool {
    matches!(code, Code::LOST | Code::SHUTDOWN | Code::DRAINED | Code::ETCD)
}

impl Part {
    /// Goes to the state that follows `event`. Answers whether it happens in this state; if
    /// not, nothing has changed.
    pub fn step(&mut self, event: Event, now: Timestamp) -> bool {
        let Some(next) = self.state.after(event) else { return false };
        if next != self.state {
            self.since = to_millis(now);
        }
        if next != PartState::Reserved {
            (self.deadline, self.begun_at, self.ask, self.touched) = (None, None, None, 0);
        }
        self.state = next;
        true
    }

    /// Is ready now.
    pub(super) fn ready(&mut self, event: Event, now: Timestamp) -> bool {
        let stepped = self.step(event, now);
        if stepped {
            self.ready_at = Some(to_millis(now));
        }
        stepped
    }

    /// Waits until `until`.
    pub(super) fn delayed(&mut self, event: Event, until: Timestamp, now: Timestamp) -> bool {
        let stepped = self.step(event, now);
        if stepped {
            self.ready_at = Some(to_millis(until));
        }
        stepped
    }

    /// Given back, to be tried again after `wait`.
    fn released(&mut self, wait: Duration, now: Timestamp) {
        match now.checked_add(wait) {
            Ok(until) if !wait.is_zero() => self.delayed(Event::ReleaseDelayed, until, now),
            _ => self.ready(Event::Release, now),
        };
    }

    /// The part after its run has ended with `outcome`. It must be reserved.
    #[must_use]
    pub fn ended(mut self, id: PartId, policy: &Policy, outcome: Outcome, now: Timestamp) -> Self {
        let code = outcome.code;
        if let Some(run) = self.runs.last_mut() {
            run.code = Some(code);
        }
        self.outcome = Some(outcome);
        let ask = self.ask;
        if code.is_ok()
            && let Some(repeat) = &policy.repeat
        {
            let next = repeat.next(&self, now);
            self.rounds = self.rounds.saturating_add(1);
            (self.failures, self.losses) = (0, 0);
            match next {
                Some(until) if until > now => self.delayed(Event::ReleaseDelayed, until, now),
                Some(_) => self.ready(Event::Release, now),
                None => self.step(Event::Succeed, now),
            };
            return self;
        }
        let event = match ask {
            _ if code.is_ok() => Event::Succeed,
            Some(Ask::Stop) => Event::Fail,
            Some(Ask::Delete) => Event::Delete,
            Some(Ask::Bury) => Event::Bury,
            Some(Ask::Release { not_before: Some(until) }) if until > now => {
                self.delayed(Event::ReleaseDelayed, until, now);
                return self;
            }
            Some(Ask::Release { .. }) => {
                self.ready(Event::Release, now);
                return self;
            }
            None if is_given_up(code) => {
                self.losses += 1;
                match policy.on_loss {
                    OnLoss::Release if self.losses < MAX_LOSSES => {
                        // Who shuts down in order is no sign of trouble.
                        let wait = match code {
                            Code::LOST => LOSS_DELAY.saturating_mul(1 << (self.losses - 1)),
                            _ => Duration::ZERO,
                        };
                        self.released(wait, now);
                        return self;
                    }
                    OnLoss::Release | OnLoss::Bury => Event::Bury,
                    OnLoss::Fail => Event::Fail,
                }
            }
            None => {
                self.failures += 1;
                let seed = retry::seed([id.to_string().as_str()]) ^ u64::from(self.attempt);
                let retry = policy.retry.as_ref();
                let wait = retry.and_then(|r| r.wait(self.failures, code, seed));
                if let Some(wait) = wait {
                    self.released(wait, now);
                    return self;
                }
                match policy.on_failure {
                    // Somebody ended it on purpose: there is nothing to look at.
                    OnFailure::Bury if code != Code::KILLED => Event::Bury,
                    _ => Event::Fail,
                }
            }
        };
        self.step(event, now);
        self
    }

    /// The part after it was taken back from a worker that has not begun it: as if it had
    /// never been given away, except that it waits for so long first. It must be reserved.
    #[must_use]
    pub fn taken_back(mut self, wait: Duration, now: Timestamp) -> Self {
        self.undo_reserve();
        match now.checked_add(wait) {
            Ok(until) if !wait.is_zero() => self.delayed(Event::ReleaseDelayed, until, now),
            _ => self.step(Event::Release, now),
        };
        self
    }

    /// The attempt was none.
    pub(super) fn undo_reserve(&mut self) {
        self.attempt = self.attempt.saturating_sub(1);
        self.runs.pop();
    }
}
