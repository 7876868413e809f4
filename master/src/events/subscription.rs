//! One who listens: from the ring, or, if the place asked for is older, from etcd's history.

use super::{Events, ring::Read, teller::Teller};
use crate::error::{ApiError, ApiResult};
use meepo_coord::{CoordError, history::Ended, keys};
use meepo_core::{
    code::Code,
    event::{Event, EventId, Filter, What},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, timeout},
};

/// Items on their way to a listener.
const BACKLOG: usize = 64;
/// Events looked at under the lock.
const BATCH: usize = 256;
/// After so long without an item a listener is told where it stands.
const ALIVE: Duration = Duration::from_secs(15);
/// A listener that takes nothing for so long is cut off.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long etcd may be away before listeners are sent to another master.
const AWAY: Duration = Duration::from_secs(10);
/// Longest time one listener may take to read what is older than the ring.
const REPLAY: Duration = Duration::from_secs(120);
/// History that is silent for so long has come to its end.
const SILENT: Duration = Duration::from_secs(2);

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With what happens from now on.
    Now,
    /// With the last so many that are in memory.
    Recent(usize),
    /// Behind a place.
    After(EventId),
}

/// What a listener is told.
#[derive(Debug, Clone)]
pub enum Item {
    /// Something happened.
    Event(Arc<Event>),
    /// Nothing that is wanted has happened up to here.
    At(EventId),
    /// Nothing more follows.
    End(ApiError),
}

/// Why a subscription ends. `None`: there is nobody to tell.
type End = Option<ApiError>;

struct Subscription {
    events: Events,
    filter: Filter,
    /// One who does not follow wants everything up to this revision.
    until: Option<i64>,
    cursor: EventId,
    tx: mpsc::Sender<Item>,
    said: Instant,
}

/// How long a listener waits for the first list of a master that has just started.
const FIRST_LIST: Duration = Duration::from_secs(2);

/// Waits until etcd has been away for too long.
async fn since(away: Option<Instant>) {
    match away {
        Some(since) => tokio::time::sleep_until(since + AWAY).await,
        None => std::future::pending().await,
    }
}

/// Counts a listener as long as it is there.
struct Counted {
    events: Events,
    _place: OwnedSemaphorePermit,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.events.inner.metrics.listeners.dec();
    }
}

impl Events {
    /// What happens, filtered. With `follow` it goes on until the receiver is gone.
    ///
    /// # Errors
    /// When there are too many listeners, or etcd has not been read for a while after the
    /// start.
    pub async fn listen(
        &self,
        filter: Filter,
        begin: Begin,
        follow: bool,
    ) -> ApiResult<mpsc::Receiver<Item>> {
        let place = self.inner.listeners.clone().try_acquire_owned().map_err(|_| {
            let most = super::MAX_LISTENERS;
            ApiError::new(Code::BUSY, format!("{most} others listen to this master already"))
        })?;
        // A master that has only just started knows in a moment.
        let mut state = self.inner.state.subscribe();
        let begun = tokio::time::timeout(FIRST_LIST, state.wait_for(|s| s.begun)).await;
        let Ok(Ok(state)) = begun.map(|begun| begun.map(|state| *state)) else {
            return Err(ApiError::new(Code::ETCD, "etcd has not been read yet"));
        };
        let cursor = match begin {
            Begin::Now => EventId::through(state.head),
            Begin::Recent(n) => self.ring().before_last(n, &filter),
            Begin::After(id) => id,
        };
        self.inner.metrics.listeners.inc();
        let counted = Counted { events: self.clone(), _place: place };
        let (tx, rx) = mpsc::channel(BACKLOG);
        let said = Instant::now();
        let events = self.clone();
        let subscription = Subscription { events, filter, until: None, cursor, tx, said };
        tokio::spawn(async move {
            subscription.run(follow).await;
            drop(counted);
        });
        Ok(rx)
    }
}

impl Subscription {
    async fn run(mut self, follow: bool) {
        // A place kept free for the last word.
        let Ok(last) = self.tx.clone().reserve_owned().await else { return };
        if let Err(Some(end)) = self.tell(follow).await {
            last.send(Item::End(end));
        }
    }

    async fn tell(&mut self, follow: bool) -> Result<(), End> {
        let ahead = self.cursor.revision > self.events.ring().head();
        if ahead || !follow {
            let newest = self.events.inner.etcd.revision().await.map_err(|e| Some(e.into()))?;
            self.until = (!follow).then_some(newest);
            // A place that etcd has not come to.
            if self.cursor.revision > newest {
                let why = "etcd has not come so far: it was restored from a copy, or the id is of another etcd";
                self.gap(EventId::through(newest), why).await?;
            }
        }
        // Also lets the headers of an answer go out.
        self.say(Item::At(self.cursor)).await?;
        let mut state = self.events.inner.state.subscribe();
        // The ring it has been reading from.
        let mut live = None;
        loop {
            let now = *state.borrow_and_update();
            let read = self.events.ring().read(self.cursor, &self.filter, BATCH);
            match read {
                Read::Events(wanted, cursor) => {
                    for event in wanted {
                        let id = event.id;
                        self.say(Item::Event(event)).await?;
                        self.cursor = id;
                    }
                    self.cursor = cursor;
                    live = Some(now.generation);
                    continue;
                }
                Read::Older if live == Some(now.generation) => return Err(self.slow()),
                Read::Older => {
                    self.replay().await?;
                    if self.satisfied() {
                        return self.say(Item::At(self.cursor)).await;
                    }
                    continue;
                }
                Read::Nothing(cursor) => {
                    self.cursor = cursor;
                    live = Some(now.generation);
                }
            }
            if self.satisfied() {
                return self.say(Item::At(self.cursor)).await;
            }
            let alive_at = self.said + ALIVE;
            tokio::select! {
                () = self.tx.closed() => return Err(None),
                changed = state.changed() => if changed.is_err() { return Ok(()) },
                // Nobody but others has written to etcd since: that is not told here.
                () = tokio::time::sleep(SILENT), if self.until.is_some() => self.until = Some(0),
                () = tokio::time::sleep_until(alive_at) => self.say(Item::At(self.cursor)).await?,
                () = since(now.away), if now.away.is_some() => return Err(Some(self.resume(
                    Code::ETCD,
                    "etcd does not tell this master anything",
                ))),
            }
        }
    }

