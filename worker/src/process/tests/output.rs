//! What commands write.

use super::*;
use meepo_core::{code::Code, job::OutputKeep};

#[tokio::test]
async fn both_streams_keep_their_order() {
    let script = "i=0; while [ $i -lt 500 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done";
    let mut running = start(sh(script)).await;
    assert_eq!(running.end().await.code, Code::OK);
    let expect = |p: char| (0..500).map(|i| format!("{p}{i}\n")).collect::<String>();
    assert_eq!(text(&running.output, Stream::Stdout).await, expect('o'));
    assert_eq!(text(&running.output, Stream::Stderr).await, expect('e'));
    let mut follower = running.output.follow(0);
    let mut seq = 0;
    while let Some(batch) = follower.next().await {
        for chunk in batch {
            assert_eq!((chunk.seq, chunk.run_id), (seq, running.run_id));
            assert_eq!(chunk.at, meepo_core::run::to_millis(chunk.at));
            seq += 1;
        }
    }
}

#[tokio::test]
async fn any_bytes_survive() {
    let mut c = Command::new(Executor::Python, "import os; os.write(1, bytes(range(256)) * 64)");
    c.output_limit = 1 << 20;
    let mut running = start(c).await;
    let e = running.end().await;
    assert_eq!((e.code, e.output_bytes, e.dropped_bytes), (Code::OK, 256 * 64, 0));
    let mut follower = running.output.follow(0);
    let mut bytes = Vec::new();
    while let Some(batch) = follower.next().await {
        batch.iter().for_each(|c| bytes.extend_from_slice(&c.data));
    }
    assert_eq!(bytes, (0..=255).collect::<Vec<u8>>().repeat(64));
}

#[tokio::test]
async fn output_is_there_while_the_command_runs() {
    let mut running = start(sh("echo early; exec sleep 50")).await;
    running.says("early").await;
    assert!(!running.output.is_closed());
    running.control.kill_with(KillReason::Requested, KillPlan::NOW);
    running.end().await;
    assert!(running.output.is_closed());
}

/// Bytes of memory this process has in use.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test]
async fn a_flood_is_counted_and_not_kept() {
    const FLOOD: u64 = 200_000_000;
    let before = resident();
    let mut c =
        sh(&format!("head -c {} /dev/zero; head -c {} /dev/zero >&2", FLOOD / 2, FLOOD / 2));
    c.output_limit = 100_000;
    let mut running = start(c).await;
    let e = running.end().await;
    assert_eq!((e.code, e.output_bytes, e.dropped_bytes), (Code::OK, FLOOD, FLOOD - 100_000));
    assert_eq!(running.output.counts(), (FLOOD, FLOOD - 100_000));
    let out = text(&running.output, Stream::Stdout).await;
    assert_eq!(out.len(), 100_000);
    // Other tests run in this process too, hence the wide margin.
    let grown = resident().saturating_sub(before);
    assert!(grown < 100_000_000, "{grown} bytes more in use");
}

#[tokio::test]
async fn the_end_of_a_flood_can_be_kept() {
    const FLOOD: u64 = 50_000_000;
    for (keep, head) in [(OutputKeep::Tail, ""), (OutputKeep::Both, "begin")] {
        let mut c = sh(&format!("printf begin; head -c {FLOOD} /dev/zero; printf end"));
        c.output_limit = 10;
        c.output_keep = keep;
        let mut running = start(c).await;
        let e = running.end().await;
        assert_eq!((e.output_bytes, e.dropped_bytes), (FLOOD + 8, FLOOD - 2));
        let zeros = "\0".repeat(10 - 3 - head.len());
        assert_eq!(text(&running.output, Stream::Stdout).await, format!("{head}{zeros}end"));
    }
}

#[tokio::test]
async fn a_flood_does_not_delay_its_timeout() {
    let mut c = sh("yes & exec cat /dev/zero >&2");
    c.timeout = Some(Duration::from_millis(300));
    let begun = Instant::now();
    let (e, _) = run(c).await;
    assert_eq!(e.code, Code::TIMED_OUT);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(e.dropped_bytes > 0);
}
