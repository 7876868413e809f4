//! Tests against servers on loopback.

mod answers;
mod ends;
mod redirects;
mod tls;

use super::*;
use axum::Router;
use meepo_core::run::Stream;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::{net::TcpListener, time::timeout};

/// Longest time anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Serves `app` on a port of its own, for as long as the test's runtime lasts.
async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    addr
}

fn call_with(url: &str, request: Value, timeout: Option<Duration>, limit: u64) -> Call {
    let facts = [("MEEPO_RUN_ID", "r1".to_owned()), ("MEEPO_FENCE", "7".to_owned())];
    let request = serde_json::from_value(request).unwrap();
    Call::new(url, request, facts, timeout, (limit, OutputKeep::Head)).unwrap()
}

fn call(url: &str, request: Value) -> Call {
    call_with(url, request, Some(DEADLINE), 1 << 20)
}

/// A request that is under way before it is waited for.
fn start(call: Call) -> Running<impl Future<Output = Ended>> {
    let running = Requests::default().start(RunId(uuid::Uuid::now_v7()), call);
    let Running { started_at, control, output, ended } = running;
    let ended = tokio::spawn(ended);
    Running { started_at, control, output, ended: async { ended.await.unwrap() } }
}

/// What one stream of a run kept.
async fn text(output: &OutputHub, stream: Stream) -> String {
    let mut follower = output.follow(0);
    let mut bytes = Vec::new();
    while let Some(batch) = follower.next().await {
        batch.iter().filter(|c| c.stream == stream).for_each(|c| bytes.extend_from_slice(&c.data));
    }
    String::from_utf8(bytes).unwrap()
}

/// How a request ended.
struct Seen {
    ended: Ended,
    out: String,
    err: String,
}

impl Seen {
    fn message(&self) -> &str {
        self.ended.message.as_deref().unwrap_or_default()
    }

    /// Code, state and exit code.
    fn outcome(&self) -> (Code, RunState, Option<i32>) {
        (self.ended.code, self.ended.state, self.ended.exit_code)
    }
}

async fn end_of(running: Running<impl Future<Output = Ended>>) -> Seen {
    let output = running.output.clone();
    let ended = timeout(DEADLINE, running.ended).await.expect("the request ends");
    let (out, err) = (text(&output, Stream::Stdout).await, text(&output, Stream::Stderr).await);
    assert_eq!((ended.output_bytes, ended.dropped_bytes), output.counts());
    Seen { ended, out, err }
}

async fn run(call: Call) -> Seen {
    end_of(start(call)).await
}

const OK: (Code, RunState, Option<i32>) = (Code::OK, RunState::Success, Some(200));
