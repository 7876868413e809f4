//! The worker's side of a surviving run.

use super::files::{Files, Kill, Started};
use crate::process::{
    command::Ended,
    hub::OutputHub,
    leftover::{Leftover, Leftovers},
    runner::{Began, Control, Ending, Orders, Received, Running},
};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    run::{RunState, to_millis},
};
use meepo_runtime::backoff::Backoff;
use std::{convert::Infallible, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedWriteHalf},
};
use tracing::{debug, warn};

/// Takes a run over whose process was started.
pub(super) fn follow(files: Files, started: Started, leftovers: Arc<Leftovers>) -> Running {
    let output = OutputHub::new();
    let (control, orders) = Control::surviving();
    let follow = Follow { output: output.clone(), orders, started, files, leftovers };
    Running {
        run_id: follow.files.run_id(),
        pid: started.pid,
        began: Began::Known(started.pid_start_time),
        started_at: started.at,
        control,
        output,
        ended: Ending::task(follow.run()),
    }
}

struct Follow {
    files: Files,
    started: Started,
    output: OutputHub,
    orders: Received,
    leftovers: Arc<Leftovers>,
}

impl Follow {
    /// Reads along until the run has ended.
    async fn run(mut self) -> Ended {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let mut ended = loop {
            if let Ok(stream) = self.files.connect().await {
                backoff.reset();
                self.talk(stream).await;
            }
            // First the lock: who had it wrote the result before.
            let (lock, result) = (self.files.try_lock(), self.files.result());
            match (lock, result) {
                (_, Ok(Some(ended))) => break ended,
                (Ok(None), Ok(None)) => {}
                (Ok(Some(_)), Ok(None)) => break self.lost("its supervisor was killed").await,
                (_, Err(e)) if e.kind() == io::ErrorKind::InvalidData => {
                    break self.lost(&e.to_string()).await;
                }
                (Err(e), _) | (_, Err(e)) => {
                    let run_id = self.files.run_id();
                    warn!(%run_id, error = %e, "cannot look after a surviving run");
                }
            }
            tokio::time::sleep(backoff.next_wait()).await;
        };
        self.leftovers.tidy(self.files.run_id());
        // What did not come over the connection, or nothing, if all did.
        if let Err(e) = self.read_file().await {
            warn!(run_id = %self.files.run_id(), error = %e, "output of a surviving run is lost");
        }
        // What the supervisor could not write while nobody read along.
        let (kept, _) = self.output.counts();
        ended.dropped_bytes = ended.dropped_bytes.max(ended.output_bytes.saturating_sub(kept));
        self.output.count_dropped(ended.dropped_bytes);
        self.output.close();
        ended
    }

    /// Takes output and hands on orders until the connection ends.
    async fn talk(&mut self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let (files, output, orders) = (&self.files, &self.output, &mut self.orders);
        let reading = async {
            let mut read = BufReader::new(read);
            take(files, output, &mut read).await
        };
        tokio::select! {
            read = reading => if let Err(e) = read {
                debug!(run_id = %files.run_id(), error = %e, "connection to a supervisor lost");
            },
            never = hand_on(orders, &mut write) => match never {},
        }
    }

    /// Takes what the file has and the hub has not.
    async fn read_file(&self) -> io::Result<()> {
        let file = tokio::fs::File::open(self.files.output()).await?;
        take(&self.files, &self.output, &mut BufReader::new(file)).await
    }

    /// The supervisor has gone without a result.
    async fn lost(&self, why: &str) -> Ended {
        let then = match self.leftovers.end(self.files.run_id(), self.started.process()).await {
            Leftover { left, .. } if !left.is_empty() => "what is left of it could not be killed",
            Leftover { found: 1.., .. } => "what was left of it was killed",
            _ => "its processes had ended",
        };
        if let Err(e) = self.read_file().await {
            debug!(run_id = %self.files.run_id(), error = %e, "no output of a lost run");
        }
        Ended {
            code: Code::LOST,
            state: RunState::Lost,
            exit_code: None,
            signal: None,
            message: Some(format!("{why}; {then}")),
            ended_at: to_millis(Timestamp::now()),
            output_bytes: self.output.counts().0,
            dropped_bytes: 0,
        }
    }
}

/// Appends pieces of output to the hub, as far as it does not have them yet.
async fn take(
    files: &Files,
    output: &OutputHub,
    from: &mut (impl tokio::io::AsyncRead + Unpin),
) -> io::Result<()> {
    while let Some(chunk) = files.decode(from).await? {
        match chunk.seq.cmp(&output.len()) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => output.append([chunk]),
            std::cmp::Ordering::Greater => return Err(io::Error::other("a piece is missing")),
        }
    }
    Ok(())
}

/// Sends what has been ordered and what will be.
async fn hand_on(orders: &mut Received, write: &mut OwnedWriteHalf) -> Infallible {
    // Whoever is there now has not been told before.
    let mut ordered = orders.all();
    loop {
        let Orders { kill, plan, shutdown: _ } = ordered;
        if let Some(reason) = kill {
            let kill = Kill { reason, plan: plan.map(|(_, plan)| plan) };
            // Plain data always becomes JSON; a connection that is broken is seen where it
            // is read.
            let line = serde_json::to_string(&kill).unwrap_or_default() + "\n";
            let _ = write.write_all(line.as_bytes()).await;
        }
        ordered = orders.next().await;
    }
}
