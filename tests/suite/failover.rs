//! Three masters, three etcd members, three workers, and the leaders of both die while
//! requests flow. What was accepted runs; nothing runs twice.

use crate::fleet::{SOON, apply, quick};
use meepo_tests::{Api, Cluster, eventually, millis, secs};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// How many ask at the same time, for runs of jobs and for commands.
const TRIGGERING: usize = 6;
const COMMANDING: usize = 4;
const NODES: usize = 3;
/// The code of a host that is known and not connected.
const OFFLINE: u64 = 0x0201;

/// `MEEPO_TEST_FAILOVER=60` makes the flow after each fault that many seconds long; the
/// figures of `docs/benchmarks.md` come from that.
fn flow() -> Duration {
    let given = std::env::var("MEEPO_TEST_FAILOVER").ok().map(|s| s.parse().unwrap());
    given.map_or(secs(2), secs)
}

/// What became of the requests of one kind.
#[derive(Debug, Default, Clone)]
struct Told {
    submitted: usize,
    /// By what they were to leave in the evidence.
    accepted: BTreeSet<String>,
    /// Not done for certain: 429, 503, a host that is away, a master that is not there.
    refused: usize,
    /// No answer, or one that says that nobody knows.
    unknown: usize,
}

impl Told {
    fn add(&mut self, other: Told) {
        self.submitted += other.submitted;
        self.accepted.extend(other.accepted);
        self.refused += other.refused;
        self.unknown += other.unknown;
    }
}

/// Goes on asking, another master whenever one does not accept.
async fn ask(
    apis: Vec<Api>,
    first: usize,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    path: &'static str,
    body: impl Fn(usize) -> Value,
    evidence: impl Fn(u16, &Value) -> Option<Vec<String>>,
) -> Told {
    let (mut told, mut at) = (Told::default(), first);
    for n in 0.. {
        if stop.load(SeqCst) {
            break;
        }
        told.submitted += 1;
        let answer = apis[at % apis.len()].try_http("POST", path, Some(&body(n))).await;
        match answer {
            Ok((status, body)) => match evidence(status, &body) {
                Some(marks) => {
                    told.accepted.extend(marks);
                    accepted.fetch_add(1, SeqCst);
                }
                None => {
                    let away = body["response"][0]["retcode"] == OFFLINE;
                    let refused = away || matches!(status, 429 | 503);
                    *(if refused { &mut told.refused } else { &mut told.unknown }) += 1;
                    at += 1;
                }
            },
            Err(e) => {
                let refused = e.contains("ConnectionRefused");
                *(if refused { &mut told.refused } else { &mut told.unknown }) += 1;
                at += 1;
            }
        }
        // Not as fast as possible: the rest of the machine is to keep up.
        tokio::time::sleep(millis(40)).await;
    }
    told
}

/// How often each mark stands in a file that runs append to.
fn marks(file: &Path) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        *found.entry(line.to_owned()).or_default() += 1;
    }
    found
}

/// The number of the master that leads, and its term.
async fn leader(cluster: &Cluster) -> Option<(usize, i64)> {
    let mut client = cluster.etcd().client().await;
    let found = client.get("/meepo/leader", None).await.ok()?;
    let kv = found.kvs().first()?;
    let record: Value = serde_json::from_slice(kv.value()).unwrap();
    let number = (0..3).find(|i| record["http"] == cluster.master(*i).api().base())?;
    Some((number, kv.create_revision()))
}

/// Waits for a leader of a newer term: the number of its master, and its term.
pub(crate) async fn wait_leader(cluster: &Cluster, above: i64) -> (usize, i64) {
    eventually(SOON, "a master leads with a newer term", async || {
        leader(cluster).await.filter(|l| l.1 > above).ok_or_else(|| "none".to_owned())
    })
    .await
}

