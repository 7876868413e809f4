//! The master's HTTP API from the outside.

use crate::{
    args::{ClientTls, Global},
    credentials,
    error::{CliError, CliResult, exit},
};
use meepo_core::api::ErrorBody;
use meepo_runtime::tls;
use reqwest::{Method, Response, StatusCode, Url};
use serde::{Serialize, de::DeserializeOwned};
use std::{error::Error, time::Duration};

/// Where a master listens unless told otherwise.
pub(crate) const DEFAULT_MASTER: &str = "http://127.0.0.1:7600";

/// The header in which the caller's name goes.
const USER: &str = "Meepo-User";
/// How long a plain request may take. Streams have no such limit.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest line of a stream, in bytes: far above any piece of output.
const MAX_LINE: usize = 64 * 1024 * 1024;
/// Most of an answer that is no JSON which is shown.
const MAX_EXCERPT: usize = 200;

/// A connection to one master.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    /// By what the caller is known.
    token: Option<String>,
}

/// Query parameters; those without a value are left out.
pub(crate) type Query<'a> = &'a [(&'a str, Option<String>)];

impl Client {
    /// A client for the master that the command line names; nothing is sent yet.
    pub(crate) fn open(global: &Global) -> CliResult<Self> {
        Self::encrypted(&global.master, &global.tls)
    }

    /// A client for the master at `url`, with the certificates that are given.
    fn encrypted(url: &str, tls: &ClientTls) -> CliResult<Self> {
        let bad = |problem: String| {
            CliError::usage("--master", problem, format!("a URL such as {DEFAULT_MASTER}"))
        };
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let base = Url::parse(&full).map_err(|e| bad(format!("{url:?} is not a URL: {e}")))?;
        if !["http", "https"].contains(&base.scheme()) || base.host_str().is_none_or(str::is_empty)
        {
            return Err(bad(format!("{url:?} is no http:// or https:// URL of a host")));
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(15))
            .user_agent(concat!("meepo/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(config(&base, tls)?);
        // A proxy set for the web must not stand between us and our own machine.
        if base
            .host_str()
            .is_some_and(|h| h == "localhost" || h.starts_with("127.") || h == "[::1]")
        {
            builder = builder.no_proxy();
        }
        let http = builder
            .build()
            .map_err(|e| CliError::new(exit::INTERNAL, format!("cannot set up HTTP: {e}")))?;
        let token = credentials::token_for(&base)?;
        Ok(Self { http, base, token })
    }

    /// The master's address.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// The same client with another token, or with none.
    pub(crate) fn with_token(&self, token: Option<String>) -> Self {
        Self { token, ..self.clone() }
    }

    /// The address of `path` with `query`; segments are escaped.
    fn url(&self, path: &[&str], query: Query<'_>) -> Url {
        let mut url = self.base.clone();
        // A base URL with a host can always have a path.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        for (key, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(key, value);
            }
        }
        url
    }

    /// `GET`.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
    ) -> CliResult<T> {
        self.call(Method::GET, path, query, None::<&()>).await
    }

    /// Any method, with or without a JSON body.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        body: Option<&impl Serialize>,
    ) -> CliResult<T> {
        let response = self.send(method, path, query, body, Some(REQUEST_TIMEOUT)).await?;
        let bytes = response.bytes().await.map_err(|e| self.broken(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| unreadable(&e, &bytes))
    }

    /// A request that is answered by a stream of lines.
    pub(crate) async fn stream(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        body: Option<&impl Serialize>,
    ) -> CliResult<Lines> {
        let response = self.send(method, path, query, body, None).await?;
        Ok(Lines { client: self.clone(), response: Some(response), buffer: Vec::new(), seen: 0 })
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        body: Option<&impl Serialize>,
        timeout: Option<Duration>,
    ) -> CliResult<Response> {
        let mut request = self.http.request(method, self.url(path, query));
        match &self.token {
            Some(token) => request = request.bearer_auth(token),
            None => {
                if let Some(user) = user() {
                    request = request.header(USER, user);
                }
            }
        }
        // Whoever runs this as a part of something else may follow it there.
        if let Ok(traceparent) = std::env::var("TRACEPARENT") {
            request = request.header("traceparent", traceparent);
        }
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.unwrap_or_default();
        Err(refused(status, &bytes))
    }

    fn unreachable(&self, e: &reqwest::Error) -> CliError {
        let master = self.base.as_str().trim_end_matches('/');
        if let Some(why) = tls::explain(e) {
            return CliError::new(
                exit::UNAVAILABLE,
                format!("cannot trust, or be trusted by, the master at {master}: {why}"),
            )
            .expected(
                "the authority of the fleet in --ca or MEEPO_CA, and where the master asks for \
                 one a valid certificate in --client-cert and --client-key",
            );
        }
        let why = if e.is_timeout() { "no answer in time".into() } else { root_cause(e) };
        CliError::new(
            exit::UNAVAILABLE,
            format!("cannot reach the master at {master}: {why}"),
        )
        .expected("a running master (start one with `meepo --server`), or its address in --master or MEEPO_MASTER")
    }

    fn broken(&self, e: &reqwest::Error) -> CliError {
        let master = self.base.as_str().trim_end_matches('/');
        CliError::new(
            exit::UNAVAILABLE,
            format!(
                "the connection to the master at {master} broke: {}",
                tls::explain(e).unwrap_or_else(|| root_cause(e))
            ),
        )
    }
}

/// What connections are encrypted with. Where they are not, nothing is read.
fn config(base: &Url, tls: &ClientTls) -> CliResult<rustls::ClientConfig> {
    let pair = match (&tls.client_cert, &tls.client_key) {
        (Some(cert), Some(key)) => Some((cert.as_path(), key.as_path())),
        (None, None) => None,
        (Some(_), None) => {
            return Err(CliError::usage("--client-key", "missing", "the key of --client-cert"));
        }
        (None, Some(_)) => {
            return Err(CliError::usage("--client-cert", "missing", "the certificate of the key"));
        }
    };
    if base.scheme() == "http" {
        return tls::plain_config().map_err(internal);
    }
    tls::client_config(tls.ca.as_deref(), pair)
        .map_err(|e| CliError::new(exit::USAGE, format!("{e:#}")))
}

/// A client for what is on this host: without encryption, and without a proxy.
///
/// # Errors
/// When HTTP cannot be set up.
pub(crate) fn local(timeout: Duration) -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder().no_proxy().timeout(timeout);
    Ok(builder.tls_backend_preconfigured(tls::plain_config()?).build()?)
}

