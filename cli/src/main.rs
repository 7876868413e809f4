//! The `meepo` command: a client of the HTTP API, and the one-process server.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | the command line |
//! | [`client`] | the HTTP API from the outside |
//! | [`commands`] | what each command does |
//! | [`output`] | tables, JSON, YAML, live output |
//! | [`error`] | exit codes and messages |
//! | [`etcd_child`] | an etcd of our own |
//! | [`server`] | `meepo server` |

mod args;
mod client;
mod commands;
mod error;
mod etcd_child;
mod output;
mod server;
#[cfg(test)]
mod testing;

use clap::Parser;
use std::{io::Write, process::ExitCode};

/// First argument of the copy of ourselves that turns into a job's process.
const EXEC_HELPER: &str = "__exec-helper";

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|a| a == EXEC_HELPER) {
        return server::exec_helper();
    }
    let cli = args::Cli::parse_from(args::normalise(std::env::args_os()));
    match commands::dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            if !e.is_silent() {
                let _ = writeln!(std::io::stderr(), "error: {e}");
            }
            ExitCode::from(e.exit)
        }
    }
}
