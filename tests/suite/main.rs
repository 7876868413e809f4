//! The suites: one module an area.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod architecture;
mod deploy;
mod harness;
mod scripts;
