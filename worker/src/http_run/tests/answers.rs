//! What is sent, and what becomes of an answer.

use super::*;
use axum::{
    body::Body,
    extract::Path,
    http::{HeaderMap, Method, StatusCode, Uri},
    routing::any,
};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Answers with the status that the path asks for.
async fn statuses() -> SocketAddr {
    let answer = async |Path(status): Path<u16>| {
        (StatusCode::from_u16(status).unwrap(), [("retry-after", "7")], format!("body of {status}"))
    };
    serve(Router::new().route("/{status}", any(answer))).await
}

#[tokio::test]
async fn the_status_decides_and_stands_in_the_record() {
    let addr = statuses().await;
    let failed = |status| (Code::HTTP_STATUS, RunState::Failed, Some(status));
    let ok = |status| (Code::OK, RunState::Success, Some(status));
    for (status, request, want) in [
        (200, json!({}), ok(200)),
        (299, json!({}), ok(299)),
        (404, json!({}), failed(404)),
        (503, json!({"method": "POST"}), failed(503)),
        (304, json!({"expect": ["200-299", 304]}), ok(304)),
        (404, json!({"expect": ["400-404"]}), ok(404)),
        (200, json!({"expect": [204]}), failed(200)),
    ] {
        let seen = run(call(&format!("http://{addr}/{status}"), request)).await;
        assert_eq!(seen.outcome(), want, "{status}");
        let line = format!("HTTP/1.1 {status}");
        assert!(seen.err.starts_with(&line), "{}", seen.err);
        assert!(seen.err.contains("retry-after: 7\n"), "{}", seen.err);
        assert_eq!(seen.ended.state == RunState::Failed, seen.message().starts_with(&line));
        if status != 304 {
            assert_eq!(seen.out, format!("body of {status}"));
        }
    }
    let seen = run(call(&format!("http://{addr}/200"), json!({"method": "HEAD"}))).await;
    assert_eq!((seen.outcome(), seen.out.as_str()), (OK, ""));
}

#[tokio::test]
async fn the_server_gets_what_the_job_says_and_who_asks() {
    let echo = async |method: Method, uri: Uri, headers: HeaderMap, body: String| {
        let header = |name| headers.get(name).map_or("-", |v| v.to_str().unwrap());
        let names = ["user-agent", "meepo-run-id", "meepo-fence", "x-key", "content-type"];
        format!("{method} {uri} {} {body}", names.map(header).join(" "))
    };
    let addr = serve(Router::new().fallback(echo)).await;
    let url = format!("http://{addr}/a?b=c#d");
    let agent = concat!("meepo/", env!("CARGO_PKG_VERSION"));
    let seen = run(call(&url, json!({}))).await;
    assert_eq!(seen.out, format!("GET /a?b=c {agent} r1 7 - - "));
    let request = json!({
        "method": "POST", "body": "hello", "headers":
        {"X-Key": "k", "Content-Type": "text/x", "user-agent": "other"},
    });
    assert_eq!(run(call(&url, request)).await.out, "POST /a?b=c other r1 7 k text/x hello");
}

#[tokio::test]
async fn a_body_over_the_limit_is_read_to_its_end_and_counted() {
    const SIZE: usize = 3 << 20;
    let addr = serve(Router::new().fallback(async || vec![b'x'; SIZE])).await;
    let seen = run(call_with(&format!("http://{addr}/"), json!({}), None, 1000)).await;
    assert_eq!(seen.outcome(), OK);
    assert_eq!(seen.out.len() + seen.err.len(), 1000);
    let all = (SIZE + seen.err.len()) as u64;
    assert_eq!((seen.ended.output_bytes, seen.ended.dropped_bytes), (all, all - 1000));
}

#[tokio::test]
async fn output_is_there_while_the_body_still_comes() {
    let (more, rest) = tokio::sync::mpsc::channel::<Result<&'static str, std::io::Error>>(4);
    let body = std::sync::Mutex::new(Some(tokio_stream::wrappers::ReceiverStream::new(rest)));
    let body = Arc::new(body);
    let answer = move || {
        let body = body.clone();
        async move { Body::from_stream(body.lock().unwrap().take().unwrap()) }
    };
    let addr = serve(Router::new().fallback(answer)).await;
    let running = start(call(&format!("http://{addr}/"), json!({})));
    more.send(Ok("first\n")).await.unwrap();
    let mut follower = running.output.follow(0);
    let mut seen = Vec::new();
    while !seen.ends_with(b"first\n") {
        let batch = timeout(DEADLINE, follower.next()).await.expect("output comes").unwrap();
        batch.iter().for_each(|c| seen.extend_from_slice(&c.data));
    }
    more.send(Ok("last\n")).await.unwrap();
    drop(more);
    assert_eq!(end_of(running).await.out, "first\nlast\n");
}

#[tokio::test]
async fn connections_are_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = taken.clone();
    let counted = axum::serve::ListenerExt::tap_io(listener, move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    tokio::spawn(async move { axum::serve(counted, Router::new().fallback(async || "x")).await });
    let requests = Requests::default();
    for _ in 0..20 {
        let call = call(&format!("http://{addr}/"), json!({}));
        let seen = end_of(requests.start(RunId(uuid::Uuid::now_v7()), call)).await;
        assert_eq!(seen.outcome(), OK);
    }
    // A connection is free again a moment after the end of the answer.
    let taken = taken.load(Ordering::SeqCst);
    assert!(taken < 10, "{taken} connections for 20 requests");
}
