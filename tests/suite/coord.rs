//! The coordination library against a real etcd: what it promises when the connection
//! breaks, history is compacted, leases end and many want the same thing at once.

use jiff::Timestamp;
use meepo_coord::{
    CoordError, Etcd as Coord,
    claim::{Claim, Claims, Wanted},
    keys,
    lease::{self, LeaseState},
    lock,
    watch::{Batch, Change, Options, watch},
};
use meepo_core::id::{Name, RunId};
use meepo_tests::{Etcd, TestDir, eventually, millis, secs};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch as cell},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// An etcd of one's own.
struct Own {
    etcd: Etcd,
    _dir: TestDir,
}

impl Own {
    async fn start() -> Self {
        let dir = TestDir::new();
        Self { etcd: Etcd::start(1, dir.path()).await, _dir: dir }
    }

    async fn coord(&self) -> Coord {
        Coord::connect(&[self.etcd.urls()]).await.unwrap()
    }

    fn process(&self) -> &meepo_tests::Process {
        self.etcd.members()[0].process()
    }
}

/// A relay in front of etcd that a test can cut, and whose answers it can swallow.
struct Relay {
    url: String,
    cut: cell::Sender<bool>,
    deaf: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    async fn to(etcd: &Etcd) -> Self {
        let target = etcd.members()[0].url().trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (cut, state) = cell::channel(false);
        let deaf = Arc::new(AtomicBool::new(false));
        let swallow = deaf.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                let (mut state, target) = (state.clone(), target.clone());
                if *state.borrow() {
                    continue;
                }
                let swallow = swallow.clone();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(&target).await else { return };
                    let (mut from_client, mut to_client) = client.into_split();
                    let (from_server, mut to_server) = server.into_split();
                    let there = tokio::io::copy(&mut from_client, &mut to_server);
                    let back = async {
                        let mut buffer = vec![0; 64 * 1024];
                        loop {
                            from_server.readable().await?;
                            match from_server.try_read(&mut buffer) {
                                Ok(0) => return std::io::Result::Ok(()),
                                Ok(_) if swallow.load(SeqCst) => {}
                                Ok(n) => to_client.write_all(&buffer[..n]).await?,
                                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                                Err(e) => return Err(e),
                            }
                        }
                    };
                    tokio::select! {
                        _ = there => {}
                        _ = back => {}
                        _ = state.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        Self { url, cut, deaf, _task: AbortOnDropHandle::new(task) }
    }

    fn cut(&self) {
        self.cut.send_replace(true);
    }

    fn mend(&self) {
        self.deaf.store(false, SeqCst);
        self.cut.send_replace(false);
    }
}

fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

fn run_id(n: u64) -> RunId {
    format!("00000000-0000-7000-8000-{n:012x}").parse().unwrap()
}

fn slot(n: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + n).unwrap()
}

/// A watch of one prefix, ended with its handle.
fn watching(coord: &Coord, prefix: &str) -> (mpsc::Receiver<Batch>, AbortOnDropHandle<()>) {
    let (tx, rx) = mpsc::channel(1);
    let watch =
        watch(coord.clone(), vec![prefix.into()], Options::default(), tx, CancellationToken::new());
    (rx, AbortOnDropHandle::new(tokio::spawn(watch)))
}

async fn next(rx: &mut mpsc::Receiver<Batch>) -> Batch {
    tokio::time::timeout(secs(30), rx.recv()).await.expect("a batch in time").expect("a batch")
}

/// The number in the last part of a key's value.
fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// Puts `n` keys below `/p/k/`.
async fn fill(coord: &Coord, n: usize) {
    let keys: Vec<String> = (0..n).map(|i| format!("/p/k/{i:04}")).collect();
    for some in keys.chunks(100) {
        let puts = some.iter().map(|key| coord.put(key, b"0".to_vec(), None));
        futures::future::try_join_all(puts).await.unwrap();
    }
}

#[tokio::test]
async fn pages_of_a_list_are_of_one_revision() {
    let own = Own::start().await;
    let coord = own.coord().await;
    fill(&coord, 1203).await;
    // A token that moves between the first and the last page in one transaction: a list
    // that mixed revisions would see none, or two.
    let done = Arc::new(AtomicBool::new(false));
    let mover = {
        let (mut client, done) = (own.etcd.client().await, done.clone());
        client.put("/p/k/0000-token", "", None).await.unwrap();
        tokio::spawn(async move {
            use etcd_client::{Txn, TxnOp};
            let ends = ["/p/k/0000-token", "/p/k/9999-token"];
            let mut moves = 0;
            while !done.load(SeqCst) {
                let (from, to) = (ends[moves % 2], ends[(moves + 1) % 2]);
                let ops = [TxnOp::delete(from, None), TxnOp::put(to, "", None)];
                client.txn(Txn::new().and_then(ops)).await.unwrap();
                moves += 1;
            }
            moves
        })
    };
    for _ in 0..20 {
        let (entries, revision) = coord.list("/p/k/", None).await.unwrap();
        let tokens = entries.iter().filter(|e| e.key.ends_with("-token")).count();
        assert_eq!((entries.len(), tokens), (1204, 1));
        assert!(entries.iter().all(|e| e.mod_revision <= revision));
        assert!(entries.is_sorted_by_key(|e| e.key.clone()));
    }
    done.store(true, SeqCst);
    assert!(mover.await.unwrap() > 2, "nothing moved meanwhile");
}

