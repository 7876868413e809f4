//! `meepo node list | get | drain | undrain`.

use super::job_view::{field, indent};
use crate::{
    client::Client,
    error::{CliError, CliResult, exit},
    output::{
        Out,
        table::{Table, cell, maybe, verdict},
        text, time,
    },
};
use jiff::Timestamp;
use meepo_core::{
    api::{DrainRequest, DrainState, NodeList, NodeView},
    doctor::Severity,
    duration::HumanDuration,
    id::NodeId,
    node::Work,
    target::Target,
};
use reqwest::Method;
use std::time::Duration;

/// How often `drain --wait` looks.
const LOOK: Duration = Duration::from_millis(300);

/// `node list`.
pub(crate) async fn list(out: &Out, client: &Client, target: Option<String>) -> CliResult<u8> {
    let (nodes, found) = fetch(out, client, target).await?;
    out.value(&nodes, |out| table(out, &nodes, Timestamp::now()))?;
    Ok(found)
}

/// The nodes of a target, and the exit code; what is to be known of them goes to standard
/// error.
pub(super) async fn fetch(
    out: &Out,
    client: &Client,
    target: Option<String>,
) -> CliResult<(Vec<NodeView>, u8)> {
    if let Some(target) = &target {
        Target::parse(target)?;
    }
    let list: NodeList = client.get(&["nodes"], &[("target", target.clone())]).await?;
    if let Some(stale) = &list.stale {
        out.note(stale);
    }
    match target {
        Some(target) if list.nodes.is_empty() => {
            out.note(&format!("target {target} matches no node"));
            Ok((list.nodes, exit::NOT_FOUND))
        }
        _ => Ok((list.nodes, exit::OK)),
    }
}

/// `node get`.
pub(crate) async fn get(out: &Out, client: &Client, id: &NodeId) -> CliResult<u8> {
    let node: NodeView = client.get(&["nodes", id.as_str()], &[]).await?;
    out.value(&node, |out| page(out, &node, Timestamp::now()))?;
    Ok(exit::OK)
}

/// `node drain`.
pub(crate) async fn drain(
    out: &Out,
    client: &Client,
    id: &NodeId,
    deadline: Option<HumanDuration>,
    wait: bool,
) -> CliResult<u8> {
    let path = ["nodes", id.as_str(), "drain"];
    let body = DrainRequest { deadline };
    let mut node: NodeView = client.call(Method::POST, &path, &[], Some(&body)).await?;
    while wait && !is_drained(&node)? {
        tokio::time::sleep(LOOK).await;
        node = client.get(&["nodes", id.as_str()], &[]).await?;
    }
    let done = match (wait, deadline) {
        (true, _) => "is drained: nothing runs on it any more".to_owned(),
        (false, Some(d)) => format!("takes nothing new; what runs still is killed after {d}"),
        (false, None) => "takes nothing new; what runs may run to its end".to_owned(),
    };
    out.value(&node, |_| format!("node {id} {done}\n"))?;
    Ok(exit::OK)
}

/// Whether nothing runs on a node any more; an error when that cannot be learnt.
fn is_drained(node: &NodeView) -> CliResult<bool> {
    let unknown = |why: &str| {
        let problem = format!("node {} {why}: it is not known what runs on it", node.id);
        Err(CliError::new(exit::UNAVAILABLE, problem))
    };
    match &node.drain {
        _ if !node.online => unknown("is offline"),
        None => unknown("takes work again, as somebody has undrained it"),
        Some(drain) => Ok(drain.state == DrainState::Drained),
    }
}

/// `node undrain`.
pub(crate) async fn undrain(out: &Out, client: &Client, id: &NodeId) -> CliResult<u8> {
    let path = ["nodes", id.as_str(), "drain"];
    let node: NodeView = client.call(Method::DELETE, &path, &[], None::<&()>).await?;
    out.value(&node, |_| format!("node {id} takes work again\n"))?;
    Ok(exit::OK)
}

