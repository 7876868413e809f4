//! Questions and answers: filters, limits and the paging cursor.

use crate::StoreError;
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    id::{Name, NodeId, RunId},
    run::{Cause, RunRecord, RunState},
    task::TaskId,
};
use std::time::Duration;

/// Runs on a page unless asked otherwise.
pub const DEFAULT_RUNS: u32 = 50;
/// Most runs on a page; a higher limit is cut to it.
pub const MAX_RUNS: u32 = 1_000;
/// Longest time a list may take before it is given up.
pub const LIST_PATIENCE: Duration = Duration::from_secs(15);
/// Most chunks in one answer; a higher limit is cut to it.
pub const MAX_OUTPUT_CHUNKS: usize = 10_000;
/// An answer of output ends with the chunk that reaches this many bytes.
pub const MAX_OUTPUT_BYTES: usize = 16 * 1024 * 1024;

/// Which runs to list. All filters must hold; an absent filter holds for every run.
///
/// Job, node, state, code, user and time are served by an index, the first of them that
/// is given; the rest is checked on what that finds. `min_took` and `max_took` have none:
/// a question that would take longer than [`LIST_PATIENCE`] is given up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunQuery {
    /// Runs of this job.
    pub job: Option<Name>,
    /// Runs of one of these jobs; empty means any.
    pub jobs: Vec<Name>,
    /// Runs of the parts of this task.
    pub task: Option<TaskId>,
    /// Runs on this node.
    pub node: Option<NodeId>,
    /// Runs in one of these states; empty means any.
    pub states: Vec<RunState>,
    /// Runs with one of these outcomes; empty means any.
    pub codes: Vec<Code>,
    /// Runs that came to be for this reason.
    pub cause: Option<Cause>,
    /// Runs for which this user was asked for.
    pub user: Option<String>,
    /// Runs with this slot or a later one.
    pub since: Option<Timestamp>,
    /// Runs with a slot before this.
    pub until: Option<Timestamp>,
    /// Runs that have ended and took so long or longer.
    pub min_took: Option<Duration>,
    /// Runs that have ended and took no longer.
    pub max_took: Option<Duration>,
    /// Most runs on the page: 1 to [`MAX_RUNS`], [`DEFAULT_RUNS`] if absent. What lies
    /// outside is moved to the nearer end.
    pub limit: Option<u32>,
    /// Where the page before ended: [`RunPage::next`] of the same query.
    pub cursor: Option<String>,
}

/// Runs, newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunPage {
    /// At most [`RunQuery::limit`] runs by slot, then run id, both descending.
    pub runs: Vec<RunRecord>,
    /// The cursor of the next page; absent on the last. Opaque, safe in URLs.
    pub next: Option<String>,
}

impl RunQuery {
    /// The limit that holds.
    pub(crate) fn page_size(&self) -> usize {
        // At most 1000: fits any usize.
        self.limit.unwrap_or(DEFAULT_RUNS).clamp(1, MAX_RUNS) as usize
    }

    /// The jobs asked for, each once; `None` means any.
    pub(crate) fn distinct_jobs(&self) -> Option<Vec<Name>> {
        let (one, many) = (self.job.as_ref(), &self.jobs);
        let mut jobs: Vec<Name> = match one {
            Some(job) if many.is_empty() || many.contains(job) => vec![job.clone()],
            Some(_) => Vec::new(),
            None if many.is_empty() => return None,
            None => many.clone(),
        };
        jobs.sort();
        jobs.dedup();
        Some(jobs)
    }

    /// The codes asked for, each once; empty means any.
    pub(crate) fn distinct_codes(&self) -> Vec<Code> {
        let mut codes = self.codes.clone();
        codes.sort();
        codes.dedup();
        codes
    }

    /// The bounds of the duration in milliseconds: at least, at most.
    pub(crate) fn took(&self) -> (Option<i64>, Option<i64>) {
        let whole = |d: u128| i64::try_from(d).unwrap_or(i64::MAX);
        // Up: 1.5 ms is not reached by 1 ms.
        let min = self.min_took.map(|d| whole(d.as_nanos().div_ceil(1_000_000)));
        (min, self.max_took.map(|d| whole(d.as_millis())))
    }

    /// The states asked for, each once; empty means any.
    pub(crate) fn distinct_states(&self) -> Vec<RunState> {
        RunState::ALL.into_iter().filter(|s| self.states.contains(s)).collect()
    }

    /// The position the cursor names.
    pub(crate) fn position(&self) -> Result<Option<Position>, StoreError> {
        self.cursor.as_deref().map(Position::decode).transpose()
    }
}

/// The limit of chunks that holds.
pub(crate) fn chunk_limit(limit: usize) -> usize {
    limit.clamp(1, MAX_OUTPUT_CHUNKS)
}

/// A place in the order of runs. Being a place and not an offset, it stays right
/// while runs are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// Slot in milliseconds since 1970.
    pub(crate) slot: i64,
    /// Bytes of the run id.
    pub(crate) run_id: [u8; 16],
}

impl Position {
    /// Splits what was read (one more than the page holds, if there is more) into
    /// the page's part and the cursor of the next page.
    pub(crate) fn cut<T>(rows: &mut Vec<(Position, T)>, page_size: usize) -> Option<String> {
        if rows.len() <= page_size {
            return None;
        }
        rows.truncate(page_size);
        rows.last().map(|(p, _)| p.encode())
    }

    pub(crate) fn encode(self) -> String {
        // The sign bit is flipped so that the text sorts like the positions.
        let slot = (self.slot as u64) ^ (1 << 63);
        format!("{slot:016x}{:032x}", u128::from_be_bytes(self.run_id))
    }

    fn decode(text: &str) -> Result<Self, StoreError> {
        let parse = || {
            // Checked first: `from_str_radix` also takes a sign, and slicing needs
            // character boundaries.
            if text.len() != 48 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            let slot = u64::from_str_radix(&text[..16], 16).ok()? ^ (1 << 63);
            let run_id = u128::from_str_radix(&text[16..], 16).ok()?;
            Some(Self { slot: slot as i64, run_id: run_id.to_be_bytes() })
        };
        parse().ok_or_else(|| StoreError::Refused {
            op: "list runs",
            problem: format!("{:?} is not a cursor", text.chars().take(64).collect::<String>()),
            expected: "the `next` of an earlier page, unchanged".into(),
        })
    }
}

impl From<&RunRecord> for Position {
    fn from(r: &RunRecord) -> Self {
        Self { slot: r.slot.as_millisecond(), run_id: bytes_of(r.run_id) }
    }
}

/// The 16 bytes of a run id; they sort like the id.
pub(crate) fn bytes_of(id: RunId) -> [u8; 16] {
    *id.0.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_and_sort_like_positions() {
        let mut positions = Vec::new();
        for slot in [i64::MIN, -1, 0, 1, 1_700_000_000_000, i64::MAX] {
            for b in [0u8, 1, 255] {
                positions.push(Position { slot, run_id: [b; 16] });
            }
        }
        let texts: Vec<_> = positions.iter().map(|p| p.encode()).collect();
        assert!(texts.is_sorted());
        for (p, t) in positions.iter().zip(&texts) {
            assert_eq!(Position::decode(t).unwrap(), *p);
        }
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for bad in ["", "x", &"+".repeat(48), &"é".repeat(24), &"0".repeat(47)] {
            let e = Position::decode(bad).unwrap_err();
            assert!(matches!(e, StoreError::Refused { .. }) && !e.retryable(), "{bad:?}: {e}");
        }
    }
}
