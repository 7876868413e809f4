//! The request of a job with `executor: http`: what is sent, and which answers count as
//! success.

use crate::{code::Code, duration::HumanDuration, error::Invalid};
use http::Uri;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{collections::BTreeMap, fmt, time::Duration};

/// Longest time a request may take whose job sets no `timeout`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(180);
/// Longest time until there is a connection, unless the job says otherwise.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most redirects a job may ask to be followed.
pub const MAX_REDIRECTS: u8 = 10;

/// Headers that belong to the connection or frame the message: meepo's own affair.
const OWN_HEADERS: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
];

/// The request of a job with `executor: http`; its URL is the job's `cmd`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct HttpRequest {
    /// Default `GET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Sent in addition to meepo's own; one of them may replace `User-Agent`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Sent as the body. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Statuses that mean success. Default `200-299`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["200-299", "304"])))]
    pub expect: Vec<StatusRange>,
    /// How many redirects are followed. Default 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow_redirects: Option<u8>,
    /// PEM file on the node with the authorities to trust, in place of the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Takes any certificate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Longest time until there is a connection. Default 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<HumanDuration>,
}

impl HttpRequest {
    /// The method.
    pub fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("GET")
    }

    /// Whether an answer with `status` means success.
    pub fn expects(&self, status: u16) -> bool {
        if self.expect.is_empty() {
            return (200..300).contains(&status);
        }
        self.expect.iter().any(|r| (r.from..=r.to).contains(&status))
    }

    /// Longest time until there is a connection.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout.map_or(DEFAULT_CONNECT_TIMEOUT, Into::into)
    }

    /// Checks every field that its type alone does not; paths of fields begin with `http.`.
    pub fn validate(&self) -> Result<(), Invalid> {
        let bad = |field: &str, problem: String, expected: &str| {
            Err(Invalid::new(Code::BAD_VALUE, format!("http.{field}"), problem, expected))
        };
        let method = self.method();
        if !is_token(method) || method.contains(|c: char| c.is_ascii_lowercase()) {
            return bad("method", format!("{method:?} is no method"), "one such as GET or POST");
        }
        if method == "CONNECT" {
            return bad("method", "CONNECT asks for a tunnel".into(), "one such as GET or POST");
        }
        let mut seen: Vec<String> = Vec::new();
        for (name, value) in &self.headers {
            let field = format!("headers.{name}");
            let lower = name.to_ascii_lowercase();
            if !is_token(name) {
                let expected = "letters, digits and '-', such as Content-Type";
                return bad(&field, "not the name of a header".into(), expected);
            }
            if OWN_HEADERS.contains(&lower.as_str()) || lower.starts_with("meepo-") {
                return bad(&field, "set by meepo itself".into(), "other headers");
            }
            if seen.contains(&lower) {
                return bad(
                    &field,
                    "given twice".into(),
                    "each header once; case is no difference",
                );
            }
            if value.contains(|c: char| c != '\t' && !matches!(c, ' '..='~')) {
                let expected = "printable ASCII in one line";
                return bad(&field, "not the value of a header".into(), expected);
            }
            seen.push(lower);
        }
        if self.follow_redirects.is_some_and(|n| n > MAX_REDIRECTS) {
            return bad("follow_redirects", "out of range".into(), "0 to 10");
        }
        if self.ca.as_ref().is_some_and(|p| !p.starts_with('/') || p.contains('\0')) {
            let expected = "the absolute path of a PEM file on the node";
            return bad("ca", "not an absolute path".into(), expected);
        }
        if self.ca.is_some() && self.insecure {
            return bad("insecure", "of no use together with ca".into(), "one of the two");
        }
        if self.connect_timeout.is_some_and(|t| t.0.is_zero() || t.0 > crate::job::MAX_TIMEOUT) {
            let expected = "a positive duration such as 3s";
            return bad("connect_timeout", "out of range".into(), expected);
        }
        Ok(())
    }
}

/// Whether `text` is a token of RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !text.is_empty() && text.chars().all(fits)
}

