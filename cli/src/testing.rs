//! A master made of canned answers, for unit tests.

use crate::client::Client;
use std::sync::{Arc, Mutex};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// One answer.
pub(crate) struct Reply {
    status: &'static str,
    pieces: Vec<String>,
    cut: bool,
}

impl Reply {
    /// An answer with a status line and a body.
    pub(crate) fn new(status: &'static str, body: impl Into<String>) -> Self {
        Self { status, pieces: vec![body.into()], cut: false }
    }

    /// More of the body, sent as a piece of its own.
    pub(crate) fn then(mut self, piece: impl Into<String>) -> Self {
        self.pieces.push(piece.into());
        self
    }

    /// Cut the connection before the body is complete.
    pub(crate) fn cut(mut self) -> Self {
        self.cut = true;
        self
    }
}

/// A master that gives its answers one after another, a connection each.
pub(crate) struct FakeMaster {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl FakeMaster {
    /// A client for it.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.url).unwrap()
    }

    /// The requests so far: first line, a newline, body.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for FakeMaster {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a master that will give `replies`.
pub(crate) async fn fake_master(replies: Vec<Reply>) -> FakeMaster {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    let task = tokio::spawn(async move {
        for reply in replies {
            let (stream, _) = listener.accept().await.unwrap();
            answer(stream, reply, &seen).await;
        }
    });
    FakeMaster { url, requests, task }
}

async fn answer(mut stream: TcpStream, reply: Reply, seen: &Mutex<Vec<String>>) {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    let request = loop {
        let n = stream.read(&mut buffer).await.unwrap();
        got.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&got).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .filter_map(|l| {
                l.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned)
            })
            .find_map(|v| v.trim().parse::<usize>().ok())
            .unwrap_or(0);
        if body.len() >= length {
            break format!("{}\n{body}", head.lines().next().unwrap());
        }
    };
    seen.lock().unwrap().push(request);
    let head = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n",
        reply.status
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for piece in reply.pieces {
        stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
    if !reply.cut {
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    }
}
