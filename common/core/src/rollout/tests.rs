use super::*;
use proptest::prelude::*;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn amount(text: &str) -> Amount {
    text.parse().unwrap()
}

fn policy(value: serde_json::Value) -> Rollout {
    serde_json::from_value(value).unwrap()
}

fn done(second: i64) -> Stand {
    Stand::Ended { at: at(second), failed: false }
}

fn failed(second: i64) -> Stand {
    Stand::Ended { at: at(second), failed: true }
}

fn simple(policy: &Rollout, parts: &[Stand], now: i64) -> Plan {
    plan(policy, parts, &Control::default(), at(now))
}

#[test]
fn amounts_are_numbers_or_shares_rounded_up() {
    for (text, all, want) in [
        ("5", 100, 5),
        ("5", 3, 5),
        ("10%", 25, 3),
        ("1%", 10, 1),
        ("1%", 0, 1),
        ("100%", 7, 7),
        ("33%", 3, 1),
        ("34%", 3, 2),
        ("50 %", 9, 5),
    ] {
        assert_eq!(amount(text).of(all), want, "{text} of {all}");
    }
    for bad in ["0", "0%", "101%", "-1", "+1", "x", "", "%", "1.5"] {
        let e = bad.parse::<Amount>().unwrap_err();
        assert!(e.expected.contains("10%"), "{bad}: {e}");
    }
    let both = policy(json!({"batch": 5, "max_failures": "10%"}));
    assert_eq!(serde_json::to_value(&both).unwrap(), json!({"batch": 5, "max_failures": "10%"}));
    let e = serde_json::from_value::<Rollout>(json!({"batch": true})).unwrap_err();
    assert!(e.to_string().contains("10%"), "{e}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    assert_eq!(policy(json!({})).validate().unwrap_err().field, "rollout");
    let long = policy(json!({"canary": {"size": 1, "soak": "31d"}}));
    assert_eq!(long.validate().unwrap_err().field, "rollout.canary.soak");
    assert_eq!(
        policy(json!({"batch": 1, "pause": "31d"})).validate().unwrap_err().field,
        "rollout.pause"
    );
    policy(json!({"batch": 1, "pause": "30d"})).validate().unwrap();
    assert!(serde_json::from_value::<Rollout>(json!({"batches": 1})).is_err());
}

#[test]
fn batch_after_batch_with_a_pause_between() {
    let policy = policy(json!({"batch": 2, "pause": "30s"}));
    let mut parts = [Stand::Held; 5];
    let first = simple(&policy, &parts, 0);
    assert_eq!((first.last, first.progress.batch, first.progress.batches), (2, 1, 3));
    parts[0] = done(10);
    parts[1] = Stand::Open;
    assert_eq!(simple(&policy, &parts, 10).last, 2, "the batch has not ended");
    parts[1] = failed(20);
    let pausing = simple(&policy, &parts, 49);
    assert_eq!((pausing.last, pausing.again), (0, Some(at(50))));
    assert_eq!(pausing.progress.phase, Phase::Pausing);
    assert_eq!(pausing.progress.to_string(), "batch 2 of 3, 2 of 5 done, 1 failed");
    assert_eq!(simple(&policy, &parts, 50).last, 4);
    // Once it has begun, a clock that goes back holds up nothing.
    parts[2] = Stand::Open;
    assert_eq!(simple(&policy, &parts, 5).last, 4);
    let ended = [done(1), done(1), done(2), done(2), done(3)];
    let plan = simple(&policy, &ended, 3);
    assert_eq!((plan.again, plan.progress.phase), (None, Phase::Done));
}

#[test]
fn a_canary_goes_first_and_stops_everything_when_it_fails() {
    let policy =
        policy(json!({"canary": {"size": 1, "soak": "10m"}, "batch": "50%", "pause": "1s"}));
    let mut parts = [Stand::Held; 5];
    assert_eq!(simple(&policy, &parts, 0).last, 1);
    parts[0] = done(10);
    assert_eq!(simple(&policy, &parts, 10).again, Some(at(610)));
    assert_eq!(simple(&policy, &parts, 610).last, 4, "three are half of five");
    (parts[1], parts[2], parts[3]) = (done(700), done(700), failed(700));
    assert_eq!(
        simple(&policy, &parts, 700).again,
        Some(at(701)),
        "a failure later on is none of its"
    );
    parts[0] = failed(10);
    let stopped = simple(&policy, &parts, 10_000);
    assert_eq!((stopped.last, stopped.again, stopped.progress.phase), (0, None, Phase::Stopped));
    assert_eq!(stopped.progress.why.as_deref(), Some("the canary failed"));
}

#[test]
fn it_stops_after_failures_and_goes_on_when_told_to() {
    let policy = policy(json!({"batch": 2, "max_failures": "40%"}));
    let mut parts = [failed(1), Stand::Open, Stand::Held, Stand::Held, Stand::Held];
    assert_eq!(simple(&policy, &parts, 2).progress.phase, Phase::Running);
    parts[1] = failed(2);
    let stopped = simple(&policy, &parts, 3);
    assert_eq!(stopped.progress.why.as_deref(), Some("2 failed, at most 1 may"));
    assert_eq!(stopped.last, 0);
    let resumed = Control { pardoned: 2, ..Control::default() };
    assert_eq!(plan(&policy, &parts, &resumed, at(3)).last, 4);
    parts[2] = failed(4);
    assert_eq!(plan(&policy, &parts, &resumed, at(4)).last, 4, "one new failure may be");
    parts[3] = failed(4);
    assert_eq!(plan(&policy, &parts, &resumed, at(4)).progress.phase, Phase::Stopped);
}

#[test]
fn it_waits_for_its_time_and_for_whoever_holds_it() {
    let policy = policy(json!({"batch": 2}));
    let control = Control { start_at: Some(at(100)), ..Control::default() };
    let waiting = plan(&policy, &[Stand::Held; 3], &control, at(99));
    assert_eq!(
        (waiting.last, waiting.again, waiting.progress.phase),
        (0, Some(at(100)), Phase::Waiting)
    );
    assert_eq!(plan(&policy, &[Stand::Held; 3], &control, at(100)).last, 2);
    let paused = Control { paused: true, ..Control::default() };
    let plan = plan(&policy, &[done(1), Stand::Open, Stand::Held], &paused, at(99));
    assert_eq!((plan.last, plan.again, plan.progress.phase), (0, None, Phase::Paused));
}

#[test]
fn without_nodes_there_is_nothing_to_do() {
    let policy = policy(json!({"batch": "10%", "canary": {"size": 1}, "max_failures": 1}));
    let plan = simple(&policy, &[], 0);
    assert_eq!((plan.last, plan.again, plan.progress.phase), (0, None, Phase::Done));
}

#[test]
fn a_part_that_is_tried_again_later_holds_up_what_has_not_begun() {
    let policy = policy(json!({"batch": 2}));
    // The first part, of a batch that was over, was kicked.
    let parts = [Stand::Open, done(1), Stand::Open, Stand::Held, Stand::Held];
    assert_eq!(simple(&policy, &parts, 5).last, 2, "never more than a batch and what was kicked");
}

/// What happens to a roll-out in the simulation below.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A part that is under way ends; which one, and whether it fails.
    End(usize, bool),
    /// Time passes.
    Pass(i64),
    /// Somebody holds it.
    Pause,
    /// Somebody lets it go on.
    Resume,
    /// A master takes over in the middle of letting parts go: only so many got through.
    Partly(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<usize>(), proptest::bool::weighted(0.2)).prop_map(|(i, f)| Step::End(i, f)),
        3 => (0_i64..60).prop_map(Step::Pass),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => (0_usize..4).prop_map(Step::Partly),
    ];
    prop::collection::vec(step, 0..200)
}

