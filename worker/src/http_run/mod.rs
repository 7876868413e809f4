//! Runs of `executor: http`: a request made by the worker itself, without a process.
//!
//! ```text
//! Call ──Requests::start──► Running { Control, OutputHub, ended → Ended }
//! ```
//!
//! To the rest of the worker such a run is like one of a process: the same control ends
//! it, the same hub keeps what it "writes". Standard output is the body of the answer;
//! standard error tells of each answer its status and a few headers.
//!
//! # Ending
//! A run that is killed, for whatever reason, drops its request at once: an HTTP/1
//! connection is closed, an HTTP/2 stream is reset. Whether the server has acted on the
//! request is not known then, and the message says so. The body is read to its end, also
//! beyond the run's output limit, as a server may take a client that goes away for a reason
//! to stop; the timeout bounds it, and there always is one.
//!
//! # Connections
//! Requests share the connections of a `Client`, one for each combination
//! of trust and `connect_timeout` in use. Idle connections are kept for less time than
//! common servers keep them, so that a request hardly ever meets one that is just closing.
//! Nothing is sent twice: a request that may have reached the server is not repeated.

mod client;
mod exchange;

use crate::{
    process::{Control, Ended, KillReason, OutputHub, Received, Writer},
    secrets::Secrets,
};
use bytes::Bytes;
use client::Clients;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header::USER_AGENT};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    duration::HumanDuration,
    error::Invalid,
    http_job::{DEFAULT_TIMEOUT, HttpRequest, parse_url},
    id::RunId,
    job::OutputKeep,
    run::{RunState, to_millis},
};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::time::sleep;

/// What a run is told of itself: the variable that a process gets, and the header.
static FACTS: [(&str, HeaderName); 6] = [
    ("MEEPO_RUN_ID", HeaderName::from_static("meepo-run-id")),
    ("MEEPO_NODE", HeaderName::from_static("meepo-node")),
    ("MEEPO_SLOT", HeaderName::from_static("meepo-slot")),
    ("MEEPO_ATTEMPT", HeaderName::from_static("meepo-attempt")),
    ("MEEPO_JOB", HeaderName::from_static("meepo-job")),
    ("MEEPO_FENCE", HeaderName::from_static("meepo-fence")),
];

/// A request to make.
#[derive(Debug, Clone)]
pub struct Call {
    url: Uri,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
    request: HttpRequest,
    timeout: Option<Duration>,
    output: (u64, OutputKeep),
    /// What is kept of no answer and no word about it.
    secrets: Secrets,
}

impl Call {
    /// The request of a job: `url` is its `cmd`, `facts` what the run is told of itself, by
    /// the name of the variable a process would get. `output` is how many bytes of the answer
    /// are kept, and which. Errors: what validation refuses.
    pub fn new(
        url: &str,
        request: HttpRequest,
        facts: impl IntoIterator<Item = (&'static str, String)>,
        timeout: Option<Duration>,
        output: (u64, OutputKeep),
    ) -> Result<Self, Invalid> {
        request.validate()?;
        let bad = |field: String| {
            Invalid::new(Code::BAD_VALUE, field, "cannot be sent", "what RFC 9110 allows")
        };
        let method = request.method().parse().map_err(|_| bad("http.method".to_owned()))?;
        let mut headers = HeaderMap::with_capacity(1 + FACTS.len() + request.headers.len());
        let agent = concat!("meepo/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        for (name, value) in &request.headers {
            let pair = name.parse::<HeaderName>().ok().zip(value.parse().ok());
            let (key, value) = pair.ok_or_else(|| bad(format!("http.headers.{name}")))?;
            headers.insert(key, value);
        }
        for (name, value) in facts {
            let key = FACTS.iter().find(|(fact, _)| *fact == name).map(|(_, header)| header);
            let pair = key.cloned().zip(HeaderValue::from_str(&value).ok());
            let (key, value) = pair.ok_or_else(|| bad(format!("http.headers.{name}")))?;
            headers.insert(key, value);
        }
        let body = Bytes::from(request.body.clone().unwrap_or_default());
        let (url, secrets) = (parse_url(url)?, Secrets::default());
        Ok(Self { url, method, headers, body, request, timeout, output, secrets })
    }

    /// The same request, which has these secrets in it.
    pub fn with_secrets(self, secrets: Secrets) -> Self {
        Self { secrets, ..self }
    }
}

/// Makes requests. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    clients: Arc<Clients>,
}

