//! The wall clock's alarm: one `timerfd` on `CLOCK_REALTIME`, set to an absolute time.
//!
//! The kernel wakes it at the instant (timerfd_create(2)), and also when the clock is
//! set (`TFD_TIMER_CANCEL_ON_SET`) or the machine resumes from sleep, so that a jump
//! of the clock is noticed when it happens and not a timer later. The runtime's own
//! timers tick in milliseconds and know nothing of the wall clock.

use jiff::Timestamp;
use rustix::{
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use std::{cell::Cell, io, os::fd::OwnedFd};
use tokio::io::{Interest, unix::AsyncFd};

/// Why the timer woke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The instant has come.
    Due,
    /// The clock was set; what is due must be looked at anew.
    ClockSet,
}

/// An alarm of the wall clock, of the runtime in which it was made.
#[derive(Debug)]
pub struct WallTimer {
    fd: AsyncFd<OwnedFd>,
    /// What it is set to, so that setting it to the same again costs nothing.
    set_to: Cell<Option<Option<Timestamp>>>,
    /// The clock was set between two settings: the kernel says so once only.
    clock_set: Cell<bool>,
}

impl WallTimer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let fd = timerfd_create(TimerfdClockId::Realtime, flags)?;
        // Deprecated for types that may close or change their descriptor unseen; the other
        // form is unsafe for that reason. An `OwnedFd` does neither.
        #[allow(deprecated)]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        let timer = Self { fd, set_to: Cell::new(None), clock_set: Cell::new(false) };
        timer.set(None)?;
        Ok(timer)
    }

    /// Sets the alarm to `at`; `None`: only to be woken when the clock is set. An
    /// instant in the past wakes at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&self, at: Option<Timestamp>) -> io::Result<()> {
        if self.set_to.get() == Some(at) {
            return Ok(());
        }
        // Zero would disarm the timer, so the earliest instant is one nanosecond later.
        let (tv_sec, tv_nsec) = match at {
            Some(t) if t > Timestamp::UNIX_EPOCH => {
                (t.as_second(), t.subsec_nanosecond().max(0).into())
            }
            Some(_) => (0, 1),
            None => (Timestamp::MAX.as_second(), 0),
        };
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: once, it_value: Timespec { tv_sec, tv_nsec } };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(self.fd.get_ref(), flags, &spec) {
            Ok(_) => {}
            // The new setting holds all the same.
            Err(Errno::CANCELED) => self.clock_set.set(true),
            Err(e) => return Err(e.into()),
        }
        self.set_to.set(Some(at));
        Ok(())
    }

    /// Waits for the alarm. Cancel safe. May wake for an alarm that was set anew since.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub async fn wait(&self) -> io::Result<Woken> {
        loop {
            if self.clock_set.take() {
                return Ok(Woken::ClockSet);
            }
            let mut ready = self.fd.readable().await?;
            let read = ready.try_io(|fd| {
                let mut count = [0u8; 8];
                rustix::io::read(fd.get_ref(), &mut count).map_err(io::Error::from)
            });
            let woken = match read {
                // Nothing to be read after all: set anew meanwhile.
                Err(_would_block) => continue,
                Ok(Ok(_)) => Woken::Due,
                Ok(Err(e)) if e.raw_os_error() == Some(Errno::CANCELED.raw_os_error()) => {
                    Woken::ClockSet
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(Err(e)) => return Err(e),
            };
            // A timer that has fired is not set any more.
            self.set_to.set(None);
            return Ok(woken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use std::time::Duration;

    async fn woken(timer: &WallTimer) -> Woken {
        tokio::time::timeout(Duration::from_secs(10), timer.wait()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn wakes_at_the_instant_and_not_before() {
        let timer = WallTimer::new().unwrap();
        for _ in 0..3 {
            let at = Timestamp::now() + SignedDuration::from_millis(30);
            timer.set(Some(at)).unwrap();
            timer.set(Some(at)).unwrap();
            assert_eq!(woken(&timer).await, Woken::Due);
            assert!(Timestamp::now() >= at);
        }
    }

    #[tokio::test]
    async fn the_past_wakes_at_once_and_a_new_setting_replaces_the_old() {
        let timer = WallTimer::new().unwrap();
        timer.set(None).unwrap();
        for past in [Timestamp::UNIX_EPOCH, Timestamp::now()] {
            timer.set(Some(past)).unwrap();
            assert_eq!(woken(&timer).await, Woken::Due);
        }
        timer.set(Some(Timestamp::UNIX_EPOCH)).unwrap();
        timer.set(None).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), timer.wait()).await;
        assert!(early.is_err(), "{early:?}");
    }
}
