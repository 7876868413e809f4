//! Output as it is written, at any master, to many at once, over broken connections.

use crate::{
    fleet::{SOON, apply, quick, wait_runs, wait_session},
    pipeline::master::leader,
};
use futures::StreamExt;
use meepo_tests::{Api, Cluster, eventually, secs};
use serde_json::{Value, json};
use std::{path::PathBuf, pin::Pin};

/// A job that writes a line whenever the file grows, so that a test says when.
struct Talker {
    said: PathBuf,
    run: String,
}

impl Talker {
    /// Triggers it on the first worker.
    async fn start(cluster: &Cluster, name: &str) -> Self {
        let api = cluster.api();
        let said = cluster.dir().join(format!("{name}.said"));
        std::fs::write(&said, "").unwrap();
        let cmd = format!("exec tail -n +1 -s 0.01 -f --pid=$PPID {}", said.display());
        apply(&api, json!({"name": name, "cmd": cmd, "target": "127.0.0.2"})).await;
        wait_session(&api, "127.0.0.2").await;
        let (status, triggered) = api.post(&format!("/v1/jobs/{name}/trigger"), json!({})).await;
        assert_eq!(status, 202, "{triggered}");
        Self { said, run: triggered["runs"][0]["run_id"].as_str().unwrap().to_owned() }
    }

    fn say(&self, line: &str) {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).open(&self.said).unwrap();
        writeln!(file, "{line}").unwrap();
    }

    async fn end(&self, api: &Api) {
        let (status, body) = api.post(&format!("/v1/runs/{}/kill", self.run), json!({})).await;
        assert_eq!(status, 202, "{body}");
    }
}

type Bytes = Pin<Box<dyn futures::Stream<Item = Vec<u8>> + Send>>;

/// One who follows a run.
struct Follower {
    bytes: Bytes,
    rest: String,
    /// The text of the output so far.
    text: String,
    /// The position of the last piece.
    last: Option<u64>,
    end: Option<Value>,
}

