//! The workers' streams to this master while it leads, and who listens to which run.
//!
//! Memory is bounded: a subscriber that reads too slowly misses events and asks the
//! worker for them again, which keeps a run's output up to its limit anyway.

pub mod beats;

pub use beats::{Beat, live_from};

use crate::seal::Seal;
use meepo_coord::records::{decode, encode};
use meepo_core::{
    id::{NodeId, RunId},
    job::Assignment,
    run::{OutputChunk, RunRecord, Stream},
};
use meepo_proto::internal::{self as pb, master_frame::Frame as Order};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

/// Events a subscriber may be behind.
const BACKLOG: usize = 256;
/// Orders a worker may be behind.
pub const ORDERS: usize = 1024;

/// All sessions of this master. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Sessions {
    inner: Arc<Mutex<Inner>>,
    ids: Arc<AtomicU64>,
    seal: Seal,
}

#[derive(Default)]
struct Inner {
    nodes: HashMap<NodeId, Connection>,
    runs: HashMap<RunId, Followed>,
}

struct Connection {
    id: u64,
    term: i64,
    orders: mpsc::Sender<pb::MasterFrame>,
    beat: Option<Arc<Beat>>,
    /// Ends the stream when this entry goes.
    _guard: DropGuard,
}

struct Followed {
    node: NodeId,
    subscribers: Vec<Subscriber>,
}

struct Subscriber {
    id: u64,
    events: mpsc::Sender<Event>,
    shared: Arc<Lag>,
    /// The position it is to be sent next.
    next: u64,
}

/// Whether a subscriber has missed something.
#[derive(Default)]
struct Lag {
    lagged: AtomicBool,
    wake: Notify,
}

/// What a subscriber learns of its run.
#[derive(Debug, Clone)]
pub enum Event {
    /// It wrote something.
    Output(OutputChunk),
    /// It ended.
    Ended(Arc<RunRecord>),
    /// The worker does not know it.
    Unknown,
    /// The session with the worker broke.
    Disconnected,
}

impl Sessions {
    /// None yet; commands are signed as `seal` says.
    pub fn sealed(seal: Seal) -> Self {
        Self { seal, ..Self::default() }
    }

    /// Enters a worker's stream; an older one of the same node ends. The stream is to
    /// end when the token is cancelled.
    pub fn connect(
        &self,
        node: NodeId,
        term: i64,
        orders: mpsc::Sender<pb::MasterFrame>,
    ) -> (u64, CancellationToken) {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let token = CancellationToken::new();
        let connection =
            Connection { id, term, orders, beat: None, _guard: token.clone().drop_guard() };
        let mut inner = self.lock();
        let old = inner.nodes.insert(node.clone(), connection);
        if old.is_some() {
            // What the old stream was still to bring will not come.
            inner.drop_runs_of(&node);
        }
        info!(%node, replaced = old.is_some(), "worker connected");
        (id, token)
    }

    /// The stream has ended. Subscribers of the node's runs are told.
    pub fn disconnect(&self, node: &NodeId, id: u64) {
        let mut inner = self.lock();
        if inner.nodes.get(node).is_some_and(|c| c.id == id) {
            inner.nodes.remove(node);
            inner.drop_runs_of(node);
            info!(%node, "worker disconnected");
        }
    }

    /// Ends every stream that was not opened under `term`: the leadership it belonged
    /// to is over.
    pub fn keep_only(&self, term: Option<i64>) {
        let nodes: Vec<_> = {
            let inner = self.lock();
            let other = inner.nodes.iter().filter(|(_, c)| Some(c.term) != term);
            other.map(|(n, c)| (n.clone(), c.id)).collect()
        };
        for (node, id) in nodes {
            self.disconnect(&node, id);
        }
    }

    /// Whether the node has a stream to this master.
    pub fn is_connected(&self, node: &NodeId) -> bool {
        self.lock().nodes.contains_key(node)
    }