#[tokio::test]
async fn many_keys_are_put_and_got_at_once() {
    let own = Own::start().await;
    let coord = own.coord().await;
    let lease = coord.grant(secs(60)).await.unwrap();
    let entries = |n: usize| (0..n).map(|i| (format!("/many/{i}"), b"x".to_vec()));
    coord.put_all("many", entries(128), lease).await.unwrap();
    let keys: Vec<String> = (0..300).map(|i| format!("/many/{i}")).collect();
    let found = coord.get_all(&keys).await.unwrap();
    let names: BTreeSet<&str> = found.iter().map(|e| e.key.as_str()).collect();
    assert_eq!((found.len(), names.len()), (128, 128));
    assert!(found.iter().all(|e| e.value == b"x" && e.mod_revision == found[0].mod_revision));
    // All or nothing.
    let refused = coord.put_all("many", entries(2).chain(entries(1)), lease).await;
    assert!(!refused.unwrap_err().retryable(), "a key twice");
    assert!(coord.get_all(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn nothing_falls_between_list_and_watch() {
    const LAST: u64 = 900;
    let own = Own::start().await;
    let coord = own.coord().await;
    fill(&coord, 700).await;
    coord.put("/p/counter", b"0".to_vec(), None).await.unwrap();
    let writer = {
        let coord = coord.clone();
        tokio::spawn(async move {
            for n in 1..=LAST {
                coord.put("/p/counter", n.to_string().into(), None).await.unwrap();
                let key = format!("/p/k/{:04}", n % 800);
                if n % 3 == 0 {
                    coord.delete(&key).await.unwrap();
                } else {
                    coord.put(&key, n.to_string().into(), None).await.unwrap();
                }
            }
        })
    };
    let (mut rx, _watch) = watching(&coord, "/p/");
    let Batch::Reset { entries, revision } = next(&mut rx).await else { panic!("a list first") };
    let mut state: BTreeMap<String, Vec<u8>> =
        entries.into_iter().map(|e| (e.key, e.value)).collect();
    let mut counter = number(&state["/p/counter"]);
    let started_at = counter;
    let mut newest = revision;
    while counter < LAST || !writer.is_finished() {
        let batch = tokio::time::timeout(millis(200), rx.recv()).await;
        let Ok(batch) = batch else { continue };
        let Some(Batch::Changes(changes)) = batch else { panic!("listed anew: {batch:?}") };
        for change in changes {
            let (Change::Put(meepo_coord::Entry { mod_revision: at, .. })
            | Change::Delete { revision: at, .. }) = &change;
            assert!(*at > newest, "revision {at} after {newest}");
            newest = *at;
            match change {
                Change::Put(e) => {
                    if e.key == "/p/counter" {
                        assert_eq!(number(&e.value), counter + 1, "a change was lost");
                        counter += 1;
                    }
                    state.insert(e.key, e.value);
                }
                Change::Delete { key, .. } => drop(state.remove(&key)),
            }
        }
    }
    writer.await.unwrap();
    assert!(started_at < LAST, "the writer was to be at work when the watch began");
    let there = coord.list("/p/", None).await.unwrap().0;
    eventually(secs(10), "the last change has come", async || {
        while let Ok(Batch::Changes(changes)) = rx.try_recv() {
            for change in changes {
                match change {
                    Change::Put(e) => drop(state.insert(e.key, e.value)),
                    Change::Delete { key, .. } => drop(state.remove(&key)),
                }
            }
        }
        let there: BTreeMap<_, _> =
            there.iter().map(|e| (e.key.clone(), e.value.clone())).collect();
        if there == state { Ok(()) } else { Err("what was watched is not what is there".into()) }
    })
    .await;
}

#[tokio::test]
async fn compaction_while_away_lists_anew() {
    let own = Own::start().await;
    let relay = Relay::to(&own.etcd).await;
    let direct = own.coord().await;
    direct.put("/p/gone", b"1".to_vec(), None).await.unwrap();
    let through = Coord::connect(std::slice::from_ref(&relay.url)).await.unwrap();
    let (mut rx, _watch) = watching(&through, "/p/");
    assert!(matches!(next(&mut rx).await, Batch::Reset { entries, .. } if entries.len() == 1));
    direct.put("/p/a", b"2".to_vec(), None).await.unwrap();
    assert!(matches!(next(&mut rx).await, Batch::Changes(c) if c.len() == 1));

    relay.cut();
    direct.delete("/p/gone").await.unwrap();
    let mut last = 0;
    for n in 3..10u32 {
        last = direct.put("/p/a", n.to_string().into(), None).await.unwrap();
    }
    own.etcd.client().await.compact(last, None).await.unwrap();
    relay.mend();

    let Batch::Reset { entries, revision } = next(&mut rx).await else { panic!("no list") };
    assert_eq!(revision, last);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!((entries[0].key.as_str(), number(&entries[0].value)), ("/p/a", 9));
    // And it goes on from there.
    direct.put("/p/a", b"10".to_vec(), None).await.unwrap();
    let Batch::Changes(changes) = next(&mut rx).await else { panic!("no changes") };
    assert!(matches!(&changes[..], [Change::Put(e)] if number(&e.value) == 10), "{changes:?}");
}

#[tokio::test]
async fn a_watch_resumes_after_etcd_was_killed() {
    let own = Own::start().await;
    let coord = own.coord().await;
    coord.put("/p/a", b"0".to_vec(), None).await.unwrap();
    let (mut rx, _watch) = watching(&coord, "/p/");
    assert!(matches!(next(&mut rx).await, Batch::Reset { .. }));
    let mut expected = 1;
    for round in 0..3 {
        own.process().kill9();
        own.process().restart();
        own.etcd.members()[0].wait_ready().await;
        for _ in 0..3 {
            let value = expected.to_string().into_bytes();
            let mut client = own.etcd.client().await;
            client.put("/p/a", value, None).await.unwrap();
            let Batch::Changes(changes) = next(&mut rx).await else { panic!("round {round}") };
            let [Change::Put(e)] = &changes[..] else { panic!("round {round}: {changes:?}") };
            assert_eq!(number(&e.value), expected);
            expected += 1;
        }
    }
}

/// A lease being kept; ended without a revocation when dropped.
struct Kept {
    state: cell::Receiver<LeaseState>,
    stop: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl Kept {
    fn start(coord: &Coord, ttl: Duration) -> Self {
        let (tx, state) = cell::channel(LeaseState::None);
        let stop = CancellationToken::new();
        let task = tokio::spawn(lease::keep(coord.clone(), ttl, tx, stop.clone()));
        Self { state, stop, _task: AbortOnDropHandle::new(task) }
    }

    /// The id of a lease other than `not`, once one is held.
    async fn held(&self, not: i64) -> i64 {
        eventually(secs(30), "a lease is held", async || match self.state.borrow().id() {
            Some(id) if id != not => Ok(id),
            other => Err(format!("{other:?}")),
        })
        .await
    }
}

#[tokio::test]
async fn a_lease_is_kept_lost_granted_anew_and_revoked_at_the_end() {
    let own = Own::start().await;
    let coord = own.coord().await;
    let kept = Kept::start(&coord, secs(2));
    let first = kept.held(0).await;
    coord.put("/p/bound", b"x".to_vec(), Some(first)).await.unwrap();
    // Kept: renewed at least twice, so well beyond half of its time, and still the same.
    let mut state = kept.state.clone();
    for _ in 0..4 {
        tokio::time::timeout(secs(10), state.changed()).await.unwrap().unwrap();
    }
    assert_eq!(state.borrow().id(), Some(first));

    // Lost: etcd forgets it.
    own.etcd.client().await.lease_revoke(first).await.unwrap();
    let second = kept.held(first).await;
    assert_eq!(coord.get("/p/bound").await.unwrap(), None);

    // Lost: etcd falls silent. Known in time, without an answer.
    own.process().stop();
    eventually(secs(10), "the lease counts as lost", async || match *kept.state.borrow() {
        LeaseState::None => Ok(()),
        held => Err(format!("{held:?}")),
    })
    .await;
    own.process().cont();
    let third = kept.held(second).await;

    // Revoked: gone long before it would have ended.
    let long = Kept::start(&coord, secs(3600));
    let id = long.held(0).await;
    assert_ne!(id, third);
    coord.put("/p/long", b"x".to_vec(), Some(id)).await.unwrap();
    long.stop.cancel();
    eventually(secs(10), "what was bound to it is gone", async || {
        match coord.get("/p/long").await.map_err(|e| e.to_string())? {
            None => Ok(()),
            Some(_) => Err("still there".to_owned()),
        }
    })
    .await;
    assert_eq!(kept.state.borrow().id(), Some(third), "the other is not touched");
}

mod claims_and_locks;
mod elections;
