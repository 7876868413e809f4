//! Tests against real processes.

mod ends;
mod kill;
mod output;

use super::*;
use meepo_core::{id::RunId, job::Executor, run::Stream};
use nix::sys::signal::Signal;
use std::{ops::Deref, time::Duration};
use tokio::time::{Instant, timeout};

/// Longest time anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A run whose process group dies with it, also when a test panics.
struct Guarded {
    running: Running,
    over: bool,
}

impl Guarded {
    async fn end(&mut self) -> Ended {
        let ended = timeout(DEADLINE, self.running.wait()).await.expect("the run ends");
        self.over = true;
        ended
    }

    /// Waits until the run has written `text` to standard output.
    async fn says(&self, text: &str) {
        let mut follower = self.output.follow(0);
        let mut seen = Vec::new();
        timeout(DEADLINE, async {
            while let Some(batch) = follower.next().await {
                batch.iter().for_each(|c| seen.extend_from_slice(&c.data));
                if String::from_utf8_lossy(&seen).contains(text) {
                    return;
                }
            }
            panic!("ended without saying {text:?}: {:?}", String::from_utf8_lossy(&seen));
        })
        .await
        .unwrap_or_else(|_| panic!("does not say {text:?}"));
    }
}

impl Deref for Guarded {
    type Target = Running;
    fn deref(&self) -> &Running {
        &self.running
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !self.over {
            let _ = tree::signal_group(self.running.pid, Signal::SIGKILL);
        }
    }
}

fn run_id() -> RunId {
    RunId(uuid::Uuid::now_v7())
}

fn runner() -> Runner {
    Runner::new(RunnerOptions::default()).unwrap()
}

fn sh(script: &str) -> Command {
    Command::new(Executor::Sh, script)
}

async fn try_start(command: Command) -> Result<Guarded, StartError> {
    let running = runner().spawn(run_id(), command).await?;
    Ok(Guarded { running, over: false })
}

async fn start(command: Command) -> Guarded {
    try_start(command).await.expect("the command starts")
}

/// All that one stream of a run kept.
async fn text(output: &OutputHub, stream: Stream) -> String {
    let mut follower = output.follow(0);
    let mut bytes = Vec::new();
    while let Some(batch) = follower.next().await {
        batch.iter().filter(|c| c.stream == stream).for_each(|c| bytes.extend_from_slice(&c.data));
    }
    String::from_utf8(bytes).unwrap()
}

/// Runs `command`; answers its end and what it wrote to standard output.
async fn run(command: Command) -> (Ended, String) {
    let mut running = start(command).await;
    let ended = running.end().await;
    let out = text(&running.output, Stream::Stdout).await;
    (ended, out)
}

/// Waits until `done`.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
