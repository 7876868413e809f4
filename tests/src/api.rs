//! Talking to what is under test: HTTP requests and commands run to their end.

use crate::{
    pki::Pair,
    process::{Process, Spec},
};
use meepo_runtime::tls;
use serde_json::Value;
use std::{path::Path, time::Duration};

/// Longest time a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The HTTP API of one master.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    client: reqwest::Client,
    token: Option<String>,
}

impl Api {
    /// The API at `base`, e.g. `http://127.0.0.1:7600`.
    pub fn new(base: &str) -> Self {
        // Clients that are not told what to use take it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build();
        Self { base: base.to_owned(), client: client.expect("a client without TLS"), token: None }
    }

    /// The API at `base`, e.g. `https://127.0.0.1:7600`, of a master with a certificate of `ca`,
    /// which is shown this certificate or none.
    pub fn encrypted(base: &str, ca: &Path, pair: Option<&Pair>) -> Self {
        let pair = pair.map(|pair| (&*pair.cert, &*pair.key));
        let config = tls::client_config(Some(ca), pair).expect("usable files");
        let builder = reqwest::Client::builder().timeout(REQUEST_TIMEOUT);
        let client = builder.tls_backend_preconfigured(config).build().expect("a client");
        Self { base: base.to_owned(), client, token: None }
    }

    /// The same, asked with this token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The token it is asked with.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A request that is yet to be sent, with the token if there is one.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let verb = method.parse().expect("an HTTP method");
        let request = self.client.request(verb, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Its base URL.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// One request; answers the status and the body: JSON if it is JSON, else a JSON
    /// string, `Null` when empty. `Err` when there is no answer at all.
    pub async fn try_http(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        let url = format!("{}{path}", self.base);
        let at = |e: reqwest::Error| format!("{method} {url}: {e:?}");
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(at)?;
        let status = response.status().as_u16();
        let text = response.text().await.map_err(at)?;
        let value = match text.as_str() {
            "" => Value::Null,
            t => serde_json::from_str(t).unwrap_or_else(|_| Value::String(text)),
        };
        Ok((status, value))
    }

    /// As [`Self::try_http`]; no answer is a panic.
    pub async fn http(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_http(method, path, body).await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.http("GET", path, None).await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.http("POST", path, Some(&body)).await
    }

    /// The response itself, for streams, headers and bodies that are not JSON.
    pub async fn stream(&self, path: &str) -> reqwest::Response {
        let url = format!("{}{path}", self.base);
        // A stream may well be open for longer than one request may take.
        let mut request = reqwest::Client::new().get(&url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap_or_else(|e| panic!("GET {url}: {e:?}"))
    }
}

/// What a command that ended left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + signal when a signal ended it, as shells count.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output, where the exit code is 0; panics otherwise.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        &self.stdout
    }

    /// [`Self::ok`] read as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        let text = self.ok();
        serde_json::from_str(text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
    }
}

/// Runs a command to its end.
pub async fn run(mut spec: Spec) -> Output {
    use std::os::unix::process::ExitStatusExt;
    spec.split_output = true;
    let process = Process::start(spec);
    let status = process.wait_exit(COMMAND_TIMEOUT).await;
    let code = status.code().or(status.signal().map(|s| 128 + s)).unwrap_or(-1);
    Output { code, stdout: process.stdout(), stderr: process.log() }
}
