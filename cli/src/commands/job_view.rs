//! Jobs on the screen.

use super::{history, outcome::describe};
use crate::output::{
    Out,
    table::{Table, cell, maybe, state, verdict},
    text, time,
};
use jiff::Timestamp;
use meepo_core::{
    api::{JobOnNode, JobSource, JobSummary, JobView},
    history::JobStats,
    job::{JobSpec, JobStatus, OutputKeep, Placement},
    run::RunRecord,
};
use std::fmt::Write;

/// Widest command in a list, in characters.
const CMD_WIDTH: usize = 40;

/// The table of `job list`.
pub(crate) fn list(out: &Out, jobs: &[JobSummary], filtered: bool, now: Timestamp) -> String {
    if jobs.is_empty() {
        return match filtered {
            true => "no such jobs\n".to_owned(),
            false => "no jobs; make one with `meepo job apply -f FILE`\n".to_owned(),
        };
    }
    let header = ["NAME", "SCHEDULE", "STATUS", "NODES", "NEXT", "LAST RUN", "COMMAND"];
    let mut table = Table::new(out, &header);
    for job in jobs {
        let counts = job.counts;
        let mut nodes = format!("{}/{}", counts.online, counts.nodes);
        if let Ok(problems) = usize::try_from(counts.problems)
            && problems > 0
        {
            let _ = write!(nodes, " ({})", text::count(problems, "problem"));
        }
        let (schedule, status, command) = match (&job.spec, &job.by_hand) {
            (Some(spec), _) => (spec_schedule(spec), Some(spec.status), Some(&spec.cmd)),
            (None, Some(by_hand)) => {
                let express = Some(by_hand.express.clone()).filter(|e| !e.is_empty());
                (express, Some(by_hand.status), Some(&by_hand.cmd))
            }
            (None, None) => (None, None, None),
        };
        let disabled = job.spec.as_ref().is_some_and(|s| s.disabled);
        table.row(vec![
            cell(job.name.as_str()),
            maybe(schedule),
            verdict(status_word(status, disabled), status == Some(JobStatus::Running)),
            cell(nodes),
            maybe(job.next.map(|at| time::relative(at, now))),
            job.last_run.as_ref().map_or_else(|| cell("-"), |r| state(r.state)),
            maybe(command.map(|c| text::shorten(&text::one_line(c), CMD_WIDTH))),
        ]);
    }
    table.render()
}

fn spec_schedule(spec: &JobSpec) -> Option<String> {
    spec.schedule.as_ref().map(|s| match &spec.timezone {
        Some(zone) => format!("{s} ({zone})"),
        None => s.clone(),
    })
}

fn status_word(status: Option<JobStatus>, disabled: bool) -> &'static str {
    match status {
        _ if disabled => "off",
        Some(JobStatus::Running) => "running",
        Some(JobStatus::Pause) => "paused",
        None => "-",
    }
}

fn schedule(job: &JobView) -> Option<String> {
    match &job.spec {
        Some(spec) => spec_schedule(spec),
        None => job.nodes.first().map(|n| n.express.clone()).filter(|e| !e.is_empty()),
    }
}

fn command(job: &JobView) -> Option<&str> {
    match &job.spec {
        Some(spec) => Some(&spec.cmd),
        None => job.nodes.first().map(|n| n.cmd.as_str()),
    }
}

fn status(job: &JobView) -> &'static str {
    let status = job.spec.as_ref().map(|s| s.status);
    let status = status.or_else(|| job.nodes.first().map(|n| n.status));
    status_word(status, job.spec.as_ref().is_some_and(|s| s.disabled))
}

/// The page of `job get`.
pub(crate) fn page(
    out: &Out,
    job: &JobView,
    slots: &[Timestamp],
    stats: Option<&JobStats>,
    now: Timestamp,
) -> String {
    let mut page = String::new();
    field(&mut page, "name", job.name.as_str());
    match (&job.spec, job.source) {
        (Some(spec), _) => definition(&mut page, spec),
        (None, JobSource::Etcd) => {
            field(&mut page, "source", "etcd (put by hand; no master touches it)");
            field(&mut page, "schedule", schedule(job).as_deref().unwrap_or("only on demand"));
            field(&mut page, "status", status(job));
            field(&mut page, "command", command(job).unwrap_or("-"));
        }
        (None, JobSource::Definition) => {}
    }
    for given in &job.tree {
        let fields = given.definition.keys().filter(|f| !matches!(f.as_str(), "name" | "tree"));
        let fields = fields.cloned().collect::<Vec<_>>().join(", ");
        let off = given.definition.get("disabled") == Some(&serde_json::Value::Bool(true));
        let gives = if off { "switched off" } else { &fields };
        field(&mut page, "in the tree", &format!("{}: {gives}", given.tree));
    }
    if let Some(revision) = job.revision {
        field(&mut page, "revision", &revision.to_string());
    }
    if let Some(run) = &job.last_run {
        field(&mut page, "last run", &last_run(run, now));
    }
    if let Some(stats) = stats.filter(|s| s.runs > 0 || s.last_success.is_some()) {
        page.push_str("\nlast 30 days:\n");
        let mut lines = String::new();
        history::summary(&mut lines, out, stats, now);
        page.push_str(&indent(&lines));
    }
    if !slots.is_empty() {
        page.push_str("\nnext slots:\n");
        for slot in slots {
            let _ =
                writeln!(page, "  {}  {slot}  {}", time::local(*slot), time::relative(*slot, now));
        }
    } else if let Some(next) = job.next {
        field(&mut page, "next", &format!("{} ({})", time::local(next), time::relative(next, now)));
    }
    if job.nodes.is_empty() {
        page.push_str("\nno node holds it: the target matches none\n");
    } else {
        page.push_str("\nnodes:\n");
        page.push_str(&indent(&nodes(out, &job.nodes)));
    }
    let problems: Vec<_> =
        job.nodes.iter().filter_map(|n| n.problem.as_ref().map(|p| (&n.node, p))).collect();
    if !problems.is_empty() {
        page.push_str("\nproblems:\n");
        for (node, problem) in problems {
            let _ = writeln!(page, "  {node}: {}", text::one_line(problem));
        }
    }
    page
}

