//! Free loopback ports.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU32, Ordering},
};

/// Below the kernel's default range for outgoing connections (32768 and up), so that
/// no client of a test running beside this one takes a port between its choice and
/// its use.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A loopback port nobody listens on, never answered twice by this process.
///
/// Another process may still take it first: what starts on it must be ready to start
/// again on another one.
pub fn free_port() -> u16 {
    // Each test process begins at a place of its own.
    let start = std::process::id().wrapping_mul(7919);
    for _ in 0..COUNT {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + start.wrapping_add(n) % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
