//! `meepo events`: what happens in the fleet, over broken connections.

use crate::{
    client::{Client, Lines},
    error::{CliError, CliResult, exit},
    events_args::EventsArgs,
    output::{Out, text, time},
};
use meepo_core::{
    api::ErrorBody,
    code::Code,
    event::{Event, EventId, What},
};
use reqwest::Method;
use serde_json::Value;
use std::time::Duration;

/// Events told without `--follow`.
const RECENT: u32 = 20;
/// A master says something every 15 s; after so long without a word it is gone.
const SILENT: Duration = Duration::from_secs(45);
/// Pauses between tries to come back.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// `meepo events`.
pub(crate) async fn run(out: &Out, client: &Client, args: EventsArgs) -> CliResult<u8> {
    let mut place = args.after;
    let (mut connected, mut tries) = (false, 0);
    let mut first = args.n.unwrap_or(if args.follow { 0 } else { RECENT });
    loop {
        let query = [
            ("kind", args.kind.clone()),
            ("job", args.job.clone()),
            ("node", args.node.clone()),
            ("task", args.task.clone()),
            ("after", place.map(|id| id.to_string())),
            ("recent", place.is_none().then(|| first.to_string())),
            ("follow", Some(args.follow.to_string())),
        ];
        let opened = client.stream(Method::GET, &["events"], &query, None::<&()>).await;
        let broke = match opened {
            Ok(lines) => {
                if connected {
                    out.note("connected again");
                }
                connected = true;
                let told = tell(out, lines, &mut place).await;
                // What has been told is not told again.
                if place.is_some() {
                    (first, tries) = (0, 0);
                }
                match told {
                    Ok(()) if !args.follow => return Ok(exit::OK),
                    Ok(()) => CliError::new(exit::UNAVAILABLE, "the master ended the stream"),
                    Err(e) => e,
                }
            }
            Err(e) => e,
        };
        // Whoever cannot begin is told why; whoever has begun waits for a master.
        if !args.follow || !connected || !passing(&broke) {
            return Err(broke);
        }
        out.note(&format!("{broke}; trying again"));
        tokio::time::sleep(PAUSES[tries]).await;
        tries = (tries + 1).min(PAUSES.len() - 1);
    }
}

/// Whether another try, perhaps at another master, may go better.
fn passing(e: &CliError) -> bool {
    e.exit == exit::UNAVAILABLE
}

/// Prints what `lines` tell until they end, and keeps `place` where that has come to.
async fn tell(out: &Out, mut lines: Lines, place: &mut Option<EventId>) -> CliResult<()> {
    let mut block = Block::default();
    loop {
        let line = match tokio::time::timeout(SILENT, lines.line()).await {
            Ok(line) => line?,
            Err(_) => return Err(CliError::new(exit::UNAVAILABLE, "the master has gone silent")),
        };
        let Some(line) = line else { return Ok(()) };
        let Some(block) = block.line(&String::from_utf8_lossy(&line)) else { continue };
        if block.event == "error" {
            return Err(match serde_json::from_str::<ErrorBody>(&block.data) {
                Ok(body) => body.error.into(),
                Err(_) => CliError::new(exit::UNAVAILABLE, block.data),
            });
        }
        if !block.data.is_empty() {
            print(out, &block.data)?;
        }
        if let Some(id) = block.id.and_then(|id| id.parse().ok()) {
            *place = Some(id);
        }
    }
}

/// What an empty line ends, as server-sent events have it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Block {
    id: Option<String>,
    event: String,
    data: String,
}

impl Block {
    /// Takes a line in; answers the block that it ends.
    fn line(&mut self, line: &str) -> Option<Block> {
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            return Some(std::mem::take(self));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = Some(value.to_owned()),
            "event" => self.event = value.to_owned(),
            "data" if self.data.is_empty() => self.data = value.to_owned(),
            "data" => self.data = format!("{}\n{value}", self.data),
            // Comments, and what a newer master may add.
            _ => {}
        }
        None
    }
}

fn print(out: &Out, data: &str) -> CliResult<()> {
    if !out.is_table() {
        // As it came: a newer master may say more than this version knows.
        let value: Value = serde_json::from_str(data).map_err(|e| {
            CliError::new(exit::INTERNAL, format!("the master sent no event: {e}: {data}"))
        })?;
        return out.event(&value);
    }
    let shown = match serde_json::from_str::<Event>(data) {
        Ok(event) => row(out, &event),
        Err(_) => text::one_line(data),
    };
    out.text(&format!("{shown}\n"))
}

/// A line for people: when, what, about what, and how.
fn row(out: &Out, event: &Event) -> String {
    let at = event.at.map_or_else(|| "-".to_owned(), time::local);
    let name = format!("{:<15}", event.what.as_str());
    let name = match colour(event) {
        Some(colour) if out.color => format!("\x1b[{colour}m{name}\x1b[0m"),
        _ => name,
    };
    let (about, how) = (about(event), how(event));
    let about = text::one_line(&about);
    let line = match how.is_empty() {
        true => format!("{at:<19}  {name}  {about}"),
        false => format!("{at:<19}  {name}  {about:<32}  {}", text::one_line(&how)),
    };
    line.trim_end().to_owned()
}

