//! The session with the leading master: one stream for heartbeats, synchronous
//! commands and live output. Losing it loses nothing durable.

mod beat;

pub use beat::Pulse;

use crate::{
    engine::{Engine, Plan},
    health::{Identity, Registration, VERSION},
    link::{Leader, MAX_MESSAGE, MasterLink},
    metrics::Metrics,
    process::KillReason,
    registry::{Event, Stages},
    state::{SpoolItem, born},
};
use anyhow::Context;
use jiff::Timestamp;
use meepo_coord::records::encode;
use meepo_core::{
    code::Code,
    id::RunId,
    job::Assignment,
    run::{Cause, OutputChunk, RunRecord, RunState, Stream},
    signing::{Covered, Kind},
};
use meepo_proto::internal::{
    self as pb, master_frame::Frame as Order, worker_frame::Frame as Answer,
};
use meepo_runtime::backoff::Backoff;
use prometheus_client::metrics::gauge::Gauge;
use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

/// Synchronous commands at the same time; more are refused as busy.
const MAX_EXEC: usize = 256;
/// How long a run that is followed may take to appear …
const APPEARS: Duration = Duration::from_secs(5);
/// … when it was decided on so recently.
const FRESH: Duration = Duration::from_secs(15);

/// Keeps a session with whichever master leads, while the node is registered, until
/// `stop` is cancelled.
pub async fn keep(
    engine: Arc<Engine>,
    me: Identity,
    pulse: Pulse,
    compare: Arc<Notify>,
    link: MasterLink,
    mut registration: watch::Receiver<Registration>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut leader = link.watch();
    let mut backoff = Backoff::new(Duration::from_secs(5));
    let places = Arc::new(Semaphore::new(MAX_EXEC));
    let mut newest_term = 0;
    loop {
        // Another worker may be behind this node's id: its session is not to be taken.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            done = registration.wait_for(|r| *r == Registration::Done) => {
                if done.is_err() { return Ok(()) }
            }
        }
        let current = leader.borrow_and_update().clone();
        let Some(current) = current.filter(|l| l.term >= newest_term) else {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = leader.changed() => if changed.is_err() { return Ok(()) },
            }
            continue;
        };
        newest_term = current.term;
        let session = Session {
            engine: engine.clone(),
            me: me.clone(),
            pulse: pulse.clone(),
            compare: compare.clone(),
            places: places.clone(),
            follows: Arc::default(),
        };
        let ended = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = leader.changed() => {
                engine.metrics.session.set(0);
                if changed.is_err() { return Ok(()) }
                continue;
            }
            lost = registration.wait_for(|r| *r != Registration::Done) => {
                engine.metrics.session.set(0);
                if lost.is_err() { return Ok(()) }
                continue;
            }
            ended = session.run(&current, &mut backoff) => ended,
        };
        engine.metrics.session.set(0);
        let reason = match ended {
            Ok(()) => "closed by the master".to_owned(),
            Err(e) => format!("{e:#}"),
        };
        let wait = backoff.next_wait();
        info!(reason, ?wait, "session with the master ended, will try again");
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
            // Another leads: no reason to wait any longer.
            changed = leader.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

struct Session {
    engine: Arc<Engine>,
    me: Identity,
    pulse: Pulse,
    /// Makes the agent read its assignments anew.
    compare: Arc<Notify>,
    places: Arc<Semaphore>,
    /// What the master follows; dropping a guard ends it.
    follows: Follows,
}

type Out = mpsc::Sender<pb::WorkerFrame>;
type Follows = Arc<Mutex<HashMap<RunId, DropGuard>>>;

impl Session {
    async fn run(&self, leader: &Leader, backoff: &mut Backoff) -> anyhow::Result<()> {
        let (out, rx) = mpsc::channel(256);
        let hello = pb::Hello {
            node: self.me.node.to_string(),
            instance: self.me.instance.clone(),
            version: VERSION.into(),
        };
        send(&out, Answer::Hello(hello)).await;
        let mut client = leader
            .client
            .clone()
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let mut orders = client
            .session(ReceiverStream::new(rx))
            .await
            .context("cannot open a session")?
            .into_inner();
        info!(term = leader.term, "session with the leading master");
        self.engine.metrics.session.set(1);
        backoff.reset();
        let mut beat = pin!(tokio::time::sleep(Duration::ZERO));
        let mut first = true;
        loop {
            tokio::select! {
                () = &mut beat => {
                    self.pulse.beat(out.clone());
                    // Sessions of a whole fleet may have begun together.
                    let wait = self.pulse.wait(std::mem::take(&mut first));
                    beat.as_mut().reset(Instant::now() + wait);
                }
                order = orders.message() => {
                    let Some(order) = order? else { return Ok(()) };
                    if order.term < leader.term {
                        self.engine.metrics.orders_refused.inc();
                        warn!(term = order.term, mine = leader.term, "order of an old term refused");
                        continue;
                    }
                    if let Some(order) = order.frame {
                        self.obey(order, &out);
                    }
                }
            }
        }
    }

