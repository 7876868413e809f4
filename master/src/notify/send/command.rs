//! Programs on the master, only those that its settings name: whoever may change channels
//! could otherwise run anything on the masters.

use super::{Failure, template::context};
use meepo_core::{duration::HumanDuration, notify::Message};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Deserialize;
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

/// Longest time unless set.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of what it says that are looked at.
const MAX_SAID: u64 = 4096;

/// A program that channels may name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Longest time it may take; then it is killed. Default 30 s.
    #[serde(default)]
    pub timeout: Option<HumanDuration>,
}

/// Runs it with the message on its standard input.
pub(super) async fn run(program: &Program, message: &Message) -> Result<(), Failure> {
    let Some((first, args)) = program.command.split_first() else {
        return Err(Failure::again("its command is empty in this master's settings"));
    };
    let mut command = Command::new(first);
    command.args(args).current_dir("/").kill_on_drop(true).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // The master's own settings and secrets are nothing for it.
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("MEEPO_"))
    {
        command.env_remove(name);
    }
    command.envs(variables(message));
    let mut child =
        command.spawn().map_err(|e| Failure::again(format!("cannot start {first}: {e}")))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let input = context(message).to_string();
    let told = async {
        if let Some(mut stdin) = stdin {
            // It need not read.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let heard = async {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(MAX_SAID).read_to_end(&mut said).await;
            // So that it does not wait for somebody to read.
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
        said
    };
    let limit = program.timeout.map_or(TIMEOUT, |d| d.0);
    let all = async { tokio::join!(child.wait(), told, heard) };
    let ended = tokio::time::timeout(limit, all).await;
    let Ok((status, (), said)) = ended else {
        // With all that it started.
        let _ = group.map(|group| killpg(group, Signal::SIGKILL));
        let limit = HumanDuration(limit);
        return Err(Failure::again(format!("{first} did not end within {limit}")));
    };
    let status = status.map_err(|e| Failure::again(format!("{first}: {e}")))?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let last: String = said.lines().last().unwrap_or_default().chars().take(200).collect();
    Err(Failure::again(format!("{first} ended with {status}: {last}")))
}

fn variables(message: &Message) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("MEEPO_NOTIFICATION", message.id.clone()),
        ("MEEPO_CHANNEL", message.channel.to_string()),
        ("MEEPO_TITLE", message.title()),
        ("MEEPO_COUNT", message.digest.count().to_string()),
    ];
    all.extend(message.rule.clone().map(|rule| ("MEEPO_RULE", rule)));
    if let Some(first) = message.digest.events.first() {
        all.push(("MEEPO_KIND", first.kind.to_string()));
        all.extend(first.job.as_ref().map(|v| ("MEEPO_JOB", v.to_string())));
        all.extend(first.node.as_ref().map(|v| ("MEEPO_NODE", v.to_string())));
        all.extend(first.task.as_ref().map(|v| ("MEEPO_TASK", v.clone())));
        all.extend(first.run_id.map(|v| ("MEEPO_RUN_ID", v.to_string())));
        all.extend(first.exit_code.map(|v| ("MEEPO_EXIT_CODE", v.to_string())));
    }
    // No variable can have it, and jobs may say anything.
    all.iter_mut().for_each(|(_, v)| v.retain(|c| c != '\0'));
    all
}
