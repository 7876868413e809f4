//! Orders and writes of a master that has been replaced and does not know it yet.

use crate::fleet::{SOON, apply, quick, wait_session};
use meepo_coord::{
    Etcd as Coord,
    election::Leadership,
    keys,
    records::{LeaderRecord, encode},
};
use meepo_core::{id::RunId, job::Assignment};
use meepo_master::{metrics::Metrics, reconcile, view::View};
use meepo_proto::internal::{
    self as pb,
    master_frame::Frame as Order,
    worker_frame::Frame,
    workers_server::{Workers, WorkersServer},
};
use meepo_tests::{Cluster, eventually, secs};
use serde_json::{Value, json};
use std::{pin::Pin, sync::Arc, time::Instant};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

/// A worker's session as the master has it.
pub(crate) struct Session {
    orders: mpsc::Sender<Result<pb::MasterFrame, Status>>,
    frames: Streaming<pb::WorkerFrame>,
}

impl Session {
    pub(crate) async fn order(&self, term: i64, order: Order) {
        self.orders.send(Ok(pb::MasterFrame { term, frame: Some(order) })).await.unwrap();
    }

    /// Orders a command with its run id.
    pub(crate) async fn exec(&self, term: i64, cmd: &str) -> RunId {
        let run_id = RunId(uuid::Uuid::now_v7());
        let assignment = encode(&Assignment::new(cmd)).into();
        let run = run_id.to_string();
        let exec = pb::Exec { run_id: run, assignment, ..pb::Exec::default() };
        self.order(term, Order::Exec(exec)).await;
        run_id
    }

    /// Waits for the end of a run; whatever else comes meanwhile is skipped.
    pub(crate) async fn ended(&mut self, run: RunId) -> Value {
        loop {
            let frame = tokio::time::timeout(SOON, self.frames.message()).await;
            let frame = frame.expect("in time").unwrap().expect("the session is still open");
            match frame.frame {
                Some(Frame::Ended(e)) if e.run_id == run.to_string() => {
                    return serde_json::from_slice(&e.record).unwrap();
                }
                _ => {}
            }
        }
    }
}

/// A master of the test's own, as far as workers see one.
struct Fake(mpsc::Sender<Session>);

type Orders = Pin<Box<dyn Stream<Item = Result<pb::MasterFrame, Status>> + Send>>;

#[tonic::async_trait]
impl Workers for Fake {
    type SessionStream = Orders;

    async fn session(
        &self,
        request: Request<Streaming<pb::WorkerFrame>>,
    ) -> Result<Response<Orders>, Status> {
        let (orders, rx) = mpsc::channel(16);
        let _ = self.0.send(Session { orders, frames: request.into_inner() }).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn deliver(
        &self,
        _: Request<pb::DeliverRequest>,
    ) -> Result<Response<pb::DeliverResponse>, Status> {
        Err(Status::unavailable("no log store"))
    }
}

/// A master of the test's own, its address, and the sessions that workers open with it.
pub(crate) async fn fake() -> (AbortOnDropHandle<()>, String, mpsc::Receiver<Session>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tx, sessions) = mpsc::channel(4);
    let server = tonic::transport::Server::builder()
        .add_service(WorkersServer::new(Fake(tx)))
        .serve_with_incoming(TcpIncoming::from(listener));
    let serving = async { server.await.unwrap() };
    (AbortOnDropHandle::new(tokio::spawn(serving)), url, sessions)
}

/// Becomes the leader in etcd; answers the term.
pub(crate) async fn lead(cluster: &Cluster, grpc: &str) -> i64 {
    let record = LeaderRecord {
        id: "fake".into(),
        http: "http://127.0.0.1:1".into(),
        grpc: grpc.into(),
        extra: Default::default(),
    };
    let mut client = cluster.etcd().client().await;
    client.delete(keys::LEADER, None).await.unwrap();
    let put = client.put(keys::LEADER, encode(&record), None).await.unwrap();
    put.header().unwrap().revision()
}

#[tokio::test]
async fn a_worker_refuses_orders_of_an_older_term() {
    let cluster = quick().masters(0).start().await;
    let (_server, url, mut sessions) = fake().await;
    let mut next = async || tokio::time::timeout(SOON, sessions.recv()).await.unwrap().unwrap();

    let old = lead(&cluster, &url).await;
    let mut session = next().await;
    let begun = session.exec(old, "echo first").await;
    assert_eq!(session.ended(begun).await["state"], "success");

    // The same worker under a newer term: what is ordered under the old one is not done,
    // by whatever way it comes.
    let new = lead(&cluster, &url).await;
    assert!(new > old);
    let mut session = next().await;
    let trace = cluster.dir().join("trace");
    let write = |what: &str| format!("echo {what} >> {}", trace.display());
    session.exec(old, &write("old")).await;
    session.exec(new - 1, &write("older")).await;
    let long = session.exec(new, &format!("{}; sleep 600", write("long"))).await;
    eventually(SOON, "the order of the new term runs", async || {
        let text = std::fs::read_to_string(&trace).unwrap_or_default();
        if text.contains("long") { Ok(()) } else { Err(text) }
    })
    .await;
    let kill = pb::Kill { run_id: long.to_string(), ..pb::Kill::default() };
    session.order(old, Order::Kill(kill.clone())).await;
    let after = session.exec(new, &write("after")).await;
    assert_eq!(session.ended(after).await["state"], "success");
    // Orders are obeyed in their order: the old ones have been dealt with.
    assert_eq!(std::fs::read_to_string(&trace).unwrap(), "long\nafter\n");
    let log = cluster.worker(0).process().log();
    assert_eq!(log.matches("order of an old term refused").count(), 3, "{log}");
    let (_, metrics) = cluster.worker(0).metrics().get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("meepo_worker_orders_refused_total 3"), "{metrics}");
    session.order(new, Order::Kill(kill)).await;
    assert_eq!(session.ended(long).await["state"], "killed");
}

