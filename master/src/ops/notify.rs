//! Channels and rules of notifications, and what became of messages.

use super::Ops;
use crate::{
    audit,
    error::{ApiError, ApiResult},
    notify::check_templates,
};
use jiff::Timestamp;
use meepo_coord::{
    Entry,
    etcd::Cas,
    keys,
    records::{decode, encode},
};
use meepo_core::{
    api::{Action, Applied},
    code::Code,
    error::Invalid,
    id::Name,
    notify::{
        Channel, ChannelList, Delivery, Flow, Message, NotificationList, Rule, RuleList, Tested,
        Throttled,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeSet;
use tracing::{info, warn};

/// Channels there may be, and rules.
const MOST: usize = 500;
/// How often a change is tried when others change the same thing.
const TRIES: usize = 5;

impl Ops {
    /// All channels.
    pub async fn list_channels(&self) -> ApiResult<ChannelList> {
        Ok(ChannelList { channels: self.all(keys::CHANNELS).await? })
    }

    /// A channel.
    pub async fn get_channel(&self, name: &Name) -> ApiResult<Channel> {
        self.one("channel", name, &keys::channel(name)).await
    }

    /// Creates or replaces a channel.
    pub async fn put_channel(&self, channel: Channel) -> ApiResult<Applied> {
        audit::object("channel", &channel.name);
        audit::detail("kind", channel.kind());
        check_templates(&channel)?;
        let key = keys::channel(&channel.name);
        self.put_notify(&channel.name, &key, keys::CHANNELS, &channel).await
    }

    /// Deletes a channel, unless a rule needs it.
    pub async fn delete_channel(&self, name: &Name) -> ApiResult<Applied> {
        audit::object("channel", name);
        let rules: Vec<Rule> = self.all(keys::RULES).await?;
        let using = |r: &&Rule| r.to.contains(name);
        let users: Vec<&str> = rules.iter().filter(using).map(|r| r.name.as_str()).collect();
        if !users.is_empty() {
            let message = format!("channel {name} is used by rules: {}", users.join(", "));
            return Err(ApiError::new(Code::CONFLICT, message));
        }
        self.delete_notify("channel", name, &keys::channel(name)).await
    }

    /// Sends a message that shows that a channel works, from this master.
    pub async fn test_channel(&self, name: &Name) -> ApiResult<Tested> {
        audit::object("channel", name);
        let channel = self.get_channel(name).await?;
        let id = format!("test-{}", uuid::Uuid::now_v7());
        let message = Message::test(id.clone(), name.clone(), Timestamp::now());
        let error = self.sender.send(Some(&channel), &message).await.err().map(|e| e.reason);
        Ok(Tested { channel: name.clone(), id, delivered: error.is_none(), error })
    }

    /// All rules.
    pub async fn list_rules(&self) -> ApiResult<RuleList> {
        Ok(RuleList { rules: self.all(keys::RULES).await? })
    }

    /// A rule.
    pub async fn get_rule(&self, name: &Name) -> ApiResult<Rule> {
        self.one("rule", name, &keys::rule(name)).await
    }

    /// Creates or replaces a rule. Its channels must be there.
    pub async fn put_rule(&self, rule: Rule) -> ApiResult<Applied> {
        audit::object("rule", &rule.name);
        let to: Vec<&str> = rule.to.iter().map(Name::as_str).collect();
        audit::detail("to", to.join(", "));
        let channels: Vec<Channel> = self.all(keys::CHANNELS).await?;
        let there: BTreeSet<&Name> = channels.iter().map(|c| &c.name).collect();
        if let Some(missing) = rule.to.iter().find(|name| !there.contains(name)) {
            let problem = format!("there is no channel {:?}", missing.as_str());
            let expected = "a channel that exists (`meepo notify channel list`)";
            return Err(Invalid::new(Code::BAD_VALUE, "to", problem, expected).into());
        }
        self.put_notify(&rule.name, &keys::rule(&rule.name), keys::RULES, &rule).await
    }

    /// Deletes a rule.
    pub async fn delete_rule(&self, name: &Name) -> ApiResult<Applied> {
        audit::object("rule", name);
        self.delete_notify("rule", name, &keys::rule(name)).await
    }

    /// Messages, newest first, those that wait among them; and what is held back.
    pub async fn list_notifications(
        &self,
        state: Option<Delivery>,
        limit: usize,
    ) -> ApiResult<NotificationList> {
        // Both as of one moment: what is held back becomes a message in one step.
        let (entries, revision) = self.etcd.list(keys::OUTBOX, None).await?;
        let mut notifications: Vec<Message> = readable(&entries);
        notifications.retain(|m| state.is_none_or(|s| s == m.state));
        notifications.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
        notifications.truncate(limit);
        let mut throttled = Vec::new();
        for entry in self.etcd.list(keys::FLOWS, Some(revision)).await?.0 {
            let (Some(channel), Ok(flow)) =
                (keys::last(&entry.key, keys::FLOWS), decode::<Flow>(&entry.value))
            else {
                continue;
            };
            if let Some(digest) = flow.held {
                throttled.push(Throttled { channel, messages: flow.held_messages, digest });
            }
        }
        Ok(NotificationList { notifications, throttled })
    }

    async fn all<T: DeserializeOwned>(&self, prefix: &str) -> ApiResult<Vec<T>> {
        Ok(readable(&self.etcd.list(prefix, None).await?.0))
    }

    async fn one<T: DeserializeOwned>(&self, what: &str, name: &Name, key: &str) -> ApiResult<T> {
        let entry = self.etcd.get(key).await?;
        let entry = entry.ok_or_else(|| ApiError::not_found(what, name))?;
        decode(&entry.value).map_err(|e| {
            ApiError::new(Code::CONFLICT, format!("{what} {name} cannot be read: {e}"))
        })
    }

    async fn put_notify<T: Serialize>(
        &self,
        name: &Name,
        key: &str,
        prefix: &str,
        value: &T,
    ) -> ApiResult<Applied> {
        let value = encode(value);
        let mut there = self.etcd.get(key).await?;
        for _ in 0..TRIES {
            let expect = there.as_ref().map_or(0, |e| e.mod_revision);
            if there.as_ref().is_some_and(|e| e.value == value) {
                let action = Action::Unchanged;
                return Ok(Applied { name: name.clone(), action, revision: expect });
            }
            if expect == 0 && self.etcd.list(prefix, None).await?.0.len() >= MOST {
                let message = format!("there are {MOST} of them already; delete some first");
                return Err(ApiError::new(Code::CONFLICT, message));
            }
            match self.etcd.put_if(key, Some(value.clone()), expect, None).await? {
                Cas::Done(revision) => {
                    let action = if expect == 0 { Action::Created } else { Action::Updated };
                    info!(key, ?action, revision, "written");
                    return Ok(Applied { name: name.clone(), action, revision });
                }
                Cas::Conflict(now) => there = now,
            }
        }
        Err(ApiError::new(Code::CONFLICT, format!("{name} is being changed by others")))
    }

    async fn delete_notify(&self, what: &str, name: &Name, key: &str) -> ApiResult<Applied> {
        let entry = self.etcd.get(key).await?;
        let entry = entry.ok_or_else(|| ApiError::not_found(what, name))?;
        self.etcd.delete(key).await?;
        info!(key, "deleted");
        let revision = entry.mod_revision;
        Ok(Applied { name: name.clone(), action: Action::Deleted, revision })
    }
}

/// The values that can be read.
fn readable<T: DeserializeOwned>(entries: &[Entry]) -> Vec<T> {
    let read = |entry: &Entry| {
        let key = &entry.key;
        decode(&entry.value).inspect_err(|e| warn!(key, error = %e, "unreadable value")).ok()
    };
    entries.iter().filter_map(read).collect()
}