fn definition(page: &mut String, spec: &JobSpec) {
    let mut put = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            field(page, name, &value);
        }
    };
    put("description", spec.description.clone());
    put(
        "schedule",
        Some(match (&spec.schedule, &spec.timezone) {
            (Some(s), Some(zone)) => format!("{s} ({zone})"),
            (Some(s), None) => format!("{s} (UTC)"),
            (None, _) => "only on demand".to_owned(),
        }),
    );
    put("status", Some(if spec.disabled { "off".to_owned() } else { word(&spec.status) }));
    put(
        "target",
        Some(match spec.placement {
            Placement::Each => spec.target.clone(),
            Placement::Once => format!("{} (once in the cluster)", spec.target),
            Placement::Any(n) => format!("{} (on {n} of them)", spec.target),
        }),
    );
    put("executor", Some(spec.executor.to_string()));
    put("command", Some(spec.cmd.clone()));
    put("arguments", (!spec.args.is_empty()).then(|| format!("{:?}", spec.args)));
    put("timeout", spec.timeout.map(|t| t.to_string()));
    put("overlap", Some(word(&spec.concurrency)));
    put(
        "missed slots",
        Some(match spec.misfire_cap {
            Some(cap) => format!("{}, at most {cap}", word(&spec.misfire)),
            None => word(&spec.misfire),
        }),
    );
    put("starting deadline", spec.starting_deadline.map(|t| t.to_string()));
    put("user", spec.user.clone());
    put("group", spec.group.clone());
    put("umask", spec.umask.map(|m| m.to_string()));
    put("nice", spec.nice.map(|n| n.to_string()));
    let limits = spec.rlimits.given().map(|(name, l)| format!("{name}={l}"));
    let limits: Vec<_> = limits.collect();
    put("limits", (!limits.is_empty()).then(|| limits.join(" ")));
    put("session", spec.session.then(|| "its own".to_owned()));
    put("control group", spec.cgroup.map(|c| c.to_string()));
    put("ended by", spec.kill_plan.as_ref().map(|p| p.to_string()));
    put("directory", spec.cwd.clone());
    for (k, v) in &spec.env {
        put("environment", Some(format!("{k}={v}")));
    }
    put("stdin", spec.stdin.as_ref().map(|s| text::bytes(s.len() as u64)));
    put("output limit", spec.output_limit.map(text::bytes));
    put("output kept", (spec.output_keep != OutputKeep::Head).then(|| word(&spec.output_keep)));
}

/// An enum's name as written in JSON.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(s)) => s,
        _ => "-".to_owned(),
    }
}

fn last_run(run: &RunRecord, now: Timestamp) -> String {
    let words = if run.state.is_final() { describe(run) } else { "not ended".to_owned() };
    let mut line = format!("{} {} on {}", run.run_id, run.state, run.node);
    let started = run.started_at.unwrap_or(run.slot);
    let _ = write!(line, ", {}, {words}", time::relative(started, now));
    line
}

fn nodes(out: &Out, nodes: &[JobOnNode]) -> String {
    let mut table = Table::new(out, &["NODE", "ONLINE", "STATUS", "SCHEDULE", "RUN", "STATE"]);
    for n in nodes {
        let current = n.current.as_ref();
        table.row(vec![
            cell(n.node.as_str()),
            verdict(if n.online { "yes" } else { "no" }, n.online),
            match (&n.problem, n.status, n.spent) {
                (Some(_), ..) => verdict("unusable", false),
                (None, JobStatus::Pause, _) => cell("paused"),
                (None, JobStatus::Running, true) => cell("ended"),
                (None, JobStatus::Running, false) => cell("running"),
            },
            maybe((!n.express.is_empty()).then_some(&n.express)),
            maybe(current.map(|c| c.cronid.to_string())),
            current.map_or_else(|| cell("-"), |c| state(c.state)),
        ]);
    }
    table.render()
}

