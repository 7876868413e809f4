//! Statistics of a job: what the stores count, and what becomes of the counts.

use crate::{LogStore, RunQuery, StoreError};
use jiff::{Timestamp, civil::Date};
use meepo_core::{
    history::{DayStats, JobStats, RunBrief, TookStats},
    id::Name,
    run::{RunRecord, RunState},
};
use std::collections::BTreeMap;

/// Most runs that statistics look at: the newest.
pub const TALLY_RUNS: u64 = 100_000;
/// Milliseconds of a day.
pub(crate) const DAY: i64 = 24 * 3600 * 1000;

/// How many runs of a job are alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TallyRow {
    /// Their state.
    pub state: String,
    /// The day of their slots, UTC, counted from 1970.
    pub day: i64,
    /// The bucket of their duration; none: they have none.
    pub took: Option<i64>,
    /// How many they are.
    pub runs: u64,
    /// The longest duration among them, in milliseconds.
    pub longest: Option<i64>,
    /// The oldest slot among them, in milliseconds since 1970.
    pub oldest: i64,
}

/// A duration in milliseconds with its three leading digits, rounded down: what falls
/// together differs by less than 1 %. Whole numbers, so that every store agrees.
#[cfg(any(test, feature = "conformance"))]
pub(crate) const fn bucket(ms: i64) -> i64 {
    let mut unit = 1;
    while ms / unit >= 1000 && unit < LARGEST_UNIT {
        unit *= 10;
    }
    ms / unit * unit
}

/// The largest unit durations are rounded to, in milliseconds: reached by years.
pub(crate) const LARGEST_UNIT: i64 = 1_000_000_000;

/// The units with the durations from which on they are used, smallest first.
pub(crate) fn units() -> impl Iterator<Item = (i64, i64)> {
    std::iter::successors(Some((1000, 10)), |(from, unit)| {
        (*unit < LARGEST_UNIT).then_some((from * 10, unit * 10))
    })
}

/// The statistics of a job over the runs with slots from `since` on and before `until`.
///
/// # Errors
/// As [`LogStore::tally`] and [`LogStore::list_runs`].
pub async fn job_stats(
    store: &dyn LogStore,
    job: &Name,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
) -> Result<JobStats, StoreError> {
    let last = async |states: &[RunState]| {
        let query = RunQuery {
            job: Some(job.clone()),
            states: states.to_vec(),
            limit: Some(1),
            ..RunQuery::default()
        };
        let page = store.list_runs(&query).await?;
        Ok::<_, StoreError>(page.runs.first().map(brief))
    };
    let (rows, last_success, last_failure) = futures::try_join!(
        store.tally(job, since, until),
        last(&[RunState::Success]),
        last(&FAILURES)
    )?;
    let stats = JobStats {
        job: job.clone(),
        since,
        until,
        last_success,
        last_failure,
        ..JobStats::of(job.clone())
    };
    Ok(fold(stats, &rows))
}

/// The states of runs that were to succeed and did not.
pub const FAILURES: [RunState; 4] =
    [RunState::Failed, RunState::Timeout, RunState::Killed, RunState::Lost];

fn brief(r: &RunRecord) -> RunBrief {
    RunBrief {
        run_id: r.run_id,
        node: r.node.clone(),
        slot: r.slot,
        state: r.state,
        code: r.code,
        ended_at: r.ended_at,
        took_ms: r.took_ms(),
    }
}

