//! Sending messages.

mod command;
mod mail;
mod secrets;
mod template;
mod webhook;

pub use command::Program;
pub use template::check as check_templates;
pub(crate) use webhook::load as web_client;

use meepo_core::{
    id::Name,
    notify::{Channel, Message},
};
use std::{collections::BTreeMap, path::PathBuf};
use webhook::Web;

/// Why a message did not go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For people.
    pub reason: String,
    /// Whether it may go later.
    pub retry: bool,
}

impl Failure {
    /// It may go later.
    fn again(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry: true }
    }

    /// It will not go.
    fn never(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry: false }
    }
}

/// What sends messages.
#[derive(Debug)]
pub struct Sender {
    /// Where secrets are looked for that no variable of the environment holds.
    secrets: PathBuf,
    /// Programs that channels may name.
    programs: BTreeMap<Name, Program>,
    web: Web,
}

impl Sender {
    /// With what the settings say.
    pub fn new(secrets: PathBuf, programs: BTreeMap<Name, Program>) -> Self {
        Self { secrets, programs, web: Web::default() }
    }

    /// Sends a message once. Its channel is `None` where there is none of that name.
    ///
    /// # Errors
    /// Why it did not go.
    pub async fn send(&self, channel: Option<&Channel>, message: &Message) -> Result<(), Failure> {
        let Some(channel) = channel else {
            return Err(Failure::never(format!("there is no channel {}", message.channel)));
        };
        let timeout = channel.timeout();
        let sending = async {
            if let Some(hook) = &channel.webhook {
                return self.web.send(hook, message, &self.secrets).await;
            }
            if let Some(mail) = &channel.email {
                return mail::send(mail, message, &self.secrets, timeout).await;
            }
            let program = channel.command.as_ref().map(|c| &c.program);
            match program.map(|name| (name, self.programs.get(name))) {
                Some((_, Some(program))) => command::run(program, message).await,
                Some((name, None)) => Err(Failure::again(format!(
                    "this master's settings have no notify_commands.{name}"
                ))),
                None => Err(Failure::never("the channel has no way to go that this version knows")),
            }
        };
        match channel.command {
            // It has a limit of its own, at which it is ended.
            Some(_) => sending.await,
            None => tokio::time::timeout(timeout, sending)
                .await
                .unwrap_or_else(|_| Err(Failure::again(format!("no answer within {timeout:?}")))),
        }
    }
}
