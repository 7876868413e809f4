//! Who leads, and who does so next.

use super::*;
use meepo_coord::{
    election::{self, Leadership},
    records::LeaderRecord,
};

/// One who stands for election.
struct Candidate {
    lease: Kept,
    state: cell::Receiver<Leadership>,
    /// Every term it led with, in order.
    terms: Arc<std::sync::Mutex<Vec<i64>>>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Candidate {
    fn start(coord: &Coord, id: &str) -> Self {
        let lease = Kept::start(coord, secs(2));
        let (tx, state) = cell::channel(Leadership::default());
        let me = LeaderRecord {
            id: id.into(),
            http: "http://h".into(),
            grpc: "http://g".into(),
            extra: Default::default(),
        };
        let stop = CancellationToken::new();
        let standing = election::campaign(coord.clone(), me, lease.state.clone(), tx, stop);
        let terms = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (mut seen, noted) = (state.clone(), terms.clone());
        let noting = async move {
            let mut last = None;
            loop {
                let mine = seen.borrow_and_update().mine;
                if mine != last {
                    noted.lock().unwrap().extend(mine);
                    last = mine;
                }
                if seen.changed().await.is_err() {
                    return;
                }
            }
        };
        let tasks = vec![
            AbortOnDropHandle::new(tokio::spawn(standing)),
            AbortOnDropHandle::new(tokio::spawn(noting)),
        ];
        Self { lease, state, terms, _tasks: tasks }
    }

    fn mine(&self) -> Option<i64> {
        self.state.borrow().mine
    }
}

/// Waits until exactly one leads, with a term above `above`, and all agree on it.
async fn one_leads(all: &[Candidate], above: i64) -> (usize, i64) {
    eventually(secs(30), "exactly one leads and all know", async || {
        let mine: Vec<Option<i64>> = all.iter().map(Candidate::mine).collect();
        let known: Vec<Option<i64>> =
            all.iter().map(|c| c.state.borrow().leader.as_ref().map(|(_, t)| *t)).collect();
        let leaders: Vec<usize> = (0..all.len()).filter(|i| mine[*i].is_some()).collect();
        assert!(leaders.len() <= 1, "two lead: {mine:?}");
        match leaders[..] {
            [i] if mine[i] > Some(above) && known.iter().all(|k| *k == mine[i]) => {
                Ok((i, mine[i].unwrap()))
            }
            _ => Err(format!("lead: {mine:?}, known: {known:?}")),
        }
    })
    .await
}

#[tokio::test]
async fn one_leads_and_another_takes_over_with_a_higher_term() {
    let own = Own::start().await;
    let coord = own.coord().await;
    let mut all: Vec<Candidate> =
        ["a", "b", "c"].iter().map(|id| Candidate::start(&coord, id)).collect();
    let (leader, first) = one_leads(&all, 0).await;
    let there = coord.get(keys::LEADER).await.unwrap().unwrap();
    assert_eq!(there.create_revision, first);

    // It stops: its lease is revoked, and another leads at once.
    let gone = all.remove(leader);
    gone.lease.stop.cancel();
    let (_, second) = one_leads(&all, first).await;
    assert_eq!(gone.mine(), None);

    // It crashes: its lease is renewed no more.
    let (leader, _) = one_leads(&all, first).await;
    drop(all.remove(leader));
    let (_, third) = one_leads(&all, second).await;
    assert!(first < second && second < third);
}

#[tokio::test]
async fn who_cannot_renew_steps_down_and_never_leads_with_an_old_term() {
    let own = Own::start().await;
    let coord = own.coord().await;
    let all: Vec<Candidate> = ["a", "b"].iter().map(|id| Candidate::start(&coord, id)).collect();
    let (_, mut term) = one_leads(&all, 0).await;
    // Silent, and crashed: after a crash etcd gives every lease its full time again.
    for crash in [false, true] {
        if crash {
            own.process().kill9()
        } else {
            own.process().stop()
        }
        eventually(secs(10), "nobody leads", async || match all.iter().find_map(Candidate::mine) {
            None => Ok(()),
            Some(term) => Err(format!("somebody leads with term {term}")),
        })
        .await;
        if crash {
            own.process().restart()
        } else {
            own.process().cont()
        }
        term = one_leads(&all, term).await.1;
    }
    for candidate in &all {
        let terms = candidate.terms.lock().unwrap().clone();
        assert!(terms.is_sorted_by(|a, b| a < b), "led again with an old term: {terms:?}");
    }
}