fn fold(mut stats: JobStats, rows: &[TallyRow]) -> JobStats {
    let mut took: BTreeMap<i64, u64> = BTreeMap::new();
    let (mut longest, mut oldest) = (0, i64::MAX);
    let mut days: BTreeMap<i64, DayStats> = BTreeMap::new();
    for row in rows {
        let Ok(state) = row.state.parse::<RunState>() else { continue };
        stats.runs += row.runs;
        *stats.by_state.entry(state.as_str().to_owned()).or_default() += row.runs;
        oldest = oldest.min(row.oldest);
        if let Some(bucket) = row.took {
            *took.entry(bucket).or_default() += row.runs;
        }
        longest = longest.max(row.longest.unwrap_or(0));
        let Some(date) = date(row.day) else { continue };
        let day = days.entry(row.day).or_insert_with(|| DayStats {
            day: date.to_string(),
            runs: 0,
            success: 0,
            failed: 0,
        });
        day.runs += row.runs;
        match state {
            RunState::Success => day.success += row.runs,
            s if FAILURES.contains(&s) => day.failed += row.runs,
            _ => {}
        }
    }
    let count = |states: &[RunState]| -> u64 {
        states.iter().filter_map(|s| stats.by_state.get(s.as_str())).sum()
    };
    let (good, bad) = (count(&[RunState::Success]), count(&FAILURES));
    // Counts are far below what a double holds exactly.
    stats.success_rate = (good + bad > 0).then(|| good as f64 / (good + bad) as f64);
    stats.complete = stats.runs < TALLY_RUNS;
    if !stats.complete {
        stats.since = Timestamp::from_millisecond(oldest).ok();
    }
    let all: u64 = took.values().sum();
    // The smallest duration that so many per mille of the runs did not exceed.
    let at = |per_mille: u64| {
        let rank = (all * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        took.iter().find_map(|(ms, n)| {
            seen += n;
            (seen >= rank).then_some(*ms)
        })
    };
    if let (Some(p50_ms), Some(p95_ms), Some(p99_ms)) = (at(500), at(950), at(990)) {
        stats.took = Some(TookStats { runs: all, p50_ms, p95_ms, p99_ms, max_ms: longest });
    }
    stats.days = days.into_values().collect();
    stats
}

fn date(day: i64) -> Option<Date> {
    let at = Timestamp::from_millisecond(day.checked_mul(DAY)?).ok()?;
    Some(jiff::tz::TimeZone::UTC.to_datetime(at).date())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::name;

    #[test]
    fn durations_fall_together_by_three_digits() {
        for (ms, want) in [
            (0, 0),
            (7, 7),
            (999, 999),
            (1_000, 1_000),
            (1_009, 1_000),
            (1_010, 1_010),
            (123_456, 123_000),
            (99_999_999, 99_900_000),
        ] {
            assert_eq!(bucket(ms), want);
        }
        for ms in [1, 1_234, 56_789, 9_876_543, 31_556_952_000, i64::MAX] {
            let unit = units().filter(|(from, _)| *from <= ms).last().map_or(1, |u| u.1);
            assert_eq!(bucket(ms), ms / unit * unit);
            if ms < 1000 * LARGEST_UNIT {
                assert!((ms - bucket(ms)) as f64 <= ms as f64 * 0.01, "{ms}");
            }
        }
    }

    #[test]
    fn counts_become_statistics() {
        let row = |state: &str, day, took: Option<i64>, runs| TallyRow {
            state: state.to_owned(),
            day,
            took,
            runs,
            longest: took,
            oldest: day * DAY,
        };
        let rows = [
            row("success", 20_000, Some(100), 94),
            row("success", 20_001, Some(2_000), 2),
            row("failed", 20_001, Some(500), 3),
            row("timeout", 20_001, Some(60_000), 1),
            row("missed", 20_002, None, 7),
            row("of a newer version", 20_002, None, 7),
        ];
        let stats = fold(JobStats::of(name("j")), &rows);
        assert_eq!((stats.runs, stats.success_rate, stats.complete), (107, Some(0.96), true));
        let took = stats.took.unwrap();
        assert_eq!((took.runs, took.p50_ms, took.p95_ms, took.p99_ms), (100, 100, 500, 2_000));
        assert_eq!(took.max_ms, 60_000);
        let days: Vec<_> =
            stats.days.iter().map(|d| (d.day.as_str(), d.runs, d.success, d.failed)).collect();
        assert_eq!(
            days,
            [("2024-10-04", 94, 94, 0), ("2024-10-05", 6, 2, 4), ("2024-10-06", 7, 0, 0)]
        );
        let nothing = fold(JobStats::of(name("j")), &[]);
        assert_eq!((nothing.success_rate, nothing.took), (None, None));
    }
}
