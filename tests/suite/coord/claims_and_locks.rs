//! Many who want the same slot, or the same place.

use super::*;
use std::collections::HashMap;

/// A slot that is run by whoever wins it.
fn wanted(slot: Timestamp, run_id: RunId) -> Wanted {
    Wanted { slot, run_id, runs: true, max_runs: None }
}

#[tokio::test]
async fn every_slot_has_one_winner_and_fences_grow() {
    const CLAIMERS: u64 = 8;
    const SLOTS: i64 = 40;
    let own = Own::start().await;
    let coord = own.coord().await;
    let barrier = Arc::new(tokio::sync::Barrier::new(CLAIMERS as usize));
    let claimers = (0..CLAIMERS).map(|n| {
        let (coord, barrier) = (coord.clone(), barrier.clone());
        tokio::spawn(async move {
            let claims = Claims::new(coord);
            let mut won = Vec::new();
            for s in 0..SLOTS {
                // All at once, slot by slot.
                barrier.wait().await;
                let run = run_id(n * 1000 + s as u64);
                let claim =
                    claims.claim(&name("j"), &name("n"), wanted(slot(s), run)).await.unwrap();
                if let Claim::Won { fence } = claim {
                    won.push((s, fence));
                }
            }
            won
        })
    });
    let mut won: Vec<(i64, i64)> =
        futures::future::join_all(claimers).await.into_iter().flat_map(Result::unwrap).collect();
    won.sort_unstable();
    assert_eq!(won.iter().map(|w| w.0).collect::<Vec<_>>(), (0..SLOTS).collect::<Vec<_>>());
    assert!(won.is_sorted_by(|a, b| a.1 < b.1), "{won:?}");
}

#[tokio::test]
async fn an_older_slot_is_never_won_after_a_later_one() {
    let own = Own::start().await;
    let coord = own.coord().await;
    // Each in an order of its own, as nodes with different clocks and loads.
    let claimers = (0..6u64).map(|n| {
        let coord = coord.clone();
        tokio::spawn(async move {
            let mut claims = Claims::new(coord.clone());
            let mut won = Vec::new();
            for i in 0..60i64 {
                let s = (i + (n as i64 * 7) % 5) ^ (n as i64 % 4);
                let run = run_id(n * 1000 + i as u64);
                if n == 5 {
                    // This one remembers nothing: it must not matter.
                    claims = Claims::new(coord.clone());
                }
                let claim =
                    claims.claim(&name("j"), &name("n"), wanted(slot(s), run)).await.unwrap();
                if let Claim::Won { fence } = claim {
                    won.push((fence, s));
                }
            }
            won
        })
    });
    let mut won: Vec<(i64, i64)> =
        futures::future::join_all(claimers).await.into_iter().flat_map(Result::unwrap).collect();
    won.sort_unstable();
    assert!(won.len() > 10, "{won:?}");
    assert!(won.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1), "in order of the fence: {won:?}");
    // Another job is another matter.
    let other = Claims::new(coord).claim(&name("k"), &name("n"), wanted(slot(0), run_id(9))).await;
    assert!(matches!(other, Ok(Claim::Won { .. })));
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_found_again() {
    let own = Own::start().await;
    let relay = Relay::to(&own.etcd).await;
    let direct = own.coord().await;
    let through = Coord::connect(std::slice::from_ref(&relay.url)).await.unwrap();
    let job = name("j");
    let claims = Claims::new(through.clone());
    let first = claims.claim(&job, &name("n"), wanted(slot(1), run_id(1))).await.unwrap();
    let Claim::Won { fence: first } = first else { panic!("{first:?}") };

    relay.deaf.store(true, SeqCst);
    let claiming = tokio::spawn(async move {
        let answer = claims.claim(&job, &name("n"), wanted(slot(2), run_id(2))).await;
        (claims, job, answer)
    });
    let fence = eventually(secs(10), "the claim has taken effect", async || {
        let there = direct.get(&keys::claim(&name("j"))).await.map_err(|e| e.to_string())?;
        let revision = there.map_or(0, |e| e.mod_revision);
        if revision > first { Ok(revision) } else { Err(format!("at {revision}")) }
    })
    .await;
    relay.cut();
    let (claims, job, answer) = claiming.await.unwrap();
    assert!(answer.as_ref().is_err_and(CoordError::retryable), "{answer:?}");
    relay.mend();

    let again = eventually(secs(20), "etcd answers again", async || {
        let run = run_id(2);
        claims.claim(&job, &name("n"), wanted(slot(2), run)).await.map_err(|e| e.to_string())
    })
    .await;
    assert_eq!(again, Claim::Won { fence }, "it was this run's");
    // Somebody else's run of the same slot is not.
    let other =
        Claims::new(direct).claim(&job, &name("m"), wanted(slot(2), run_id(3))).await.unwrap();
    assert_eq!(other, Claim::Lost { claimed: slot(2), own: None });
}

