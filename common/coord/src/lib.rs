//! etcd as meepo uses it: every key, typed records, list and watch, one lease per
//! process, leader election, claims of slots and named locks.
//!
//! Invariants
//! - [`keys`] owns every key; nobody else writes a path.
//! - Lists are read in pages at one revision and a watch starts at the next, so no
//!   change falls between them. Compaction makes a watch list anew.
//! - Every unary call ends within [`etcd::CALL_TIMEOUT`].
//! - One decision is one transaction of fewer than 128 operations.

pub mod access;
pub mod claim;
pub mod election;
pub mod etcd;
pub mod history;
pub mod keys;
pub mod lease;
pub mod lock;
pub mod records;
pub mod survey;
pub mod users;
pub mod watch;

pub use etcd::{CoordError, Entry, Etcd, EtcdAccess, EtcdUser, Restart, Stats};