    /// Whether everything has been told to one who does not follow.
    fn satisfied(&self) -> bool {
        self.until.is_some_and(|until| self.cursor.complete() >= until)
    }

    /// Tells what is older than the ring until the ring can go on, or begins behind a gap.
    /// To one who does not follow, until everything has been told.
    async fn replay(&mut self) -> Result<(), End> {
        // One place in the queue, however often it is said meanwhile that this one waits.
        let acquiring = self.events.inner.replays.clone().acquire_owned();
        tokio::pin!(acquiring);
        let _place = loop {
            tokio::select! {
                () = self.tx.closed() => return Err(None),
                place = &mut acquiring => match place {
                    Ok(place) => break place,
                    Err(_) => return Ok(()),
                },
                () = tokio::time::sleep_until(self.said + ALIVE) => {
                    self.say(Item::At(self.cursor)).await?;
                }
            }
        };
        let etcd = self.events.inner.etcd.clone();
        let failed = |e: CoordError| Some(ApiError::from(e));
        // Half a revision may have been told: it is begun again, and what was told left out.
        let from = self.cursor.complete().max(1);
        let mut teller = match Teller::begin(&etcd, from).await {
            Ok(teller) => teller,
            Err(e) if e.compacted() => return self.compacted(from).await,
            Err(e) => return Err(failed(e)),
        };
        let mut history = etcd.history(keys::EVERYTHING, from + 1).await.map_err(failed)?;
        // Others wait for this place.
        let patience = Instant::now() + REPLAY;
        loop {
            if Instant::now() >= patience {
                return Err(self.slow());
            }
            let step = tokio::select! {
                () = self.tx.closed() => return Err(None),
                step = history.next() => step,
                () = tokio::time::sleep_until(self.said + ALIVE) => {
                    self.say(Item::At(self.cursor)).await?;
                    continue;
                }
                () = tokio::time::sleep(SILENT), if self.until.is_some() => {
                    self.until = Some(0);
                    return Ok(());
                }
            };
            let step = match step {
                Ok(step) => step,
                Err(Ended::Compacted(_)) => return self.compacted(from).await,
                Err(Ended::Broken(reason)) => {
                    tracing::debug!(reason, "the history of etcd broke");
                    return Err(Some(self.resume(Code::ETCD, "etcd broke off")));
                }
            };
            for event in teller.tell(step) {
                if event.id > self.cursor {
                    let id = event.id;
                    if self.filter.matches(&event) {
                        self.say(Item::Event(Arc::new(event))).await?;
                    }
                    self.cursor = id;
                }
            }
            self.cursor = self.cursor.max(EventId::through(teller.at()));
            if self.cursor >= self.events.ring().after() || self.satisfied() {
                return Ok(());
            }
        }
    }

    /// Says that history is gone and goes on where there is some again: at the oldest that
    /// etcd or the ring has.
    async fn compacted(&mut self, from: i64) -> Result<(), End> {
        let etcd = self.events.inner.etcd.clone();
        let oldest = match etcd.history(keys::EVERYTHING, from).await {
            Ok(mut history) => match timeout(SILENT, history.next()).await {
                Ok(Err(Ended::Compacted(oldest))) => oldest,
                // It is just the oldest one.
                _ => from + 1,
            },
            Err(e) => return Err(Some(e.into())),
        };
        let ring = self.events.ring().after();
        let on = if ring.complete() < oldest { ring } else { EventId::through(oldest) };
        let why = "etcd has compacted what happened in between; look at what there is now";
        self.gap(on.max(self.cursor), why).await
    }

    async fn gap(&mut self, on: EventId, why: &str) -> Result<(), End> {
        let after = Some(self.cursor);
        let message = Some(why.to_owned());
        let gap = Event { id: on, after, message, ..Event::new(What::Gap) };
        self.say(Item::Event(Arc::new(gap))).await?;
        self.cursor = on;
        Ok(())
    }

    fn slow(&self) -> End {
        self.events.inner.metrics.listeners_cut.inc();
        Some(self.resume(Code::BUSY, "too slow for what happens"))
    }

    /// An error that says how to go on.
    fn resume(&self, code: Code, problem: &str) -> ApiError {
        let at = self.cursor;
        ApiError::new(code, format!("{problem}; go on with after={at} (Last-Event-ID: {at})"))
    }

    async fn say(&mut self, item: Item) -> Result<(), End> {
        match self.tx.send_timeout(item, PATIENCE).await {
            Ok(()) => {
                self.said = Instant::now();
                Ok(())
            }
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(self.slow()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(None),
        }
    }
}
