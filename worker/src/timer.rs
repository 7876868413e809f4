//! The wall clock's alarm: one `timerfd` on `CLOCK_REALTIME`, set to an absolute time.
//!
//! The kernel wakes it at the instant (timerfd_create(2)), and also when the clock is
//! set (`TFD_TIMER_CANCEL_ON_SET`) or the machine resumes from sleep, so that a jump
//! of the clock is noticed when it happens and not a timer later. The runtime's own
//! timers tick in milliseconds and know nothing of the wall clock.
//!
//! The thread that waits for it sleeps in [`WallTimer::block_on`] and nowhere else: a
//! runtime with I/O would wake it for each child of the worker that ends, too, as signals
//! are I/O of every such runtime.

use crate::skew;
use jiff::Timestamp;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use std::{
    cell::Cell,
    future::poll_fn,
    io,
    os::fd::OwnedFd,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Why the timer woke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The instant has come.
    Due,
    /// The clock was set; what is due must be looked at anew.
    ClockSet,
}

/// An alarm of the wall clock, for one thread.
#[derive(Debug)]
pub struct WallTimer {
    fd: OwnedFd,
    alarm: Arc<Alarm>,
    /// The future is waiting for the alarm.
    waited: Cell<bool>,
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
        let timer = Self {
            fd: timerfd_create(TimerfdClockId::Realtime, flags)?,
            alarm: Arc::new(Alarm {
                state: AtomicU8::new(RUNS),
                bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            }),
            waited: Cell::new(false),
            set_to: Cell::new(None),
            clock_set: Cell::new(false),
        };
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
        let (tv_sec, tv_nsec) = match skew::alarm(at) {
            Some(t) if t > Timestamp::UNIX_EPOCH => {
                (t.as_second(), t.subsec_nanosecond().max(0).into())
            }
            Some(_) => (0, 1),
            None => (Timestamp::MAX.as_second(), 0),
        };
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: once, it_value: Timespec { tv_sec, tv_nsec } };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(&self.fd, flags, &spec) {
            Ok(_) => {}
            // The new setting holds all the same.
            Err(Errno::CANCELED) => self.clock_set.set(true),
            Err(e) => return Err(e.into()),
        }
        self.set_to.set(Some(at));
        Ok(())
    }

    /// Waits for the alarm, within [`block_on`](Self::block_on). Cancel safe. May wake for an
    /// alarm that was set anew since.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub async fn wait(&self) -> io::Result<Woken> {
        poll_fn(|_| self.poll_wait()).await
    }

    fn poll_wait(&self) -> Poll<io::Result<Woken>> {
        if self.clock_set.take() {
            return Poll::Ready(Ok(Woken::ClockSet));
        }
        let mut count = [0u8; 8];
        let woken = loop {
            match rustix::io::read(&self.fd, &mut count) {
                Ok(_) if skew::was_set() => break Woken::ClockSet,
                Ok(_) => break Woken::Due,
                Err(Errno::CANCELED) => break Woken::ClockSet,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.waited.set(true);
                    return Poll::Pending;
                }
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        };
        // A timer that has fired is not set any more.
        self.set_to.set(None);
        Poll::Ready(Ok(woken))
    }

    /// Runs a future to its end on this thread, which sleeps while the future waits for
    /// others or for this alarm. What needs a runtime takes it from the context of the
    /// thread.
    ///
    /// # Errors
    /// When the kernel does not let it sleep.
    pub fn block_on<F: Future>(&self, future: F) -> io::Result<F::Output> {
        let mut future = pin!(future);
        let waker = Waker::from(self.alarm.clone());
        let mut cx = Context::from_waker(&waker);
        loop {
            self.waited.set(false);
            self.alarm.state.store(RUNS, Ordering::SeqCst);
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return Ok(output);
            }
            self.sleep()?;
        }
    }

    /// Sleeps until the future is woken, or the alarm, if it waits for that.
    fn sleep(&self) -> io::Result<()> {
        let Alarm { state, bell } = &*self.alarm;
        // Who wakes from here on rings.
        if state.compare_exchange(RUNS, SLEEPS, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return Ok(());
        }
        let readable = |fd| PollFd::new(fd, PollFlags::IN);
        let mut both = [readable(bell), readable(&self.fd)];
        let fds = if self.waited.get() { &mut both[..] } else { &mut both[..1] };
        loop {
            match poll(fds, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if !fds[0].revents().is_empty() {
            // Not to be rung again for the same.
            let _ = rustix::io::read(bell, &mut [0u8; 8]);
        }
        Ok(())
    }
}

/// The thread polls its future.
const RUNS: u8 = 0;
/// It sleeps, or is about to.
const SLEEPS: u8 = 1;
/// It is to poll the future once more.
const WOKEN: u8 = 2;

/// What wakes the thread.
#[derive(Debug)]
struct Alarm {
    state: AtomicU8,
    bell: OwnedFd,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::SeqCst) == SLEEPS {
            // Fails only when it has been rung as often as a number can count.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use std::time::Duration;

    /// What wakes within some seconds.
    fn within<F: Future>(timer: &WallTimer, future: F, limit: Duration) -> Option<F::Output> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
        let _context = runtime.enter();
        timer.block_on(async { tokio::time::timeout(limit, future).await.ok() }).unwrap()
    }

    fn woken(timer: &WallTimer) -> Woken {
        within(timer, timer.wait(), Duration::from_secs(10)).unwrap().unwrap()
    }

    #[test]
    fn wakes_at_the_instant_and_not_before() {
        let timer = WallTimer::new().unwrap();
        for _ in 0..3 {
            let at = Timestamp::now() + SignedDuration::from_millis(30);
            timer.set(Some(at)).unwrap();
            timer.set(Some(at)).unwrap();
            assert_eq!(woken(&timer), Woken::Due);
            assert!(Timestamp::now() >= at);
        }
    }

    #[test]
    fn the_past_wakes_at_once_and_a_new_setting_replaces_the_old() {
        let timer = WallTimer::new().unwrap();
        timer.set(None).unwrap();
        for past in [Timestamp::UNIX_EPOCH, Timestamp::now()] {
            timer.set(Some(past)).unwrap();
            assert_eq!(woken(&timer), Woken::Due);
        }
        timer.set(Some(Timestamp::UNIX_EPOCH)).unwrap();
        timer.set(None).unwrap();
        let early = within(&timer, timer.wait(), Duration::from_millis(50));
        assert!(early.is_none(), "{early:?}");
    }

    #[test]
    fn others_wake_the_thread_however_they_meet_it() {
        let timer = WallTimer::new().unwrap();
        let (there, mut back) = tokio::sync::mpsc::channel::<u32>(1);
        let (answer, answers) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            for n in 0..20_000 {
                there.blocking_send(n).unwrap();
                if n % 3 == 0 {
                    // Only now: it may just be falling asleep.
                    assert_eq!(answers.recv(), Ok(n));
                }
            }
        });
        // An alarm that is due and that nobody waits for keeps nobody awake.
        timer.set(Some(Timestamp::UNIX_EPOCH)).unwrap();
        let all = async {
            let mut sum = 0;
            while let Some(n) = back.recv().await {
                sum += u64::from(n);
                if n % 3 == 0 {
                    answer.send(n).unwrap();
                }
            }
            sum
        };
        assert_eq!(timer.block_on(all).unwrap(), 20_000 * 19_999 / 2);
        other.join().unwrap();
    }
}
