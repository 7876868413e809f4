//! `meepo notify …`.

use clap::{Subcommand, ValueHint};
use meepo_core::id::Name;
use std::path::PathBuf;

/// `meepo notify …`.
#[derive(Debug, Subcommand)]
pub(crate) enum NotifyCommand {
    /// Where messages go.
    #[command(subcommand)]
    Channel(ChannelCommand),
    /// Who is told of what.
    #[command(subcommand)]
    Rule(RuleCommand),
    /// List messages that wait and the newest of the others, and what became of them.
    List {
        /// Only those that are pending, delivered or failed.
        #[arg(long, value_parser = ["pending", "delivered", "failed"])]
        state: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
    },
}

/// `meepo notify channel …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ChannelCommand {
    /// Create or change channels from YAML or JSON files.
    Apply {
        /// A file, a directory (its *.yaml, *.yml and *.json), or `-` for standard input.
        #[arg(short, long = "file", required = true, num_args = 1.., value_name = "FILE", value_hint = ValueHint::AnyPath)]
        files: Vec<PathBuf>,
    },
    /// List channels.
    List,
    /// Print a channel in the form `apply` takes.
    Get {
        /// The channel.
        name: Name,
    },
    /// Delete channels that no rule names.
    Delete {
        /// The channels.
        #[arg(required = true)]
        names: Vec<Name>,
    },
    /// Send a message that shows that a channel works.
    Test {
        /// The channel.
        name: Name,
    },
}

/// `meepo notify rule …`.
#[derive(Debug, Subcommand)]
pub(crate) enum RuleCommand {
    /// Create or change rules from YAML or JSON files.
    Apply {
        /// A file, a directory (its *.yaml, *.yml and *.json), or `-` for standard input.
        #[arg(short, long = "file", required = true, num_args = 1.., value_name = "FILE", value_hint = ValueHint::AnyPath)]
        files: Vec<PathBuf>,
    },
    /// List rules.
    List,
    /// Print a rule in the form `apply` takes.
    Get {
        /// The rule.
        name: Name,
    },
    /// Delete rules.
    Delete {
        /// The rules.
        #[arg(required = true)]
        names: Vec<Name>,
    },
}
