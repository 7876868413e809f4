//! Requests of web pages are refused.
//!
//! The API needs no login on loopback unless that is set: without this, any page open in a
//! browser on the same machine could run commands or read their output. Two marks give
//! such requests away:
//! - `Origin` (RFC 6454 §7) and `Sec-Fetch-Site` (Fetch Metadata), which browsers add
//!   and pages cannot leave out of what crosses origins or changes something;
//! - a `Host` that is neither an address nor a name of this machine: a name that was
//!   made to resolve to 127.0.0.1, so that the page counts as of the same origin.
//!
//! An address typed by hand is marked `none` and allowed.

use super::App;
use crate::error::{ApiError, ApiResult};
use axum::{
    extract::Request,
    http::{HeaderMap, header},
};
use meepo_core::code::Code;
use std::net::IpAddr;

/// Refuses what a web page sent.
pub(super) fn refuse(app: &App, request: &Request) -> ApiResult<()> {
    if from_page(request.headers()) {
        let message = "requests of web pages are refused, as the API is for programs";
        return Err(ApiError::new(Code::FORBIDDEN, message));
    }
    // In HTTP/2 and in absolute form the host stands in the URI.
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let host = request.uri().host().or(host).unwrap_or_default();
    if !is_ours(host, app.advertise.as_deref()) {
        let message = format!(
            "the name {host:?} is not known as this master's; use its address, or set \
             `advertise` to the name"
        );
        return Err(ApiError::new(Code::FORBIDDEN, message));
    }
    Ok(())
}

/// Whether a host is an address, `localhost` or the name this master goes by.
fn is_ours(host: &str, advertise: Option<&str>) -> bool {
    let bare = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let named = advertise.is_some_and(|name| name.eq_ignore_ascii_case(bare));
    bare.eq_ignore_ascii_case("localhost") || named || bare.parse::<IpAddr>().is_ok()
}

fn from_page(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site");
    headers.contains_key(header::ORIGIN) || site.is_some_and(|site| site != "none")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn marked(name: &'static str, value: &'static str) -> bool {
        let header = (HeaderName::from_static(name), HeaderValue::from_static(value));
        from_page(&HeaderMap::from_iter([header]))
    }

    #[test]
    fn only_known_names_are_served() {
        for ours in ["127.0.0.1:7600", "localhost", "LOCALHOST:7600", "[::1]:7600", "10.0.0.7"] {
            assert!(is_ours(ours, None), "{ours}");
        }
        assert!(is_ours("m1.example.net:7600", Some("m1.example.net")));
        for other in ["evil.example:7600", "", "localhost.evil.example", "127.0.0.1.evil.example"] {
            assert!(!is_ours(other, Some("m1.example.net")), "{other}");
        }
    }

    #[test]
    fn pages_are_told_from_tools_and_from_people() {
        assert!(!from_page(&HeaderMap::new()), "curl, the CLI");
        assert!(!marked("sec-fetch-site", "none"), "typed into the address bar");
        assert!(marked("origin", "null"));
        assert!(marked("origin", "http://localhost:7600"), "a rebound name");
        assert!(marked("sec-fetch-site", "cross-site"));
        assert!(marked("sec-fetch-site", "same-origin"));
    }
}
