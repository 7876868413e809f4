//! The suites: one module an area.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
mod architecture;
mod bad_input;
mod cli;
mod coord;
mod crashes;
mod deploy;
mod disk;
mod docs;
mod drain;
mod etcd_contract;
mod faults;
mod fleet;
mod grpc;
mod harness;
mod http_jobs;
mod many;
mod masters;
mod mongo;
mod policies;
mod processes;
mod scripts;
mod services;
mod shared;
mod surviving;
