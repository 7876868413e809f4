//! Telling people what went wrong: what there is to tell, to whom, how often, and in how few
//! messages. Everything here is pure; masters carry it out.
//!
//! ```text
//! workers ─ tallies ─┐
//! nodes, tasks ──────┼─► happenings ─► rules ─► incidents ─► groups ─► messages ─► channels
//! silence ───────────┘               (who)    (told once)  (waited for)  (limited)
//! ```

mod book;
mod channel;
mod group;
mod happening;
mod incident;
mod message;
mod rule;
mod tally;
mod view;

pub use book::{Book, Change, Item, Silence, Subject, Surroundings};
pub use channel::{Channel, CommandChannel, Email, Encryption, Rate, Webhook};
pub use group::{Digest, Group, MAX_GROUPS, MAX_LISTED};
pub use happening::{Happening, Kind};
pub use incident::{Class, Incident, Told, Turn};
pub use message::{Delivery, Flow, MAX_RECENT, Message};
pub use rule::{GroupBy, JobNotify, Rule};
pub use tally::{Cursor, MAX_TAIL, Noted, Outcome, Success, Tally, tail_of};
pub use view::{ChannelList, NotificationList, RuleList, Tested, Throttled};

#[cfg(test)]
mod tests;
