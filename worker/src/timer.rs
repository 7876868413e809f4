//! The wall clock's alarm: one `timerfd` on `CLOCK_REALTIME`, set to an absolute time.
//!
//! The kernel wakes it at the instant (timerfd_create(2)), and also when the clock is
//! set (`TFD_TIMER_CANCEL_ON_SET`) or the machine resumes from sleep, so that a jump
//! of the clock is noticed when it happens and not a timer later.

use jiff::Timestamp;
use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};
use tokio::io::{Interest, unix::AsyncFd};

struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Why the timer woke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The instant has come.
    Due,
    /// The clock was set; what is due must be looked at anew.
    ClockSet,
}

/// An alarm of the wall clock.
pub struct WallTimer {
    fd: AsyncFd<Fd>,
}

impl WallTimer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// When the kernel gives no timer.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let fd = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
        Ok(Self { fd: AsyncFd::with_interest(Fd(fd), Interest::READABLE)? })
    }

    /// Sets the alarm to `at`; `None`: only to be woken when the clock is set. An
    /// instant in the past wakes at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&self, at: Option<Timestamp>) -> io::Result<()> {
        // Zero would disarm the timer, so the earliest instant is one nanosecond later.
        let spec = match at {
            Some(t) if t > Timestamp::UNIX_EPOCH => {
                TimeSpec::new(t.as_second(), t.subsec_nanosecond().max(0).into())
            }
            Some(_) => TimeSpec::new(0, 1),
            None => TimeSpec::new(Timestamp::MAX.as_second(), 0),
        };
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        match self.fd.get_ref().0.set(Expiration::OneShot(spec), flags) {
            // The clock was set between two settings of the timer; the new one holds.
            Ok(()) | Err(Errno::ECANCELED) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for the alarm. Cancel safe.
    ///
    /// # Errors
    /// When the timer cannot be read.
    pub async fn wait(&self) -> io::Result<Woken> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut count = [0u8; 8];
            match nix::unistd::read(self.fd.get_ref().0.as_fd(), &mut count) {
                Ok(_) => return Ok(Woken::Due),
                Err(Errno::ECANCELED) => return Ok(Woken::ClockSet),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use std::time::Duration;

    #[tokio::test]
    async fn wakes_at_the_instant_and_not_before() {
        let timer = WallTimer::new().unwrap();
        let at = Timestamp::now() + SignedDuration::from_millis(30);
        timer.set(Some(at)).unwrap();
        let woken = tokio::time::timeout(Duration::from_secs(10), timer.wait()).await.unwrap();
        assert_eq!(woken.unwrap(), Woken::Due);
        assert!(Timestamp::now() >= at);
    }

    #[tokio::test]
    async fn the_past_wakes_at_once_and_a_new_setting_replaces_the_old() {
        let timer = WallTimer::new().unwrap();
        timer.set(None).unwrap();
        timer.set(Some(Timestamp::UNIX_EPOCH)).unwrap();
        tokio::time::timeout(Duration::from_secs(10), timer.wait()).await.unwrap().unwrap();
    }
}
