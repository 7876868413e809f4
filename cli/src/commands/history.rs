//! `meepo job stats` and `meepo job gaps`.

use super::job_view::{field, indent};
use crate::{
    args::SpanArgs,
    client::Client,
    error::{CliResult, exit},
    output::{
        Out,
        table::{Table, cell, maybe, verdict},
        time,
    },
};
use jiff::Timestamp;
use meepo_core::{
    history::{GapKind, Gaps, JobStats, RunBrief, TookStats},
    id::Name,
};
use std::{fmt::Write, time::Duration};

/// From when to when, as the API takes it.
fn span(args: &SpanArgs, now: Timestamp) -> CliResult<[(&'static str, Option<String>); 2]> {
    let instant = |option: &str, text: &Option<String>| -> CliResult<Option<String>> {
        let at = text.as_ref().map(|t| time::parse_since(option, t, now)).transpose()?;
        Ok(at.map(|t| t.to_string()))
    };
    Ok([("since", instant("--since", &args.since)?), ("until", instant("--until", &args.until)?)])
}

/// `job stats`.
pub(crate) async fn stats(
    out: &Out,
    client: &Client,
    name: &Name,
    args: SpanArgs,
) -> CliResult<u8> {
    let now = Timestamp::now();
    let query = span(&args, now)?;
    let stats: JobStats = client.get(&["jobs", name.as_str(), "stats"], &query).await?;
    out.value(&stats, |out| stats_page(out, &stats, now))?;
    Ok(exit::OK)
}

/// `job gaps`.
pub(crate) async fn gaps(out: &Out, client: &Client, name: &Name, args: SpanArgs) -> CliResult<u8> {
    let query = span(&args, Timestamp::now())?;
    let gaps: Gaps = client.get(&["jobs", name.as_str(), "gaps"], &query).await?;
    out.value(&gaps, |out| gaps_page(out, &gaps))?;
    Ok(exit::OK)
}

/// The page of `job stats`.
fn stats_page(out: &Out, stats: &JobStats, now: Timestamp) -> String {
    let mut page = String::new();
    field(&mut page, "name", stats.job.as_str());
    if let Some(since) = stats.since {
        let newest = if stats.complete { "" } else { ", only the newest" };
        field(&mut page, "since", &format!("{}{newest}", time::local(since)));
    }
    summary(&mut page, out, stats, now);
    if let Some(next) = stats.next {
        field(&mut page, "next", &format!("{} ({})", time::local(next), time::relative(next, now)));
    }
    if !stats.days.is_empty() {
        let mut table = Table::new(out, &["DAY (UTC)", "RUNS", "SUCCESS", "FAILED"]);
        for d in &stats.days {
            table.row(vec![
                cell(&d.day),
                cell(d.runs.to_string()),
                cell(d.success.to_string()),
                if d.failed == 0 { cell("0") } else { verdict(d.failed.to_string(), false) },
            ]);
        }
        page.push('\n');
        page.push_str(&indent(&table.render()));
    }
    page
}

/// The lines that `job get` shows too.
pub(super) fn summary(page: &mut String, out: &Out, stats: &JobStats, now: Timestamp) {
    if stats.runs == 0 {
        field(page, "runs", "none");
    } else {
        let states = stats.by_state.iter().map(|(state, n)| format!("{n} {state}"));
        let states = states.collect::<Vec<_>>().join(", ");
        field(page, "runs", &format!("{} ({states})", stats.runs));
    }
    if let Some(rate) = stats.success_rate {
        let text = percent(rate);
        let color = if rate >= 1.0 { "32" } else { "31" };
        let label = format!("{:<19}", "success rate:");
        let _ = match out.color {
            true => writeln!(page, "{label}\x1b[{color}m{text}\x1b[0m"),
            false => writeln!(page, "{label}{text}"),
        };
    }
    if let Some(took) = stats.took {
        field(page, "took", &durations(took));
    }
    for (name, run) in
        [("last success", &stats.last_success), ("last failure", &stats.last_failure)]
    {
        if let Some(run) = run {
            field(page, name, &brief(run, now));
        }
    }
}

/// A share in per cent; not rounded up to all of them.
fn percent(rate: f64) -> String {
    if rate >= 1.0 {
        "100 %".to_owned()
    } else {
        format!("{:.1} %", (rate * 1000.0 + 1e-6).floor() / 10.0)
    }
}

fn durations(took: TookStats) -> String {
    let short = |ms: i64| time::short(Duration::from_millis(ms.unsigned_abs()));
    format!(
        "half {} or less, 95 % {}, 99 % {}, longest {}",
        short(took.p50_ms),
        short(took.p95_ms),
        short(took.p99_ms),
        short(took.max_ms)
    )
}

fn brief(run: &RunBrief, now: Timestamp) -> String {
    let at = run.ended_at.unwrap_or(run.slot);
    let mut text = format!("{} on {}, {}", run.run_id, run.node, time::relative(at, now));
    if !run.code.is_ok() {
        let _ = write!(text, ": {}", run.code.meaning());
    }
    if let Some(ms) = run.took_ms {
        let _ = write!(text, " after {}", time::short(Duration::from_millis(ms.unsigned_abs())));
    }
    text
}

/// The page of `job gaps`.
fn gaps_page(out: &Out, gaps: &Gaps) -> String {
    let mut page = String::new();
    if !gaps.gaps.is_empty() {
        let mut table = Table::new(out, &["SLOT", "NODE", "WHY", "RUN", "MESSAGE"]);
        for g in &gaps.gaps {
            let why = match g.kind {
                GapKind::Missed => "missed: nobody could run it",
                GapKind::Skipped => "skipped: an earlier run was active",
                GapKind::Absent => "no record of it",
            };
            table.row(vec![
                cell(time::local(g.slot)),
                maybe(g.node.as_ref().map(|n| n.as_str())),
                verdict(why, false),
                maybe(g.run_id.map(|id| id.to_string())),
                maybe(g.message.as_ref()),
            ]);
        }
        page.push_str(&table.render());
    }
    let missing = gaps.due.saturating_sub(gaps.ran);
    let _ = writeln!(
        page,
        "{} of {} slots ran from {} to {}{}",
        gaps.ran,
        gaps.due,
        time::local(gaps.since),
        time::local(gaps.until),
        if missing == 0 { "; none is missing" } else { "" }
    );
    if !gaps.complete {
        page.push_str("these are not all: ask again with another --since or --until\n");
    }
    for node in &gaps.silent {
        let _ = writeln!(page, "{node} holds the job and has never run it, as far as is known");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;
    use serde_json::json;

    fn out(color: bool) -> Out {
        Out { format: Format::Table, terminal: color, color, err_terminal: false, err_color: false }
    }

    fn now() -> Timestamp {
        "2026-01-02T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn statistics_are_told_in_words() {
        let id = "01932f5e-0000-7000-8000-000000000001";
        let stats: JobStats = serde_json::from_value(json!({
            "job": "backup", "since": "2026-01-01T00:00:00Z", "runs": 2000, "complete": true,
            "by_state": {"success": 1999, "failed": 1}, "success_rate": 0.9995,
            "took": {"runs": 2000, "p50_ms": 1200, "p95_ms": 3000, "p99_ms": 61000, "max_ms": 62345},
            "last_failure": {"run_id": id, "node": "n1", "slot": "2026-01-01T00:00:00Z",
                "state": "failed", "code": 0x0101, "took_ms": 250},
            "next": "2026-01-02T01:00:00Z",
            "days": [{"day": "2026-01-01", "runs": 2000, "success": 1999, "failed": 1}]}))
        .unwrap();
        let text = stats_page(&out(false), &stats, now());
        for want in [
            "runs:              2000 (1 failed, 1999 success)\n",
            "success rate:      99.9 %\n",
            "took:              half 1.2s or less, 95 % 3.0s, 99 % 1m01s, longest 1m02s\n",
            "on n1, 1d0h ago: the command ended with a non-zero exit status after 250ms",
            "(in 1h00m)",
            "2026-01-01  2000  1999     1\n",
        ] {
            assert!(text.contains(want), "{want}\n---\n{text}");
        }
        assert!(!text.contains('\x1b'));
        assert!(stats_page(&out(true), &stats, now()).contains("\x1b[31m99.9 %\x1b[0m"));
        let none = stats_page(&out(false), &JobStats::of(stats.job), now());
        assert!(none.contains("runs:              none\n"), "{none}");
    }

    #[test]
    fn gaps_say_why() {
        let gaps: Gaps = serde_json::from_value(json!({
            "job": "backup", "since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z",
            "due": 24, "ran": 22, "complete": true, "silent": ["n9"], "gaps": [
                {"slot": "2026-01-01T01:00:00Z", "node": "n1", "kind": "absent"},
                {"slot": "2026-01-01T02:00:00Z", "node": "n1", "kind": "missed", "message": "asleep",
                 "run_id": "01932f5e-0000-7000-8000-000000000001"}]}))
        .unwrap();
        let text = gaps_page(&out(false), &gaps);
        for want in
            ["no record of it", "missed: nobody", "asleep", "22 of 24 slots ran", "n9 holds"]
        {
            assert!(text.contains(want), "{want}\n---\n{text}");
        }
        assert!(!text.contains('\x1b') && !text.contains("not all"));
    }
}
