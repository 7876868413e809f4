//! A million cron entries in one worker: what they cost in memory, how long they take to
//! load, and how late they fire beside a bare timer at the same time.
//!
//! The worker's scheduler runs in this process as it does in a worker, with its state
//! file; it has no place to run a process, so each slot is recorded as skipped and none
//! competes with what is measured.

use super::stats::quantile;
use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{Entry, keys, lease::LeaseState, watch::Batch};
use meepo_core::id::Name;
use meepo_worker::{
    agent::{Agent, Outlets, Status},
    engine::Engine,
    health::Registration,
};
use serde_json::{Value, json};
use std::{
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Rounds in which lateness is measured.
const ROUNDS: u32 = 5;

/// Busy processes beside the scheduler.
const BUSY: usize = 4;

/// Lateness of fires in milliseconds, as the scheduler tells it.
static LATE: Mutex<Vec<f64>> = Mutex::new(Vec::new());

fn told(late: SignedDuration) {
    LATE.lock().unwrap_or_else(PoisonError::into_inner).push(late.as_secs_f64() * 1e3);
}

fn take() -> Vec<f64> {
    std::mem::take(&mut *LATE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What was found.
pub(crate) struct Entries {
    entries: u32,
    load: Duration,
    /// Of one entry, resident.
    bytes: f64,
    /// Microseconds to take in one change.
    change_us: f64,
    /// Lateness in milliseconds, in each round: a bare timer and the scheduler, with nothing
    /// else to do and beside busy processes.
    bare: Vec<Vec<f64>>,
    fires: Vec<Vec<f64>>,
    bare_busy: Vec<Vec<f64>>,
    fires_busy: Vec<Vec<f64>>,
    span: Duration,
}

/// An entry of its own expression, due four times an hour.
fn entry(node: &Name, n: u32) -> Entry {
    // Four different minutes out of sixty, and a second: 29 million expressions.
    let (second, mut rest) = (n % 60, n / 60 * 29 % 487_635);
    let mut minutes = Vec::new();
    let mut at = 0;
    for left in (0..4u32).rev() {
        loop {
            let with = choose(59 - at, left);
            if rest < with {
                break;
            }
            rest -= with;
            at += 1;
        }
        minutes.push(at.to_string());
        at += 1;
    }
    let name = format!("job-{n:07}");
    let express = format!("{second} {} * * * *", minutes.join(","));
    let value = json!({"cmd": "/bin/true", "express": express, "task_id": name,
        "status": "running", "executor": "exec", "jitter": "1s"});
    let key = format!("{}{name}", keys::assignments_of(node));
    Entry { key, value: value.to_string().into_bytes(), mod_revision: 1, create_revision: 1 }
}

fn choose(n: u32, k: u32) -> u32 {
    (0..k).fold(1, |c, i| c * (n - i) / (i + 1))
}

fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0)
}

/// Measures with `entries` entries; each lateness over `span`.
pub(crate) async fn measure(entries: u32, span: Duration) -> Result<Entries> {
    let dir = tempfile::tempdir()?;
    let node = Name::new("127.0.0.1")?;
    let engine = Engine::alone(node.clone(), dir.path()).await?;
    let (status, mut told_status) = watch::channel(Status::default());
    let (_registered, registration) = watch::channel(Registration::Done);
    let (_lease, lease) = watch::channel(LeaseState::None);
    let progress = Default::default();
    let outlets = Outlets {
        status,
        progress,
        registration,
        lease,
        lease_ttl: Duration::from_secs(10),
        late: Some(told),
    };
    let stop = CancellationToken::new();
    let agent = Agent::new(engine.clone(), engine.etcd.clone(), 0, outlets, stop.clone()).await?;
    let (batches, received) = mpsc::channel(1);
    let scheduler = tokio::spawn(agent.run(received));

    let before = resident()?;
    let all: Vec<Entry> = (0..entries).map(|n| entry(&node, n)).collect();
    let begun = Instant::now();
    batches.send(Batch::Reset { entries: all, revision: 1 }).await?;
    told_status.wait_for(|s| s.jobs == u64::from(entries)).await?;
    // The state's thread has written what the next life needs.
    engine.state.cursor(node.clone()).await?;
    let load = begun.elapsed();
    let bytes = (resident()? - before) / f64::from(entries);
    eprintln!("entries: {entries} are loaded after {load:.1?}");

    let changes = 1000;
    let begun = Instant::now();
    let change = |n| meepo_coord::watch::Change::Put(entry(&node, n + entries));
    batches.send(Batch::Changes((0..changes).map(change).collect())).await?;
    let wanted = u64::from(entries + changes);
    told_status.wait_for(|s| s.jobs == wanted).await?;
    let change_us = begun.elapsed().as_secs_f64() * 1e6 / f64::from(changes);

    let (bare, fires) = both(span).await?;
    let busy = Busy::start()?;
    let (bare_busy, fires_busy) = both(span).await?;
    drop(busy);
    stop.cancel();
    scheduler.await??;
    engine.state.close().await;
    Ok(Entries { entries, load, bytes, change_us, bare, fires, bare_busy, fires_busy, span })
}

/// A bare timer and the scheduler at the same time: how long a sleeping processor takes to
/// wake depends on how often it is woken. In rounds: what the machine does for a second
/// besides is seen in one of them and not in the median.
async fn both(span: Duration) -> Result<(Vec<Vec<f64>>, Vec<Vec<f64>>)> {
    let (mut bare, mut fires) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        take();
        bare.push(tokio::task::spawn_blocking(move || timer(span / ROUNDS)).await??);
        fires.push(take());
    }
    ensure!(fires.iter().all(|round| !round.is_empty()), "nothing fired");
    Ok((bare, fires))
}

