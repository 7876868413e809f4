//! `meepo notify channel | rule | list`.

use super::{
    apply::action,
    documents::{self, Document},
};
use crate::{
    args::{ChannelCommand, NotifyCommand, RuleCommand},
    client::Client,
    error::{CliError, CliResult, exit},
    output::{
        Out,
        table::{Table, cell, maybe, verdict},
        text, time,
    },
};
use meepo_core::{
    api::Applied,
    id::Name,
    notify::{Channel, ChannelList, Delivery, NotificationList, Rule, RuleList, Tested},
};
use reqwest::Method;
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

/// Does what was asked.
pub(crate) async fn run(out: &Out, client: &Client, command: NotifyCommand) -> CliResult<u8> {
    match command {
        NotifyCommand::Channel(command) => channel(out, client, command).await,
        NotifyCommand::Rule(command) => rule(out, client, command).await,
        NotifyCommand::List { state, limit } => {
            let query = [("state", state), ("limit", Some(limit.to_string()))];
            let list: NotificationList = client.get(&["notify", "notifications"], &query).await?;
            out.value(&list, |out| notifications(out, &list))?;
            Ok(exit::OK)
        }
    }
}

async fn channel(out: &Out, client: &Client, command: ChannelCommand) -> CliResult<u8> {
    match command {
        ChannelCommand::Apply { files } => {
            let read = |value| {
                let channel = Channel::from_user(value)?;
                Ok((channel.name.clone(), channel))
            };
            apply(out, client, "channel", &files, read).await
        }
        ChannelCommand::List => {
            let list: ChannelList = client.get(&["notify", "channels"], &[]).await?;
            out.value(&list.channels, |out| channels(out, &list.channels))?;
            Ok(exit::OK)
        }
        ChannelCommand::Get { name } => {
            let channel: Channel = client.get(&["notify", "channels", name.as_str()], &[]).await?;
            show(out, &channel)
        }
        ChannelCommand::Delete { names } => delete(out, client, "channel", &names).await,
        ChannelCommand::Test { name } => {
            let path = ["notify", "channels", name.as_str(), "test"];
            let tested: Tested = client.call(Method::POST, &path, &[], None::<&()>).await?;
            let how = match &tested.error {
                None => format!("channel {name} has taken message {}\n", tested.id),
                Some(error) => format!("channel {name} has not taken it: {error}\n"),
            };
            out.value(&tested, |_| how)?;
            Ok(if tested.delivered { exit::OK } else { exit::FAILED })
        }
    }
}

async fn rule(out: &Out, client: &Client, command: RuleCommand) -> CliResult<u8> {
    match command {
        RuleCommand::Apply { files } => {
            let read = |value| {
                let rule = Rule::from_user(value)?;
                Ok((rule.name.clone(), rule))
            };
            apply(out, client, "rule", &files, read).await
        }
        RuleCommand::List => {
            let list: RuleList = client.get(&["notify", "rules"], &[]).await?;
            out.value(&list.rules, |out| rules(out, &list.rules))?;
            Ok(exit::OK)
        }
        RuleCommand::Get { name } => {
            let rule: Rule = client.get(&["notify", "rules", name.as_str()], &[]).await?;
            show(out, &rule)
        }
        RuleCommand::Delete { names } => delete(out, client, "rule", &names).await,
    }
}

