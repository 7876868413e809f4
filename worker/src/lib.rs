//! The worker: schedules, runs, journal and spool.

pub mod process;
pub mod state;
