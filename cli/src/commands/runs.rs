//! `meepo runs`, `meepo logs`, `meepo kill`.

use super::{
    bytes_of,
    follow::{self, Piece},
    grep,
};
use crate::{
    args::{KillArgs, LogsArgs, RunsArgs},
    client::Client,
    error::{CliError, CliResult, exit},
    output::{
        Out,
        stream::{Lead, Printer},
        table::{Table, cell, maybe, state},
        text, time,
    },
};
use jiff::Timestamp;
use meepo_core::{
    api::{FollowEvent, OutputPage, RunList, RunRef},
    id::RunId,
    run::{RunRecord, RunState},
};
use reqwest::Method;
use std::io::Write;

/// Runs asked for at once.
const PAGE: u32 = 1_000;
/// Runs listed unless asked otherwise.
const SHOWN: u32 = 20;
/// How many runs are looked through for the beginning of an id.
const SEARCHED: u32 = 5_000;
/// Widest command in a list, in characters.
const CMD_WIDTH: usize = 40;

/// `meepo runs`.
pub(crate) async fn list(out: &Out, client: &Client, args: RunsArgs) -> CliResult<u8> {
    let now = Timestamp::now();
    let filter = filter(&args, now)?;
    let export = args.export.is_some();
    let n = args.n.unwrap_or(if export { u32::MAX } else { SHOWN });
    if let Some(text) = &args.grep {
        return grep::run(out, client, &filter, text, n, export).await;
    }
    if export {
        // As they come, so that any number of them takes no memory.
        let (mut lines, mut failed) = (std::io::stdout().lock(), None);
        pages(client, &filter, n, |run| {
            let written = write_line(&mut lines, &run);
            failed = written.err();
            failed.is_none()
        })
        .await?;
        return failed.map_or(Ok(exit::OK), Err);
    }
    let mut runs = Vec::new();
    pages(client, &filter, n, |run| {
        runs.push(run);
        true
    })
    .await?;
    out.value(&runs, |out| table(out, &runs, now))?;
    Ok(exit::OK)
}

/// Writes `value` as a line of JSON.
pub(super) fn write_line(out: &mut impl Write, value: &impl serde::Serialize) -> CliResult<()> {
    let mut line = serde_json::to_vec(value)
        .map_err(|e| CliError::new(exit::INTERNAL, format!("cannot write JSON: {e}")))?;
    line.push(b'\n');
    Ok(out.write_all(&line)?)
}

/// The filters as the API takes them.
fn filter(args: &RunsArgs, now: Timestamp) -> CliResult<Vec<(&'static str, Option<String>)>> {
    let instant = |option: &str, text: &Option<String>| -> CliResult<Option<String>> {
        let at = text.as_ref().map(|t| time::parse_since(option, t, now)).transpose()?;
        Ok(at.map(|t| t.to_string()))
    };
    let mut states: Vec<_> = args.state.iter().map(|s| s.as_str()).collect();
    if args.missed {
        states.extend([RunState::Missed, RunState::Skipped].map(RunState::as_str));
    }
    Ok(vec![
        ("job", args.job.clone()),
        ("node", args.node.as_ref().map(ToString::to_string)),
        ("task", args.task.map(|t| t.to_string())),
        ("state", (!states.is_empty()).then(|| states.join(","))),
        ("code", args.code.clone()),
        ("cause", args.cause.map(|c| c.as_str().to_owned())),
        ("user", args.user.clone()),
        ("since", instant("--since", &args.since)?),
        ("until", instant("--until", &args.until)?),
        ("min_duration", args.min_duration.map(|d| d.to_string())),
        ("max_duration", args.max_duration.map(|d| d.to_string())),
    ])
}