#[tokio::test]
async fn a_claim_in_the_future_tells_and_can_be_deleted() {
    let own = Own::start().await;
    let coord = own.coord().await;
    let (job, node) = (name("j"), name("n"));
    let claims = Claims::new(coord.clone());
    let ahead = slot(1_000_000);
    let won = claims.claim(&job, &node, wanted(ahead, run_id(1))).await.unwrap();
    let Claim::Won { fence } = won else { panic!("{won:?}") };
    let lost = claims.claim(&job, &node, wanted(slot(1), run_id(2))).await.unwrap();
    assert_eq!(lost, Claim::Lost { claimed: ahead, own: Some((run_id(1), fence)) });
    // The next life of the node learns of it, others do not.
    let next = Claims::new(coord.clone());
    let lost = next.claim(&job, &node, wanted(ahead, run_id(4))).await.unwrap();
    assert_eq!(lost, Claim::Lost { claimed: ahead, own: Some((run_id(1), fence)) });
    let lost = next.claim(&job, &name("m"), wanted(ahead, run_id(5))).await.unwrap();
    assert_eq!(lost, Claim::Lost { claimed: ahead, own: None });
    coord.delete(&keys::claim(&job)).await.unwrap();
    let won = claims.claim(&job, &node, wanted(slot(2), run_id(3))).await.unwrap();
    assert!(matches!(won, Claim::Won { .. }), "what is remembered does not stand in the way");
}

/// Waits until `n` stand in the line of a lock.
async fn in_line(coord: &Coord, lock: &str, n: usize) {
    eventually(secs(10), format!("{n} stand in line"), async || {
        let line = coord.list(&keys::lock(&name(lock)), None).await.map_err(|e| e.to_string())?;
        if line.0.len() == n { Ok(()) } else { Err(format!("{} do", line.0.len())) }
    })
    .await;
}

fn ask(
    coord: &Coord,
    permits: usize,
    lease: i64,
    ticket: &'static str,
) -> tokio::task::JoinHandle<Result<lock::Held, CoordError>> {
    let coord = coord.clone();
    tokio::spawn(
        async move { lock::acquire(&coord, &name("l"), permits, lease, ticket, "test").await },
    )
}

async fn got(task: tokio::task::JoinHandle<Result<lock::Held, CoordError>>) -> lock::Held {
    tokio::time::timeout(secs(20), task).await.expect("the lock in time").unwrap().unwrap()
}

