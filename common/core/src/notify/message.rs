//! What is sent, and what became of it.

use super::{Digest, Kind, Rate};
use crate::{id::Name, run::to_millis, shown::line};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Messages that are over and can still be seen, at most.
pub const MAX_RECENT: usize = 200;
/// How long a message is tried.
const TRIED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Longest wait between two tries.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Longest reason that is kept, in characters.
const MAX_ERROR: usize = 300;
/// Happenings that are kept of a message that is over.
const KEPT_EVENTS: usize = 5;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// It is yet to be sent, or sent again.
    Pending,
    /// The other side has taken it.
    Delivered,
    /// It was given up.
    Failed,
}

impl Delivery {
    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

/// A message to one channel: the value at `/meepo/notify/outbox/<id>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Message {
    /// The same however often it is sent.
    pub id: String,
    /// Where to.
    pub channel: Name,
    /// By which rule, or `job:NAME` for the field of a job; absent when it tells of what the
    /// channel's limit had held back, perhaps of several rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// When it was made, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub at: Timestamp,
    /// What became of it.
    pub state: Delivery,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: u32,
    /// When it is tried (again), or was done with, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub due: Timestamp,
    /// Why the last try failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How many messages the channel's limit had held back that are in this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held: u64,
    /// What it tells.
    #[serde(flatten)]
    pub digest: Digest,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Message {
    /// The message for `digest`.
    pub(super) fn new(id: String, channel: Name, digest: Digest, now: Timestamp) -> Self {
        Self {
            id,
            channel,
            rule: None,
            at: to_millis(now),
            state: Delivery::Pending,
            attempts: 0,
            due: now,
            error: None,
            held: 0,
            digest,
        }
    }

    /// One that only shows that the channel works.
    pub fn test(id: String, channel: Name, now: Timestamp) -> Self {
        let mut digest = Digest::default();
        let what = super::Happening {
            job: Name::new("example").ok(),
            node: Name::new("127.0.0.1").ok(),
            message: Some("this is a test; nothing has failed".into()),
            ..super::Happening::new(Kind::Failure, now)
        };
        digest.add(what);
        Self { rule: Some("test".into()), ..Self::new(id, channel, digest, now) }
    }

    /// What it is about, in a line. Whatever jobs have said in it is only to be read.
    pub fn title(&self) -> String {
        line(&self.about())
    }

    fn about(&self) -> String {
        let digest = &self.digest;
        if let [one] = &digest.events[..]
            && digest.more == 0
        {
            return format!("meepo: {}", one.line());
        }
        let kinds: Vec<String> = digest.kinds.iter().map(|(k, n)| format!("{n} {k}")).collect();
        let mut about: Vec<String> = digest.events.iter().map(super::Happening::about).collect();
        about.dedup();
        match &about[..] {
            [one] => format!("meepo: {one}: {}", kinds.join(", ")),
            _ => format!("meepo: {}", kinds.join(", ")),
        }
    }

    /// All of it, as text that is only to be read.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for what in &self.digest.events {
            text.push_str(&format!("{} {}\n", what.at.strftime("%F %T UTC"), line(&what.line())));
            let mut more = Vec::new();
            more.extend(what.run_id.map(|id| format!("run {id}")));
            more.extend(what.slot.map(|slot| format!("slot {slot}")));
            more.extend(what.attempt.filter(|n| *n > 1).map(|n| format!("attempt {n}")));
            let began = matches!(what.kind, Kind::Failure | Kind::Attempt | Kind::Long);
            let since = if began { "begun" } else { "since" };
            more.extend(what.since.map(|at| format!("{since} {at}")));
            if !more.is_empty() {
                text.push_str(&format!("  {}\n", more.join(", ")));
            }
            for said in what.tail.iter().flat_map(|t| t.lines()) {
                text.push_str(&format!("  | {}\n", line(said)));
            }
        }
        if self.digest.more > 0 {
            text.push_str(&format!("and {} more\n", self.digest.more));
        }
        if self.held > 0 {
            text.push_str("The limit of this channel had held some of it back.\n");
        }
        text
    }

    /// A try has come to its end. `Ok`: the other side has it. Else why not, and whether it
    /// may work later.
    pub(super) fn tried(&mut self, outcome: Result<(), (String, bool)>, now: Timestamp) {
        self.attempts = self.attempts.saturating_add(1);
        match outcome {
            Ok(()) => {
                (self.state, self.error) = (Delivery::Delivered, None);
            }
            Err((error, retry)) => {
                self.error = Some(error.chars().take(MAX_ERROR).collect());
                let given_up = self.at.checked_add(TRIED_FOR).is_ok_and(|end| now >= end);
                if retry && !given_up {
                    let wait = Duration::from_secs(1 << self.attempts.min(10)) / 2;
                    self.due = now.checked_add(wait.min(MAX_WAIT)).unwrap_or(Timestamp::MAX);
                    return;
                }
                self.state = Delivery::Failed;
            }
        }
        self.due = now;
        let events = &mut self.digest.events;
        let gone: u64 = events.iter().skip(KEPT_EVENTS).map(|e| e.times).sum();
        self.digest.more = self.digest.more.saturating_add(gone);
        events.truncate(KEPT_EVENTS);
        events.iter_mut().for_each(|e| e.tail = None);
    }
}

/// How much a channel may be sent now: the value at `/meepo/notify/flow/<channel>`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// When everything sent so far would have been sent, had it been spread evenly, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_until: Option<Timestamp>,
    /// What was held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Digest>,
    /// In how many messages it would have gone.
    #[serde(default)]
    pub held_messages: u64,
}

impl Flow {
    /// When the next message may be sent.
    pub(super) fn free_at(&self, rate: Rate) -> Timestamp {
        let ahead = rate.per.saturating_sub(rate.per / rate.count);
        let until = self.spread_until.unwrap_or(Timestamp::MIN);
        until.checked_sub(ahead).unwrap_or(Timestamp::MIN)
    }

    /// Holds it to a limit that has become wider; answers whether that changes anything.
    pub(super) fn ease(&mut self, rate: Rate, now: Timestamp) -> bool {
        let most = now.checked_add(rate.per).unwrap_or(Timestamp::MAX);
        let changed = self.spread_until.is_some_and(|until| until > most);
        if changed {
            self.spread_until = Some(most);
        }
        changed
    }

    /// One message is sent.
    pub(super) fn sent(&mut self, rate: Rate, now: Timestamp) {
        let from = self.spread_until.map_or(now, |at| at.max(now));
        self.spread_until = from.checked_add(rate.per / rate.count).ok();
    }
}