/// Calls `each` with at most `n` runs, newest first, until it answers false.
async fn pages(
    client: &Client,
    filter: &[(&str, Option<String>)],
    n: u32,
    mut each: impl FnMut(RunRecord) -> bool,
) -> CliResult<()> {
    let (mut left, mut cursor) = (n, None);
    while left > 0 {
        let mut query = filter.to_vec();
        query.push(("limit", Some(left.min(PAGE).to_string())));
        query.push(("cursor", cursor.take()));
        let list: RunList = client.get(&["runs"], &query).await?;
        if list.runs.is_empty() {
            break;
        }
        for run in list.runs.into_iter().take(left as usize) {
            left -= 1;
            if !each(run) {
                return Ok(());
            }
        }
        match list.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    Ok(())
}

fn table(out: &Out, runs: &[RunRecord], now: Timestamp) -> String {
    if runs.is_empty() {
        return "no runs\n".to_owned();
    }
    let header = ["RUN", "JOB", "NODE", "STATE", "EXIT", "STARTED", "TOOK", "COMMAND"];
    let mut table = Table::new(out, &header);
    for r in runs {
        let exit = match (r.exit_code, r.signal) {
            (Some(code), _) => Some(code.to_string()),
            (None, Some(signal)) => Some(format!("signal {signal}")),
            (None, None) => None,
        };
        table.row(vec![
            cell(r.run_id.to_string()),
            maybe(r.job.as_ref()),
            cell(r.node.as_str()),
            state(r.state),
            maybe(exit),
            cell(time::local(r.started_at.unwrap_or(r.slot))),
            maybe(r.elapsed(now).map(time::short)),
            cell(text::shorten(&text::one_line(&r.cmd), CMD_WIDTH)),
        ]);
    }
    table.render()
}

/// The run that `text` names: an id, or the beginning of one of the newest runs'.
async fn resolve(client: &Client, text: &str) -> CliResult<RunId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let expected = "a run id as printed by `meepo runs`, or its beginning";
    let wanted = text.to_ascii_lowercase();
    if wanted.is_empty() || !wanted.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        return Err(CliError::usage("run", format!("{text:?} is not a run id"), expected));
    }
    let mut found = Vec::new();
    pages(client, &[], SEARCHED, |run| {
        if run.run_id.to_string().starts_with(&wanted) {
            found.push(run);
        }
        found.len() < 4
    })
    .await?;
    match found.as_slice() {
        [run] => Ok(run.run_id),
        [] => Err(CliError::new(
            exit::NOT_FOUND,
            format!("none of the newest {SEARCHED} runs has an id that begins with {text}"),
        )
        .at("run")
        .expected("the whole id")),
        several => {
            let ids: Vec<_> =
                several.iter().take(3).map(|r| format!("{} on {}", r.run_id, r.node)).collect();
            let more = if several.len() > 3 { " and more" } else { "" };
            Err(CliError::usage(
                "run",
                format!("several runs begin with {text}: {}{more}", ids.join(", ")),
                "more of the id",
            ))
        }
    }
}

/// `meepo logs`.
pub(crate) async fn logs(out: &Out, client: &Client, args: LogsArgs) -> CliResult<u8> {
    let run = resolve(client, &args.run).await?;
    let lead = if args.timestamps { Lead::Time } else { Lead::Raw };
    let mut printer = Printer::new(out, lead);
    if args.follow {
        let ended = follow::follow(client, run, |piece| match piece {
            Piece::Output(stream, at, data) if out.is_table() => {
                Ok(printer.chunk("", stream, at, data)?)
            }
            Piece::Event(event) if !out.is_table() => match event {
                FollowEvent::Error(_) => Ok(()),
                event => out.event(event),
            },
            _ => Ok(()),
        })
        .await;
        printer.finish_all()?;
        let ended = ended?;
        note_dropped(out, &ended);
        return Ok(exit::OK);
    }
    let id = run.to_string();
    let (mut after, mut chunks): (Option<u64>, Vec<_>) = (None, Vec::new());
    loop {
        let query = [("after", after.map(|a| a.to_string()))];
        let page: OutputPage = client.get(&["runs", &id, "output"], &query).await?;
        if out.is_table() {
            for view in &page.chunks {
                printer.chunk("", view.stream, view.at, &bytes_of(view)?)?;
            }
        } else {
            chunks.extend(page.chunks);
        }
        // A cursor that does not move would never end.
        match page.next_after {
            Some(next) if !page.complete && after.is_none_or(|a| next > a) => after = Some(next),
            _ => break,
        }
    }
    printer.finish_all()?;
    if !out.is_table() {
        out.value(&chunks, |_| String::new())?;
    } else if let Ok(record) = client.get::<RunRecord>(&["runs", &id], &[]).await {
        if after.is_none() && record.state.is_final() && record.output_bytes > record.dropped_bytes
        {
            out.note("its output is not kept any more (the master's setting `retention`)");
        }
        note_dropped(out, &record);
    }
    Ok(exit::OK)
}