/// The number of the etcd member that leads the others.
pub(crate) async fn leading_member(cluster: &Cluster) -> usize {
    for (i, member) in cluster.etcd().members().iter().enumerate() {
        let mut client = etcd_client::Client::connect([member.url()], None).await.unwrap();
        let status = client.status().await.unwrap();
        if status.header().unwrap().member_id() == status.leader() {
            return i;
        }
    }
    panic!("no etcd member leads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_die_while_requests_flow_and_nothing_is_lost_or_doubled() {
    let cluster = quick().etcd(3).masters(3).workers(NODES).start().await;
    let file = |name: &str| -> PathBuf { cluster.dir().join(name) };
    let (runs, commands) = (file("runs"), file("commands"));
    let apis: Vec<Api> = (0..3).map(|i| cluster.master(i).api()).collect();
    let cmd = format!("echo $MEEPO_RUN_ID >> {}", runs.display());
    let job = json!({"name": "mark", "cmd": cmd, "executor": "sh", "target": "all",
        "concurrency": "allow"});
    apply(&apis[0], job).await;
    for node in 0..NODES {
        crate::fleet::wait_session(&apis[0], cluster.worker(node).node()).await;
    }
    let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));

    let mut triggering = JoinSet::new();
    for i in 0..TRIGGERING {
        let of = |status: u16, body: &Value| {
            let ids = body["runs"].as_array().filter(|_| status == 202)?;
            Some(ids.iter().map(|r| r["run_id"].as_str().unwrap().to_owned()).collect())
        };
        let (apis, stop, accepted) = (apis.clone(), stop.clone(), accepted.clone());
        let path = "/v1/jobs/mark/trigger";
        triggering.spawn(ask(apis, i, stop, accepted, path, |_| json!({}), of));
    }
    let mut commanding = JoinSet::new();
    for i in 0..COMMANDING {
        let to = cluster.worker(i % NODES).node().to_owned();
        let commands = commands.clone();
        let command = move |n: usize| {
            let cmd = format!("echo {i}.{n} | tee -a {}", commands.display());
            json!({"id": "x", "method": "sync.sh", "hosts": [to], "cmd": cmd, "timeout": "5s"})
        };
        // The command says what it has written.
        let of = |status: u16, body: &Value| {
            let answer = body["response"].get(0).filter(|_| status == 200)?;
            let done = answer["resp"] == "success";
            done.then(|| vec![answer["data"].as_str().unwrap().trim().to_owned()])
        };
        let (apis, stop) = (apis.clone(), stop.clone());
        let uncounted = Arc::new(AtomicUsize::new(0));
        commanding.spawn(ask(apis, i, stop, uncounted, "/v1/exec", command, of));
    }
    let flowing = async |more: usize| {
        let want = accepted.load(SeqCst) + more;
        eventually(SOON, format!("{more} more requests are accepted"), async || {
            let now = accepted.load(SeqCst);
            if now >= want { Ok(()) } else { Err(format!("{} are missing", want - now)) }
        })
        .await;
    };

    flowing(20).await;
    tokio::time::sleep(flow()).await;
    // The leading master and the leading member of etcd, in one instant.
    let (first, term) = wait_leader(&cluster, 0).await;
    let member = leading_member(&cluster).await;
    let died = Instant::now();
    cluster.master(first).process().kill9();
    cluster.member(member).process().kill9();
    let (_, term) = wait_leader(&cluster, term).await;
    let switched = died.elapsed();
    flowing(20).await;
    tokio::time::sleep(flow()).await;
    // They come back; then the next leader goes in order, which takes no lease.
    cluster.member(member).process().restart();
    cluster.master(first).process().restart();
    cluster.member(member).wait_ready().await;
    cluster.master(first).wait_ready().await;
    let (second, _) = wait_leader(&cluster, term - 1).await;
    let asked = Instant::now();
    cluster.master(second).process().term();
    wait_leader(&cluster, term).await;
    let handed = asked.elapsed();
    flowing(20).await;
    stop.store(true, SeqCst);

    let (mut jobs, mut execs) = (Told::default(), Told::default());
    while let Some(told) = triggering.join_next().await {
        jobs.add(told.unwrap());
    }
    while let Some(told) = commanding.join_next().await {
        execs.add(told.unwrap());
    }
    for (told, file) in [(&jobs, &runs), (&execs, &commands)] {
        eventually(SOON, "everything that was accepted has run", async || {
            let there = marks(file);
            let lost = told.accepted.iter().filter(|m| !there.contains_key(*m)).count();
            if lost == 0 { Ok(()) } else { Err(format!("{lost} have not")) }
        })
        .await;
    }
    eprintln!("another master led {switched:.1?} after the crash, {handed:.1?} after the order");
    eprintln!("| | submitted | refused | unknown | runs accepted | run | run twice | lost |");
    for (what, told, file) in [("trigger", &jobs, &runs), ("exec", &execs, &commands)] {
        let there = marks(file);
        let twice = there.values().filter(|n| **n > 1).count();
        let lost = told.accepted.iter().filter(|m| !there.contains_key(*m)).count();
        let Told { submitted, accepted, refused, unknown } = told;
        let accepted = accepted.len();
        let run = there.len();
        eprintln!(
            "| {what} | {submitted} | {refused} | {unknown} | {accepted} | {run} | {twice} | {lost} |"
        );
        assert_eq!((twice, lost), (0, 0), "{what}");
        // What nobody was told of may have run; what was refused has not.
        assert!(run <= accepted + unknown * NODES, "{what}: {run} of {accepted}, {unknown}");
    }
    // A lease of two seconds, and the time in which etcd chose a leader of its own.
    assert!(switched < secs(10), "{switched:?} until another led");
    // What is handed over needs no lease to end; the rest is what a busy machine takes.
    assert!(handed < secs(5), "{handed:?} until another led");
}
