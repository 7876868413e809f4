//! The suites: one module an area.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
mod architecture;
mod bad_input;
mod cli;
mod coord;
mod deploy;
mod docs;
mod etcd_contract;
mod faults;
mod fleet;
mod grpc;
mod harness;
mod masters;
mod mongo;
mod scripts;
mod services;
mod shared;