    fn obey(&self, order: Order, out: &Out) {
        match order {
            Order::Exec(exec) => self.exec(exec, out),
            Order::Follow(follow) => {
                let Ok(run_id) = follow.run_id.parse() else { return };
                let from = follow.after.map_or(0, |after| after + 1);
                self.follow(run_id, from, out.clone());
            }
            Order::Unfollow(unfollow) => {
                if let Ok(run_id) = unfollow.run_id.parse::<RunId>() {
                    self.lock().remove(&run_id);
                }
            }
            Order::Compare(_) => {
                info!("the master asks to read all assignments anew");
                self.compare.notify_one();
            }
            Order::Tell(tell) => {
                if let Ok(run_id) = tell.run_id.parse::<RunId>() {
                    self.tell(run_id);
                }
            }
            Order::Kill(kill) => {
                if let Ok(run_id) = kill.run_id.parse() {
                    self.kill(run_id, kill.signature.into(), out.clone());
                }
            }
        }
    }

    /// Ends a run, if a master has asked for that.
    fn kill(&self, run_id: RunId, signature: Vec<u8>, out: Out) {
        let engine = self.engine.clone();
        if !engine.trust.is_strict() {
            // In the order of the stream.
            if !engine.registry.kill(run_id, KillReason::Requested) {
                unknown(run_id, out);
            }
            return;
        }
        tokio::spawn(async move {
            let (key, value) = (format!("kill/{run_id}"), || serde_json::json!({"run_id": run_id}));
            match engine.trust.admit_frame(Kind::Kill, &key, &signature, value).await {
                Ok(()) if engine.registry.kill(run_id, KillReason::Requested) => {}
                Ok(()) => unknown(run_id, out),
                Err(e) => warn!(%run_id, error = %e, "a request to end a run is not believed"),
            }
        });
    }

    /// Starts a synchronous command and follows it.
    fn exec(&self, exec: pb::Exec, out: &Out) {
        let Ok(run_id) = exec.run_id.parse::<RunId>() else { return };
        let assignment = match Assignment::from_etcd(&exec.assignment) {
            Ok(assignment) => assignment,
            Err(e) => {
                warn!(%run_id, error = %e, "the master sent a command that is not valid");
                return unknown(run_id, out.clone());
            }
        };
        let plan = Plan {
            run_id,
            job: None,
            assignment: Arc::new(assignment),
            slot: Timestamp::now(),
            attempt: 1,
            cause: Cause::Exec,
            fence: None,
            permit: None,
        };
        let engine = self.engine.clone();
        if engine.drain.borrow().drain().is_some() {
            let why = "this node is drained: it takes nothing new until `meepo node undrain`";
            return self.refuse(&plan, Code::DRAINED, why.to_owned(), out);
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            let why = format!("more than {MAX_EXEC} synchronous commands on this node");
            return self.refuse(&plan, Code::BUSY, why, out);
        };
        let (follower, follows, out) = (self.follower(run_id), self.follows.clone(), out.clone());
        tokio::spawn(async move {
            let a = plan.assignment.clone();
            let (key, value) = (
                format!("exec/{run_id}"),
                || serde_json::json!({"run_id": run_id, "assignment": a.covered()}),
            );
            if let Err(e) = engine.trust.admit_frame(Kind::Exec, &key, &exec.signature, value).await
            {
                let (code, why) = (Code::UNTRUSTED, e.to_string());
                engine.trust.note(code, Some(&"a synchronous command"), &why);
                let record = plan.not_run(&engine.node, RunState::Failed, code, Some(why));
                engine.settle(std::slice::from_ref(&record), None).await;
                follows.lock().unwrap_or_else(PoisonError::into_inner).remove(&run_id);
                send(&out, ended(&record, 0)).await;
                return;
            }
            let begun = engine.begin(&plan).await;
            let stage = engine.registry.watch(run_id);
            let run = engine.execute(plan, begun, None, |_| None);
            let tell = async {
                if let Some(stage) = stage {
                    let _counted = Counted::new(&engine.metrics);
                    follow(run_id, Stages::new(stage, 0), &out, follower, follows).await;
                }
            };
            tokio::join!(run, tell);
            drop(place);
        });
    }

    /// Answers that a synchronous command is not run.
    fn refuse(&self, plan: &Plan, code: Code, why: String, out: &Out) {
        let record = plan.not_run(&self.engine.node, RunState::Failed, code, Some(why));
        let out = out.clone();
        tokio::spawn(async move { send(&out, ended(&record, 0)).await });
    }

