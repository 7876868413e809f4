//! Telling people: the leader learns what happens, decides who is told of it, and sends.
//!
//! ```text
//! /meepo/outcomes/ (workers) ─┐
//! /meepo/notify/inbox/ ───────┼─► Desk (a Book of core, written to etcd) ─► Sender ─► channels
//! view, board ────────────────┘
//! ```
//!
//! Everything the leader remembers stands in etcd. A step is written before anything of it is
//! sent, every write names the leader's term, and a message is sent until its channel has
//! taken it: so it comes at least once, with the same id each time.

mod desk;
mod inbox;
mod look;
mod send;

pub use inbox::note as note_in_inbox;
pub(crate) use send::web_client;
pub use send::{Failure, Program, Sender, check_templates};

use crate::{
    metrics::{Channel as ChannelLabel, Metrics},
    tasks::Board,
    view::View,
};
use desk::Desk;
use jiff::Timestamp;
use look::Look;
use meepo_coord::{
    Etcd,
    election::Leadership,
    keys,
    watch::{Batch, Options, watch as follow},
};
use meepo_core::{id::Name, notify::Delivery};
use meepo_runtime::backoff::Backoff;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long the fleet is not looked at again although it changes.
const LOOK: Duration = Duration::from_millis(500);
/// Longest sleep: clocks may be set.
const LONGEST: Duration = Duration::from_secs(30);

/// What the leader needs to tell people.
pub struct Notifier {
    /// The connection to etcd.
    pub etcd: Etcd,
    /// What is known of the fleet.
    pub view: View,
    /// What is known of tasks.
    pub board: Board,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
    /// What sends.
    pub sender: Arc<Sender>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// A message under way: its id, its channel, and how it went.
type Sent = (String, Name, Result<(), Failure>);

/// Tells people while this master leads, until `stop` is cancelled.
pub async fn run(notifier: Notifier, stop: CancellationToken) -> anyhow::Result<()> {
    let mut leadership = notifier.leadership.clone();
    let mut known = notifier.view.changes();
    loop {
        let term = leadership.borrow_and_update().mine;
        let complete = known.borrow_and_update().complete;
        let working = async {
            match term.filter(|_| complete) {
                Some(term) => notifier.lead(term).await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            loop {
                if leadership.changed().await.is_err()
                    || leadership.borrow_and_update().mine != term
                {
                    return;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = working => {}
            () = changed => {}
            changed = known.changed(), if !complete => if changed.is_err() { return Ok(()) },
        }
    }
}

impl Notifier {
    /// Works until etcd says that another leads; whoever calls looks whether that is so.
    async fn lead(&self, term: i64) {
        let (tx, batches) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let _stops = stop.clone().drop_guard();
        // What is to be told comes after those who are to be told.
        let prefixes = [keys::CHANNELS, keys::RULES, keys::INBOX, keys::OUTCOMES];
        let prefixes = prefixes.map(str::to_owned).to_vec();
        let watching = follow(self.etcd.clone(), prefixes, Options::default(), tx, stop);
        tokio::select! {
            () = watching => {}
            () = self.work(term, batches) => {}
        }
        // Not at once again, should the leadership be in doubt.
        tokio::time::sleep(LOOK).await;
    }

    async fn work(&self, term: i64, mut batches: mpsc::Receiver<Batch>) {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        let mut desk = loop {
            match Desk::load(self.etcd.clone(), term, self.view.clone()).await {
                Ok(desk) => break desk,
                Err(e) => {
                    let wait = backoff.next_wait();
                    warn!(error = %e, ?wait, "cannot read what is to be told, will try again");
                    tokio::time::sleep(wait).await;
                }
            }
        };
        let mut look = Look::default();
        let (mut nodes, mut tasks) = (self.view.changes(), self.board.changes());
        let (mut sending, mut busy) = (JoinSet::<Sent>::new(), BTreeSet::new());
        let (mut looked, mut changed) = (None::<Instant>, true);
        // Who is to be told is known.
        let mut listed = false;
        loop {
            let mut wake = Instant::now() + LONGEST;
            if listed {
                let due = looked.unwrap_or_else(Instant::now);
                if changed && due <= Instant::now() {
                    let began = Instant::now();
                    look.at(&mut desk, &self.view, &self.board);
                    // In a large fleet less often: a twentieth of the time at most.
                    let pause = LOOK.max(began.elapsed() * 20);
                    (looked, changed) = (Some(Instant::now() + pause), false);
                } else if changed {
                    wake = wake.min(due);
                }
                if let Some(again) = look.due() {
                    wake = wake.min(again);
                    changed |= again <= Instant::now();
                }
                desk.due();
                if !desk.write().await {
                    return;
                }
                self.count(&mut desk);
                let (ready, next) = desk.book.sendable(&busy, Timestamp::now());
                for message in ready {
                    busy.insert(message.channel.clone());
                    let channel = desk.book.channel(&message.channel).cloned();
                    let sender = self.sender.clone();
                    sending.spawn(async move {
                        let sent = sender.send(channel.as_ref(), &message).await;
                        (message.id, message.channel, sent)
                    });
                }
                for at in [next, desk.next_due()].into_iter().flatten() {
                    wake = wake.min(instant(at));
                }
            }
            tokio::select! {
                batch = batches.recv() => match batch {
                    Some(batch) => {
                        listed |= matches!(batch, Batch::Reset { .. });
                        if !desk.apply(batch).await {
                            return;
                        }
                    }
                    None => return,
                },
                Some(sent) = sending.join_next(), if !sending.is_empty() => {
                    // One that panicked is sent again by the next leader.
                    if let Ok((id, channel, sent)) = sent {
                        busy.remove(&channel);
                        self.sent(&mut desk, &id, &channel, sent);
                    }
                }
                seen = nodes.changed() => match seen {
                    Ok(()) => changed = true,
                    Err(_) => return,
                },
                seen = tasks.changed() => match seen {
                    Ok(()) => changed = true,
                    Err(_) => return,
                },
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn sent(&self, desk: &mut Desk, id: &str, channel: &Name, sent: Result<(), Failure>) {
        match &sent {
            Ok(()) => info!(id, %channel, "notification delivered"),
            Err(e) => {
                let error = &e.reason;
                warn!(id, %channel, error, again = e.retry, "notification not delivered");
            }
        }
        let outcome = sent.map_err(|e| (e.reason, e.retry));
        let counter = match desk.book.tried(id, outcome, Timestamp::now()) {
            Some(Delivery::Delivered) => &self.metrics.notified,
            Some(Delivery::Failed) => &self.metrics.notify_failed,
            Some(Delivery::Pending) => &self.metrics.notify_retried,
            None => return,
        };
        counter.get_or_create(&ChannelLabel { channel: channel.to_string() }).inc();
    }

    fn count(&self, desk: &mut Desk) {
        for (channel, n) in desk.book.take_throttled() {
            let label = ChannelLabel { channel: channel.to_string() };
            self.metrics.notify_throttled.get_or_create(&label).inc_by(n);
        }
    }
}

/// When it is `at`, on the clock that is slept by.
fn instant(at: Timestamp) -> Instant {
    let wait: Duration = at.duration_since(Timestamp::now()).try_into().unwrap_or_default();
    // A little later rather than earlier: what is due must be due then.
    Instant::now() + wait.min(LONGEST) + Duration::from_millis(1)
}
