//! Ends without a whole answer.

use super::*;
use crate::process::KillPlan;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A server that takes a request, answers `text` and then holds the connection or closes
/// it; tells when a connection it holds was closed by the client.
async fn rude(text: &'static str, hold: bool) -> (SocketAddr, tokio::sync::mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (gone, closed) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                seen.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(text.as_bytes()).await.unwrap();
            if hold {
                let _ = stream.read_u8().await;
                gone.send(()).await.unwrap();
            }
        }
    });
    (addr, closed)
}

const BEGUN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun";

#[tokio::test]
async fn a_server_that_cannot_be_reached_was_sent_nothing() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (url, why) in [
        (format!("http://{closed}/"), "Connection refused"),
        ("http://name.invalid/".to_owned(), "dns error"),
    ] {
        let seen = run(call(&url, json!({}))).await;
        assert_eq!(seen.outcome(), (Code::CANNOT_START, RunState::Failed, None));
        assert!(seen.message().starts_with(&format!("GET {url}: ")), "{}", seen.message());
        assert!(seen.message().contains(why), "{}", seen.message());
    }
}

#[tokio::test]
async fn a_connection_that_is_not_made_in_time_was_sent_nothing() {
    // Takes the connection, but never says hello.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let seen = run(call(&url, json!({"connect_timeout": "50ms"}))).await;
    assert_eq!(seen.ended.code, Code::CANNOT_START);
    assert!(seen.message().contains("no connection within 50ms"), "{}", seen.message());
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_none() {
    for (text, why) in [
        ("", "connection closed before message completed"),
        ("nonsense\r\n\r\n", "invalid HTTP version parsed"),
        (BEGUN, "HTTP/1.1 200 OK, then the body broke off: "),
    ] {
        let (addr, _closed) = rude(text, false).await;
        let seen = run(call(&format!("http://{addr}/"), json!({}))).await;
        assert_eq!(seen.outcome(), (Code::NO_RESPONSE, RunState::Failed, None), "{text}");
        assert!(seen.message().contains(why), "{}", seen.message());
        assert_eq!(seen.out, if text == BEGUN { "begun" } else { "" });
    }
}

#[tokio::test]
async fn the_timeout_ends_the_request() {
    for text in ["", BEGUN] {
        let (addr, mut closed) = rude(text, true).await;
        let url = format!("http://{addr}/");
        // The client is made within it, which takes long beside other tests.
        let brief = Some(Duration::from_secs(1));
        let seen = run(call_with(&url, json!({}), brief, 100)).await;
        assert_eq!(seen.outcome(), (Code::TIMED_OUT, RunState::Timeout, None));
        assert!(seen.message().starts_with("took longer than 1s"), "{}", seen.message());
        timeout(DEADLINE, closed.recv()).await.expect("the connection is closed");
    }
    let default = cut_short(KillReason::Timeout, None).message.unwrap();
    assert!(default.starts_with("took longer than 3m, which is the limit"), "{default}");
}

#[tokio::test]
async fn a_kill_ends_the_request_with_its_reason() {
    use KillReason::{LeaseLost, Replaced, Requested, Shutdown};
    for (reason, code) in [
        (Requested, Code::KILLED),
        (Replaced, Code::REPLACED),
        (Shutdown, Code::SHUTDOWN),
        (LeaseLost, Code::ETCD),
    ] {
        let (addr, mut closed) = rude(BEGUN, true).await;
        let running = start(call(&format!("http://{addr}/"), json!({})));
        let control = running.control.clone();
        let mut follower = running.output.follow(0);
        timeout(DEADLINE, follower.next()).await.expect("output comes");
        assert!(!control.is_over());
        match reason {
            Replaced => control.kill_with(reason, KillPlan::NOW),
            _ => control.kill(reason),
        }
        let seen = end_of(running).await;
        assert_eq!(seen.outcome(), (code, RunState::Killed, None));
        assert!(seen.message().contains("is not known"), "{}", seen.message());
        assert!(control.is_over());
        timeout(DEADLINE, closed.recv()).await.expect("the connection is closed");
    }
}
