//! `meepo job explain`: why nodes have a job, and where its fields come from.

use crate::{
    client::Client,
    error::{CliResult, exit},
    output::{
        Out,
        table::{Table, cell, verdict},
        text,
    },
};
use meepo_core::{
    id::Name,
    placement::{JobExplanation, NodeExplanation},
};
use serde_json::Value;
use std::fmt::Write;

/// Widest value, in characters.
const VALUE_WIDTH: usize = 60;

/// `job explain`.
pub(crate) async fn run(out: &Out, client: &Client, name: &Name, target: String) -> CliResult<u8> {
    let path = ["jobs", name.as_str(), "explain"];
    let explained: JobExplanation = client.get(&path, &[("target", Some(target))]).await?;
    out.value(&explained, |out| page(out, &explained.nodes))?;
    Ok(exit::OK)
}

fn page(out: &Out, nodes: &[NodeExplanation]) -> String {
    let mut table = Table::new(out, &["NODE", "PLACE", "GETS IT", "HOLDS IT", "WHY"]);
    for n in nodes {
        table.row(vec![
            cell(n.node.as_str()),
            cell(n.place.as_deref().unwrap_or("-")),
            verdict(if n.gets { "yes" } else { "no" }, n.gets),
            cell(if n.holds { "yes" } else { "no" }),
            cell(text::one_line(&n.text)),
        ]);
    }
    let mut page = table.render();
    // Nodes with the same definitions have the same fields.
    let mut shown: Vec<&NodeExplanation> = Vec::new();
    for n in nodes.iter().filter(|n| !n.fields.is_empty()) {
        if shown.iter().any(|s| s.tree == n.tree) {
            continue;
        }
        shown.push(n);
        let at = n.tree.as_ref().map(ToString::to_string).unwrap_or_default();
        let _ = write!(page, "\nfields as defined at {at}:\n");
        let mut table = Table::new(out, &["FIELD", "VALUE", "FROM"]);
        for f in &n.fields {
            let value = match &f.value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let value = text::shorten(&text::one_line(&value), VALUE_WIDTH);
            table.row(vec![cell(f.field.as_str()), cell(value), cell(f.from.as_str())]);
        }
        for line in table.render().lines() {
            let _ = writeln!(page, "  {line}");
        }
    }
    page
}