/// A leader in the same process, which believes what it is told.
fn place(coord: &Coord, term: i64, metrics: &Arc<Metrics>) -> Vec<AbortOnDropHandle<()>> {
    let (view, stop) = (View::new(), CancellationToken::new());
    let (tx, leadership) =
        watch::channel(Leadership { leader: None, mine: Some(term), until: None });
    let following = view.clone().keep(coord.clone(), stop.clone());
    let placing = reconcile::run(coord.clone(), view, leadership, metrics.clone(), stop);
    let placing = async move {
        let _believes = tx;
        placing.await.unwrap();
    };
    vec![
        AbortOnDropHandle::new(tokio::spawn(async { following.await.unwrap() })),
        AbortOnDropHandle::new(tokio::spawn(placing)),
    ]
}

#[tokio::test]
async fn etcd_refuses_what_a_replaced_leader_places() {
    let cluster = quick().masters(0).start().await;
    let coord = Coord::connect(&[cluster.etcd().urls()]).await.unwrap();
    let old = lead(&cluster, "http://127.0.0.1:1").await;
    let new = lead(&cluster, "http://127.0.0.1:1").await;
    let job = json!({"name": "j", "cmd": "date", "executor": "sh", "target": "all",
        "placement": "each", "status": "running"});
    let job = serde_json::to_vec(&job).unwrap();
    coord.put("/meepo/jobs/j", job, None).await.unwrap();
    let assigned = async || coord.list(keys::ASSIGNMENTS, None).await.unwrap().0.len();

    let metrics = Arc::new(Metrics::default());
    let replaced = place(&coord, old, &metrics);
    // It has tried when it tries again, which it says by waiting for the view.
    eventually(SOON, "the replaced leader was refused", async || {
        let refused = metrics.placements_refused.get();
        if refused > 1 { Ok(()) } else { Err(refused.to_string()) }
    })
    .await;
    assert_eq!((assigned().await, metrics.placements.get()), (0, 0));
    drop(replaced);
    // The one that leads writes the same at once.
    let _leads = place(&coord, new, &metrics);
    eventually(SOON, "the leader places the job", async || {
        if assigned().await == 1 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
}

#[tokio::test]
async fn a_leader_that_was_stopped_comes_back_as_a_follower() {
    let cluster = quick().masters(3).start().await;
    let mut client = cluster.etcd().client().await;
    let leads = async |client: &mut etcd_client::Client| {
        let found = client.get(keys::LEADER, None).await.unwrap();
        let kv = found.kvs().first()?;
        let record: Value = serde_json::from_slice(kv.value()).unwrap();
        let number = (0..3).find(|i| record["http"] == cluster.master(*i).api().base());
        Some((number.unwrap(), kv.create_revision()))
    };
    let (old, term) = leads(&mut client).await.unwrap();
    wait_session(&cluster.master((old + 1) % 3).api(), "127.0.0.2").await;
    let stopped = cluster.master(old);
    stopped.process().stop();
    let at = Instant::now();
    let new = eventually(SOON, "another leads", async || {
        let found = leads(&mut client).await.filter(|l| l.1 > term);
        found.map(|l| l.0).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    assert!(at.elapsed() < secs(6), "a lease of two seconds, and {:?}", at.elapsed());
    let api = cluster.master(new).api();
    wait_session(&api, "127.0.0.2").await;
    // What is placed and done meanwhile stays as it is.
    let trace = cluster.dir().join("trace");
    let write = |what: &str| format!("echo {what} >> {}", trace.display());
    apply(&api, json!({"name": "kept", "cmd": write("kept"), "target": "all"})).await;

    // It goes on, and is asked in the same moment: it answers as a follower or not at all,
    // and never runs a command twice.
    stopped.process().cont();
    let body =
        json!({"id": "x", "method": "sync.sh", "hosts": ["127.0.0.2"], "cmd": write("once")});
    let mut successes = 0;
    for _ in 0..5 {
        let answer = stopped.api().try_http("POST", "/v1/exec", Some(&body)).await;
        if let Ok((200, answer)) = answer {
            successes += usize::from(answer["response"][0]["resp"] == "success");
        }
    }
    stopped.process().wait_log("this master does not lead any more", SOON).await;
    wait_session(&stopped.api(), "127.0.0.2").await;
    assert_eq!(leads(&mut client).await.map(|l| l.0), Some(new));
    let text = std::fs::read_to_string(&trace).unwrap_or_default();
    assert_eq!(text.lines().filter(|l| *l == "once").count(), successes, "{text}");
    eventually(SOON, "it says that it does not lead", async || {
        let (_, text) = stopped.api().get("/metrics").await;
        let text = text.as_str().unwrap().to_owned();
        if text.contains("meepo_master_leading 0") { Ok(()) } else { Err(text) }
    })
    .await;
    let (_, job) = stopped.api().get("/v1/jobs/kept").await;
    assert_eq!(job["nodes"].as_array().map(Vec::len), Some(1), "{job}");
}
