//! Requests of web pages are refused.
//!
//! The API has no login yet and listens on loopback: without this, any page open in a
//! browser on the same machine could run commands, by a form sent across origins or by
//! a name that is made to resolve to 127.0.0.1. Browsers mark what pages send with
//! `Origin` (RFC 6454 §7) or `Sec-Fetch-Site` (Fetch Metadata); pages cannot leave
//! these out. An address typed by hand is marked `none` and allowed.

use crate::error::{ApiError, ApiResult};
use axum::{
    extract::Request,
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};
use meepo_core::code::Code;

/// Lets everything through but what a web page sent.
pub(super) async fn refuse(request: Request, next: Next) -> ApiResult<Response> {
    if from_page(request.headers()) {
        let message = "requests of web pages are refused, as the API has no login yet";
        return Err(ApiError::new(Code::FORBIDDEN, message));
    }
    Ok(next.run(request).await)
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
    fn pages_are_told_from_tools_and_from_people() {
        assert!(!from_page(&HeaderMap::new()), "curl, the CLI");
        assert!(!marked("sec-fetch-site", "none"), "typed into the address bar");
        assert!(marked("origin", "null"));
        assert!(marked("origin", "http://localhost:7600"), "a rebound name");
        assert!(marked("sec-fetch-site", "cross-site"));
        assert!(marked("sec-fetch-site", "same-origin"));
    }
}
