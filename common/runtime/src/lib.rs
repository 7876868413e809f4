//! What every meepo process needs around its own work: configuration files,
//! logging, supervised tasks, shutdown and back-off.

pub mod backoff;
pub mod config;
pub mod files;
pub mod metrics;
pub mod signing;
pub mod tasks;
pub mod telemetry;
pub mod tls;

pub use tasks::{OnError, Tasks};
