//! The node's own id, where none is configured: the source address of the route to
//! etcd. Not "the first interface", which on many hosts is a bridge or a tunnel.

use anyhow::{Context, bail};
use meepo_core::id::{Name, NodeId};
use std::net::{IpAddr, SocketAddr};
use tokio::net::{UdpSocket, lookup_host};

/// The address this host uses to reach the first of `endpoints` that has a route.
///
/// Connecting a UDP socket sends nothing; it only makes the kernel choose the route
/// and with it the source address (connect(2)).
pub async fn own_id(endpoints: &[String]) -> anyhow::Result<NodeId> {
    let mut reasons = Vec::new();
    for endpoint in endpoints {
        match source_address(endpoint).await {
            Ok(ip) => return Name::new(&ip.to_string()).map_err(Into::into),
            Err(e) => reasons.push(format!("{endpoint}: {e:#}")),
        }
    }
    bail!(
        "cannot find this node's own address ({}); set `node` in the configuration",
        reasons.join("; ")
    )
}

/// The source address of the route to `endpoint` (a URL or host:port).
pub async fn source_address(endpoint: &str) -> anyhow::Result<IpAddr> {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let host_port = rest.split('/').next().unwrap_or(rest);
    let has_port = host_port
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let host_port = if has_port { host_port.to_owned() } else { format!("{host_port}:2379") };
    let peer = lookup_host(&host_port)
        .await
        .with_context(|| format!("cannot resolve {host_port}"))?
        .next()
        .with_context(|| format!("{host_port} has no address"))?;
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(peer).await.with_context(|| format!("no route to {peer}"))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_route_decides() {
        let id = own_id(&["http://127.0.0.1:2379".into()]).await.unwrap();
        assert_eq!(id.as_str(), "127.0.0.1");
        assert_eq!(own_id(&["127.0.0.1".into()]).await.unwrap().as_str(), "127.0.0.1");
    }

    #[tokio::test]
    async fn an_unusable_endpoint_says_what_to_set() {
        let e = own_id(&["http://no-such-host.invalid:2379".into()]).await.unwrap_err();
        assert!(e.to_string().contains("set `node`"), "{e}");
    }
}
