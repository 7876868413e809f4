//! One request with its redirects, up to the end of the answer.

use super::{
    Call, End,
    client::{Client, Clients},
};
use crate::process::Writer;
use http::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    header::{self, HeaderName},
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use meepo_core::{
    code::Code,
    http_job::redirect_url,
    run::{RunState, Stream},
};
use std::{error::Error, time::Instant};
use tokio::time::sleep_until;

/// Headers of an answer that standard error tells.
const TOLD: [HeaderName; 3] = [header::CONTENT_TYPE, header::LOCATION, header::RETRY_AFTER];
/// Headers of a job that a redirect takes to another server: no others, as any of them
/// may be a secret.
const HARMLESS: [HeaderName; 5] = [
    header::ACCEPT,
    header::ACCEPT_LANGUAGE,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::USER_AGENT,
];

/// Makes `call`; what is answered goes to `writer`.
pub(super) async fn run(clients: &Clients, mut call: Call, writer: &mut Writer) -> End {
    let client = match clients.get(&call.request).await {
        Ok(client) => client,
        Err(message) => return End::failed(Code::CANNOT_START, message),
    };
    let mut redirects = 0;
    loop {
        let begun = Instant::now();
        let answer = match send(&client, &mut call).await {
            Ok(answer) => answer,
            Err(e) => {
                // After a redirect something was sent already.
                let unsent = e.is_connect() && redirects == 0;
                let code = if unsent { Code::CANNOT_START } else { Code::NO_RESPONSE };
                // The client's own words say no more than that there is a cause.
                let why = e.source().map_or_else(|| e.to_string(), chain);
                return End::failed(code, format!("{} {}: {why}", call.method, call.url));
            }
        };
        let next = next_url(&call, &answer, redirects);
        writer.push(Stream::Stderr, head(&answer, begun, next.as_ref().ok()).as_bytes());
        match next {
            Ok(url) => {
                redirects += 1;
                redirect(&mut call, answer.status(), url);
            }
            Err(why) => return take(&call, answer, writer, why).await,
        }
    }
}

async fn send(client: &Client, call: &mut Call) -> Result<Response<Incoming>, Failure> {
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = call.url.clone();
    *request.headers_mut() = match call.request.follow_redirects {
        // Only a redirect needs them once more.
        None | Some(0) => std::mem::take(&mut call.headers),
        Some(_) => call.headers.clone(),
    };
    client.request(request).await
}

type Failure = hyper_util::client::legacy::Error;

/// Reads the body to its end. `why` says, of a redirect, why it was not followed.
async fn take(
    call: &Call,
    answer: Response<Incoming>,
    writer: &mut Writer,
    why: Option<String>,
) -> End {
    let (status, version) = (answer.status(), answer.version());
    let mut body = answer.into_body();
    loop {
        let flush_at = writer.flush_at();
        tokio::select! {
            frame = body.frame() => match frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        writer.push(Stream::Stdout, data);
                    }
                }
                Some(Err(e)) => {
                    let what = line(version, status);
                    let message = format!("{what}, then the body broke off: {}", chain(&e));
                    return End::failed(Code::NO_RESPONSE, message);
                }
                None => break,
            },
            // The branch is only entered with a time.
            () = sleep_until(flush_at.unwrap_or_else(tokio::time::Instant::now)),
                if flush_at.is_some() => writer.flush(),
        }
    }
    let exit_code = Some(i32::from(status.as_u16()));
    if call.request.expects(status.as_u16()) {
        return End { code: Code::OK, state: RunState::Success, exit_code, message: None };
    }
    let message = match why {
        Some(why) => format!("{}; {why}", line(version, status)),
        None => line(version, status),
    };
    End { exit_code, ..End::failed(Code::HTTP_STATUS, message) }
}

/// Where a redirect that is to be followed leads. Errors: it is not; for a redirect with
/// the reason.
fn next_url<B>(call: &Call, answer: &Response<B>, followed: u8) -> Result<Uri, Option<String>> {
    let status = answer.status();
    let location = match (status.as_u16(), answer.headers().get(header::LOCATION)) {
        (301 | 302 | 303 | 307 | 308, Some(location)) => location,
        _ => return Err(None),
    };
    let limit = call.request.follow_redirects.unwrap_or(0);
    if call.request.expects(status.as_u16()) {
        return Err(None);
    }
    if followed >= limit {
        return Err(Some(match limit {
            0 => "redirects are not followed: see http.follow_redirects".to_owned(),
            limit => format!("more than {limit} redirects"),
        }));
    }
    let url = redirect_url(&call.url, location.as_bytes())
        .map_err(|e| Some(format!("the redirect leads nowhere: {}", e.problem)))?;
    let secure = |url: &Uri| url.scheme() == Some(&http::uri::Scheme::HTTPS);
    if secure(&call.url) && !secure(&url) {
        return Err(Some("a redirect from https to http is not followed".to_owned()));
    }
    let sends = !call.body.is_empty() && !becomes_get(&call.method, status);
    if sends && origin(&call.url) != origin(&url) {
        return Err(Some(
            "a redirect that takes http.body to another server is not followed".into(),
        ));
    }
    Ok(url)
}

/// Makes of `call` the request for the next URL (RFC 9110, section 15.4).
fn redirect(call: &mut Call, status: StatusCode, url: Uri) {
    if becomes_get(&call.method, status) {
        call.method = Method::GET;
        call.body.clear();
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
            call.headers.remove(name);
        }
    }
    if origin(&call.url) != origin(&url) {
        let kept = call
            .headers
            .iter()
            .filter(|(name, _)| HARMLESS.contains(name) || name.as_str().starts_with("meepo-"));
        call.headers = kept.map(|(n, v)| (n.clone(), v.clone())).collect::<HeaderMap>();
    }
    call.url = url;
}

/// Whether a redirect is followed with `GET` and without the body.
fn becomes_get(method: &Method, status: StatusCode) -> bool {
    match status {
        StatusCode::SEE_OTHER => method != Method::HEAD,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => method == Method::POST,
        _ => false,
    }
}

/// Scheme, host and port of a URL.
fn origin(url: &Uri) -> (bool, String, u16) {
    let https = url.scheme() == Some(&http::uri::Scheme::HTTPS);
    let port = url.port_u16().unwrap_or(if https { 443 } else { 80 });
    (https, url.host().unwrap_or_default().to_ascii_lowercase(), port)
}

/// `HTTP/1.1 200 OK`
fn line(version: Version, status: StatusCode) -> String {
    let version = if version == Version::HTTP_2 { "HTTP/2".into() } else { format!("{version:?}") };
    match status.canonical_reason() {
        Some(reason) => format!("{version} {} {reason}", status.as_u16()),
        None => format!("{version} {}", status.as_u16()),
    }
}

/// What standard error tells of an answer.
fn head(answer: &Response<Incoming>, begun: Instant, next: Option<&Uri>) -> String {
    let took = begun.elapsed().as_millis();
    let mut text = format!("{} in {took}ms\n", line(answer.version(), answer.status()));
    if let Some(next) = next {
        text.push_str(&format!("redirected to {next}\n"));
        return text;
    }
    for name in TOLD {
        if let Some(value) = answer.headers().get(&name) {
            text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        }
    }
    text
}

/// An error with all its causes, each said once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // Some repeat their cause.
        if !parts.iter().any(|p| p.ends_with(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}
