//! Removing what is old: a transaction a step, short enough that appends hardly wait. The
//! pages that become free are used again; the file does not shrink.

use crate::{Retention, Swept, items, retention::first_id_of};
use jiff::Timestamp;
use meepo_core::run::RunState;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

/// Runs and tasks removed in a step, of each state.
const RUNS: i64 = 200;
/// Chunks of output removed in a step beside those of removed runs.
const CHUNKS: i64 = 1_000;

/// Runs in a state that ended before an instant, oldest first.
pub(super) const OLD_RUNS: &str = "SELECT run_id FROM runs INDEXED BY runs_by_state
    WHERE state = ?1 AND slot < ?2 AND (ended IS NULL OR ended < ?2)
    ORDER BY slot, run_id LIMIT ?3";
/// Chunks that are old themselves. Their keys begin with ids that sort by time, so few are
/// looked at that stay.
pub(super) const OLD_OUTPUT: &str = "SELECT rowid FROM output
    WHERE run_id < ?1 AND at < ?2 ORDER BY run_id, seq LIMIT ?3";
/// Tasks that ended before an instant; their ids sort by the time of submission.
pub(super) const OLD_TASKS: &str = "SELECT task_id FROM tasks
    WHERE task_id < ?1 AND ended_at < ?2 ORDER BY task_id LIMIT ?3";

/// Records of the audit from before an instant: their ids sort by time.
const OLD_AUDIT: &str = "SELECT audit_id FROM audit WHERE audit_id < ?1 ORDER BY audit_id LIMIT ?2";

/// One step.
pub(super) fn step(
    conn: &mut Connection,
    retention: &Retention,
    now: Timestamp,
) -> rusqlite::Result<Swept> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut swept = Swept::default();
    if let Some(cutoff) = retention.output.cutoff(now) {
        output(&tx, cutoff, &mut swept)?;
    }
    for state in RunState::ALL {
        if let Some(cutoff) = retention.of_state(state).cutoff(now) {
            runs(&tx, state, cutoff, &mut swept)?;
        }
    }
    if let Some(cutoff) = retention.tasks.cutoff(now) {
        let gone = tx.execute(
            &format!("DELETE FROM tasks WHERE task_id IN ({OLD_TASKS})"),
            params![first_id_of(cutoff), items::millis(cutoff), RUNS],
        )?;
        swept.tasks += gone as u64;
        swept.more |= gone as i64 == RUNS;
    }
    if let Some(cutoff) = retention.audit.cutoff(now) {
        let gone = tx.execute(
            &format!("DELETE FROM audit WHERE audit_id IN ({OLD_AUDIT})"),
            params![first_id_of(cutoff), RUNS],
        )?;
        swept.audit += gone as u64;
        swept.more |= gone as i64 == RUNS;
    }
    tx.commit()?;
    Ok(swept)
}

fn output(tx: &Transaction<'_>, cutoff: Timestamp, swept: &mut Swept) -> rusqlite::Result<()> {
    let gone = tx.execute(
        &format!("DELETE FROM output WHERE rowid IN ({OLD_OUTPUT})"),
        params![first_id_of(cutoff), items::millis(cutoff), CHUNKS],
    )?;
    swept.chunks += gone as u64;
    swept.more |= gone as i64 == CHUNKS;
    Ok(())
}

fn runs(
    tx: &Transaction<'_>,
    state: RunState,
    cutoff: Timestamp,
    swept: &mut Swept,
) -> rusqlite::Result<()> {
    let cutoff = items::millis(cutoff);
    let old: Vec<Vec<u8>> = tx
        .prepare_cached(OLD_RUNS)?
        .query_map(params![state.as_str(), cutoff, RUNS], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut output = tx.prepare_cached("DELETE FROM output WHERE run_id = ?1")?;
    let mut run = tx.prepare_cached("DELETE FROM runs WHERE run_id = ?1")?;
    for id in &old {
        swept.chunks += output.execute([id])? as u64;
        swept.runs += run.execute([id])? as u64;
    }
    swept.more |= old.len() as i64 == RUNS;
    Ok(())
}
