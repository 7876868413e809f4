//! The edge: who asks too often, too much, or too slowly.

use super::{Guarded, why};
use crate::fleet::quick;
use meepo_tests::{Cluster, secs};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

fn address(cluster: &Cluster) -> String {
    cluster.api().base().trim_start_matches("http://").to_owned()
}

/// Sends a text and answers what comes until the other side closes.
async fn raw(cluster: &Cluster, text: &str) -> String {
    let mut tcp = TcpStream::connect(address(cluster)).await.unwrap();
    tcp.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Reset instead of closed is as well.
    let _ = timeout(secs(30), tcp.read_to_end(&mut answer)).await.expect("the master closes it");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn slow_and_large_requests_are_cut_off_and_answers_say_what_they_are() {
    let plan = ["--client-timeout", "1s", "--max-connections", "16"].iter();
    let plan = plan.fold(quick().workers(0), |b, arg| b.master_arg(arg));
    let guarded = Guarded::start(plan).await;
    let cluster = &guarded.cluster;
    // Half a head, and nothing at all.
    for half in ["GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", ""] {
        let answer = raw(cluster, half).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    // Heads that never end.
    let long = format!(
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: {}\r\n\r\n",
        "x".repeat(70 << 10)
    );
    let answer = raw(cluster, &long).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    let answer =
        raw(cluster, &format!("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n{many}\r\n")).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    // Too much: refused before it is read as anything.
    let big = json!({"user": "ann", "password": "x".repeat(2 << 20)});
    let (status, _) =
        cluster.api().try_http("POST", "/v1/login", Some(&big)).await.unwrap_or((413, json!(null)));
    assert_eq!(status, 413);
    // More connections than there may be: the surplus is closed, those that are there are served.
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(TcpStream::connect(address(cluster)).await.unwrap());
    }
    let mut closed = 0;
    for tcp in &mut open {
        let mut byte = [0];
        // They send nothing: whatever comes is the end.
        let end = timeout(secs(30), tcp.read(&mut byte))
            .await
            .expect("closed, at once or for want of a head");
        closed += usize::from(matches!(end, Ok(0) | Err(_)));
    }
    assert_eq!(closed, 40);
    let response = guarded.admin.request("GET", "/v1/jobs").send().await.unwrap();
    let headers = response.headers();
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(headers[name], value, "{headers:?}");
    }
    assert!(headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    let response = cluster.api().request("GET", "/v1/jobs").send().await.unwrap();
    assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
    // A secret in an address is refused, known or not.
    let token = guarded.admin.token().unwrap();
    let (status, answer) = guarded.admin.get(&format!("/v1/jobs?token={token}")).await;
    assert_eq!((status, why(&answer)), (403, "forbidden"));
    assert!(answer.to_string().contains("revoke it") && !answer.to_string().contains(token));
    // Other schemes, and what cannot be one.
    for value in ["Basic YWRtaW46YWRtaW4=", "Bearer", "Bearer  ", token] {
        let request = cluster.api().request("GET", "/v1/jobs").header("Authorization", value);
        assert_eq!(request.send().await.unwrap().status(), 401, "{value}");
    }
}

#[tokio::test]
async fn who_asks_too_often_waits_and_nobody_else_does() {
    let plan = ["--rate-limit", "5", "--trusted-proxies", "127.0.0.1"].iter();
    let plan = plan.fold(quick().workers(0), |b, arg| b.master_arg(arg));
    let guarded = Guarded::start(plan).await;
    let ask = async |client: &str| {
        let request = guarded.admin.request("GET", "/v1/jobs").header("X-Forwarded-For", client);
        request.send().await.unwrap()
    };
    let mut waits = None;
    for _ in 0..60 {
        let response = ask("203.0.113.1").await;
        if response.status() == 429 {
            waits = Some(response.headers()["retry-after"].to_str().unwrap().to_owned());
            break;
        }
        assert_eq!(response.status(), 200);
    }
    let waits = waits.expect("sixty requests at once are too many");
    assert!(waits.parse::<u32>().unwrap() >= 1);
    assert_eq!(ask("203.0.113.2").await.status(), 200);
}
