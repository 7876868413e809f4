//! Tasks on the worker's side: the parts that the leader has given to this node.
//!
//! Orders come by a watch on `/cron/tasks/<ip>/`. A part is begun in three steps, each of
//! which is durable before the next: the order is marked as begun in etcd, on condition
//! that nobody has taken it back; the run is entered into the journal; its process starts.
//! It is ended by a transaction that needs the order still to be there. What cannot be
//! written then is kept with the journal and written later, also by the next life of the
//! worker. Nothing is done with an order before the node is registered as this worker's.

mod begin;
mod life;
mod report;

use crate::{engine::Engine, health::Registration, state::WaitEntry};
use life::Life;
use meepo_coord::{
    Entry, keys,
    records::decode,
    watch::{Batch, Change, Options, watch},
};
use meepo_core::task::{Order, PartId};
use report::SavedEnd;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc, watch as cell},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Parts that a node holds at the most, begun or not, whatever etcd has.
const MOST: usize = 10_000;

/// How long parts may still be given back, and ends told, when the worker ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How the node stands with etcd.
#[derive(Clone)]
pub struct Standing {
    /// Whether it is this worker's.
    pub registration: cell::Receiver<Registration>,
    /// Whether its health record may offer slots for parts.
    pub offers: cell::Receiver<bool>,
}

/// An order as it stands in etcd.
#[derive(Debug, Clone)]
struct Held {
    order: Arc<Order>,
    /// Revision at which the part was given to this node: it names the reservation, and is
    /// the fencing token of its run.
    create: i64,
    /// Revision of its last change.
    revision: i64,
}

/// Whether what the state keeps for later is the end of a part, and not an attempt of a
/// job that was promised.
pub(crate) fn is_end(wait: &WaitEntry) -> bool {
    SavedEnd::read(&wait.plan).is_some()
}

/// Takes orders until `intake` is cancelled; what has begun goes on until it has ended or
/// `stop` is cancelled. `slots` parts run at once.
pub async fn run(
    engine: Arc<Engine>,
    slots: u32,
    standing: Standing,
    known: tokio::sync::oneshot::Receiver<()>,
    intake: CancellationToken,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    // A drained node takes nothing: so that is asked first.
    tokio::select! {
        () = intake.cancelled() => return Ok(()),
        _ = known => {}
    }
    let (tx, mut batches) = mpsc::channel(64);
    let prefix = keys::orders_of(&engine.node);
    let watching = watch(engine.etcd.clone(), vec![prefix], Options::default(), tx, intake.clone());
    let mut ends = HashMap::new();
    for wait in engine.state.waits().await? {
        if let Some(end) = SavedEnd::read(&wait.plan) {
            ends.insert(end.part, end);
        }
    }
    let mut manager = Manager {
        engine,
        standing,
        slots: Arc::new(Semaphore::new(slots as usize)),
        lives: HashMap::new(),
        running: JoinSet::new(),
        ends,
        intake: intake.clone(),
        stop: stop.clone(),
    };
    let managing = async {
        loop {
            tokio::select! {
                batch = batches.recv() => match batch {
                    Some(batch) => manager.apply(batch).await,
                    None => break,
                },
                Some(ended) = manager.running.join_next(), if !manager.running.is_empty() => {
                    if let Ok((id, create)) = ended {
                        manager.over(id, create);
                    }
                }
            }
        }
        // What runs is ended by whoever shuts down, and tells of its end.
        let all_over = async { while manager.running.join_next().await.is_some() {} };
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            () = too_late => {}
            () = all_over => {}
        }
    };
    tokio::join!(watching, managing);
    Ok(())
}

/// A reservation that is being dealt with.
struct Known {
    create: i64,
    /// Where its life is told of changes: `None` once the order is gone.
    tell: cell::Sender<Option<Held>>,
    /// Cancelled when its life is over, and so are those of all earlier reservations.
    over: CancellationToken,
}

struct Manager {
    engine: Arc<Engine>,
    standing: Standing,
    slots: Arc<Semaphore>,
    /// Of each part the newest reservation that is being dealt with.
    lives: HashMap<PartId, Known>,
    running: JoinSet<(PartId, i64)>,
    /// Ends of the last life that etcd may not know.
    ends: HashMap<PartId, SavedEnd>,
    intake: CancellationToken,
    stop: CancellationToken,
}

impl Manager {
    async fn apply(&mut self, batch: Batch) {
        match batch {
            Batch::Reset { entries, .. } => {
                let there: HashMap<PartId, i64> = entries
                    .iter()
                    .filter_map(|e| Some((self.part_of(&e.key)?, e.create_revision)))
                    .collect();
                for (id, known) in &self.lives {
                    if there.get(id) != Some(&known.create) {
                        known.tell.send_replace(None);
                    }
                }
                for entry in entries {
                    self.put(entry);
                }
                // The order is gone: somebody else has decided meanwhile.
                for (id, end) in std::mem::take(&mut self.ends) {
                    info!(part = %id, run_id = %end.run_id, "the end of a part that was taken back");
                    if let Err(e) = self.engine.state.remove_wait(end.run_id).await {
                        warn!(part = %id, error = %e, "cannot forget the end of a part");
                    }
                }
            }
            Batch::Changes(changes) => {
                for change in changes {
                    match change {
                        Change::Put(entry) => self.put(entry),
                        Change::Delete { key, .. } => {
                            self.engine.trust.withdraw(&key).await;
                            if let Some(id) = self.part_of(&key)
                                && let Some(known) = self.lives.get(&id)
                            {
                                known.tell.send_replace(None);
                            }
                        }
                    }
                }
            }
        }
    }

    fn part_of(&self, key: &str) -> Option<PartId> {
        key.strip_prefix(&keys::orders_of(&self.engine.node))?.parse().ok()
    }

    fn put(&mut self, entry: Entry) {
        let Some(id) = self.part_of(&entry.key) else { return };
        let order = match decode::<Order>(&entry.value) {
            Ok(order) => Arc::new(order),
            Err(e) => {
                // Its leader takes it back when its time is over.
                warn!(key = entry.key, error = %e, "an order cannot be read and is left alone");
                return;
            }
        };
        let held = Held { order, create: entry.create_revision, revision: entry.mod_revision };
        if let Some(known) = self.lives.get(&id) {
            if known.create == held.create {
                known.tell.send_replace(Some(held));
                return;
            }
            known.tell.send_replace(None);
        }
        if self.running.len() >= MOST {
            warn!(part = %id, "too many parts at once: this one waits for its time to be over");
            return;
        }
        let create = held.create;
        let saved = self.ends.remove(&id).filter(|end| end.run_id == held.order.run_id);
        let (tx, rx) = cell::channel(Some(held));
        let over = CancellationToken::new();
        let known = Known { create, tell: tx, over: over.clone() };
        let before = self.lives.insert(id, known).map(|known| known.over);
        let life = Life {
            engine: self.engine.clone(),
            id,
            held: rx,
            standing: self.standing.clone(),
            intake: self.intake.clone(),
            stop: self.stop.clone(),
            tried: None,
        };
        let slots = self.slots.clone();
        self.running.spawn(async move {
            // However it ends.
            let _over = over.drop_guard();
            // No two runs of one part at once, even if the leader has taken the first back.
            if let Some(before) = before {
                before.cancelled().await;
            }
            life.live(saved, slots).await;
            (id, create)
        });
    }

    fn over(&mut self, id: PartId, create: i64) {
        // Another reservation of the same part may have begun its life.
        if self.lives.get(&id).is_some_and(|known| known.create == create) {
            self.lives.remove(&id);
        }
    }
}
