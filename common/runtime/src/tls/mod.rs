//! Encrypted connections, and who is at their other end.
//!
//! Certificates of meepo say whose they are ([`Identity`]); whatever an authority of the
//! settings has signed is believed. All of it is rustls with one provider, ring.

mod authority;
mod client;
mod connect;
mod files;
mod identity;
mod listen;
mod live;
mod peer;
mod settings;
mod verify;
pub mod x509;

pub use authority::{Authority, Issued, MAX_DAYS, Subject, request};
pub use client::{client_config, explain, pinned_config, plain_config};
pub use connect::{ChannelError, channel, usual};
pub use files::{Stamp, TlsFiles, certificates, replace, replace_pair};
pub use identity::Identity;
pub use listen::{Acceptor, HANDSHAKE, Io, incoming, pause, refused};
pub use live::{Configs, Credentials, Protocol};
pub use peer::Peer;
pub use settings::{EtcdTls, EtcdTlsSettings, TlsSettings};
pub use verify::{Expect, Pinned, Verifier};
