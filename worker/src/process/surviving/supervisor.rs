//! The supervisor: runs one command and outlives the worker.

use super::files::{Files, Kill, Order, Started, encode};
use crate::{
    process::{
        cgroup::Cgroups,
        children::take_in_orphans,
        command::{Ended, KillPlan, KillReason},
        hub::OutputHub,
        runner::{Began, Control, Runner, RunnerOptions},
    },
    secrets::Secrets,
};
use anyhow::Context;
use jiff::Timestamp;
use meepo_core::id::RunId;
use std::{
    convert::Infallible,
    ffi::OsString,
    io::{self, Read, Write},
    path::PathBuf,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// The first argument that turns a meepo program into a supervisor.
pub(crate) const SUPERVISE_ARG: &str = "__supervise";

/// Bytes of secrets that a run may have, written as JSON.
const MAX_SECRETS: u64 = 16 << 20;

/// The supervisor; `args` are those after [`SUPERVISE_ARG`]: the directory of the run.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ! {
    let done = match args.into_iter().next().map(PathBuf::from) {
        Some(dir) => enter(dir),
        None => Err(anyhow::anyhow!("{SUPERVISE_ARG} is for meepo's own use")),
    };
    if let Err(e) = &done {
        let _ = writeln!(io::stderr(), "{e:#}");
    }
    std::process::exit(i32::from(done.is_err()))
}

fn enter(dir: PathBuf) -> anyhow::Result<()> {
    // What is sent to the worker's group or terminal is not meant for this.
    nix::unistd::setsid().context("cannot leave the worker's session")?;
    let name = dir.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<RunId>().ok());
    let run_id = name.with_context(|| format!("{} names no run", dir.display()))?;
    let files = Files::new(run_id, dir);
    let _lock = files.lock().context("cannot lock the directory of the run")?;
    // Under the lock: without an order somebody has recorded that nothing was started.
    let Some(mut order) = files.order()? else { return Ok(()) };
    order.command.secrets = told().context("cannot learn the secrets of the run")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _guard = runtime.enter();
    // What the run leaves behind must not get out of sight.
    match take_in_orphans(CancellationToken::new()) {
        Ok(reaping) => drop(runtime.spawn(reaping)),
        Err(e) => complain("cannot become the parent of what the run leaves behind", &e),
    }
    runtime.block_on(supervise(&files, order, || {
        // If nobody waits for this any more, that is nothing to complain of.
        let _ = writeln!(io::stdout(), "ready");
    }))
}

/// The secrets of the command, as the worker hands them over.
fn told() -> anyhow::Result<Secrets> {
    let mut text = Vec::new();
    io::stdin().take(MAX_SECRETS).read_to_end(&mut text)?;
    // Nothing came from whoever has nothing to hand over.
    match text.is_empty() {
        true => Ok(Secrets::default()),
        false => Ok(Secrets::new(serde_json::from_slice(&text)?)),
    }
}

/// Runs the command to its end, and returns when its result is on disk. `ready` is called
/// when it runs or has failed to start.
pub(super) async fn supervise(
    files: &Files,
    order: Order,
    ready: impl FnOnce(),
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = files.listen().context("cannot listen on the socket")?;
    let output = files.create_output().context("cannot create the file of the output")?;
    let cgroups = Some(Cgroups::of_worker(order.cgroup_root.as_deref(), &order.data_dir));
    let runner = Runner::new(RunnerOptions { threads: 1, cgroups, ..RunnerOptions::default() })?;
    let mut running = match runner.spawn(order.run_id, order.command).await {
        Ok(running) => running,
        Err(e) => {
            files.put_result(&e.ended(Timestamp::now()))?;
            ready();
            return Ok(());
        }
    };
    let (pid, at) = (running.pid, running.started_at);
    let began = std::mem::replace(&mut running.began, Began::Known(None));
    let pid_start_time = began.told().await;
    if let Err(e) = files.put_started(&Started { pid, pid_start_time, at }) {
        // A worker could not find it.
        running.control.kill_with(KillReason::Shutdown, KillPlan::NOW);
        running.wait().await;
        return Err(e).context("cannot note the process");
    }
    ready();
    let (control, hub) = (running.control.clone(), running.output.clone());
    let serving = serve(files, &listener, &control, &hub);
    let keeping = keep(hub.clone(), output.into());
    let ended = tokio::select! {
        (ended, ()) = async { tokio::join!(running.wait(), keeping) } => ended,
        never = serving => match never {},
        never = stop(&mut terminate, &control) => match never {},
    };
    record(files, &ended).await;
    Ok(())
}

/// Ends the command when this process is asked to end, as it is when the host goes down.
async fn stop(terminate: &mut Signal, control: &Control) -> Infallible {
    loop {
        terminate.recv().await;
        control.kill(KillReason::Shutdown);
    }
}

/// Appends the output to its file, and waits for the disk at the end. What cannot be
/// written is complained of; a worker that reads along has it all the same.
async fn keep(hub: OutputHub, mut file: tokio::fs::File) {
    let mut follower = hub.follow(0);
    let mut broken = false;
    while let Some(chunks) = follower.next().await {
        for chunk in chunks {
            // Nothing may follow a piece that is missing.
            if !broken && let Err(e) = file.write_all(&encode(&chunk)).await {
                broken = true;
                complain("output is lost", &e);
            }
        }
        if let Err(e) = file.flush().await {
            broken = true;
            complain("output is lost", &e);
        }
    }
    if let Err(e) = file.sync_all().await {
        complain("output may be lost", &e);
    }
}

/// Tells workers what the command writes and hears what they order. The latest to connect
/// takes the place of one that may be dead without anybody having noticed.
async fn serve(
    files: &Files,
    listener: &UnixListener,
    control: &Control,
    hub: &OutputHub,
) -> Infallible {
    let mut worker = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                worker.abort_all();
                worker.spawn(talk(stream, control.clone(), hub.clone()));
            }
            Err(e) => {
                complain(&format!("{}: no connection", files.dir().display()), &e);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        while worker.try_join_next().is_some() {}
    }
}

async fn talk(stream: UnixStream, control: Control, hub: OutputHub) {
    let (read, mut write) = stream.into_split();
    let telling = async {
        let mut follower = hub.follow(0);
        while let Some(chunks) = follower.next().await {
            for chunk in chunks {
                if write.write_all(&encode(&chunk)).await.is_err() {
                    return;
                }
            }
        }
        // The worker looks for the result when the connection ends, so it stays until
        // there is one, and ends with this process.
        std::future::pending::<()>().await;
    };
    let hearing = async {
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            match serde_json::from_str::<Kill>(&line) {
                Ok(Kill { reason, plan: Some(plan) }) => control.kill_with(reason, plan),
                Ok(Kill { reason, plan: None }) => control.kill(reason),
                // Of a newer worker, with a reason that is not known here.
                Err(_) => control.kill(KillReason::Requested),
            }
        }
    };
    tokio::select! {
        () = telling => {}
        () = hearing => {}
    }
}

/// Writes the result, trying until it is on disk or its directory has gone.
async fn record(files: &Files, ended: &Ended) {
    while let Err(e) = files.put_result(ended) {
        complain("cannot write the result, will try again", &e);
        if e.kind() == io::ErrorKind::NotFound {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn complain(what: &str, e: &io::Error) {
    let _ = writeln!(io::stderr(), "{what}: {e}");
}
