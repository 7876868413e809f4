//! The harness of the suites: real etcd members, masters and workers, each a process
//! of its own on loopback ports, which a test can kill, freeze and restart.
//!
//! ```text
//! let cluster = Cluster::builder().masters(2).workers(3).start().await;
//! let (status, _) = cluster.master(0).api().post("/v1/jobs", json!({…})).await;
//! cluster.worker(1).process().kill9();
//! eventually(secs(10), "the run is marked lost", async || …).await;
//! ```
//!
//! Nothing outlives a test: every process is killed when its handle is dropped, on a
//! panic too, and the kernel kills them when the test runner itself is killed. When a
//! test fails, the ends of all logs are printed and the directory with the whole of
//! them is kept; `MEEPO_TEST_KEEP=1` keeps it in any case.
//!
//! Everything here panics on trouble: in a test a panic is the message.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
mod builder;
mod cluster;
mod dirs;
mod etcd;
pub mod flags;
mod pki;
mod ports;
mod process;
mod procfs;
mod server;
pub mod sim;
mod spawn;
mod wait;

pub use api::{Api, Output, run};
pub use builder::{Builder, Logs, shared_mongo};
pub use cluster::{Cluster, Master, Worker};
pub use dirs::{TestDir, binary, workspace_root};
pub use etcd::{Etcd, Member};
pub use meepo_logstore::testing::TestMongo;
pub use pki::{Pair, Pki};
pub use ports::free_port;
pub use process::{Process, Spec};
pub use server::Server;
pub use wait::{eventually, millis, secs};