fn status(node: &NodeView) -> (&'static str, bool) {
    match (node.online, node.drain.as_ref().map(|d| d.state), node.connected) {
        (false, Some(_), _) => ("offline, to be drained", false),
        (false, None, _) => ("offline", false),
        (true, Some(DrainState::Asked), _) => ("drain asked for", false),
        (true, Some(DrainState::Draining), _) => ("draining", false),
        (true, Some(DrainState::Drained), _) => ("drained", false),
        (true, None, Some(false)) => ("online, no session", false),
        (true, None, _) => ("online", true),
    }
}

/// What a worker does, in words.
fn work(w: &Work, now: Timestamp) -> Vec<(&'static str, String)> {
    let mut lines = vec![(
        "runs",
        format!(
            "{} running, {} wait for a place, {} for an earlier run",
            w.running, w.ready, w.waiting
        ),
    )];
    if let Some(at) = w.looked_at {
        let lag = format!("lag {} ms, {} ms at most in a minute", w.lag_ms, w.lag_max_ms);
        lines.push(("schedule", format!("looked at {}; {lag}", time::relative(at, now))));
    }
    let oldest = w.spool_oldest.map_or(String::new(), |at| {
        format!(", the oldest from {} ({})", time::local(at), time::relative(at, now))
    });
    let items = usize::try_from(w.spool_items).unwrap_or(usize::MAX);
    let size = text::bytes(w.spool_bytes);
    lines.push(("spool", format!("{} ({size}){oldest}", text::count(items, "item"))));
    lines
}

fn table(out: &Out, nodes: &[NodeView], now: Timestamp) -> String {
    if nodes.is_empty() {
        return "no nodes; a node appears when its worker starts\n".to_owned();
    }
    let header =
        ["NODE", "STATUS", "UP", "VERSION", "JOBS", "PROBLEMS", "HOST", "OS", "LOAD", "LABELS"];
    let mut table = Table::new(out, &header);
    for n in nodes {
        let (status, good) = status(n);
        let up =
            n.started_at.filter(|_| n.online).and_then(|t| now.duration_since(t).try_into().ok());
        let labels: Vec<_> = n.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        table.row(vec![
            cell(n.id.as_str()),
            verdict(status, good),
            maybe(up.map(time::short)),
            cell(&n.version),
            cell(n.jobs.to_string()),
            if n.problems.is_empty() {
                cell("-")
            } else {
                verdict(n.problems.len().to_string(), false)
            },
            cell(&n.facts.hostname),
            cell(format!("{} {}", n.facts.os, n.facts.os_version).trim()),
            cell(format!("{:.2}", n.facts.load1)),
            maybe((!labels.is_empty()).then(|| labels.join(","))),
        ]);
    }
    table.render()
}

/// The labels that count, each with where it is from.
pub(super) fn labels(n: &NodeView) -> Vec<String> {
    let line = |(key, value): (&String, &String)| {
        let origin = match (n.labels_set.get(key), n.labels_configured.get(key)) {
            (Some(_), Some(old)) => format!(" (set by the API, over {old})"),
            (Some(_), None) => " (set by the API)".to_owned(),
            (None, Some(_)) => " (worker's configuration)".to_owned(),
            (None, None) => String::new(),
        };
        format!("{key}={value}{origin}")
    };
    n.labels.iter().map(line).collect()
}

/// How old the facts are, in words.
pub(super) fn age(n: &NodeView, now: Timestamp) -> String {
    match (n.facts_at, n.online) {
        (Some(at), _) => time::relative(at, now),
        (None, true) => "as last written to etcd".to_owned(),
        (None, false) => "offline; as last seen".to_owned(),
    }
}

