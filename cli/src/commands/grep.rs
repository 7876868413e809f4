//! `meepo runs --grep`: text in output.

use super::runs::write_line;
use crate::{
    client::Client,
    error::{CliResult, exit},
    output::{Out, text, time},
};
use jiff::SignedDuration;
use meepo_core::history::{SearchHit, SearchPage};
use std::fmt::Write;

/// Runs looked through before it is left to the user whether to go on.
const LOOKED_THROUGH: u64 = 20_000;
/// Most runs asked for at once.
const PAGE: u32 = 100;

/// Prints at most `n` runs in whose output `wanted` stands, newest first.
pub(super) async fn run(
    out: &Out,
    client: &Client,
    filter: &[(&str, Option<String>)],
    wanted: &str,
    n: u32,
    export: bool,
) -> CliResult<u8> {
    let (mut left, mut looked, mut bytes) = (n, 0, 0);
    let (mut cursor, mut all, mut shown) = (None, Vec::new(), false);
    let (mut next, mut reached) = (None, None);
    while left > 0 && (export || looked < LOOKED_THROUGH) {
        let mut query = filter.to_vec();
        query.push(("q", Some(wanted.to_owned())));
        query.push(("limit", Some(left.min(PAGE).to_string())));
        query.push(("cursor", cursor.take()));
        let page: SearchPage = client.get(&["runs", "search"], &query).await?;
        (looked, bytes) = (looked + page.looked_at, bytes + page.bytes);
        reached = page.reached.or(reached);
        for hit in page.hits.into_iter().take(left as usize) {
            left -= 1;
            shown = true;
            if export {
                write_line(&mut std::io::stdout().lock(), &hit)?;
            } else if out.is_table() {
                out.text(&view(out, &hit, wanted))?;
            } else {
                all.push(hit);
            }
        }
        next = page.next;
        match &next {
            Some(place) => cursor = Some(place.clone()),
            None => break,
        }
    }
    if !export && !out.is_table() {
        out.value(&all, |_| String::new())?;
    }
    if out.is_table() && !export && !shown && next.is_none() {
        out.text("no runs\n")?;
    }
    if let (Some(_), Some(reached)) = (next, reached)
        && left > 0
    {
        // The slot reached once more: others may have the same.
        let until = reached.checked_add(SignedDuration::from_millis(1)).unwrap_or(reached);
        out.note(&format!(
            "looked at {looked} runs and {} of output, back to {}; narrow it down with --job, \
             --node, --state or --since, or go on with --until {until}",
            text::bytes(bytes),
            time::local(reached),
        ));
    }
    Ok(exit::OK)
}

/// A run and the places in it.
fn view(out: &Out, hit: &SearchHit, wanted: &str) -> String {
    let r = &hit.run;
    let job = r.job.as_ref().map_or("-", |j| j.as_str());
    let at = time::local(r.started_at.unwrap_or(r.slot));
    let mut page = format!("{} {job} on {}, {at}, {}\n", r.run_id, r.node, r.state);
    for m in &hit.matches {
        let line = text::one_line(m.text.trim_end_matches(['\r', '\n']));
        let wanted = text::one_line(wanted);
        let line = match out.color {
            true => line.replace(&wanted, &format!("\x1b[1;31m{wanted}\x1b[0m")),
            false => line,
        };
        let _ = writeln!(page, "  {line}");
    }
    if hit.more {
        page.push_str("  …\n");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        output::Format,
        testing::{Reply, fake_master},
    };
    use serde_json::json;

    fn out(color: bool) -> Out {
        Out { format: Format::Table, terminal: color, color, err_terminal: false, err_color: false }
    }

    fn hit() -> serde_json::Value {
        let run = super::super::outcome::tests::run(json!({"job": "backup"}));
        json!({"run": run, "more": true, "matches": [{"seq": 0, "stream": "stdout",
            "at": "2026-01-01T00:00:00Z", "text": "no space\u{1b}[2J left"}]})
    }

    #[test]
    fn places_stand_below_their_run_and_are_harmless() {
        let hit: SearchHit = serde_json::from_value(hit()).unwrap();
        let plain = view(&out(false), &hit, "space");
        assert!(plain.contains("backup on n1") && plain.contains("failed"), "{plain}");
        assert!(plain.ends_with("\n  no space\\x1b[2J left\n  …\n"), "{plain}");
        let colored = view(&out(true), &hit, "space");
        assert!(colored.contains("no \x1b[1;31mspace\x1b[0m\\x1b[2J"), "{colored:?}");
    }

    #[tokio::test]
    async fn it_goes_on_until_there_are_enough() {
        let page = |hits: usize, next: Option<&str>| {
            let page =
                json!({"hits": vec![hit(); hits], "looked_at": 10, "bytes": 5, "next": next});
            Reply::new("200 OK", page.to_string())
        };
        let master = fake_master(vec![page(0, Some("c1")), page(2, Some("c2"))]).await;
        let filter = [("job", Some("backup".to_owned()))];
        run(&out(false), &master.client(), &filter, "a b", 2, false).await.unwrap();
        let requests = master.requests();
        assert!(
            requests[0].contains("q=a+b") && requests[0].contains("job=backup"),
            "{requests:?}"
        );
        assert!(requests[1].contains("cursor=c1"), "{requests:?}");
    }
}
