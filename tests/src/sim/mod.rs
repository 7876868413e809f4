//! Many workers in one process: what real ones say to etcd and to the leading master,
//! without the processes, the disk and the log store behind it.
//!
//! Each has a lease of its own that is kept alive, a node and a health record, a watch of
//! its own keys and of the leader's, and a session with the leader over a connection of
//! its own. A command is answered at once, as if it had succeeded and written nothing;
//! an assignment is taken note of. Connections to etcd are shared by [`PER_CONNECTION`],
//! as a process may only have so many open files; their streams are not.

mod worker;

use meepo_coord::{CoordError, Etcd};
use meepo_core::id::{Name, NodeId};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Workers that share a connection to etcd.
pub const PER_CONNECTION: usize = 10;
/// Workers that register at the same time.
const AT_ONCE: usize = 256;
/// How long each of them keeps its lease without a word.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// What all of them together have done.
#[derive(Debug, Default)]
pub struct Counts {
    registered: AtomicU64,
    sessions: AtomicU64,
    assigned: AtomicU64,
    commands: AtomicU64,
    changed: Notify,
}

/// One of [`Counts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Workers whose records have been written.
    Registered,
    /// Sessions with the leader that are open.
    Sessions,
    /// Assignments that were put, each change counted.
    Assigned,
    /// Commands that were answered.
    Commands,
}

impl Counts {
    fn of(&self, count: Count) -> &AtomicU64 {
        match count {
            Count::Registered => &self.registered,
            Count::Sessions => &self.sessions,
            Count::Assigned => &self.assigned,
            Count::Commands => &self.commands,
        }
    }

    /// Its value now.
    pub fn get(&self, count: Count) -> u64 {
        self.of(count).load(Ordering::Acquire)
    }

    fn add(&self, count: Count, n: u64) {
        self.of(count).fetch_add(n, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    fn one_less(&self, count: Count) {
        self.of(count).fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// Waits until it is at least `n`; `Err` with what it is after `patience`.
    pub async fn reach(&self, count: Count, n: u64, patience: Duration) -> Result<(), u64> {
        let reached = async {
            loop {
                let changed = self.changed.notified();
                if self.get(count) >= n {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, reached).await.map_err(|_| self.get(count))
    }
}

/// Workers that are simulated; they end when this is dropped.
#[derive(Debug)]
pub struct Fleet {
    counts: Arc<Counts>,
    nodes: Vec<NodeId>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Fleet {
    /// Starts workers, named by their numbers, and answers while they register; see
    /// [`Fleet::counts`]. `etcd` is a list with commas.
    ///
    /// # Errors
    /// When an address of etcd is none.
    pub async fn start(etcd: &str, numbers: Range<usize>) -> Result<Self, CoordError> {
        let etcd: Vec<String> = etcd.split(',').map(str::to_owned).collect();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let fleet =
            Self { counts: Arc::default(), nodes: numbers.map(node).collect(), stop, tasks };
        let places = Arc::new(Semaphore::new(AT_ONCE));
        for some in fleet.nodes.chunks(PER_CONNECTION) {
            let etcd = Etcd::connect(&etcd).await?;
            for node in some {
                let worker = worker::Worker {
                    node: node.clone(),
                    etcd: etcd.clone(),
                    counts: fleet.counts.clone(),
                    lease_ttl: LEASE_TTL,
                    places: places.clone(),
                    stop: fleet.stop.clone(),
                };
                fleet.tasks.spawn(worker.run());
            }
        }
        fleet.tasks.close();
        Ok(fleet)
    }

    /// What they have done so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Their ids.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// Ends them all and waits until their leases are given back.
    pub async fn end(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The id of the worker number `i`.
fn node(i: usize) -> NodeId {
    let id = format!("10.{}.{}.{}", i >> 16 & 255, i >> 8 & 255, i & 255);
    Name::new(&id).expect("an address is a name")
}
