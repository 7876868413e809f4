//! The `meepo` command: a client of the HTTP API, and the one-process server.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | the command line |
//! | [`client`] | the HTTP API from the outside |
//! | [`commands`] | what each command does |
//! | [`output`] | tables, JSON, YAML, live output |
//! | [`credentials`] | tokens that are kept |
//! | [`error`] | exit codes and messages |
//! | [`etcd_child`] | an etcd of our own |
//! | [`server`] | `meepo server` |

mod args;
mod client;
mod commands;
mod credentials;
mod error;
mod etcd_child;
mod events_args;
mod output;
mod server;
#[cfg(test)]
mod testing;

use clap::Parser;
use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    // A copy of ourselves turns into the process of a job that runs as another user.
    meepo_worker::process::exec_helper_entry();
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