fn amounts() -> impl Strategy<Value = Amount> {
    prop_oneof![(1_u32..12).prop_map(Amount::Parts), (1_u32..=100).prop_map(Amount::Percent)]
}

fn policies() -> impl Strategy<Value = Rollout> {
    let pause = prop::option::of((0_u64..40).prop_map(|s| HumanDuration(Duration::from_secs(s))));
    let canary = (amounts(), pause.clone()).prop_map(|(size, soak)| Canary { size, soak });
    let some = || prop::option::of(amounts());
    (some(), pause, prop::option::of(canary), some()).prop_map(
        |(batch, pause, canary, max_failures)| Rollout { batch, pause, canary, max_failures },
    )
}

proptest! {
    #[test]
    fn a_roll_out_keeps_its_promises(
        policy in policies(),
        count in 0_usize..40,
        steps in steps(),
    ) {
        let all = count as u32;
        let mut parts = vec![Stand::Held; count];
        let mut begun = vec![0; count];
        let mut control = Control::default();
        let mut now = 0;
        let largest = sizes(&policy, all).max().unwrap_or(0) as usize;
        let mut through = usize::MAX;
        for step in steps {
            match step {
                Step::End(which, fail) => {
                    let open: Vec<_> = (0..count).filter(|i| parts[*i] == Stand::Open).collect();
                    if !open.is_empty() {
                        parts[open[which % open.len()]] = if fail { failed(now) } else { done(now) };
                    }
                }
                Step::Pass(seconds) => now += seconds,
                Step::Pause => control.paused = true,
                Step::Resume => {
                    let failures = parts.iter().filter(|p| matches!(p, Stand::Ended { failed: true, .. }));
                    control = Control { pardoned: failures.count() as u32, ..Control::default() };
                }
                Step::Partly(n) => through = n,
            }
            let plan = plan(&policy, &parts, &control, at(now));
            let p = &plan.progress;
            prop_assert!(p.batch <= p.batches && p.ended <= p.parts && p.failed <= p.ended);
            prop_assert_eq!(p.phase == Phase::Done, p.ended == all);
            let held = matches!(p.phase, Phase::Paused | Phase::Stopped | Phase::Pausing | Phase::Waiting);
            prop_assert_eq!(held, plan.last == 0 && p.phase != Phase::Done);
            prop_assert_eq!(plan.again.is_some(), p.until.is_some());
            prop_assert!(plan.again.is_none_or(|again| again > at(now)), "it would plan for ever");
            // The batches before must be over, the whole pause ago, before one begins.
            let fresh: Vec<usize> = (0..plan.last as usize).filter(|i| parts[*i] == Stand::Held).collect();
            for i in fresh.into_iter().take(std::mem::replace(&mut through, usize::MAX)) {
                parts[i] = Stand::Open;
                begun[i] += 1;
                prop_assert_eq!(begun[i], 1, "let go twice");
            }
            let open = parts.iter().filter(|p| **p == Stand::Open).count();
            prop_assert!(open <= largest, "{} under way, {} at most", open, largest);
        }
        // Whatever happened: if somebody lets it go on as often as it stops, it comes to its end.
        for _ in 0..count * 4 + 4 {
            control = Control { pardoned: all, ..Control::default() };
            let plan = plan(&policy, &parts, &control, at(now));
            if plan.progress.phase == Phase::Done {
                break;
            }
            now = plan.again.map_or(now, |t| t.as_second());
            for part in &mut parts[..plan.last as usize] {
                if !matches!(part, Stand::Ended { .. }) {
                    *part = failed(now);
                }
            }
        }
        prop_assert!(parts.iter().all(|p| matches!(p, Stand::Ended { .. })), "{:?}", parts);
    }

    #[test]
    fn the_batches_are_all_parts(policy in policies(), all in 0_u32..2_000) {
        let sizes: Vec<u32> = sizes(&policy, all).collect();
        prop_assert_eq!(sizes.iter().sum::<u32>(), all);
        prop_assert!(!sizes.contains(&0));
    }
}