    /// Delivers the record of a run that is under way again.
    fn tell(&self, run_id: RunId) {
        let engine = self.engine.clone();
        tokio::spawn(async move {
            let told = async {
                let open = engine.state.recover().await?;
                let own = open.into_iter().find(|run| run.record.run_id == run_id);
                match own {
                    Some(run) => {
                        let pid = run.process.map(|(pid, _)| pid).or(run.record.pid);
                        let record = RunRecord { pid, ..run.record };
                        engine.state.spool(&[SpoolItem::Record(record)]).await
                    }
                    None => Ok(()),
                }
            };
            match told.await {
                Ok(()) => info!(%run_id, "the master asks for the record of a run"),
                Err(e) => warn!(%run_id, error = %e, "cannot deliver the record of a run again"),
            }
        });
    }

    fn follow(&self, run_id: RunId, from: u64, out: Out) {
        let (token, follows) = (self.follower(run_id), self.follows.clone());
        let engine = self.engine.clone();
        tokio::spawn(async move {
            let known = async {
                match engine.registry.watch(run_id) {
                    Some(stage) => Some(stage),
                    // It may have been asked for a moment ago.
                    None if is_fresh(run_id) => {
                        tokio::time::timeout(APPEARS, engine.registry.appears(run_id)).await.ok()
                    }
                    None => None,
                }
            };
            let stage = tokio::select! {
                () = token.cancelled() => return,
                stage = known => stage,
            };
            let Some(stage) = stage else {
                let mut follows = follows.lock().unwrap_or_else(PoisonError::into_inner);
                // As below: the guard may be another's by now.
                if !token.is_cancelled() {
                    follows.remove(&run_id);
                }
                return unknown(run_id, out);
            };
            let _counted = Counted::new(&engine.metrics);
            follow(run_id, Stages::new(stage, from), &out, token, follows).await;
        });
    }

    /// Enters a run as followed; an earlier follower of it ends.
    fn follower(&self, run_id: RunId) -> CancellationToken {
        let token = CancellationToken::new();
        self.lock().insert(run_id, token.clone().drop_guard());
        token
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, DropGuard>> {
        self.follows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn follow(
    run_id: RunId,
    mut stages: Stages,
    out: &Out,
    stop: CancellationToken,
    follows: Follows,
) {
    let telling = async {
        let mut seen = stages.from();
        while let Some(event) = stages.next().await {
            let frame = match event {
                Event::Output(chunks) => {
                    seen = chunks.last().map_or(seen, |c| c.seq + 1);
                    output(run_id, &chunks)
                }
                Event::Ended(record) => ended(&record, seen),
            };
            if !send(out, frame).await {
                return;
            }
        }
    };
    tokio::select! {
        // Another follower has taken the place of this one, or nobody follows any more.
        () = stop.cancelled() => {}
        () = telling => {
            let mut follows = follows.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the lock: another follower may have taken the place meanwhile, and
            // the guard is that one's.
            if !stop.is_cancelled() {
                follows.remove(&run_id);
            }
        }
    }
}

/// Counts a stream of output as long as it lives.
struct Counted(Gauge);

impl Counted {
    fn new(metrics: &Metrics) -> Self {
        metrics.follows.inc();
        metrics.follow_streams.inc();
        Self(metrics.follow_streams.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Whether a run may be on its way here still. Clocks differ.
fn is_fresh(run_id: RunId) -> bool {
    let now = Timestamp::now().as_millisecond();
    now - born(run_id) < FRESH.as_millis() as i64
}

fn unknown(run_id: RunId, out: Out) {
    let frame = Answer::UnknownRun(pb::UnknownRun { run_id: run_id.to_string() });
    tokio::spawn(async move { send(&out, frame).await });
}

fn output(run_id: RunId, chunks: &[Arc<OutputChunk>]) -> Answer {
    let chunks = chunks
        .iter()
        .map(|c| pb::Chunk {
            seq: c.seq,
            stderr: c.stream == Stream::Stderr,
            at_ms: c.at.as_millisecond(),
            data: c.data.clone().into(),
        })
        .collect();
    Answer::Output(pb::Output { run_id: run_id.to_string(), chunks })
}

fn ended(record: &RunRecord, chunks: u64) -> Answer {
    let run_id = record.run_id.to_string();
    Answer::Ended(pb::Ended { run_id, record: encode(record).into(), chunks })
}

/// Answers whether the stream is still there.
async fn send(out: &Out, frame: Answer) -> bool {
    out.send(pb::WorkerFrame { frame: Some(frame) }).await.is_ok()
}
