//! `meepo node facts | label`.

use super::node::{age, fetch, labels};
use crate::{
    client::Client,
    error::{CliResult, exit},
    output::{
        Out,
        table::{Table, cell, maybe, verdict},
        text,
    },
};
use jiff::Timestamp;
use meepo_core::{
    api::{LabelsRequest, NodeView},
    id::NodeId,
};
use reqwest::Method;

/// Above this share of memory or disk in use, or of processor time, a figure is red.
const MUCH: f64 = 0.9;

/// `node facts`.
pub(crate) async fn facts(out: &Out, client: &Client, target: Option<String>) -> CliResult<u8> {
    let (nodes, found) = fetch(out, client, target).await?;
    out.value(&nodes, |out| table(out, &nodes, Timestamp::now()))?;
    Ok(found)
}

/// `node label`.
pub(crate) async fn label(
    out: &Out,
    client: &Client,
    id: &NodeId,
    changes: Vec<(String, Option<String>)>,
) -> CliResult<u8> {
    let node: NodeView = if changes.is_empty() {
        client.get(&["nodes", id.as_str()], &[]).await?
    } else {
        let body = LabelsRequest { labels: changes.into_iter().collect() };
        client.call(Method::PATCH, &["nodes", id.as_str(), "labels"], &[], Some(&body)).await?
    };
    out.value(&node, |_| {
        let lines = labels(&node);
        if lines.is_empty() {
            return format!("node {id} has no labels\n");
        }
        lines.iter().map(|l| text::one_line(l) + "\n").collect()
    })?;
    Ok(exit::OK)
}

fn table(out: &Out, nodes: &[NodeView], now: Timestamp) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    let header = ["NODE", "CPU", "LOAD", "CPUS", "MEMORY FREE", "DISK FREE", "RUNS", "TOLD"];
    let mut table = Table::new(out, &header);
    for n in nodes {
        let f = &n.facts;
        let free = |free: u64, total: u64| {
            let text = format!("{} of {}", text::bytes(free), text::bytes(total));
            if (free as f64) < total as f64 * (1.0 - MUCH) {
                verdict(text, false)
            } else {
                cell(text)
            }
        };
        let busy = f.cpu_use.filter(|u| *u > MUCH * 100.0);
        table.row(vec![
            cell(n.id.as_str()),
            match busy {
                Some(u) => verdict(format!("{u:.0} %"), false),
                None => maybe(f.cpu_use.map(|u| format!("{u:.0} %"))),
            },
            cell(format!("{:.2}", f.load1)),
            cell(f.cpu_cores.to_string()),
            free(f.mem_free, f.mem_total),
            free(f.disk_free, f.disk_total),
            maybe(f.running.map(|r| r.to_string())),
            cell(age(n, now)),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn facts_say_how_old_they_are_and_labels_where_they_are_from() {
        let out = Out {
            format: crate::output::Format::Table,
            terminal: false,
            color: false,
            err_terminal: false,
            err_color: false,
        };
        let node = |change: serde_json::Value| -> NodeView {
            let mut node = json!({
                "id": "n1", "online": true, "version": "1", "jobs": 0, "problems": [],
                "labels": {"group": "web", "zone": "b", "tree": "a/b"},
                "labels_configured": {"group": "web", "zone": "a"},
                "labels_set": {"zone": "b", "tree": "a/b"},
                "facts": {"cpu_cores": 4, "load1": 1.5, "mem_free": 1073741824u64, "mem_total": 2147483648u64}
            });
            node.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            serde_json::from_value(node).unwrap()
        };
        let live = node(json!({"facts_at": "2026-01-01T00:00:00Z",
            "facts": {"cpu_use": 12.3, "running": 7, "load1": 0.25}}));
        let nodes = [node(json!({})), node(json!({"online": false})), live];
        let table = table(&out, &nodes, "2026-01-01T00:00:04Z".parse().unwrap());
        for want in ["1.0 GiB of 2.0 GiB", "as last written to etcd", "offline", "12 %", "4.0s ago"]
        {
            assert!(table.contains(want), "{want}: {table}");
        }
        assert_eq!(
            labels(&nodes[0]),
            [
                "group=web (worker's configuration)",
                "tree=a/b (set by the API)",
                "zone=b (set by the API, over a)"
            ]
        );
    }
}
