//! The worker: one on each host. It watches its own prefix in etcd, triggers its jobs,
//! runs them as processes or requests and ships what happened.
//!
//! ```text
//! etcd ─watch─► agent ─plan─► engine ─► process          state (journal, cursors, spool)
//!                                │ └──── output, records ───► spool ─deliver─► log store
//!                                └ cronid, health ─► etcd
//! leading master ◄─ session ─► exec, follow, kill
//! ```

pub mod address;
pub mod agenda;
pub mod agent;
pub mod config;
pub mod cronid;
pub mod custody;
pub mod daemon;
pub mod deliver;
pub mod disk;
pub mod drain;
pub mod engine;
pub mod facts;
pub mod failpoint;
pub mod guard;
pub mod health;
pub mod http;
pub mod http_run;
pub mod inherited;
pub mod join;
pub mod link;
pub mod metrics;
pub mod outcomes;
mod plan;
pub mod process;
pub mod progress;
pub mod recover;
pub mod registry;
pub mod secrets;
pub mod session;
mod skew;
mod spans;
pub mod spent;
mod spooling;
pub mod state;
pub mod tasks;
pub mod timer;
pub mod trust;
pub mod vitals;
mod worker;

pub use config::{Config, Settings, default_task_slots};
pub use worker::Worker;
