//! Who is at the other end of a connection.

use super::Identity;
use std::{net::SocketAddr, sync::Arc};

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it comes from. Behind a proxy that is the proxy.
    pub address: SocketAddr,
    /// What its certificate says, which an authority of ours has signed. None: it showed
    /// none, or the connection is not encrypted.
    pub identity: Option<Identity>,
    /// The certificate itself, as it was shown.
    pub certificate: Option<Arc<[u8]>>,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
}

impl Peer {
    /// Of a connection that is not encrypted.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, identity: None, certificate: None, encrypted: false }
    }
}