    /// How many have.
    pub fn len(&self) -> usize {
        self.lock().nodes.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Starts a synchronous command; `None` if the node is not connected or so far
    /// behind with its orders that it might as well not be.
    pub fn exec(&self, node: &NodeId, run: RunId, what: &Assignment) -> Option<Subscription> {
        let subscription = self.subscribe(node, run, 0);
        let order = |term| {
            let signature = self.seal.exec(term, node, run, what).into();
            let (run_id, assignment) = (run.to_string(), encode(what).into());
            Order::Exec(pb::Exec { run_id, assignment, signature })
        };
        self.order(node, order).then_some(subscription)
    }

    /// Follows a run from the chunk `from` on; `None` if the node is not connected.
    pub fn follow(&self, node: &NodeId, run: RunId, from: u64) -> Option<Subscription> {
        let subscription = self.subscribe(node, run, from);
        subscription.ask().then_some(subscription)
    }

    /// Asks a worker to end a run; answers whether the order is on its way.
    pub fn kill(&self, node: &NodeId, run: RunId) -> bool {
        let order = |term| {
            let signature = self.seal.stop(term, node, run).into();
            Order::Kill(pb::Kill { run_id: run.to_string(), signature })
        };
        self.order(node, order)
    }

    /// The node of a run that somebody listens to, as whoever starts a command does.
    pub fn node_of(&self, run: RunId) -> Option<NodeId> {
        self.lock().runs.get(&run).map(|followed| followed.node.clone())
    }

    fn subscribe(&self, node: &NodeId, run: RunId, from: u64) -> Subscription {
        let (tx, events) = mpsc::channel(BACKLOG);
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Lag::default());
        let subscriber = Subscriber { id, events: tx, shared: shared.clone(), next: from };
        let mut inner = self.lock();
        let followed = inner
            .runs
            .entry(run)
            .or_insert_with(|| Followed { node: node.clone(), subscribers: Vec::new() });
        followed.subscribers.push(subscriber);
        let sessions = self.clone();
        Subscription { sessions, node: node.clone(), run, id, events, shared, next: from }
    }

    /// Sends what `order` makes for the term of the session.
    fn order(&self, node: &NodeId, order: impl FnOnce(i64) -> Order) -> bool {
        let found = self.lock().nodes.get(node).map(|c| (c.term, c.orders.clone()));
        let Some((term, orders)) = found else { return false };
        let frame = pb::MasterFrame { term, frame: Some(order(term)) };
        let sent = orders.try_send(frame);
        if sent.is_err() {
            warn!(%node, "the worker does not take its orders");
        }
        sent.is_ok()
    }

    /// Asks a worker to read all its assignments anew.
    pub fn compare(&self, node: &NodeId) {
        self.order(node, |_| Order::Compare(pb::Compare {}));
    }

    /// Asks a worker for the record of a run; answers whether the order is on its way.
    pub fn tell(&self, node: &NodeId, run: RunId) -> bool {
        self.order(node, |_| Order::Tell(pb::Tell { run_id: run.to_string() }))
    }

    /// Hands on what a worker sent.
    pub fn output(&self, output: pb::Output) {
        let Ok(run_id) = output.run_id.parse() else { return };
        let mut inner = self.lock();
        let Some(run) = inner.runs.get_mut(&run_id) else { return };
        for chunk in output.chunks {
            let chunk = chunk_from(run_id, chunk);
            for subscriber in &mut run.subscribers {
                subscriber.output(&chunk);
            }
        }
    }

    /// A run has ended.
    pub fn ended(&self, ended: &pb::Ended) {
        let record: RunRecord = match decode(&ended.record) {
            Ok(record) => record,
            Err(e) => return warn!(run = ended.run_id, error = %e, "unreadable end of a run"),
        };
        let run_id = record.run_id;
        let record = Arc::new(record);
        if let Some(run) = self.lock().runs.get_mut(&run_id) {
            for subscriber in &run.subscribers {
                // Whoever has missed output asks for it again, and gets the end again.
                if subscriber.next >= ended.chunks {
                    subscriber.tell(Event::Ended(record.clone()));
                } else {
                    subscriber.fall_behind();
                }
            }
        }
    }

