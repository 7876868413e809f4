//! Questions about what was, as messages.

use super::{
    convert::{run, time, time_from, word},
    public::{duration, invalid, name, optional},
};
use crate::ops::Ops;
use jiff::Timestamp;
use meepo_core::{
    code,
    history::{DayStats, Gap, Gaps, JobStats, OutputMatch, RunBrief, SearchHit, SearchPage},
};
use meepo_logstore::RunQuery;
use meepo_proto::v1 as pb;
use tonic::Status;

/// An instant that may be absent.
pub(super) fn instant(
    field: &str,
    t: Option<prost_types::Timestamp>,
) -> Result<Option<Timestamp>, Status> {
    t.map(|t| time_from(field, t)).transpose().map_err(invalid)
}

/// The runs that are asked for.
pub(super) async fn run_query(ops: &Ops, r: pb::ListRunsRequest) -> Result<RunQuery, Status> {
    let jobs = match optional(r.job) {
        Some(text) => ops.jobs_named(&text).await?,
        None => Vec::new(),
    };
    let states = r.states.iter().map(|s| s.parse()).collect::<Result<_, _>>();
    let codes = r.codes.iter().map(|c| code::matching(c)).collect::<Result<Vec<_>, _>>();
    Ok(RunQuery {
        job: None,
        jobs,
        task: optional(r.task).map(|t| t.parse()).transpose().map_err(invalid)?,
        node: optional(r.node).map(|n| name("node", &n)).transpose()?,
        states: states.map_err(invalid)?,
        codes: codes.map_err(invalid)?.into_iter().flatten().collect(),
        cause: optional(r.cause).map(|c| c.parse()).transpose().map_err(invalid)?,
        user: optional(r.user),
        since: instant("since", r.since)?,
        until: instant("until", r.until)?,
        min_took: duration("min_duration", &r.min_duration)?.map(|d| d.0),
        max_took: duration("max_duration", &r.max_duration)?.map(|d| d.0),
        limit: Some(r.limit).filter(|l| *l > 0),
        cursor: optional(r.cursor),
    })
}

fn brief(r: RunBrief) -> pb::RunBrief {
    pb::RunBrief {
        run_id: r.run_id.to_string(),
        node: r.node.to_string(),
        slot: Some(time(r.slot)),
        state: word(r.state),
        code: r.code.0.into(),
        ended_at: r.ended_at.map(time),
        took_ms: r.took_ms,
    }
}

/// Statistics of a job as a message.
pub(super) fn job_stats(s: JobStats) -> pb::JobStats {
    let day = |d: DayStats| pb::DayStats {
        day: d.day,
        runs: d.runs,
        success: d.success,
        failed: d.failed,
    };
    pb::JobStats {
        job: s.job.to_string(),
        since: s.since.map(time),
        until: s.until.map(time),
        runs: s.runs,
        complete: s.complete,
        by_state: s.by_state.into_iter().collect(),
        success_rate: s.success_rate,
        took: s.took.map(|t| pb::TookStats {
            runs: t.runs,
            p50_ms: t.p50_ms,
            p95_ms: t.p95_ms,
            p99_ms: t.p99_ms,
            max_ms: t.max_ms,
        }),
        last_success: s.last_success.map(brief),
        last_failure: s.last_failure.map(brief),
        next: s.next.map(time),
        days: s.days.into_iter().map(day).collect(),
    }
}

/// What did not run as a message.
pub(super) fn job_gaps(g: Gaps) -> pb::JobGaps {
    let gap = |g: Gap| pb::Gap {
        slot: Some(time(g.slot)),
        node: g.node.map(|n| n.to_string()).unwrap_or_default(),
        kind: g.kind.as_str().to_owned(),
        run_id: g.run_id.map(|id| id.to_string()).unwrap_or_default(),
        message: g.message.unwrap_or_default(),
    };
    pb::JobGaps {
        job: g.job.to_string(),
        since: Some(time(g.since)),
        until: Some(time(g.until)),
        due: g.due,
        ran: g.ran,
        gaps: g.gaps.into_iter().map(gap).collect(),
        complete: g.complete,
        silent: g.silent.into_iter().map(|n| n.to_string()).collect(),
    }
}

/// What a search found as a message.
pub(super) fn search_page(p: SearchPage) -> pb::SearchPage {
    let place = |m: OutputMatch| pb::OutputMatch {
        seq: m.seq,
        stream: word(m.stream),
        at: Some(time(m.at)),
        text: m.text,
    };
    let hit = |h: SearchHit| pb::SearchHit {
        run: Some(run(h.run)),
        matches: h.matches.into_iter().map(place).collect(),
        more: h.more,
    };
    pb::SearchPage {
        hits: p.hits.into_iter().map(hit).collect(),
        looked_at: p.looked_at,
        bytes: p.bytes,
        reached: p.reached.map(time),
        next: p.next.unwrap_or_default(),
    }
}
