//! Questions about what was, with something to find.

use super::{apply, channel, spec, trigger, wait_run, words};
use crate::shared::server;
use meepo_proto::v1::{self as pb, jobs_client::JobsClient, runs_client::RunsClient};
use meepo_tests::{eventually, secs};
use tonic::Code;

fn history(name: &str) -> pb::HistoryRequest {
    pb::HistoryRequest { name: name.into(), ..Default::default() }
}

#[tokio::test]
async fn statistics_gaps_and_searches_say_what_there_was() {
    let server = server().await;
    let channel = channel(&server).await;
    let mut runs = Vec::new();
    for (cmd, state) in [
        ("echo 'a needle in hay'; echo more", "success"),
        ("echo none; exit 3", "failed"),
        ("echo 'another needle' >&2", "success"),
    ] {
        apply(&channel, spec("rpc-asked", cmd)).await.unwrap();
        let run = trigger(&channel, "rpc-asked").await;
        wait_run(&channel, &run, state).await;
        runs.push(run);
    }
    let mut jobs = JobsClient::new(channel.clone());
    let stats = jobs.stats(history("rpc-asked")).await.unwrap().into_inner();
    assert_eq!((stats.job.as_str(), stats.runs, stats.complete), ("rpc-asked", 3, true));
    assert_eq!((stats.by_state["success"], stats.by_state["failed"]), (2, 1));
    assert!((stats.success_rate.unwrap() - 2.0 / 3.0).abs() < 1e-9, "{stats:?}");
    let took = stats.took.unwrap();
    assert!(took.runs == 3 && took.p50_ms <= took.p99_ms && took.p99_ms <= took.max_ms);
    assert_eq!(stats.last_success.unwrap().run_id, runs[2]);
    let failure = stats.last_failure.unwrap();
    assert_eq!((failure.run_id.as_str(), failure.code), (runs[1].as_str(), 0x0101));
    assert_eq!(stats.days.iter().map(|d| d.runs).sum::<u64>(), 3);

    let search = |q: &str, limit, cursor: String| pb::SearchRunsRequest {
        q: q.into(),
        runs: Some(pb::ListRunsRequest {
            job: "rpc-asked".into(),
            limit,
            cursor,
            ..Default::default()
        }),
    };
    let mut client = RunsClient::new(channel.clone());
    let page = client.search(search("needle", 50, String::new())).await.unwrap().into_inner();
    let found: Vec<&str> =
        page.hits.iter().map(|h| h.run.as_ref().unwrap().run_id.as_str()).collect();
    assert_eq!(found, [&*runs[2], &*runs[0]], "newest first");
    let (newer, older) = (&page.hits[0].matches[0], &page.hits[1].matches[0]);
    assert_eq!((&*newer.stream, &*newer.text), ("stderr", "another needle"));
    assert_eq!((&*older.stream, &*older.text), ("stdout", "a needle in hay"));
    assert_eq!((page.looked_at, page.next.as_str()), (3, ""));
    assert!(page.bytes > 0 && page.reached.is_some());
    // In pages.
    let one = client.search(search("needle", 1, String::new())).await.unwrap().into_inner();
    assert_eq!(one.hits[0].run.as_ref().unwrap().run_id, runs[2]);
    assert!(!one.next.is_empty());
    let two = client.search(search("needle", 1, one.next)).await.unwrap().into_inner();
    assert_eq!(two.hits[0].run.as_ref().unwrap().run_id, runs[0]);
    let refused = client.search(search("", 1, String::new())).await.unwrap_err();
    assert_eq!((words(&refused).0, words(&refused).2.as_str()), (Code::InvalidArgument, "q"));
    // Of a job that is no more there may still be runs; it has no slots.
    assert_eq!(jobs.stats(history("rpc-nobody")).await.unwrap().into_inner().runs, 0);
    let refused = jobs.gaps(history("rpc-nobody")).await.unwrap_err();
    assert_eq!(words(&refused).0, Code::NotFound);
}

#[tokio::test]
async fn gaps_count_what_ran_and_name_what_was_skipped() {
    let server = server().await;
    let channel = channel(&server).await;
    let mut jobs = JobsClient::new(channel.clone());
    // Most of its slots find the one before still running.
    let job = pb::JobSpec {
        schedule: "* * * * * *".into(),
        concurrency: "forbid".into(),
        ..spec("rpc-gaps", "sleep 2.5")
    };
    apply(&channel, job).await.unwrap();
    // A slot counts a minute after its time.
    let gaps = eventually(secs(150), "slots were skipped", async || {
        let gaps = jobs.clone().gaps(history("rpc-gaps")).await.map_err(|e| e.to_string())?;
        let gaps = gaps.into_inner();
        let skipped = gaps.gaps.iter().filter(|g| g.kind == "skipped").count();
        if skipped >= 3 && gaps.ran >= 2 { Ok(gaps) } else { Err(format!("{gaps:?}")) }
    })
    .await;
    assert_eq!(gaps.job, "rpc-gaps");
    assert_eq!(gaps.due, gaps.ran + gaps.gaps.len() as u64, "{gaps:?}");
    let skipped = gaps.gaps.iter().find(|g| g.kind == "skipped").unwrap();
    assert!(!skipped.run_id.is_empty() && skipped.slot.is_some(), "{skipped:?}");
    let name = pb::JobName { name: "rpc-gaps".into(), tree: String::new() };
    jobs.delete(name).await.unwrap();
}