/// Reads the URL of a request: `http` or `https`, a host, no user.
pub fn parse_url(text: &str) -> Result<Uri, Invalid> {
    let bad = |problem: &str, expected: &str| {
        Err(Invalid::new(Code::BAD_VALUE, "cmd", format!("{text:?} {problem}"), expected))
    };
    let example = "a URL such as https://example.org/hook";
    if text.contains(|c: char| c.is_whitespace() || !c.is_ascii()) {
        return bad(
            "has characters that a URL cannot have",
            "a URL with those percent-encoded (a space is %20), a host name in its ASCII form",
        );
    }
    let begins = |scheme: &str| {
        text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    if !begins("http://") && !begins("https://") {
        return bad("does not begin with http:// or https://", example);
    }
    let Ok(uri) = text.split('#').next().unwrap_or_default().parse::<Uri>() else {
        return bad("is not a URL", example);
    };
    let host = uri.host().unwrap_or_default();
    if host.trim_matches(['[', ']']).is_empty() {
        return bad("names no host", example);
    }
    let authority = uri.authority().map_or("", |a| a.as_str());
    if authority.contains('@') {
        return bad(
            "has a user before the host, which every record of the run would show",
            "credentials in http.headers.Authorization",
        );
    }
    if authority.len() > host.len() && uri.port_u16().is_none() {
        return bad("has an impossible port", "a port from 1 to 65535");
    }
    Ok(uri)
}

/// Where the `Location` of an answer to a request for `base` leads (RFC 3986, section 5.2,
/// but for dot segments, which are left to the server).
pub fn redirect_url(base: &Uri, location: &[u8]) -> Result<Uri, Invalid> {
    let mut text = String::new();
    for byte in location {
        match byte {
            b'#' => break,
            0x21..=0x7e => text.push(char::from(*byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    let scheme = base.scheme_str().unwrap_or("http");
    let authority = base.authority().map_or("", |a| a.as_str());
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    let part = text.find([':', '/', '?']).unwrap_or(text.len());
    let has_scheme = text[part..].starts_with(':');
    let path = match text.as_bytes() {
        _ if has_scheme => return parse_url(&text),
        [b'/', b'/', ..] => return parse_url(&format!("{scheme}:{text}")),
        [b'/', ..] => text,
        [b'?', ..] => format!("{}{text}", base.path()),
        [] => base.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
        _ => format!("{folder}/{text}"),
    };
    parse_url(&format!("{scheme}://{authority}{path}"))
}

/// Statuses from one to another, both included. Written as `204` or `"200-299"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    from: u16,
    to: u16,
}

impl StatusRange {
    fn new(from: u64, to: u64) -> Option<Self> {
        let fits = 100 <= from && from <= to && to <= 599;
        fits.then_some(Self { from: from as u16, to: to as u16 })
    }
}

/// What a [`StatusRange`] may be, for messages.
const STATUSES: &str = "a status such as 204 or a range such as \"200-299\", within 100-599";

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.from == self.to {
            true => s.serialize_u16(self.from),
            false => s.collect_str(&format_args!("{}-{}", self.from, self.to)),
        }
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read;
        impl de::Visitor<'_> for Read {
            type Value = StatusRange;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(STATUSES)
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<StatusRange, E> {
                StatusRange::new(n, n)
                    .ok_or_else(|| E::custom(format!("{n} is no status; expected {STATUSES}")))
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<StatusRange, E> {
                self.visit_u64(n.try_into().unwrap_or(0))
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<StatusRange, E> {
                let (from, to) = s.split_once('-').unwrap_or((s, s));
                let read = |s: &str| s.trim().parse().ok();
                read(from)
                    .zip(read(to))
                    .and_then(|(from, to)| StatusRange::new(from, to))
                    .ok_or_else(|| E::custom(format!("{s:?} is no status; expected {STATUSES}")))
            }
        }
        d.deserialize_any(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::from_value;
    use serde_json::{Value, json};

    fn read(value: Value) -> Result<HttpRequest, Invalid> {
        let request: HttpRequest = from_value(value)?;
        request.validate()?;
        Ok(request)
    }

    #[test]
    fn a_request_survives_the_round_trip_and_says_what_it_expects() {
        let full = json!({
            "method": "POST", "headers": {"Content-Type": "text/plain"}, "body": "x",
            "expect": ["200-299", 304], "follow_redirects": 3, "ca": "/etc/ca.pem",
            "connect_timeout": "3s",
        });
        let request = read(full.clone()).unwrap();
        assert_eq!(serde_json::to_value(&request).unwrap(), full);
        for (status, expected) in
            [(199, false), (200, true), (299, true), (304, true), (404, false)]
        {
            assert_eq!(request.expects(status), expected, "{status}");
        }
        let plain = HttpRequest::default();
        assert!(plain.expects(204) && !plain.expects(302) && plain.method() == "GET");
        assert_eq!(serde_json::to_value(&plain).unwrap(), json!({}));
        assert!(read(json!({"expect": ["304"]})).unwrap().expects(304));
    }

    #[test]
    fn bad_requests_name_the_field() {
        let cases = [
            (json!({"method": "get"}), "http.method"),
            (json!({"method": ""}), "http.method"),
            (json!({"method": "CONNECT"}), "http.method"),
            (json!({"headers": {"a b": "c"}}), "http.headers.a b"),
            (json!({"headers": {"A": "b\r\nC: d"}}), "http.headers.A"),
            (json!({"headers": {"A": "b", "a": "b"}}), "http.headers.a"),
            (json!({"headers": {"Content-Length": "1"}}), "http.headers.Content-Length"),
            (json!({"headers": {"Meepo-Fence": "1"}}), "http.headers.Meepo-Fence"),
            (json!({"follow_redirects": 11}), "http.follow_redirects"),
            (json!({"ca": "ca.pem"}), "http.ca"),
            (json!({"ca": "/ca.pem", "insecure": true}), "http.insecure"),
            (json!({"connect_timeout": "0s"}), "http.connect_timeout"),
        ];
        for (value, field) in cases {
            let e = read(value).unwrap_err();
            assert_eq!((e.field.as_str(), e.code), (field, Code::BAD_VALUE), "{e}");
        }
        for status in [json!("299-200"), json!(99), json!(-1), json!("x"), json!(600), json!([])] {
            let e = read(json!({"expect": [status]})).unwrap_err();
            assert_eq!((e.field.as_str(), e.code), ("expect[0]", Code::BAD_VALUE), "{e}");
            assert!(e.expected.contains("200-299"), "{e}");
        }
        assert_eq!(read(json!({"methud": "GET"})).unwrap_err().code, Code::UNKNOWN_FIELD);
    }

    #[test]
    fn urls_are_http_with_a_host_and_without_a_user() {
        for good in [
            "http://127.0.0.1:7600/healthz",
            "https://example.org",
            "HTTPS://example.org/a?b=c#d",
            "http://[::1]:80/",
        ] {
            parse_url(good).unwrap();
        }
        for (bad, hint) in [
            ("example.org/hook", "http://"),
            ("/hook", "http://"),
            ("ftp://example.org/", "http://"),
            ("http:///path", "URL"),
            ("http://:80/path", "URL"),
            ("http://example.org/a b", "%20"),
            ("http://b\u{fc}cher.example/", "ASCII"),
            ("http://ann:secret@example.org/", "Authorization"),
            ("http://example.org:99999/", "port"),
        ] {
            let e = parse_url(bad).unwrap_err();
            assert_eq!((e.field.as_str(), e.code), ("cmd", Code::BAD_VALUE), "{bad}");
            assert!(e.to_string().contains(hint), "{bad}: {e}");
        }
    }

    #[test]
    fn redirects_are_resolved_against_the_request() {
        let base: Uri = "http://a.example:8080/b/c?d=e".parse().unwrap();
        for (location, want) in [
            ("https://x.example/y", "https://x.example/y"),
            ("//x.example/y", "http://x.example/y"),
            ("/y?z", "http://a.example:8080/y?z"),
            ("?z=http://other", "http://a.example:8080/b/c?z=http://other"),
            ("y#part", "http://a.example:8080/b/y"),
            ("", "http://a.example:8080/b/c?d=e"),
            ("/a b\u{fc}", "http://a.example:8080/a%20b%C3%BC"),
        ] {
            assert_eq!(redirect_url(&base, location.as_bytes()).unwrap(), want, "{location}");
        }
        redirect_url(&base, b"file:///etc/passwd").unwrap_err();
    }
}
