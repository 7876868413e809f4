//! What can be asked about what was.

use clap::{Args, ValueEnum};
use meepo_core::{
    duration::HumanDuration,
    id::Name,
    run::{Cause, RunState},
    task::TaskId,
};

/// `meepo runs`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunsArgs {
    /// Only runs of these jobs; several with commas, and `*` and `?` as in `'backup-*'`.
    #[arg(long, value_name = "NAME")]
    pub(crate) job: Option<String>,
    /// Only runs on this node.
    #[arg(long)]
    pub(crate) node: Option<Name>,
    /// Only runs of the parts of this task.
    #[arg(long, value_name = "ID")]
    pub(crate) task: Option<TaskId>,
    /// Only runs in these states; several with commas.
    #[arg(long, value_delimiter = ',')]
    pub(crate) state: Vec<RunState>,
    /// Only slots that nothing ran in: the states missed and skipped. See also `meepo job gaps`.
    #[arg(long, conflicts_with = "state")]
    pub(crate) missed: bool,
    /// Only runs with these outcomes: numbers, names or types (0x0101, exit_status, run);
    /// several with commas.
    #[arg(long)]
    pub(crate) code: Option<String>,
    /// Only runs for this reason: schedule, misfire, reboot, trigger, exec or task.
    #[arg(long)]
    pub(crate) cause: Option<Cause>,
    /// Only runs as this user, where one was asked for.
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Only runs since then: `1h`, or a time.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Only runs before then: `1h` (ago), or a time.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Only runs that have ended and took so long or longer.
    #[arg(long, value_name = "DURATION")]
    pub(crate) min_duration: Option<HumanDuration>,
    /// Only runs that have ended and took no longer.
    #[arg(long, value_name = "DURATION")]
    pub(crate) max_duration: Option<HumanDuration>,
    /// Only runs that wrote this text, with the places; the other filters say where to look.
    #[arg(long, value_name = "TEXT")]
    pub(crate) grep: Option<String>,
    /// At most so many [default: 20; with --export all].
    #[arg(short, value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    pub(crate) n: Option<u32>,
    /// Print one JSON object a line as they come, all there are.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) export: Option<Export>,
}

/// Forms in which runs are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Export {
    /// JSON, an object a line; times in UTC.
    Jsonl,
}

/// From when to when.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpanArgs {
    /// From then on: `7d` (ago), or a time.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Before then: `1h` (ago), or a time.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
}
