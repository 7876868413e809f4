//! After a restart: what the last life of this worker left open.

use crate::{
    process::{is_alive, kill_process, signal_group, with_variable},
    state::State,
};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    run::{RunState, to_millis},
};
use nix::sys::signal::Signal;
use std::collections::HashMap;
use tracing::{info, warn};

/// Ends every run that was open when the worker died: processes of it that are still
/// there are killed, as nobody reads their output any more, and the run is recorded as
/// lost.
///
/// A process is known by its pid together with its start time, and kills its group;
/// others, whose start was not noted or whose leader has gone, by the run's id in their
/// environment. A bare pid is never trusted: after a restart of the host it is another's.
pub async fn recover(state: &State) -> anyhow::Result<()> {
    let open = state.recover().await?;
    if open.is_empty() {
        return Ok(());
    }
    let mut processes: HashMap<String, Vec<u32>> = HashMap::new();
    for (pid, run_id) in tokio::task::spawn_blocking(|| with_variable("MEEPO_RUN_ID")).await? {
        processes.entry(run_id).or_default().push(pid);
    }
    for open in open {
        let mut record = open.record;
        let run_id = record.run_id;
        record.pid = open.process.map(|(pid, _)| pid);
        let led = match open.process {
            Some((pid, start)) if is_alive(pid, start) => {
                Some(signal_group(pid, start, Signal::SIGKILL).map(drop))
            }
            _ => None,
        };
        let others = processes.remove(&run_id.to_string()).unwrap_or_default();
        let killed = led.into_iter().chain(others.into_iter().map(kill_process));
        let message = match killed.reduce(|all, one| all.and(one)) {
            Some(Ok(())) => "the worker died while it ran; what was left of it was killed",
            Some(Err(e)) => {
                warn!(%run_id, pid = ?record.pid, error = %e, "cannot kill a leftover");
                "the worker died while it ran; what is left of it could not be killed"
            }
            None if record.pid.is_some() => {
                "the worker died while it ran; its process has ended since"
            }
            None => "the worker died when it was about to start",
        };
        info!(%run_id, message, "run of the last life");
        record.state = RunState::Lost;
        record.code = Code::LOST;
        record.message = Some(message.to_owned());
        record.ended_at = Some(to_millis(Timestamp::now()));
        state.end_run(&record).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{SpoolItem, StateOptions};
    use meepo_core::run::RunRecord;
    use std::process::{Child, Command, Stdio};

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn open_run() -> RunRecord {
        let json = serde_json::json!({
            "run_id": uuid::Uuid::now_v7(), "node": "n", "slot": "2026-01-01T00:00:00Z",
            "attempt": 1, "cause": "exec", "executor": "exec", "cmd": "x", "state": "running",
            "code": 0, "output_bytes": 0, "dropped_bytes": 0,
        });
        serde_json::from_value(json).unwrap()
    }

    fn process(run_id: &str) -> Killed {
        let mut command = Command::new("sleep");
        command.arg("600").env("MEEPO_RUN_ID", run_id).stdout(Stdio::null());
        Killed(command.spawn().unwrap())
    }

    #[tokio::test]
    async fn leftovers_are_found_by_their_environment_and_others_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&StateOptions::new(dir.path())).unwrap();
        let (unnoted, led) = (open_run(), open_run());
        for run in [&unnoted, &led] {
            state.begin_run(run, None).await.unwrap();
        }
        let mut first = process(&unnoted.run_id.to_string());
        let mut second = process(&led.run_id.to_string());
        let mut other = process(&uuid::Uuid::now_v7().to_string());
        // The pid is another process' by now: the start time is not the same.
        state.started(led.run_id, other.0.id(), 1).await.unwrap();
        recover(&state).await.unwrap();
        for gone in [&mut first, &mut second] {
            assert!(!gone.0.wait().unwrap().success());
        }
        assert!(other.0.try_wait().unwrap().is_none(), "it is no business of ours");
        assert!(state.recover().await.unwrap().is_empty());
        for item in state.peek(10, usize::MAX).await.unwrap().items {
            let SpoolItem::Record(record) = item else { panic!("{item:?}") };
            assert_eq!(record.state, RunState::Lost);
            assert!(record.message.unwrap().contains("was killed"));
        }
    }
}
