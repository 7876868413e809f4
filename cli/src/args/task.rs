//! The command line of `meepo task`.

use super::key_value;
use clap::{Args, Subcommand, ValueHint};
use jiff::Timestamp;
use meepo_core::{
    duration::HumanDuration,
    id::Name,
    job::Executor,
    rollout::Amount,
    task::{TaskRef, TaskState},
};
use std::path::PathBuf;

/// `meepo task …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Hand in work that is done once, on nodes or by whoever serves a queue.
    Put(Box<PutArgs>),
    /// List tasks, newest first.
    List(ListArgs),
    /// Show a task and its parts.
    Get {
        /// The task, or one part: `<task>.<n>`.
        id: TaskRef,
    },
    /// Wait for a task and print how its parts end.
    Wait(WaitArgs),
    /// Withdraw what has not begun.
    Cancel(Ids),
    /// Withdraw what has not begun and end what has.
    Stop(Ids),
    /// Take parts from their workers and give them back.
    Release {
        #[command(flatten)]
        ids: Ids,
        /// Let them begin again so much later.
        #[arg(long, value_name = "DURATION")]
        delay: Option<HumanDuration>,
    },
    /// Take parts from their workers and put them aside.
    Bury(Ids),
    /// Let what is buried or delayed begin now.
    Kick(Ids),
    /// Give what runs its whole time to run again.
    Touch(Ids),
    /// Give up what is buried or runs.
    Delete(Ids),
    /// Begin no further part of a task for now.
    Pause(Ids),
    /// Go on with a task.
    Resume(Ids),
}

/// Tasks and parts.
#[derive(Debug, Clone, Args)]
pub(crate) struct Ids {
    /// Tasks, or parts of tasks: `<task>.<n>`.
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<TaskRef>,
}

/// `meepo task list`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ListArgs {
    /// Only tasks of this queue.
    #[arg(long)]
    pub(crate) queue: Option<Name>,
    /// Only tasks in these states; several with commas.
    #[arg(long, value_delimiter = ',')]
    pub(crate) state: Vec<TaskState>,
    /// At most so many.
    #[arg(short, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) n: u32,
}

/// `meepo task wait`.
#[derive(Debug, Clone, Args)]
pub(crate) struct WaitArgs {
    /// The task, or one part: `<task>.<n>`.
    pub(crate) id: TaskRef,
    /// Print what the parts write, as it comes.
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// `meepo task put`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "One word after `--` is a script, as it stands: -- 'ls | wc -l'\n\
    Several words are quoted, so that each arrives as it is: -- echo \"a  b\"")]
pub(crate) struct PutArgs {
    /// The nodes, one part each; with --queue those that may serve it [default there: all].
    #[arg(short, long, value_name = "TARGET")]
    pub(crate) target: Option<String>,
    /// Any suitable worker that is idle takes it.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<Name>,
    /// Requests as YAML or JSON, with `commands` for different nodes; options here win over
    /// what stands there. `-` is standard input.
    #[arg(short, long = "file", value_name = "FILE", value_hint = ValueHint::AnyPath, conflicts_with = "command")]
    pub(crate) file: Option<PathBuf>,
    /// For people.
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,
    /// Idempotency key: the same request with the same key is the same task, for a day.
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<Name>,
    /// The smaller is the first [default: 1024].
    #[arg(long)]
    pub(crate) priority: Option<u32>,
    /// Begin so much later.
    #[arg(long, value_name = "DURATION", conflicts_with = "at")]
    pub(crate) delay: Option<HumanDuration>,
    /// Begin at this instant, as 2026-12-24T18:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<Timestamp>,
    /// Drop a part that has not begun so long after it could [default: never].
    #[arg(long, value_name = "DURATION")]
    pub(crate) ttl: Option<HumanDuration>,
    /// How long a worker may have a part [default: 1h].
    #[arg(long, value_name = "DURATION")]
    pub(crate) ttr: Option<HumanDuration>,
    /// Try a part that failed again so often, after waits that double; then bury it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) retries: Option<u32>,
    /// Wait before the first new try [default: 2s].
    #[arg(long, value_name = "DURATION", requires = "retries")]
    pub(crate) retry_delay: Option<HumanDuration>,
    /// What becomes of a part that failed for the last time: bury or fail.
    #[arg(long, value_name = "WHAT", value_parser = ["bury", "fail"])]
    pub(crate) on_failure: Option<String>,
    /// What becomes of a part whose worker died: release, bury or fail [default: release].
    #[arg(long, value_name = "WHAT", value_parser = ["release", "bury", "fail"])]
    pub(crate) on_loss: Option<String>,
    /// Do it so many times, one after the other.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) repeat: Option<u32>,
    /// Do it again every so often, from beginning to beginning [default with --repeat: at
    /// once; without it there is no end but `meepo task cancel`].
    #[arg(long, value_name = "DURATION")]
    pub(crate) every: Option<HumanDuration>,
    /// Roll it out in portions: so many parts at once, or a share of all, as 5 or 10%.
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) batch: Option<Amount>,
    /// Wait so long after each portion.
    #[arg(long, value_name = "DURATION")]
    pub(crate) pause: Option<HumanDuration>,
    /// So many parts first; if one of them fails, the roll-out stops.
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) canary: Option<Amount>,
    /// Wait so long after the canary [default: as --pause].
    #[arg(long, value_name = "DURATION", requires = "canary")]
    pub(crate) soak: Option<HumanDuration>,
    /// Stop the roll-out when so many parts have failed, or a share of all.
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) max_failures: Option<Amount>,
    /// What turns the words into a run: bash, sh, exec, python or http.
    #[arg(long)]
    pub(crate) executor: Option<Executor>,
    /// User to run as [default: the worker's own].
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Set an environment variable; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) env: Vec<(String, String)>,
    /// Working directory on the nodes.
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// Wait for the end and print how each part has ended.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait, and print what the parts write, as it comes.
    #[arg(long)]
    pub(crate) follow: bool,
    /// The command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}