fn about(event: &Event) -> String {
    let part = event.part.map(|n| format!(".{n}")).unwrap_or_default();
    let task = event.task.as_ref().map(|t| format!("{t}{part}"));
    let what = task.or_else(|| event.job.as_ref().map(|j| j.to_string()));
    match (what, &event.node, &event.master) {
        (Some(what), Some(node), _) => format!("{what} on {node}"),
        (Some(what), None, _) => what,
        (None, Some(node), _) => node.to_string(),
        (None, None, Some(master)) => master.clone(),
        (None, None, None) => String::new(),
    }
}

fn how(event: &Event) -> String {
    let mut words = Vec::new();
    // The name of the event says it already.
    let said = matches!(event.what, What::RunStarted | What::JobPaused | What::JobResumed);
    words.extend(event.state.clone().filter(|_| !said));
    if let Some(code) = event.code.filter(|c| !c.is_ok()) {
        words.push(format!("({})", code.name()));
    }
    words.extend(event.run_id.map(|id| id.to_string()));
    words.extend(event.term.map(|term| format!("term {term}")));
    if let Some(labels) = &event.labels {
        let all: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        words.push(if all.is_empty() { "no labels".into() } else { all.join(",") });
    }
    words.extend(event.after.map(|after| format!("from {after} to {}:", event.id)));
    words.extend(event.message.clone());
    words.join(" ")
}

/// Good news green, bad news red; the rest as it is.
fn colour(event: &Event) -> Option<&'static str> {
    match (event.what, event.code) {
        (What::Gap | What::NodeOffline | What::LeaderGone | What::RunAway, _) => Some("31"),
        (_, Some(Code::OK)) => Some("32"),
        (_, Some(_)) => Some("31"),
        (What::NodeOnline | What::LeaderElected, _) => Some("32"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        output::Format,
        testing::{Reply, fake_master},
    };
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

    #[test]
    fn a_row_has_what_matters() {
        let event = |value: Value| row(&out(), &serde_json::from_value(value).unwrap());
        let run = "01932f5e-0000-7000-8000-000000000001";
        let failed = event(json!({"id": "7.0", "type": "run.ended", "job": "hello",
            "node": "10.0.0.7", "state": "failed", "code": 257, "run_id": run}));
        assert_eq!(
            failed,
            format!(
                "-                    run.ended        hello on 10.0.0.7                 \
                 failed (exit_status) {run}"
            )
        );
        assert!(
            event(json!({"id": "7.0", "type": "node.offline", "node": "n"}))
                .ends_with("offline     n")
        );
        let gap = event(json!({"id": "9", "type": "gap", "after": "7.1", "message": "gone"}));
        assert!(gap.contains("from 7.1 to 9: gone"), "{gap}");
        let labels =
            json!({"id": "7.0", "type": "node.labels", "node": "n", "labels": {"a": "b\u{1b}"}});
        assert!(event(labels).ends_with(r"a=b\x1b"));
    }

    fn sent(id: &str, what: &str) -> String {
        format!("id: {id}\nevent: x\ndata: {}\n\n", json!({"id": id, "type": what}))
    }

    fn args(follow: bool) -> EventsArgs {
        EventsArgs { follow, n: None, after: None, kind: None, job: None, node: None, task: None }
    }

    #[tokio::test]
    async fn it_goes_on_where_the_connection_broke() {
        let cut = "event: error\ndata: {\"error\":{\"code\":1024,\"name\":\"etcd\",\"message\":\"x\",\"retry\":true}}\n\n";
        let refused = json!({"error": {"code": 0x0304, "name": "bad_value", "message": "no",
            "retry": false}});
        let master = fake_master(vec![
            Reply::new("200 OK", ": nothing new\nid: 5\n\n").then(sent("7.0", "node.online")).cut(),
            Reply::new("502 Bad Gateway", "<html>"),
            Reply::new("200 OK", sent("7.1", "of.a.newer.master")).then(cut),
            Reply::new("200 OK", "retry: 2000\n\nid: 9\n\n").then("id: 10\ndata: {\"id\""),
            Reply::new("400 Bad Request", refused.to_string()),
        ])
        .await;
        let e = run(&out(), &master.client(), args(true)).await.unwrap_err();
        assert_eq!(e.exit, exit::USAGE, "{e}");
        let asked: Vec<String> = master.requests();
        for (i, what) in
            ["recent=0", "after=7.0", "after=7.0", "after=7.1", "after=9&"].iter().enumerate()
        {
            assert!(asked[i].contains(what), "{i}: {asked:?}");
        }
    }

    #[tokio::test]
    async fn without_follow_it_ends_and_a_failure_is_one() {
        let master = fake_master(vec![
            Reply::new("200 OK", sent("7.0", "node.online")),
            Reply::new("200 OK", sent("7.0", "node.online")).cut(),
        ])
        .await;
        assert_eq!(run(&out(), &master.client(), args(false)).await, Ok(exit::OK));
        assert!(master.requests()[0].contains("recent=20&follow=false"), "{:?}", master.requests());
        let e = run(&out(), &master.client(), args(false)).await.unwrap_err();
        assert_eq!(e.exit, exit::UNAVAILABLE);
    }
}
