//! Following a run until it ends, over broken connections.

use super::bytes_of;
use crate::{
    client::Client,
    error::{CliError, CliResult, exit},
};
use jiff::Timestamp;
use meepo_core::{
    api::FollowEvent,
    id::RunId,
    run::{RunRecord, Stream},
};
use reqwest::Method;
use std::time::Duration;
use tokio::time::Instant;

/// How long a run that was asked for may take to appear, and how long a lost
/// connection is tried again.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(300);

/// Something of a followed run.
pub(crate) enum Piece<'a> {
    /// Output.
    Output(Stream, Timestamp, &'a [u8]),
    /// An event as it came, for JSON and YAML.
    Event(&'a FollowEvent),
}

/// Calls `on` with what the run writes; answers its record when it has ended.
pub(crate) async fn follow(
    client: &Client,
    run: RunId,
    mut on: impl FnMut(Piece<'_>) -> CliResult<()>,
) -> CliResult<RunRecord> {
    let id = run.to_string();
    let mut after: Option<u64> = None;
    let mut give_up = Instant::now() + PATIENCE;
    loop {
        let mut told = false;
        let query = [("follow", Some("true".to_owned())), ("after", after.map(|a| a.to_string()))];
        let error =
            match client.stream(Method::GET, &["runs", &id, "output"], &query, None::<&()>).await {
                Ok(mut events) => loop {
                    match events.next::<FollowEvent>().await {
                        Ok(Some(event)) => {
                            told = true;
                            give_up = Instant::now() + PATIENCE;
                            on(Piece::Event(&event))?;
                            match event {
                                FollowEvent::Output(view) => {
                                    on(Piece::Output(view.stream, view.at, &bytes_of(&view)?))?;
                                    after = Some(view.seq);
                                }
                                FollowEvent::End(record) => return Ok(*record),
                                FollowEvent::Error(e) => {
                                    let retry = e.retry;
                                    let e = CliError::from(e);
                                    if !retry {
                                        return Err(e);
                                    }
                                    break e;
                                }
                            }
                        }
                        Ok(None) => {
                            break CliError::new(
                                exit::UNAVAILABLE,
                                "the master ended the stream before the run ended",
                            );
                        }
                        Err(e) => break e,
                    }
                },
                Err(e) => e,
            };
        // A run that was just asked for may not be known yet.
        let passing = matches!(error.exit, exit::UNAVAILABLE | exit::NOT_FOUND);
        if !passing || Instant::now() >= give_up {
            return Err(error);
        }
        // A stream that broke goes on at once, unless that breaks too.
        if !told {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Reply, fake_master};
    use serde_json::{Value, json};

    fn output(seq: u64, text: &str) -> String {
        let v = json!({"type": "output", "seq": seq, "stream": "stdout", "at": "2026-01-01T00:00:00Z", "text": text});
        format!("{v}\n")
    }

    #[tokio::test]
    async fn a_broken_stream_goes_on_where_it_was() {
        let record = super::super::outcome::tests::run(json!({"state": "success", "code": 0}));
        let mut end = serde_json::to_value(&record).unwrap();
        end["type"] = Value::from("end");
        let missing = json!({"error": {"code": 0x0309, "name": "not_found", "message": "no such run", "retry": false}});
        let master = fake_master(vec![
            Reply::new("404 Not Found", missing.to_string()),
            Reply::new("200 OK", output(0, "a")).then(output(1, "b")).cut(),
            Reply::new("200 OK", output(2, "c")).then(format!("{end}\n")),
        ])
        .await;
        let mut got = Vec::new();
        let ended = follow(&master.client(), record.run_id, |p| {
            if let Piece::Output(_, _, data) = p {
                got.extend_from_slice(data);
            }
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!((got.as_slice(), &ended), (&b"abc"[..], &record));
        let requests = master.requests();
        assert!(requests[0].contains("?follow=true HTTP"), "{requests:?}");
        assert!(requests[2].contains("after=1"), "{requests:?}");
    }
}