    /// A worker does not know a run.
    pub fn unknown(&self, run: &str) {
        let Ok(run) = run.parse::<RunId>() else { return };
        if let Some(run) = self.lock().runs.get_mut(&run) {
            run.tell_all(&Event::Unknown);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half done in the critical sections above.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Tells everybody who follows a run of the node that nothing more will come.
    fn drop_runs_of(&mut self, node: &NodeId) {
        self.runs.retain(|_, run| {
            let gone = run.node == *node;
            if gone {
                run.tell_all(&Event::Disconnected);
            }
            !gone
        });
    }
}

impl Followed {
    fn tell_all(&mut self, event: &Event) {
        for subscriber in &self.subscribers {
            subscriber.tell(event.clone());
        }
    }
}

impl Subscriber {
    /// Positions have no gaps: what is not next was sent already, or something before
    /// it was missed.
    fn output(&mut self, chunk: &OutputChunk) {
        if chunk.seq < self.next || self.shared.lagged.load(Ordering::Acquire) {
            return;
        }
        if chunk.seq > self.next {
            // Another subscriber's chunks came first; what this one asked for follows.
            return;
        }
        if self.tell(Event::Output(chunk.clone())) {
            self.next = chunk.seq + 1;
        }
    }

    fn tell(&self, event: Event) -> bool {
        let told = self.events.try_send(event).is_ok();
        if !told {
            self.fall_behind();
        }
        told
    }

    fn fall_behind(&self) {
        self.shared.lagged.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }
}

/// A subscriber's end. Dropping it unsubscribes.
pub struct Subscription {
    sessions: Sessions,
    node: NodeId,
    run: RunId,
    id: u64,
    events: mpsc::Receiver<Event>,
    shared: Arc<Lag>,
    next: u64,
}

impl Subscription {
    /// What happens next. After [`Event::Ended`], [`Event::Unknown`] or
    /// [`Event::Disconnected`] nothing more comes. Cancel safe.
    pub async fn next(&mut self) -> Event {
        loop {
            let event = match self.events.try_recv() {
                Ok(event) => event,
                Err(_) => {
                    // What was missed is asked for once everything before it is read.
                    if self.shared.lagged.load(Ordering::Acquire) && !self.ask() {
                        return Event::Disconnected;
                    }
                    tokio::select! {
                        event = self.events.recv() => match event {
                            Some(event) => event,
                            None => return Event::Disconnected,
                        },
                        () = self.shared.wake.notified() => continue,
                    }
                }
            };
            match &event {
                Event::Output(chunk) if chunk.seq < self.next => {}
                Event::Output(chunk) => {
                    self.next = chunk.seq + 1;
                    return event;
                }
                _ => return event,
            }
        }
    }

    /// Asks the worker for everything that some subscriber has not got yet.
    fn ask(&self) -> bool {
        let from = {
            let mut inner = self.sessions.lock();
            let Some(run) = inner.runs.get_mut(&self.run) else { return false };
            for s in run.subscribers.iter_mut().filter(|s| s.id == self.id) {
                s.next = self.next;
            }
            self.shared.lagged.store(false, Ordering::Release);
            run.subscribers.iter().map(|s| s.next).min().unwrap_or(self.next)
        };
        let after = from.checked_sub(1);
        let follow = pb::Follow { run_id: self.run.to_string(), after };
        self.sessions.order(&self.node, |_| Order::Follow(follow))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let last = {
            let mut inner = self.sessions.lock();
            let Some(run) = inner.runs.get_mut(&self.run) else { return };
            run.subscribers.retain(|s| s.id != self.id);
            let last = run.subscribers.is_empty();
            if last {
                inner.runs.remove(&self.run);
            }
            last
        };
        if last {
            let unfollow = pb::Unfollow { run_id: self.run.to_string() };
            let sent = self.sessions.order(&self.node, |_| Order::Unfollow(unfollow));
            debug!(run = %self.run, sent, "nobody follows the run any more");
        }
    }
}

/// A chunk as it came over the wire.
pub fn chunk_from(run_id: RunId, chunk: pb::Chunk) -> OutputChunk {
    OutputChunk {
        run_id,
        seq: chunk.seq,
        stream: if chunk.stderr { Stream::Stderr } else { Stream::Stdout },
        at: jiff::Timestamp::from_millisecond(chunk.at_ms).unwrap_or_default(),
        data: chunk.data.into(),
    }
}

#[cfg(test)]
mod tests;
