//! How commands are ended.

use super::*;
use meepo_core::{code::Code, run::RunState};

/// The default plan with shorter waits.
fn quick() -> KillPlan {
    KillPlan { signals: vec![(Signal::SIGINT, Duration::from_millis(100)); 3] }
}

#[test]
fn the_default_plan_is_three_polite_signals() {
    let second = Duration::from_secs(1);
    assert_eq!(KillPlan::default().signals, [(Signal::SIGINT, second); 3]);
}

#[test]
fn every_signal_a_plan_may_name_is_known() {
    let steps = meepo_core::kill_plan::SIGNALS.map(|n| format!("{n} 2s").parse().unwrap());
    let plan = meepo_core::kill_plan::KillPlan(steps.to_vec());
    let known = KillPlan::from(&plan);
    assert_eq!(known.signals.len(), steps.len());
    assert_eq!(known.signals[1], (Signal::SIGINT, Duration::from_secs(2)));
    assert_eq!(KillPlan::from(&Default::default()), KillPlan::default());
}

#[tokio::test]
async fn a_timeout_ends_what_ignores_polite_signals() {
    let mut c = sh("trap '' INT; echo ready; while :; do sleep 1; done");
    c.timeout = Some(Duration::from_millis(300));
    c.kill = quick();
    let (e, out) = run(c).await;
    assert_eq!((e.code, e.state, e.signal), (Code::TIMED_OUT, RunState::Timeout, Some(9)));
    assert_eq!(e.message.as_deref(), Some("ran longer than 300ms; ended only on SIGKILL"));
    assert_eq!(out, "ready\n", "what was written before is kept");
}

#[tokio::test]
async fn a_timeout_lets_a_polite_command_clean_up() {
    let mut c = sh("trap 'echo cleaned; exit 3' INT; echo ready; while :; do sleep 0.01; done");
    c.timeout = Some(Duration::from_millis(200));
    let (e, out) = run(c).await;
    assert_eq!((e.code, e.state, e.exit_code), (Code::TIMED_OUT, RunState::Timeout, Some(3)));
    assert_eq!(out, "ready\ncleaned\n");
}

#[tokio::test]
async fn reasons_become_codes_and_the_first_stays() {
    for (reason, code) in [
        (KillReason::Requested, Code::KILLED),
        (KillReason::Replaced, Code::REPLACED),
        (KillReason::Shutdown, Code::SHUTDOWN),
    ] {
        let mut running = start(sh("echo ready; exec sleep 50")).await;
        running.says("ready").await;
        running.control.kill(reason);
        running.control.kill(KillReason::Timeout);
        let e = running.end().await;
        assert_eq!((e.code, e.state, e.signal), (code, RunState::Killed, Some(2)));
        assert_eq!(e.message, None);
        until("the control notices", || running.control.is_over()).await;
        running.control.kill(KillReason::Requested);
    }
}

#[tokio::test]
async fn a_harder_plan_takes_over() {
    let mut running = start(sh("trap '' INT; echo ready; while :; do sleep 1; done")).await;
    running.says("ready").await;
    let patient = KillPlan { signals: vec![(Signal::SIGINT, Duration::from_secs(3600))] };
    running.control.kill_with(KillReason::Replaced, patient);
    running.control.kill_with(KillReason::Shutdown, KillPlan::NOW);
    let e = running.end().await;
    assert_eq!((e.code, e.signal), (Code::REPLACED, Some(9)));
}

#[tokio::test]
async fn the_whole_group_dies() {
    // A grandchild that ignores the polite signal outlives the command itself.
    let script = "(trap '' INT; echo child $(exec sh -c 'echo $PPID'); while :; do sleep 1; done) &
                  sleep 0.05; echo ready; wait";
    let mut c = sh(&format!("trap 'exit 0' INT; {script}"));
    c.kill = quick();
    let mut running = start(c).await;
    running.says("ready").await;
    running.says("child ").await;
    let out = {
        let mut f = running.output.follow(0);
        let mut bytes = Vec::new();
        while !String::from_utf8_lossy(&bytes).contains("ready") {
            f.next().await.unwrap().iter().for_each(|c| bytes.extend_from_slice(&c.data));
        }
        String::from_utf8(bytes).unwrap()
    };
    let child: u32 =
        out.lines().find_map(|l| l.strip_prefix("child ")).unwrap().trim().parse().unwrap();
    assert!(start_time(child).is_some(), "the grandchild runs");
    running.control.kill(KillReason::Requested);
    let e = running.end().await;
    assert_eq!((e.code, e.exit_code), (Code::KILLED, Some(0)));
    until("the grandchild is gone", || start_time(child).is_none()).await;
}

#[tokio::test]
async fn a_spawn_nobody_waits_for_leaves_nothing_behind() {
    let marker = tempfile::tempdir().unwrap();
    let file = marker.path().join("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 50", file.display());
    let runner = runner();
    // Polled once, so the request is under way; then dropped.
    let spawn = runner.spawn(run_id(), sh(&script));
    let _ = timeout(Duration::ZERO, spawn).await;
    // Either nothing was started or it is killed; a later run shows that the queue is through.
    let mut after = runner.spawn(run_id(), sh("exit 0")).await.unwrap();
    assert_eq!(after.wait().await.code, Code::OK);
    until("the abandoned process is gone", || match std::fs::read_to_string(&file) {
        Ok(pid) => start_time(pid.trim().parse().unwrap()).is_none(),
        Err(_) => true,
    })
    .await;
}

#[tokio::test]
async fn at_shutdown_no_plan_takes_long() {
    let (short, hour) = (Duration::from_millis(100), Duration::from_secs(3600));
    for (before, code) in [(None, Code::SHUTDOWN), (Some(KillReason::Replaced), Code::REPLACED)] {
        let mut c = sh("trap '' INT TERM; echo ready; while :; do sleep 1; done");
        c.kill = KillPlan { signals: vec![(Signal::SIGINT, short), (Signal::SIGTERM, hour)] };
        let mut running = start(c).await;
        running.says("ready").await;
        // Also where a patient end is under way.
        before.into_iter().for_each(|reason| running.control.kill(reason));
        let begun = Instant::now();
        running.control.kill(KillReason::Shutdown);
        let e = running.end().await;
        assert_eq!((e.code, e.signal), (code, Some(9)));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
