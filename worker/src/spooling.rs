//! Writes that nobody waits for and that must not be forgotten when the disk refuses
//! them: output is counted, records are tried again.

use crate::{
    metrics::Metrics,
    process::Follower,
    state::{Begin, Queued, State, StateError},
};
use futures::FutureExt;
use jiff::Timestamp;
use meepo_core::{id::Name, run::RunRecord};
use meepo_runtime::backoff::Backoff;
use std::{collections::VecDeque, time::Duration};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Writes of one run's output on their way at the same time.
const IN_FLIGHT: usize = 64;

/// Sends everything a run writes to the spool; answers how many bytes of it were lost.
pub(crate) async fn output(state: &State, mut output: Follower, metrics: &Metrics) -> u64 {
    let mut lost = 0;
    let mut count = |written: Result<(), StateError>, bytes: u64| {
        if written.is_err() {
            metrics.spool_errors.inc();
            lost += bytes;
        }
    };
    let mut sent: VecDeque<(Queued<()>, u64)> = VecDeque::new();
    while let Some(chunks) = output.next().await {
        let bytes = chunks.iter().map(|c| c.data.len() as u64).sum();
        match state.spool_output_queued(&chunks).await {
            Ok(queued) => sent.push_back((queued, bytes)),
            Err(e) => count(Err(e), bytes),
        }
        let full = sent.len() >= IN_FLIGHT;
        while let Some((queued, bytes)) = sent.front_mut() {
            let written = match queued.now_or_never() {
                Some(written) => written,
                None if full => queued.await,
                None => break,
            };
            count(written, *bytes);
            sent.pop_front();
        }
    }
    for (queued, bytes) in sent {
        count(queued.await, bytes);
    }
    lost
}

/// Sends records of runs that will not begin, with the job's cursor. The answer is not
/// waited for; what the disk refuses is tried again until it takes it or `stop` is
/// cancelled. Errors: the state is closed.
pub(crate) async fn settle(
    state: &State,
    records: &[RunRecord],
    cursor: Option<(Name, Timestamp)>,
    tasks: &Handle,
    stop: &CancellationToken,
) -> Result<(), StateError> {
    if records.is_empty() {
        // A cursor that stays behind is moved by the next slot.
        return state.note_runs_later(records, cursor).await;
    }
    let queued = state.note_runs_queued(records, cursor.clone()).await?;
    let (state, records, stop) = (state.clone(), records.to_vec(), stop.clone());
    tasks.spawn(async move {
        match queued.await {
            // A later slot has moved the cursor meanwhile: these are to be told of still.
            Ok(Begin::SlotTaken { .. }) => {
                if !matches!(state.note_runs(&records, None).await, Err(e) if e.refused()) {
                    return;
                }
            }
            Err(e) if e.refused() => {}
            _ => return,
        }
        let mut backoff = Backoff::new(Duration::from_secs(5));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
            let written = match state.note_runs(&records, cursor.clone()).await {
                // The cursor has been moved by a later slot meanwhile.
                Ok(Begin::SlotTaken { .. }) => state.note_runs(&records, None).await,
                written => written,
            };
            if !matches!(written, Err(e) if e.refused()) {
                return;
            }
        }
    });
    Ok(())
}
