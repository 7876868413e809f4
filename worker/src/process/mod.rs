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
//! here, and running as another user goes through a small program in between, the
//! [exec helper](exec_helper_entry), which changes user and then becomes the command.
//!
//! # Ending
//! Each command leads a process group of its own. Killing it (on request, for its
//! timeout, …) follows a [`KillPlan`]: signals to the whole group with waits between
//! them, at last SIGKILL. When the command itself has ended after the first of these
//! signals, whatever is left of the group gets SIGKILL at once. After an end of its
//! own accord, what the command left in the background (`cmd &`) is left alone, as cron
//! does; should such a process still hold the pipes, reading stops after 500 ms of
//! silence, at most 2 s after the command's end, and later writes of it get SIGPIPE.
//! A process that moved to another session or group is out of reach of all this.
//!
//! # Output
//! Both streams are read as fast as they come. [`OutputHub`] keeps the first
//! `output_limit` bytes of a run; the rest is read, counted and dropped, so a command
//! never blocks on its output and memory stays bounded.

mod command;
mod drive;
mod env;
mod error;
mod helper;
mod hub;
mod leftover;
mod pipes;
mod resolve;
mod runner;

pub use command::{Command, Ended, KillPlan, KillReason};
pub use error::{StartError, StartProblem};
pub use helper::{EXEC_HELPER_ARG, exec_helper_entry, exec_helper_main};
pub use hub::{Follower, OutputHub};
pub use leftover::{is_alive, kill_process, signal_group, start_time, with_variable};
pub use runner::{Control, Runner, RunnerOptions, Running};

#[cfg(test)]
mod tests;
