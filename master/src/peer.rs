//! Who is at the other end of the connection that a request came over.

use axum::extract::ConnectInfo;
use http::Extensions;
use meepo_runtime::tls::Peer;

/// Who is at the other end of the connection of a request over HTTP or gRPC. None: the
/// request came over no connection, as in tests.
pub fn of(extensions: &Extensions) -> Option<&Peer> {
    // As axum and as tonic put it there.
    let http = extensions.get::<ConnectInfo<Peer>>().map(|info| &info.0);
    http.or_else(|| extensions.get::<Peer>())
}