/// A line `name:  value`; further lines of the value are indented.
pub(crate) fn field(page: &mut String, name: &str, value: &str) {
    let value = text::lines(value.trim_end_matches('\n'));
    let label = format!("{name}:");
    let mut lines = value.split('\n');
    let _ = writeln!(page, "{label:<19}{}", lines.next().unwrap_or_default());
    for line in lines {
        let _ = writeln!(page, "{:<19}{line}", "");
    }
}

/// `text` with two spaces in front of each line.
pub(crate) fn indent(text: &str) -> String {
    text.lines().fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "  {line}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;
    use serde_json::json;

    fn out() -> Out {
        Out {
            format: Format::Table,
            terminal: false,
            color: false,
            err_terminal: false,
            err_color: false,
        }
    }

    fn jobs() -> Vec<JobView> {
        let id = "01932f5e-0000-7000-8000-000000000001";
        serde_json::from_value(json!([
            {"name": "backup", "source": "definition", "revision": 12, "next": "2026-01-01T03:00:00Z",
             "spec": {"name": "backup", "cmd": "set -e\ntar c / | ssh x", "schedule": "0 3 * * *", "env": {"A": "1"},
                      "timezone": "Europe/Berlin", "placement": "once", "timeout": "1h", "misfire": "once"},
             "nodes": [{"node": "n1", "online": true, "status": "running", "express": "0 3 * * *", "cmd": "x",
                        "current": {"cronid": id, "state": "success", "slot": "2026-01-01T00:00:00Z"}},
                       {"node": "n2", "online": false, "status": "running", "express": "0 3 * *", "cmd": "x",
                        "problem": "schedule: 4 fields; expected 5"}],
             "last_run": super::super::outcome::tests::run(json!({"exit_code": 3, "job": "backup"}))},
            {"name": "byhand", "source": "etcd", "nodes": [
                {"node": "n1", "online": true, "status": "pause", "express": "", "cmd": "date \u{1b}[2J"}]}
        ]))
        .unwrap()
    }

    #[test]
    fn the_list_has_a_line_a_job() {
        let now = "2026-01-01T02:00:00Z".parse().unwrap();
        let jobs: Vec<JobSummary> = serde_json::from_value(json!([
            {"name": "backup", "source": "definition", "next": "2026-01-01T03:00:00Z",
             "spec": {"name": "backup", "cmd": "set -e\ntar c / | ssh x", "schedule": "0 3 * * *",
                      "timezone": "Europe/Berlin"},
             "counts": {"nodes": 2, "online": 1, "problems": 1},
             "last_run": super::super::outcome::tests::run(json!({"exit_code": 3}))},
            {"name": "byhand", "source": "etcd", "counts": {"nodes": 1, "online": 1, "problems": 0},
             "by_hand": {"status": "pause", "express": "", "cmd": "date \u{1b}[2J"}}
        ]))
        .unwrap();
        let text = list(&out(), &jobs, false, now);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        for want in
            ["0 3 * * * (Europe/Berlin)", "1/2 (1 problem)", "in 1h00m", "failed", "set -e tar c"]
        {
            assert!(lines[1].contains(want), "{want}: {text}");
        }
        assert!(lines[2].contains("paused") && lines[2].contains(r"date \x1b[2J"), "{text}");
        assert!(list(&out(), &[], false, now).contains("meepo job apply"));
        assert!(!list(&out(), &[], true, now).contains("meepo job apply"));
    }

    #[test]
    fn the_page_tells_everything_there_is() {
        let now = "2026-01-01T02:00:00Z".parse().unwrap();
        let slots = ["2026-01-01T02:00:00Z".parse().unwrap()];
        let stats = serde_json::from_value(json!({"job": "backup", "runs": 4, "complete": true,
            "by_state": {"success": 3, "failed": 1}, "success_rate": 0.75, "days": []}));
        let stats: JobStats = stats.unwrap();
        let text = page(&out(), &jobs()[0], &slots, Some(&stats), now);
        for want in [
            "target:            all (once in the cluster)\n",
            "command:           set -e\n                   tar c / | ssh x\n",
            "environment:       A=1\n",
            "exit status 3 after 1.2s",
            "2h00m ago",
            "2026-01-01T02:00:00Z  in 0ms",
            "last 30 days:\n  runs:              4 (1 failed, 3 success)\n  success rate:      75.0 %\n",
            "  n2    no      unusable",
            "  n2: schedule: 4 fields; expected 5\n",
        ] {
            assert!(text.contains(want), "{want}\n---\n{text}");
        }
        let text = page(&out(), &jobs()[1], &[], None, now);
        assert!(text.contains("put by hand") && text.contains("only on demand"), "{text}");
        assert!(!text.contains('\x1b'));
    }
}