impl Follower {
    /// Begins after `after`; as server-sent events, as a browser would.
    async fn start(api: &Api, run: &str, after: Option<u64>) -> Self {
        let url = format!("{}/v1/runs/{run}/output?follow=true", api.base());
        let mut request = reqwest::Client::new().get(&url).header("accept", "text/event-stream");
        if let Some(after) = after {
            request = request.header("last-event-id", after.to_string());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = response.bytes_stream().map(|b| b.map(|b| b.to_vec()).unwrap_or_default());
        let (rest, text) = (String::new(), String::new());
        Self { bytes: Box::pin(bytes), rest, text, last: after, end: None }
    }

    /// Reads until `done`, or the stream ends; positions rise by one.
    async fn read(&mut self, done: impl Fn(&Self) -> bool) {
        let reading = async {
            while !done(self) {
                let Some(bytes) = self.bytes.next().await else { return };
                self.rest.push_str(std::str::from_utf8(&bytes).unwrap());
                while let Some((block, rest)) = self.rest.split_once("\n\n") {
                    let (block, rest) = (block.to_owned(), rest.to_owned());
                    self.rest = rest;
                    self.take(&block);
                }
            }
        };
        let read = tokio::time::timeout(SOON, reading).await;
        assert!(read.is_ok(), "so far {:?} and {:?}", self.text, self.end);
    }

    fn take(&mut self, block: &str) {
        let field = |name: &str| block.lines().find_map(|l| l.strip_prefix(name));
        let Some(data) = field("data: ") else { return };
        let data: Value = serde_json::from_str(data).unwrap();
        match field("event: ") {
            Some("output") => {
                let seq: u64 = field("id: ").unwrap().parse().unwrap();
                assert_eq!(seq, self.last.map_or(0, |l| l + 1), "{block}");
                self.last = Some(seq);
                self.text.push_str(data["text"].as_str().unwrap());
            }
            Some("end") => self.end = Some(data),
            other => panic!("{other:?}: {block}"),
        }
    }

    async fn read_text(&mut self, want: &str) {
        self.read(|f| f.text.len() >= want.len()).await;
        assert_eq!(self.text, want);
    }
}

async fn metric(api: &Api, name: &str) -> i64 {
    let (_, text) = api.get("/metrics").await;
    let text = text.as_str().unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
}

#[tokio::test]
async fn many_followers_of_one_run_cost_one_stream() {
    let cluster = Cluster::builder().masters(2).start().await;
    let talker = Talker::start(&cluster, "talker").await;
    let worker = cluster.worker(0).metrics();
    let before = metric(&worker, "meepo_worker_follows_total").await;
    // Half of them at each master, some of them late.
    let mut followers = Vec::new();
    let mut said = String::new();
    for n in 0..60 {
        let api = cluster.master(n % 2).api();
        followers.push(Follower::start(&api, &talker.run, None).await);
        if n % 20 == 10 {
            talker.say(&format!("line {n}"));
            said += &format!("line {n}\n");
        }
    }
    for follower in &mut followers {
        follower.read_text(&said).await;
    }
    assert_eq!(metric(&worker, "meepo_worker_follow_streams").await, 1);
    let begun = metric(&worker, "meepo_worker_follows_total").await - before;
    // Two masters, and what each may have asked before it knew that it leads.
    assert!((1..=3).contains(&begun), "{begun} streams for {} followers", followers.len());
    let (leads, other) = match leader(&cluster).await {
        0 => (cluster.master(0).api(), cluster.master(1).api()),
        _ => (cluster.master(1).api(), cluster.master(0).api()),
    };
    assert_eq!(metric(&other, "meepo_master_followers").await, 30);
    // The other master is one of the leader's followers.
    assert_eq!(metric(&leads, "meepo_master_followers").await, 31);
    for api in [&leads, &other] {
        assert_eq!(metric(api, "meepo_master_feeds").await, 1);
    }
    talker.say("last");
    talker.end(&cluster.api()).await;
    said += "last\n";
    for follower in &mut followers {
        follower.read(|f| f.end.is_some()).await;
        assert_eq!(follower.text, said);
    }
    drop(followers);
    eventually(SOON, "nothing is left of it", async || {
        let left = metric(&worker, "meepo_worker_follow_streams").await
            + metric(&leads, "meepo_master_feeds").await
            + metric(&other, "meepo_master_followers").await;
        if left == 0 { Ok(()) } else { Err(left.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn followers_of_a_synchronous_command_share_its_stream() {
    let cluster = Cluster::builder().masters(2).start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    let worker = cluster.worker(0).metrics();
    let said = cluster.dir().join("said");
    std::fs::write(&said, "").unwrap();
    let cmd = format!("exec tail -n +1 -s 0.01 -f --pid=$PPID {}", said.display());
    let talking = async { cluster.cli(&["run", "-t", "all", "--timeout", "5m", "--", &cmd]).await };
    let following = async {
        let run = wait_runs(&api, "cause=exec&state=running", 1).await[0]["run_id"].clone();
        let talker = Talker { said, run: run.as_str().unwrap().to_owned() };
        let mut followers = Vec::new();
        for n in 0..20 {
            let api = cluster.master(n % 2).api();
            followers.push(Follower::start(&api, &talker.run, None).await);
        }
        talker.say("hello");
        for follower in &mut followers {
            follower.read_text("hello\n").await;
        }
        let streams = metric(&worker, "meepo_worker_follow_streams").await;
        assert_eq!(streams, 1, "one for the command and everybody who follows it");
        talker.end(&api).await;
        for follower in &mut followers {
            follower.read(|f| f.end.is_some()).await;
            assert_eq!(follower.text, "hello\n");
        }
    };
    let (ran, ()) = tokio::join!(talking, following);
    assert!(ran.code != 0 && ran.stdout.contains("hello"), "it was killed: {ran:?}");
}

#[tokio::test]
async fn who_loses_his_master_goes_on_where_he_was_at_another() {
    let cluster = quick().masters(2).start().await;
    let talker = Talker::start(&cluster, "talker").await;
    let first = leader(&cluster).await;
    let (gone, left) = (cluster.master(first).api(), cluster.master(1 - first).api());
    let mut at_leader = Follower::start(&gone, &talker.run, None).await;
    let mut at_other = Follower::start(&left, &talker.run, None).await;
    talker.say("one");
    at_leader.read_text("one\n").await;
    at_other.read_text("one\n").await;
    cluster.master(first).process().kill9();
    at_leader.read(|_| false).await;
    talker.say("two");
    // Whoever is at a master that lives need not do anything.
    at_other.read_text("one\ntwo\n").await;
    let mut again = Follower::start(&left, &talker.run, at_leader.last).await;
    again.read_text("two\n").await;
    talker.say("three");
    talker.end(&left).await;
    for follower in [&mut at_other, &mut again] {
        follower.read(|f| f.end.is_some()).await;
        assert!(follower.text.ends_with("two\nthree\n"), "{:?}", follower.text);
    }
}

#[tokio::test]
async fn who_is_too_slow_or_comes_late_gets_everything_all_the_same() {
    const BYTES: usize = 16_000_000;
    let cluster = Cluster::builder().masters(2).start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    // Far more than a master keeps of a run, and the sockets in between.
    let gate = cluster.dir().join("gate");
    let cmd = format!(
        "until [ -e {} ]; do sleep 0.05; done; head -c {BYTES} /dev/zero | tr '\\0' x; sleep 600",
        gate.display()
    );
    let spec = json!({"name": "much", "cmd": cmd, "output_limit": 16_777_216});
    apply(&api, spec).await;
    let (_, triggered) = api.post("/v1/jobs/much/trigger", json!({})).await;
    let run = triggered["runs"][0]["run_id"].as_str().unwrap().to_owned();
    let [a, b] = [cluster.master(0).api(), cluster.master(1).api()];
    let mut slow = [Follower::start(&a, &run, None).await, Follower::start(&b, &run, None).await];
    let mut quick = Follower::start(&b, &run, None).await;
    std::fs::write(&gate, "").unwrap();
    quick.read(|f| f.text.len() == BYTES).await;
    let mut late = Follower::start(&a, &run, None).await;
    let mut newest = Follower::start(&a, &run, quick.last.map(|seq| seq - 1)).await;
    newest.read(|f| f.last == quick.last).await;
    for follower in slow.iter_mut().chain([&mut late]) {
        follower.read(|f| f.text.len() == BYTES).await;
        assert_eq!(follower.last, quick.last);
    }
    // It goes on for all of them.
    let (status, body) = api.post(&format!("/v1/runs/{run}/kill"), json!({})).await;
    assert_eq!(status, 202, "{body}");
    for follower in slow.iter_mut().chain([&mut late, &mut quick, &mut newest]) {
        follower.read(|f| f.end.is_some()).await;
        assert!(follower.end.is_some());
    }
}

#[tokio::test]
async fn a_run_is_followed_from_before_its_beginning() {
    let cluster = Cluster::builder().masters(2).start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    apply(&api, json!({"name": "long", "cmd": "echo begun; sleep 600"})).await;
    // The worker is frozen: the run is asked for and nobody has begun it.
    cluster.worker(0).process().stop();
    let (_, triggered) = api.post("/v1/jobs/long/trigger", json!({})).await;
    let run = triggered["runs"][0]["run_id"].as_str().unwrap().to_owned();
    let mut followers = Vec::new();
    for i in 0..2 {
        followers.push(Follower::start(&cluster.master(i).api(), &run, None).await);
    }
    cluster.worker(0).process().cont();
    for follower in &mut followers {
        follower.read_text("begun\n").await;
    }
    // A position that is none is refused with words.
    let (status, body) = bad_position(&api, &run).await;
    assert_eq!((status, &body["error"]["field"]), (400, &json!("Last-Event-ID")), "{body}");
    tokio::time::timeout(secs(30), async {
        let (status, _) = api.post(&format!("/v1/runs/{run}/kill"), json!({})).await;
        assert_eq!(status, 202);
    })
    .await
    .unwrap();
    for follower in &mut followers {
        follower.read(|f| f.end.is_some()).await;
    }
}

async fn bad_position(api: &Api, run: &str) -> (u16, Value) {
    let url = format!("{}/v1/runs/{run}/output?follow=true", api.base());
    let request = reqwest::Client::new().get(&url).header("last-event-id", "x");
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}
