//! What other parts of the leader have noticed and is to be told: it waits in etcd until it
//! has been taken in.

use etcd_client::TxnOp;
use meepo_coord::{keys, records::encode};
use meepo_core::notify::Happening;

/// The write by which something is noted; `id` is the same for the same thing.
pub fn note(id: impl std::fmt::Display, what: &Happening) -> TxnOp {
    TxnOp::put(keys::inbox(id), encode(what), None)
}
