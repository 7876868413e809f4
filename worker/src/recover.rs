//! After a restart: what the last life of this worker left open.

use crate::{
    process::{is_alive, signal_group},
    state::State,
};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    run::{RunState, to_millis},
};
use nix::sys::signal::Signal;
use tracing::{info, warn};

/// Ends every run that was open when the worker died: a process that is still there is
/// killed with its group, as nobody reads its output any more, and the run is recorded
/// as lost.
pub async fn recover(state: &State) -> anyhow::Result<()> {
    for open in state.recover().await? {
        let mut record = open.record;
        let message = match open.process {
            Some((pid, start)) if is_alive(pid, start) => {
                record.pid = Some(pid);
                match signal_group(pid, start, Signal::SIGKILL) {
                    Ok(_) => "the worker died while it ran; what was left of it was killed",
                    Err(e) => {
                        warn!(run_id = %record.run_id, pid, error = %e, "cannot kill a leftover");
                        "the worker died while it ran; what is left of it could not be killed"
                    }
                }
            }
            Some((pid, _)) => {
                record.pid = Some(pid);
                "the worker died while it ran; its process has ended since"
            }
            None => "the worker died when it was about to start",
        };
        info!(run_id = %record.run_id, message, "run of the last life");
        record.state = RunState::Lost;
        record.code = Code::LOST;
        record.message = Some(message.to_owned());
        record.ended_at = Some(to_millis(Timestamp::now()));
        state.end_run(&record).await?;
    }
    Ok(())
}
