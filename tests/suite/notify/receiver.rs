//! A server that takes webhooks.

use crate::fleet::SOON;
use axum::{Router, body::Bytes, extract::State, http::HeaderMap};
use meepo_tests::eventually;
use serde_json::Value;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};
use tokio::task::JoinHandle;

/// A request that came.
#[derive(Debug, Clone)]
pub(super) struct Got {
    pub(super) id: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Got {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// The events of one kind in it.
    pub(super) fn events(&self, kind: &str) -> Vec<Value> {
        let json = self.json();
        let all = json["events"].as_array().unwrap();
        all.iter().filter(|e| e["kind"] == kind).cloned().collect()
    }
}

#[derive(Default)]
struct Shared {
    got: Vec<Got>,
    /// What is answered first; 200 when there is nothing more.
    answers: VecDeque<u16>,
}

type Inner = Arc<Mutex<Shared>>;

pub(super) struct Receiver {
    address: std::net::SocketAddr,
    inner: Inner,
    serving: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn take(
    State(inner): State<Inner>,
    headers: HeaderMap,
    body: Bytes,
) -> axum::http::StatusCode {
    let id = headers["meepo-notification"].to_str().unwrap().to_owned();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let mut inner = inner.lock().unwrap();
    inner.got.push(Got { id, headers, body });
    let status = inner.answers.pop_front().unwrap_or(200);
    axum::http::StatusCode::from_u16(status).unwrap()
}

impl Receiver {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Inner::default();
        let app = Router::new().fallback(take).with_state(inner.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, inner, serving }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Answers the next requests with these.
    pub(super) fn answer(&self, statuses: &[u16]) {
        self.inner.lock().unwrap().answers.extend(statuses);
    }

    /// Forgets what it was to answer.
    pub(super) fn answer_ok(&self) {
        self.inner.lock().unwrap().answers.clear();
    }

    /// All requests that came.
    pub(super) fn got(&self) -> Vec<Got> {
        self.inner.lock().unwrap().got.clone()
    }

    /// Different messages among them.
    pub(super) fn messages(&self) -> Vec<Got> {
        let mut seen = BTreeSet::new();
        self.got().into_iter().filter(|g| seen.insert(g.id.clone())).collect()
    }

    /// Waits for `n` events of a kind in different messages.
    pub(super) async fn wait(&self, kind: &str, n: usize) -> Vec<Value> {
        eventually(SOON, format!("{n} events {kind} were told"), async || {
            let messages = self.messages();
            let told = messages.iter().filter(|g| g.json()["rule"] != "test");
            let found: Vec<Value> = told.flat_map(|g| g.events(kind)).collect();
            if found.len() >= n {
                Ok(found)
            } else {
                Err(messages.iter().map(|g| g.body.clone()).collect::<Vec<_>>().join("\n"))
            }
        })
        .await
    }
}
