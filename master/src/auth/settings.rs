//! What can be set.

use super::OidcSettings;
use meepo_core::auth::{Range, Rate};
use std::{net::IpAddr, time::Duration};

/// Requests per second of each client unless set, while everybody is asked who they are.
pub const DEFAULT_RATE: u32 = 200;
/// Connections to the HTTP API unless set.
pub const DEFAULT_CONNECTIONS: usize = 4096;
/// How long a client may take for the head of a request, or do nothing in between, unless set.
/// More than the minute for which proxies keep a connection that they use again.
pub const DEFAULT_CLIENT_TIMEOUT: Duration = Duration::from_secs(75);

/// Who is asked what.
#[derive(Debug, Clone)]
pub struct AuthSettings {
    /// Whether everybody is asked who they are.
    pub on: bool,
    /// Whose bearer tokens count besides meepo's own.
    pub oidc: Option<OidcSettings>,
    /// Requests per second of each client; 0: any number. Absent: [`DEFAULT_RATE`] while `on`,
    /// any number otherwise.
    pub rate_limit: Option<u32>,
    /// Proxies whose word of where a request comes from counts.
    pub trusted_proxies: Vec<Range>,
    /// Connections to the HTTP API.
    pub max_connections: usize,
    /// How long a client may take for the head of a request.
    pub client_timeout: Duration,
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            on: false,
            oidc: None,
            rate_limit: None,
            trusted_proxies: Vec::new(),
            max_connections: DEFAULT_CONNECTIONS,
            client_timeout: DEFAULT_CLIENT_TIMEOUT,
        }
    }
}

impl AuthSettings {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// When a value is out of range or could not work.
    pub fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            (16..=1_000_000).contains(&self.max_connections),
            "max_connections: {} is out of range; expected 16 to 1000000",
            self.max_connections
        );
        anyhow::ensure!(
            (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.client_timeout),
            "client_timeout: {:?} is out of range; expected 1s to 1h",
            self.client_timeout
        );
        anyhow::ensure!(
            self.oidc.is_none() || self.on,
            "oidc: without auth nobody is asked for a token; expected auth = true"
        );
        self.oidc.as_ref().map_or(Ok(()), OidcSettings::validate)
    }

    /// How often each client may ask, if that is limited.
    pub(super) fn rate(&self) -> Option<Rate> {
        let per_second = self.rate_limit.unwrap_or(if self.on { DEFAULT_RATE } else { 0 });
        let per_second = f64::from(per_second);
        (per_second > 0.0).then_some(Rate { per_second, burst: per_second * 2.0 })
    }

    /// Where a request comes from: the other end of the connection, or what the proxies tell
    /// that are trusted; of several hops the last that is no such proxy.
    pub(super) fn origin(
        &self,
        peer: Option<IpAddr>,
        forwarded_for: Option<&str>,
    ) -> Option<IpAddr> {
        let peer = peer?.to_canonical();
        let trusted = |a: IpAddr| self.trusted_proxies.iter().any(|r| r.contains(a));
        if !trusted(peer) {
            return Some(peer);
        }
        let hops = forwarded_for.unwrap_or_default().rsplit(',');
        let mut origin = peer;
        for hop in hops.map(str::trim).take(16) {
            // What cannot be read was not written by a proxy.
            let Ok(address) = hop.parse::<IpAddr>() else { break };
            origin = address.to_canonical();
            if !trusted(origin) {
                break;
            }
        }
        Some(origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_of_a_trusted_proxy_counts() {
        let settings = AuthSettings {
            trusted_proxies: vec!["127.0.0.1".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
            ..AuthSettings::default()
        };
        let origin = |peer: &str, word: Option<&str>| {
            settings.origin(peer.parse().ok(), word).unwrap().to_string()
        };
        assert_eq!(origin("203.0.113.1", Some("10.0.0.1")), "203.0.113.1");
        assert_eq!(origin("127.0.0.1", Some("203.0.113.7")), "203.0.113.7");
        assert_eq!(origin("127.0.0.1", None), "127.0.0.1");
        // The client wrote the first, the proxy the last.
        assert_eq!(origin("127.0.0.1", Some("1.1.1.1, 203.0.113.7, 10.2.3.4")), "203.0.113.7");
        assert_eq!(origin("127.0.0.1", Some("1.1.1.1, nonsense")), "127.0.0.1");
        assert_eq!(origin("::ffff:127.0.0.1", Some("203.0.113.7")), "203.0.113.7");
    }
}