fn page(out: &Out, n: &NodeView, now: Timestamp) -> String {
    let mut page = String::new();
    let mut put = |name: &str, value: String| field(&mut page, name, &value);
    put("node", n.id.to_string());
    put("status", status(n).0.to_owned());
    put("version", n.version.clone());
    for (name, at) in [("started", n.started_at), ("registered", n.registered_at)] {
        if let Some(at) = at {
            put(name, format!("{} ({})", time::local(at), time::relative(at, now)));
        }
    }
    if let Some(drain) = &n.drain {
        let since = format!("asked for {}", time::relative(drain.requested_at, now));
        let deadline = match drain.deadline {
            Some(at) => format!("what runs still is killed {}", time::relative(at, now)),
            None => "what runs may run to its end".to_owned(),
        };
        put("drain", format!("{since}; {deadline}"));
    }
    put("jobs", n.jobs.to_string());
    for (name, value) in n.work.iter().flat_map(|w| work(w, now)) {
        put(name, value);
    }
    for label in labels(n) {
        put("label", label);
    }
    let f = &n.facts;
    put("facts", age(n, now));
    put("host name", f.hostname.clone());
    put("system", format!("{} {}, Linux {}, {}", f.os, f.os_version, f.kernel, f.arch));
    let cpu = f.cpu_use.map_or(String::new(), |u| format!(", {u:.0} % in use"));
    put("CPUs", format!("{}{cpu}, load {:.2}", f.cpu_cores, f.load1));
    put("memory", format!("{} free of {}", text::bytes(f.mem_free), text::bytes(f.mem_total)));
    put("disk", format!("{} free of {}", text::bytes(f.disk_free), text::bytes(f.disk_total)));
    let said = n.diagnosis.iter().filter(|f| f.severity != Severity::Ok);
    let mut lines = String::new();
    for f in said {
        lines.push_str(&format!("{} {}\n", f.severity, text::one_line(&f.message)));
        if let Some(remedy) = &f.remedy {
            lines.push_str(&format!("  -> {}\n", text::one_line(remedy)));
        }
    }
    if !lines.is_empty() {
        page.push_str("\nwhat is wrong:\n");
        page.push_str(&indent(&lines));
    } else if !n.problems.is_empty() {
        page.push_str("\nproblems:\n");
        let mut table = Table::new(out, &["WHERE", "WHAT"]);
        for p in &n.problems {
            table.row(vec![cell(&p.subject), cell(&p.reason)]);
        }
        page.push_str(&indent(&table.render()));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_show_state_facts_and_problems() {
        let out = Out {
            format: crate::output::Format::Table,
            terminal: false,
            color: false,
            err_terminal: false,
            err_color: false,
        };
        let node: NodeView = serde_json::from_value(json!({
            "id": "10.0.0.7", "online": true, "connected": false, "version": "0.1.0", "labels": {"group": "web"},
            "facts": {"hostname": "h", "os": "debian", "os_version": "12", "mem_total": 2147483648u64, "load1": 0.5},
            "started_at": "2026-01-01T00:00:00Z", "jobs": 2,
            "drain": {"state": "draining", "requested_at": "2026-01-01T00:00:05Z", "deadline": "2026-01-01T00:02:00Z"},
            "work": {"looked_at": "2026-01-01T00:01:00Z", "running": 3, "spool_items": 12345, "spool_bytes": 1048576, "spool_oldest": "2026-01-01T00:00:05Z"},
            "problems": [{"subject": "/cron/jobs/10.0.0.7/x", "reason": "cmd: missing; expected a value"}]
        }))
        .unwrap();
        let now = "2026-01-01T00:01:05Z".parse().unwrap();
        let list = table(&out, std::slice::from_ref(&node), now);
        for want in ["draining", "1m05s", "debian 12", "0.50", "group=web"] {
            assert!(list.contains(want), "{want}: {list}");
        }
        let page = page(&out, &node, now);
        for want in [
            "2.0 GiB",
            "3 running",
            "12345 items (1.0 MiB), the oldest",
            "is killed in 55.0s",
            "/cron/jobs/10.0.0.7/x",
            "cmd: missing; expected a value",
            "1m05s ago",
        ] {
            assert!(page.contains(want), "{want}: {page}");
        }
        let undrained = NodeView { drain: None, ..node.clone() };
        assert_eq!(status(&undrained), ("online, no session", false));
        assert!(is_drained(&undrained).is_err() && !is_drained(&node).unwrap());
    }
}