fn note_dropped(out: &Out, run: &RunRecord) {
    if run.dropped_bytes > 0 && out.is_table() {
        let dropped = text::bytes(run.dropped_bytes);
        out.note(&format!("{dropped} of output above the limit were dropped"));
    }
}

/// `meepo kill`.
pub(crate) async fn kill(out: &Out, client: &Client, args: KillArgs) -> CliResult<u8> {
    let mut done = Vec::new();
    for text in &args.runs {
        let id = resolve(client, text).await?.to_string();
        let run: RunRef =
            client.call(Method::POST, &["runs", &id, "kill"], &[], None::<&()>).await?;
        if out.is_table() {
            out.text(&format!("run {} on {} is being stopped\n", run.run_id, run.node))?;
        }
        done.push(run);
    }
    if !out.is_table() {
        out.value(&done, |_| String::new())?;
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Reply, fake_master};
    use serde_json::{Value, json};

    fn run(id: &str) -> Value {
        serde_json::to_value(super::super::outcome::tests::run(json!({"run_id": id}))).unwrap()
    }

    const A: &str = "01932f5e-0000-7000-8000-000000000001";
    const B: &str = "01932f5e-0000-7000-8000-0000000000ff";

    #[tokio::test]
    async fn beginnings_of_ids_are_resolved_over_pages() {
        let pages = || {
            vec![
                Reply::new("200 OK", json!({"runs": [run(A)], "next": "c1"}).to_string()),
                Reply::new("200 OK", json!({"runs": [run(B)]}).to_string()),
            ]
        };
        let master = fake_master(pages()).await;
        let got = resolve(&master.client(), &B[..35]).await.unwrap();
        assert_eq!(got.to_string(), B);
        assert!(master.requests()[1].contains("cursor=c1"), "{:?}", master.requests());
        let e = resolve(&fake_master(pages()).await.client(), "01932F5E").await.unwrap_err();
        assert_eq!(e.exit, exit::USAGE);
        assert!(e.to_string().contains(A) && e.to_string().contains(B), "{e}");
        let e = resolve(&fake_master(pages()).await.client(), "ffff").await.unwrap_err();
        assert_eq!(e.exit, exit::NOT_FOUND);
    }

    #[tokio::test]
    async fn what_is_no_id_is_refused_without_asking() {
        let client = Client::new("http://127.0.0.1:1").unwrap();
        assert_eq!(resolve(&client, "backup").await.unwrap_err().exit, exit::USAGE);
        assert_eq!(resolve(&client, A).await.unwrap().to_string(), A);
    }

    #[test]
    fn the_table_has_a_line_a_run() {
        let out = Out {
            format: crate::output::Format::Table,
            terminal: false,
            color: false,
            err_terminal: false,
            err_color: false,
        };
        let runs = [super::super::outcome::tests::run(json!({"exit_code": 3, "cmd": "a\nb"}))];
        let text = table(&out, &runs, Timestamp::UNIX_EPOCH);
        let line = text.lines().nth(1).unwrap();
        for want in [A, " - ", "failed", " 3 ", "1.2s", "a b"] {
            assert!(line.contains(want), "{want}: {text}");
        }
    }
}
