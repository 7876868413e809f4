//! Runs one command as a process: starts it, captures what it writes, ends it.
//!
//! ```text
//! Command ──Runner::spawn──► Running { pid, Control, OutputHub, wait() → Ended }
//! ```
//!
//! # Starting
//! A [`Runner`] has a few threads of its own that start processes, because starting
//! one blocks for about a millisecond and would delay timers and RPC on the threads of
//! the runtime. Everything std can hand to `posix_spawn(3)` goes that way; its cost
//! does not depend on how much memory the worker uses. Std falls back to `fork`, whose
//! cost does, for: a program without a slash together with a `PATH` of its own,
//! uid, gid or groups, `pre_exec`, `setsid`, `chroot`. Programs are therefore resolved
//! here, and whatever else there is to do before the command (another user or group,
//! umask, priority, limits, a session, a control group) is done by a small program in
//! between, the [exec helper](exec_helper_entry), which then becomes the command.
//!
//! # Ending
//! Each command leads a process group of its own. Killing it (on request, for its
//! timeout, …) follows a [`KillPlan`]: signals to everything the run has started, with
//! waits between them, at last SIGKILL. What the run has started is found as the module
//! `tree` says; that looks at all of `/proc`, which only a kill has to pay for. When the
//! command itself has ended after the first of these signals, whatever is left gets
//! SIGKILL until nothing is. After an end of its own accord, what the command left in the
//! background (`cmd &`) is left alone, as cron does; should such a process still hold the
//! pipes, reading stops after 500 ms of silence, at most 2 s after the command's end, and
//! later writes of it get SIGPIPE.
//!
//! # Orphans
//! The worker takes in what its runs leave behind ([`take_in_orphans`]) and reaps it.
//! Whoever starts a child in this process and waits for it uses [`spawn_awaited`].
//!
//! # Output
//! Both streams are read as fast as they come. [`OutputHub`] keeps `output_limit` bytes of
//! a run, the first, the last or half of each ([`OutputKeep`](meepo_core::job::OutputKeep));
//! the rest is counted and dropped, so a command never blocks on its output and memory
//! stays bounded. Once nothing more can be kept, what comes is not even read but spliced
//! to `/dev/null` within the kernel.
//!
//! # Surviving the worker
//! A run that is to outlive the worker has a process of its own between worker and command,
//! which does all of the above in the worker's place: see [`Surviving`].

mod cgroup;
mod children;
mod command;
mod drive;
mod env;
mod error;
mod helper;
mod hub;
mod keep;
mod leftover;
mod pipes;
mod prepare;
mod procfs;
mod resolve;
mod runner;
mod surviving;
mod tree;

pub use cgroup::Cgroups;
pub use children::{Awaited, spawn_awaited, take_in_orphans};
pub use command::{Command, Ended, KillPlan, KillReason};
pub use error::{StartError, StartProblem};
pub use helper::{EXEC_HELPER_ARG, exec_helper_entry, exec_helper_main};
pub use hub::{Follower, OutputHub};
pub(crate) use keep::Writer;
pub use leftover::{Leftover, Leftovers};
pub(crate) use procfs::RUN_VARIABLE;
pub use procfs::{is_alive, start_time};
pub(crate) use runner::Received;
pub use runner::{Began, Control, Runner, RunnerOptions, Running};
pub use surviving::{Found, Surviving};

#[cfg(test)]
mod tests;