/// A thread that waits for a timer a thousand times a second and does nothing else.
fn timer(span: Duration) -> Result<Vec<f64>> {
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    let fd = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC)?;
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut late = Vec::new();
    let end = Timestamp::now() + SignedDuration::try_from(span)?;
    let mut at = Timestamp::now();
    while at < end {
        at += SignedDuration::from_millis(1);
        let now = Timestamp::now();
        at = at.max(now);
        let it_value = Timespec { tv_sec: at.as_second(), tv_nsec: at.subsec_nanosecond().into() };
        let spec = Itimerspec { it_interval: zero, it_value };
        timerfd_settime(&fd, TimerfdTimerFlags::ABSTIME, &spec)?;
        rustix::io::read(&fd, &mut [0; 8])?;
        late.push(Timestamp::now().duration_since(at).as_secs_f64() * 1e3);
    }
    Ok(late)
}

/// Processes that keep the processors busy, at the priority of a job.
struct Busy(Vec<Child>);

impl Busy {
    fn start() -> Result<Self> {
        let mut busy = Self(Vec::new());
        for _ in 0..BUSY {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            busy.0.push(command.spawn()?);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Of the quantile `q` in each round the smallest, the median and the largest.
fn of_rounds(rounds: &[Vec<f64>], q: f64) -> [f64; 3] {
    let each: Vec<f64> = rounds.iter().map(|round| quantile(round.clone(), q)).collect();
    [0.0, 0.5, 1.0].map(|rank| quantile(each.clone(), rank))
}

impl Entries {
    fn rows(&self) -> [(&'static str, &Vec<Vec<f64>>); 4] {
        [
            ("bare timer", &self.bare),
            ("scheduler", &self.fires),
            ("bare timer, 4 busy processes", &self.bare_busy),
            ("scheduler, 4 busy processes", &self.fires_busy),
        ]
    }

    pub(crate) fn table(&self) -> String {
        let mut out = format!(
            "\n{} cron entries, all different: {:.0} bytes each, loaded in {:.1} s, {:.0} us a \
             change\nlateness, ms, median of {ROUNDS} rounds  fires/s    p50     p99  p99 from   to\n",
            self.entries,
            self.bytes,
            self.load.as_secs_f64(),
            self.change_us
        );
        for (what, late) in self.rows() {
            let rate = late.iter().map(Vec::len).sum::<usize>() as f64 / self.span.as_secs_f64();
            let [p50, p99] = [0.5, 0.99].map(|q| of_rounds(late, q));
            let (p50, p99, low, high) = (p50[1], p99[1], p99[0], p99[2]);
            out.push_str(&format!(
                "{what:34} {rate:>8.0} {p50:>6.3} {p99:>7.3} {low:>9.3} {high:>6.3}\n"
            ));
        }
        out
    }

    pub(crate) fn json(&self) -> Value {
        let late = |late: &Vec<Vec<f64>>| {
            let q = [0.5, 0.99, 1.0].map(|q| of_rounds(late, q)[1]);
            let fires: usize = late.iter().map(Vec::len).sum();
            let p99: Vec<f64> = late.iter().map(|round| quantile(round.clone(), 0.99)).collect();
            json!({
                "fires": fires, "p50_ms": q[0], "p99_ms": q[1], "max_ms": q[2],
                "p99_ms_of_rounds": p99,
            })
        };
        let rows: serde_json::Map<String, Value> =
            self.rows().into_iter().map(|(what, l)| (what.to_owned(), late(l))).collect();
        json!({
            "entries": self.entries, "bytes_each": self.bytes, "change_us": self.change_us,
            "load_seconds": self.load.as_secs_f64(), "lateness": rows,
        })
    }
}