#[tokio::test]
async fn a_lock_goes_to_the_next_in_line_on_release_and_when_a_lease_ends() {
    let own = Own::start().await;
    let coord = own.coord().await;
    let mut leases = HashMap::new();
    for who in ["a", "b", "c", "d"] {
        leases.insert(who, coord.grant(secs(600)).await.unwrap());
    }
    let a = got(ask(&coord, 1, leases["a"], "a")).await;
    let b = ask(&coord, 1, leases["b"], "b");
    in_line(&coord, "l", 2).await;
    let c = ask(&coord, 1, leases["c"], "c");
    in_line(&coord, "l", 3).await;
    let d = ask(&coord, 1, leases["d"], "d");
    in_line(&coord, "l", 4).await;
    // The same request again is the same place in line.
    let again = ask(&coord, 1, leases["c"], "c");
    assert!(!b.is_finished() && !c.is_finished() && !d.is_finished() && !again.is_finished());

    let first = a.fence;
    a.release(&coord).await.unwrap();
    let b = got(b).await;
    assert!(!c.is_finished() && !d.is_finished());
    // The holder's lease ends, and so does that of one who waits.
    let mut client = own.etcd.client().await;
    client.lease_revoke(leases["d"]).await.unwrap();
    let lost = tokio::time::timeout(secs(20), d).await.expect("an answer in time").unwrap();
    assert!(matches!(lost, Err(CoordError::LeaseLost { .. })), "{lost:?}");
    client.lease_revoke(leases["b"]).await.unwrap();
    let c = got(c).await;
    assert_eq!(got(again).await.fence, c.fence);
    assert!(first < b.fence && b.fence < c.fence);
    c.release(&coord).await.unwrap();
    in_line(&coord, "l", 0).await;
}

#[tokio::test]
async fn a_lock_of_three_permits_never_has_four_holders() {
    const TICKETS: [&str; 9] = ["0", "1", "2", "3", "4", "5", "6", "7", "8"];
    let own = Own::start().await;
    let coord = own.coord().await;
    let lease = coord.grant(secs(600)).await.unwrap();
    let inside = Arc::new(AtomicUsize::new(0));
    let (enter, mut entered) = mpsc::channel(16);
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    for ticket in TICKETS {
        let (coord, inside, enter, go) = (coord.clone(), inside.clone(), enter.clone(), go.clone());
        tokio::spawn(async move {
            let held = lock::acquire(&coord, &name("l"), 3, lease, ticket, "t").await.unwrap();
            let now = inside.fetch_add(1, SeqCst) + 1;
            enter.send(now).await.unwrap();
            go.acquire().await.unwrap().forget();
            inside.fetch_sub(1, SeqCst);
            held.release(&coord).await.unwrap();
        });
    }
    let mut most = 0;
    for n in 0..TICKETS.len() {
        let now = tokio::time::timeout(secs(20), entered.recv()).await.expect("in time").unwrap();
        most = most.max(now);
        if n >= 2 {
            // Three are inside: only when one goes may the next come.
            go.add_permits(1);
        }
    }
    assert_eq!(most, 3);
    go.add_permits(TICKETS.len());
    in_line(&coord, "l", 0).await;
    // Given up: out of line.
    let _held = lock::acquire(&coord, &name("l"), 1, lease, "x", "t").await.unwrap();
    let waiting = ask(&coord, 1, lease, "y");
    in_line(&coord, "l", 2).await;
    waiting.abort();
    lock::leave(&coord, &name("l"), lease, "y").await.unwrap();
    in_line(&coord, "l", 1).await;
}

#[tokio::test]
async fn slots_that_run_are_counted_up_to_a_limit_and_missed_ones_are_not() {
    let own = Own::start().await;
    let coord = own.coord().await;
    let (job, node) = (name("j"), name("n"));
    let claims = Claims::new(coord.clone());
    let ask =
        |n: i64, runs| Wanted { runs, max_runs: Some(2), ..wanted(slot(n), run_id(n as u64)) };
    for (n, runs) in [(1, true), (2, false), (3, true), (4, false)] {
        let won = claims.claim(&job, &node, ask(n, runs)).await.unwrap();
        assert!(matches!(won, Claim::Won { .. }), "{n}: {won:?}");
    }
    // Also for one who does not remember.
    for claims in [claims, Claims::new(coord.clone())] {
        let end = claims.claim(&job, &node, ask(5, true)).await.unwrap();
        assert_eq!(end, Claim::Exhausted { runs: 2 });
    }
}
