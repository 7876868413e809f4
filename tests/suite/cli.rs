//! The `meepo` command against a real server, as a user types it.

mod cron;
mod jobs;
mod overlap;
mod run;
mod runs;
mod server;