/// Validates all, then sends all.
async fn apply<T: Serialize>(
    out: &Out,
    client: &Client,
    what: &str,
    files: &[PathBuf],
    read: impl Fn(Value) -> Result<(Name, T), meepo_core::error::Invalid>,
) -> CliResult<u8> {
    let (documents, mut errors) = documents::load(files);
    let mut valid = Vec::new();
    for Document { place, value } in documents {
        match read(value) {
            Ok((name, value)) => valid.push((place, name, value)),
            Err(e) => errors.push(CliError::from(e).at(place)),
        }
    }
    match errors.len() {
        0 => {}
        1 => return Err(errors.remove(0)),
        n => {
            errors.iter().for_each(|e| out.note(&format!("error: {e}")));
            let problem = format!("nothing was applied: {}", text::count(n, "error"));
            return Err(CliError::new(exit::USAGE, problem));
        }
    }
    let plural = format!("{what}s");
    let mut done = Vec::new();
    for (place, name, value) in valid {
        let path = ["notify", plural.as_str(), name.as_str()];
        let applied: Applied =
            client.call(Method::PUT, &path, &[], Some(&value)).await.map_err(|e| e.at(place))?;
        if out.is_table() {
            out.text(&format!("{what} {} {}\n", applied.name, action(applied.action)))?;
        }
        done.push(applied);
    }
    if !out.is_table() {
        out.value(&done, |_| String::new())?;
    }
    Ok(exit::OK)
}

async fn delete(out: &Out, client: &Client, what: &str, names: &[Name]) -> CliResult<u8> {
    let plural = format!("{what}s");
    let mut done = Vec::new();
    for name in names {
        let path = ["notify", plural.as_str(), name.as_str()];
        let applied: Applied = client.call(Method::DELETE, &path, &[], None::<&()>).await?;
        if out.is_table() {
            out.text(&format!("{what} {name} deleted\n"))?;
        }
        done.push(applied);
    }
    if !out.is_table() {
        out.value(&done, |_| String::new())?;
    }
    Ok(exit::OK)
}

fn show<T: Serialize>(out: &Out, value: &T) -> CliResult<u8> {
    let text = out.yaml(value)?;
    out.value(value, |_| text)?;
    Ok(exit::OK)
}

fn channels(out: &Out, channels: &[Channel]) -> String {
    let mut table = Table::new(out, &["CHANNEL", "KIND", "TO", "LIMIT"]);
    for c in channels {
        let to = match (&c.webhook, &c.email, &c.command) {
            (Some(hook), _, _) => hook.url.clone(),
            (_, Some(mail), _) => mail.to.join(", "),
            (_, _, Some(command)) => command.program.to_string(),
            _ => "-".into(),
        };
        table.row(vec![
            cell(c.name.as_str()),
            cell(c.kind()),
            cell(to),
            cell(c.limit().to_string()),
        ]);
    }
    table.render()
}

fn rules(out: &Out, rules: &[Rule]) -> String {
    let mut table = Table::new(out, &["RULE", "ON", "JOBS", "TARGET", "TO"]);
    let names = |names: &[Name]| names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    for r in rules {
        let on: Vec<&str> = r.on.iter().map(|k| k.as_str()).collect();
        let on = if r.disabled { "(disabled)".to_owned() } else { on.join(", ") };
        table.row(vec![
            cell(r.name.as_str()),
            cell(on),
            maybe((!r.jobs.is_empty()).then(|| r.jobs.join(", "))),
            maybe(r.target.as_ref()),
            cell(names(&r.to)),
        ]);
    }
    table.render()
}

fn notifications(out: &Out, list: &NotificationList) -> String {
    let mut table = Table::new(out, &["TIME", "CHANNEL", "STATE", "TRIES", "WHAT", "WHY NOT"]);
    for m in &list.notifications {
        table.row(vec![
            cell(time::local(m.at)),
            cell(m.channel.as_str()),
            verdict(m.state.as_str(), m.state != Delivery::Failed),
            cell(m.attempts.to_string()),
            cell(m.title().trim_start_matches("meepo: ")),
            maybe(m.error.as_ref()),
        ]);
    }
    let mut text = table.render();
    for held in &list.throttled {
        let kinds: Vec<String> =
            held.digest.kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        text.push_str(&format!(
            "throttled: channel {} holds back {} ({})\n",
            held.channel,
            text::count(usize::try_from(held.messages).unwrap_or(usize::MAX), "message"),
            kinds.join(", ")
        ));
    }
    text
}
