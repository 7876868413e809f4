//! Redirects: followed only when asked for, and what goes along.

use super::*;
use axum::http::{HeaderMap, Method, StatusCode, Uri};

/// `/STATUS/…` redirects to what follows, `/to?URL` to that URL; all else tells what it got.
async fn server() -> SocketAddr {
    let answer = async |method: Method, uri: Uri, headers: HeaderMap, body: String| {
        let header = |name| headers.get(name).map_or("-", |v| v.to_str().unwrap());
        if let Some(url) = uri.query().filter(|_| uri.path() == "/to") {
            return (StatusCode::TEMPORARY_REDIRECT, [("location", url.to_owned())], String::new());
        }
        let (first, rest) = uri.path()[1..].split_once('/').unwrap_or((&uri.path()[1..], ""));
        match first.parse() {
            Ok(status) => (
                StatusCode::from_u16(status).unwrap(),
                [("location", format!("/{rest}"))],
                String::new(),
            ),
            Err(_) => {
                let names = ["x-key", "authorization", "content-type", "meepo-run-id"];
                let told = format!("{method} {uri} {} {body}", names.map(header).join(" "));
                (StatusCode::OK, [("location", "-".to_owned())], told)
            }
        }
    };
    serve(Router::new().fallback(answer)).await
}

fn post(follow: u8) -> Value {
    json!({
        "method": "POST", "body": "b", "follow_redirects": follow,
        "headers": {"X-Key": "k", "Authorization": "a", "Content-Type": "t"},
    })
}

fn without_body() -> Value {
    let mut request = post(1);
    request.as_object_mut().unwrap().remove("body");
    request
}

#[tokio::test]
async fn they_are_followed_as_often_as_the_job_allows() {
    let addr = server().await;
    for (path, follow, want) in [
        ("302/301/end", 2, Ok("GET /end k a - r1 ")),
        ("303/end", 1, Ok("GET /end k a - r1 ")),
        ("307/308/end", 2, Ok("POST /end k a t r1 b")),
        ("302/302/end", 1, Err("HTTP/1.1 302 Found; more than 1 redirects")),
        ("302/end", 0, Err("HTTP/1.1 302 Found; redirects are not followed")),
        ("304/end", 5, Err("HTTP/1.1 304 Not Modified")),
    ] {
        let seen = run(call(&format!("http://{addr}/{path}"), post(follow))).await;
        match want {
            Ok(out) => assert_eq!((seen.outcome(), seen.out.as_str()), (OK, out), "{path}"),
            Err(why) => {
                assert_eq!(seen.ended.code, Code::HTTP_STATUS, "{path}");
                assert!(seen.message().starts_with(why), "{path}: {}", seen.message());
            }
        }
    }
    let seen = run(call(&format!("http://{addr}/302/end"), post(1))).await;
    assert!(seen.err.contains(&format!("redirected to http://{addr}/end\nHTTP/1.1 200")));
    // A redirect may be what the job waits for.
    let request = json!({"follow_redirects": 5, "expect": [302]});
    let seen = run(call(&format!("http://{addr}/302/end"), request)).await;
    assert_eq!(seen.outcome(), (Code::OK, RunState::Success, Some(302)));
}

#[tokio::test]
async fn another_server_learns_no_secret() {
    let (one, other) = (server().await, server().await);
    let url = format!("http://{one}/to?http://{other}/end");
    let seen = run(call(&url, without_body())).await;
    assert_eq!((seen.outcome(), seen.out.as_str()), (OK, "POST /end - - t r1 "));
    let seen = run(call(&url, post(1))).await;
    assert_eq!(seen.ended.code, Code::HTTP_STATUS);
    assert!(seen.message().contains("takes http.body to another server"), "{}", seen.message());
    let seen = run(call(&format!("http://{one}/to?file:///etc/passwd"), post(1))).await;
    assert!(seen.message().contains("leads nowhere"), "{}", seen.message());
}

#[tokio::test]
async fn what_fails_after_a_redirect_was_sent_before() {
    let one = server().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let seen = run(call(&format!("http://{one}/to?http://{closed}/"), without_body())).await;
    assert_eq!(seen.ended.code, Code::NO_RESPONSE, "{}", seen.message());
    assert!(seen.message().contains(&closed.to_string()), "{}", seen.message());
}
