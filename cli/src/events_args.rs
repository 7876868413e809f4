//! `meepo events` on the command line.

use clap::Args;
use meepo_core::event::EventId;

/// `meepo events`.
#[derive(Debug, Clone, Args)]
pub(crate) struct EventsArgs {
    /// Go on with what happens, over broken connections, until interrupted.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin with so many of the last events [default: 20, with --follow 0].
    #[arg(short, conflicts_with = "after")]
    pub(crate) n: Option<u32>,
    /// Only what comes after this id.
    #[arg(long, value_name = "ID")]
    pub(crate) after: Option<EventId>,
    /// Only these kinds (job, task, run, node, leader) or events (job.paused); several with commas.
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<String>,
    /// Only of these jobs; several with commas, `*` and `?` allowed.
    #[arg(long, value_name = "NAME")]
    pub(crate) job: Option<String>,
    /// Only of these nodes.
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Only of these tasks.
    #[arg(long, value_name = "ID")]
    pub(crate) task: Option<String>,
}
