//! The wall clock's alarm: one `timerfd` on `CLOCK_REALTIME`, set to an absolute time
//! and waited for by a thread of its own.
//!
//! The kernel wakes it at the instant (timerfd_create(2)), and also when the clock is
//! set (`TFD_TIMER_CANCEL_ON_SET`) or the machine resumes from sleep, so that a jump
//! of the clock is noticed when it happens and not a timer later. The runtime's own
//! timers tick in milliseconds and know nothing of the wall clock.

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
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Notify;
use tracing::error;

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
    shared: Arc<Shared>,
}

struct Shared {
    fd: TimerFd,
    due: Notify,
    clock_set: Notify,
    stop: AtomicBool,
}

impl WallTimer {
    /// A timer that is not set, and its thread.
    ///
    /// # Errors
    /// When the kernel gives no timer or no thread.
    pub fn new() -> io::Result<Self> {
        let fd = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC)?;
        let shared = Arc::new(Shared {
            fd,
            due: Notify::new(),
            clock_set: Notify::new(),
            stop: AtomicBool::new(false),
        });
        let timer = Self { shared: shared.clone() };
        timer.set(None)?;
        std::thread::Builder::new().name("timer".into()).spawn(move || shared.run())?;
        Ok(timer)
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
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        match self.shared.fd.set(Expiration::OneShot(spec), flags) {
            Ok(()) => Ok(()),
            // The clock was set between two settings of the timer: the new one holds, and
            // the thread that reads will not learn of it any more.
            Err(Errno::ECANCELED) => {
                self.shared.clock_set.notify_one();
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for the alarm. Cancel safe. May wake for an alarm that was set anew since.
    pub async fn wait(&self) -> Woken {
        tokio::select! {
            () = self.shared.clock_set.notified() => Woken::ClockSet,
            () = self.shared.due.notified() => Woken::Due,
        }
    }
}

impl Drop for WallTimer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Wakes the thread. If the kernel refuses, the thread stays until the process ends.
        let _ = self.set(Some(Timestamp::UNIX_EPOCH));
    }
}

impl Shared {
    fn run(&self) {
        let mut count = [0u8; 8];
        loop {
            let read = nix::unistd::read(self.fd.as_fd(), &mut count);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            match read {
                Ok(_) => self.due.notify_one(),
                Err(Errno::ECANCELED) => self.clock_set.notify_one(),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(e) => {
                    error!(error = %e, "cannot read the timer");
                    return;
                }
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
        assert_eq!(woken, Woken::Due);
        assert!(Timestamp::now() >= at);
    }

    #[tokio::test]
    async fn the_past_wakes_at_once_and_a_new_setting_replaces_the_old() {
        let timer = WallTimer::new().unwrap();
        timer.set(None).unwrap();
        timer.set(Some(Timestamp::UNIX_EPOCH)).unwrap();
        tokio::time::timeout(Duration::from_secs(10), timer.wait()).await.unwrap();
    }
}
