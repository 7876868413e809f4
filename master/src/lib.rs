//! The master: takes jobs by HTTP and gRPC, writes them to etcd, and, while it leads,
//! places them on nodes, carries synchronous commands and marks what was lost.
//!
//! ```text
//! http, grpc ─► ops ─► etcd (definitions, requests)      view ◄─watch─ etcd
//!                └──► log store (history)                  │
//! workers ◄─ sessions ◄─┘ (leader only)                    └► reconcile, lost (leader only)
//! ```

pub mod audit;
pub mod auth;
pub mod config;
pub mod digests;
pub mod doctor;
pub mod error;
pub mod events;
pub mod grpc;
pub mod http;
pub mod limits;
pub mod lost;
mod master;
pub mod metrics;
pub mod mismatches;
pub mod notify;
pub mod ops;
pub mod peer;
pub mod reconcile;
pub mod rerun;
mod resign;
mod retention;
pub mod seal;
pub mod sessions;
mod spans;
pub mod tasks;
pub mod view;

pub use config::{Config, DEFAULT_TASKS_LIMIT, Settings};
pub use master::Master;