impl Requests {
    /// Makes `call` as run `run_id` once it is waited for, within a tokio runtime.
    /// Whatever goes wrong is told by the run's end.
    pub fn start(&self, run_id: RunId, call: Call) -> Running<impl Future<Output = Ended> + use<>> {
        let (limit, keep) = call.output;
        let (output, writer) = Writer::masked(run_id, limit, keep, &call.secrets);
        let (control, orders) = Control::new();
        let started_at = to_millis(Timestamp::now());
        let ended = follow(self.clients.clone(), call, writer, orders);
        Running { started_at, control, ended: guarded(ended, output.clone()), output }
    }
}

/// The end that `ended` comes to, also if it panics.
fn guarded(ended: impl Future<Output = Ended>, output: OutputHub) -> impl Future<Output = Ended> {
    // Nothing is looked at any more that a panic may have left half done.
    AssertUnwindSafe(ended).catch_unwind().map(move |ended| {
        ended.unwrap_or_else(|_| {
            // A defect of ours; the log has its words.
            let message = "the worker failed at making the request".to_owned();
            let end = End { state: RunState::Lost, ..End::failed(Code::BUG, message) };
            end.at_last(output.counts())
        })
    })
}

/// A request under way.
pub struct Running<F> {
    /// When it was begun, millisecond precision.
    pub started_at: Timestamp,
    /// Ends it.
    pub control: Control,
    /// What it answers.
    pub output: OutputHub,
    /// Its end; the output is complete by then. Large: to be pinned where it is and not
    /// moved from hand to hand.
    pub ended: F,
}

/// Follows a request to its end, whoever brings it about.
async fn follow(
    clients: Arc<Clients>,
    call: Call,
    mut writer: Writer,
    mut orders: Received,
) -> Ended {
    let timeout = call.timeout;
    let killed = async {
        loop {
            if let Some(reason) = orders.next().await.kill {
                break reason;
            }
        }
    };
    let end = tokio::select! {
        biased;
        reason = killed => cut_short(reason, timeout),
        () = sleep(timeout.unwrap_or(DEFAULT_TIMEOUT)) => cut_short(KillReason::Timeout, timeout),
        end = exchange::run(&clients, call, &mut writer) => end,
    };
    let secrets = writer.secrets();
    let mut ended = end.at_last(writer.close());
    ended.message = ended.message.map(|words| secrets.masks().text(&words));
    ended
}

/// The end of a run that was killed.
fn cut_short(reason: KillReason, timeout: Option<Duration>) -> End {
    let why = match (reason, timeout) {
        (KillReason::Timeout, Some(limit)) => format!("took longer than {}", HumanDuration(limit)),
        (KillReason::Timeout, None) => format!(
            "took longer than {}, which is the limit of a job without a timeout",
            HumanDuration(DEFAULT_TIMEOUT)
        ),
        (KillReason::LeaseLost, _) => "killed because this node had lost its lease in etcd: a \
             job that runs once in the cluster may be run elsewhere"
            .to_owned(),
        (KillReason::Drained, _) => "killed at the deadline of the node's drain".to_owned(),
        _ => "the request was abandoned".to_owned(),
    };
    let (code, state) = reason.outcome();
    let message = format!("{why}; whether the server has acted on the request is not known");
    End { code, state, exit_code: None, message: Some(message) }
}

/// How a request ended.
#[derive(Debug)]
struct End {
    code: Code,
    state: RunState,
    exit_code: Option<i32>,
    message: Option<String>,
}

impl End {
    fn failed(code: Code, message: String) -> Self {
        Self { code, state: RunState::Failed, exit_code: None, message: Some(message) }
    }

    /// The end of the run, now, with the bytes of output and those of them not kept.
    fn at_last(self, (output_bytes, dropped_bytes): (u64, u64)) -> Ended {
        Ended {
            code: self.code,
            state: self.state,
            exit_code: self.exit_code,
            signal: None,
            message: self.message,
            ended_at: to_millis(Timestamp::now()),
            output_bytes,
            dropped_bytes,
        }
    }
}

#[cfg(test)]
mod tests;