fn internal(e: anyhow::Error) -> CliError {
    CliError::new(exit::INTERNAL, format!("cannot set up TLS: {e:#}"))
}

/// Who the caller is, as the environment says: for the audit, which takes it as hearsay.
fn user() -> Option<String> {
    let named = ["USER", "LOGNAME"].into_iter().find_map(|v| std::env::var(v).ok());
    named.filter(|user| !user.is_empty() && user.bytes().all(|b| b.is_ascii_graphic()))
}

/// The innermost reason: reqwest's own text repeats the URL instead.
fn root_cause(e: &reqwest::Error) -> String {
    let mut cause: &dyn Error = e;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn unreadable(e: &serde_json::Error, bytes: &[u8]) -> CliError {
    CliError::new(
        exit::INTERNAL,
        format!("the master's answer cannot be read: {e}: {}", excerpt(bytes)),
    )
    .expected("the answer of a meepo master of about this version; is --master one?")
}

fn excerpt(bytes: &[u8]) -> String {
    crate::output::text::shorten(&String::from_utf8_lossy(bytes), MAX_EXCERPT)
}

/// The error for an answer with a status of 400 or above.
fn refused(status: StatusCode, bytes: &[u8]) -> CliError {
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(bytes) {
        return body.error.into();
    }
    let exit = match status.as_u16() {
        404 => exit::NOT_FOUND,
        401 | 403 => exit::DENIED,
        409 => exit::CONFLICT,
        502..=504 => exit::UNAVAILABLE,
        400..=499 => exit::USAGE,
        _ => exit::INTERNAL,
    };
    CliError::new(exit, format!("the master answered {status}: {}", excerpt(bytes)))
}

/// A stream of lines, most of them JSON. Dropping it ends the request.
pub(crate) struct Lines {
    client: Client,
    response: Option<Response>,
    buffer: Vec<u8>,
    /// Bytes at the start of the buffer known to hold no newline.
    seen: usize,
}

impl Lines {
    /// The next object, or `None` when the stream has ended. Cancel safe.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> CliResult<Option<T>> {
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            if !line.trim_ascii().is_empty() {
                return serde_json::from_slice(&line).map(Some).map_err(|e| unreadable(&e, &line));
            }
        }
    }

    /// The next line with its end, or `None` when the stream has ended. Cancel safe.
    pub(crate) async fn line(&mut self) -> CliResult<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer[self.seen..].iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=self.seen + end).collect();
                self.seen = 0;
                return Ok(Some(line));
            }
            self.seen = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(CliError::new(exit::INTERNAL, "the master sent an endless line"));
            }
            let Some(response) = &mut self.response else { return Ok(None) };
            match response.chunk().await {
                Ok(Some(bytes)) => self.buffer.extend_from_slice(&bytes),
                Ok(None) => {
                    self.response = None;
                    // A last line without a newline is a line all the same.
                    if !self.buffer.is_empty() {
                        self.buffer.push(b'\n');
                    }
                }
                Err(e) => return Err(self.client.broken(&e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Reply, fake_master};

    impl Client {
        /// A client for the master at `url`.
        pub(crate) fn new(url: &str) -> CliResult<Self> {
            Self::encrypted(url, &ClientTls::default())
        }
    }
    use serde_json::{Value, json};

    #[test]
    fn addresses_are_built_from_segments() {
        let client = Client::new("127.0.0.1:7600").unwrap();
        let url = client.url(&["jobs", "a:b"], &[("n", Some("5 6".into())), ("x", None)]);
        assert_eq!(url.as_str(), "http://127.0.0.1:7600/v1/jobs/a:b?n=5+6");
        let client = Client::new("http://proxy/meepo/").unwrap();
        assert_eq!(client.url(&["jobs", "a/b"], &[]).as_str(), "http://proxy/meepo/v1/jobs/a%2Fb");
        assert!(Client::new("https://m1:7600").is_ok());
        for bad in ["http://", "://", "ftp://a"] {
            let e = Client::new(bad).unwrap_err();
            assert_eq!(e.exit, exit::USAGE, "{bad}");
            assert!(e.to_string().contains("expected a URL such as"), "{e}");
        }
    }

    #[tokio::test]
    async fn a_master_that_is_away_is_named() {
        // Bound and dropped: nobody listens there.
        let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::new(&format!("http://{addr}")).unwrap();
        let e = client.get::<Value>(&["jobs"], &[]).await.unwrap_err();
        assert_eq!(e.exit, exit::UNAVAILABLE);
        let text = e.to_string();
        assert!(text.contains(&addr.to_string()) && text.contains("refused"), "{text}");
    }

    #[tokio::test]
    async fn errors_keep_field_and_expectation() {
        let body = json!({"error": {"code": 0x0303, "name": "bad_schedule", "message": "61 is too much",
            "field": "schedule", "expected": "0-59", "retry": false}});
        let master = fake_master(vec![
            Reply::new("400 Bad Request", body.to_string()),
            Reply::new("502 Bad Gateway", "<html>"),
            Reply::new("200 OK", "surprise"),
        ])
        .await;
        let e = master.client().get::<Value>(&["jobs"], &[]).await.unwrap_err();
        assert_eq!(
            (e.exit, e.to_string().as_str()),
            (exit::USAGE, "schedule: 61 is too much; expected 0-59")
        );
        let e = master.client().get::<Value>(&["jobs"], &[]).await.unwrap_err();
        assert_eq!(e.exit, exit::UNAVAILABLE);
        let e = master.client().get::<Value>(&["jobs"], &[]).await.unwrap_err();
        assert_eq!(e.exit, exit::INTERNAL);
        assert!(e.to_string().contains("surprise"), "{e}");
    }

    #[tokio::test]
    async fn lines_survive_odd_cuts() {
        let master =
            fake_master(vec![Reply::new("200 OK", "{\"a\":1}\n\n{\"a\"").then(":2}\n{\"a\":3}")])
                .await;
        let mut lines =
            master.client().stream(Method::GET, &["x"], &[], None::<&()>).await.unwrap();
        for n in 1..=3 {
            assert_eq!(lines.next::<Value>().await.unwrap(), Some(json!({"a": n})));
        }
        assert_eq!(lines.next::<Value>().await.unwrap(), None);
    }
}
