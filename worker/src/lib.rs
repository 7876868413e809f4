//! The worker: one on each host. It watches its own prefix in etcd, triggers its jobs,
//! runs them as processes and ships what happened.
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
pub mod daemon;
pub mod deliver;
pub mod engine;
pub mod facts;
pub mod guard;
pub mod health;
pub mod http;
pub mod link;
pub mod metrics;
pub mod process;
pub mod progress;
pub mod recover;
pub mod registry;
pub mod session;
pub mod state;
pub mod timer;
mod worker;

pub use config::{Config, Settings};
pub use worker::Worker;
