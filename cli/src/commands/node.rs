//! `meepo node list | get`.

use super::job_view::{field, indent};
use crate::{
    client::Client,
    error::{CliResult, exit},
    output::{
        Out,
        table::{Table, cell, maybe, verdict},
        text, time,
    },
};
use jiff::Timestamp;
use meepo_core::{
    api::{NodeList, NodeView},
    id::NodeId,
};

/// `node list`.
pub(crate) async fn list(out: &Out, client: &Client) -> CliResult<u8> {
    let list: NodeList = client.get(&["nodes"], &[]).await?;
    out.value(&list.nodes, |out| table(out, &list.nodes, Timestamp::now()))?;
    Ok(exit::OK)
}

/// `node get`.
pub(crate) async fn get(out: &Out, client: &Client, id: &NodeId) -> CliResult<u8> {
    let node: NodeView = client.get(&["nodes", id.as_str()], &[]).await?;
    out.value(&node, |out| page(out, &node, Timestamp::now()))?;
    Ok(exit::OK)
}

fn status(node: &NodeView) -> (&'static str, bool) {
    match (node.online, node.connected) {
        (false, _) => ("offline", false),
        (true, Some(false)) => ("online, no session", false),
        (true, _) => ("online", true),
    }
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
    put("jobs", n.jobs.to_string());
    for (k, v) in &n.labels {
        put("label", format!("{k}={v}"));
    }
    let f = &n.facts;
    put("host name", f.hostname.clone());
    put("system", format!("{} {}, Linux {}, {}", f.os, f.os_version, f.kernel, f.arch));
    put("CPUs", format!("{}, load {:.2}", f.cpu_cores, f.load1));
    put("memory", format!("{} free of {}", text::bytes(f.mem_free), text::bytes(f.mem_total)));
    put("disk", format!("{} free of {}", text::bytes(f.disk_free), text::bytes(f.disk_total)));
    if !n.problems.is_empty() {
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
            "problems": [{"subject": "/cron/jobs/10.0.0.7/x", "reason": "cmd: missing; expected a value"}]
        }))
        .unwrap();
        let now = "2026-01-01T00:01:05Z".parse().unwrap();
        let list = table(&out, std::slice::from_ref(&node), now);
        for want in ["online, no session", "1m05s", "debian 12", "0.50", "group=web"] {
            assert!(list.contains(want), "{want}: {list}");
        }
        let page = page(&out, &node, now);
        for want in
            ["2.0 GiB", "/cron/jobs/10.0.0.7/x", "cmd: missing; expected a value", "1m05s ago"]
        {
            assert!(page.contains(want), "{want}: {page}");
        }
    }
}
