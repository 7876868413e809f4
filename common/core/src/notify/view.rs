//! How the API shows notifications.

use super::{Channel, Digest, Message, Rule};
use crate::id::Name;
use serde::{Deserialize, Serialize};

/// All channels, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChannelList {
    /// The channels.
    pub channels: Vec<Channel>,
}

/// All rules, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RuleList {
    /// The rules.
    pub rules: Vec<Rule>,
}

/// What a channel's limit holds back now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Throttled {
    /// The channel.
    pub channel: Name,
    /// In how many messages it would have gone.
    pub messages: u64,
    /// What it is.
    #[serde(flatten)]
    pub digest: Digest,
}

/// The messages that are not sent yet and the newest of the others, newest first, and what is
/// held back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NotificationList {
    /// The messages.
    pub notifications: Vec<Message>,
    /// What the limits of channels hold back.
    pub throttled: Vec<Throttled>,
}

/// How a test message went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Tested {
    /// The channel.
    pub channel: Name,
    /// The id of the message.
    pub id: String,
    /// The other side has taken it.
    pub delivered: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
