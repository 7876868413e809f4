//! Over TLS from the first byte, with an authority of one's own, and with secrets that are
//! variables of the masters.

use super::{
    job,
    mail::{Smtp, certificate},
    put, trigger, wait_list,
};
use crate::fleet::{SOON, quick};
use meepo_tests::{Cluster, eventually};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// A server of webhooks over TLS: the heads and bodies of what came.
struct Secure {
    url: String,
    got: Arc<Mutex<Vec<(String, String)>>>,
    serving: JoinHandle<()>,
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Secure {
    async fn start(tls: TlsAcceptor) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/hook", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<_>>> = Arc::default();
        let taken = got.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Who does not trust the certificate goes away.
                if let Ok(stream) = tls.accept(stream).await
                    && let Ok(one) = serve(BufReader::new(stream)).await
                {
                    taken.lock().unwrap().push(one);
                }
            }
        });
        Self { url, got, serving }
    }

    async fn wait(&self, n: usize) -> Vec<(String, String)> {
        eventually(SOON, format!("{n} requests"), async || {
            let got = self.got.lock().unwrap().clone();
            if got.len() >= n { Ok(got) } else { Err(format!("{got:?}")) }
        })
        .await
    }
}

/// One request, which is answered with 200.
async fn serve<S>(mut io: BufReader<S>) -> std::io::Result<(String, String)>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        io.read_line(&mut line).await?;
        let lower = line.to_ascii_lowercase();
        if let Some(n) = lower.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&lower);
    }
    let mut body = vec![0; length];
    io.read_exact(&mut body).await?;
    io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
    io.flush().await?;
    Ok((head, String::from_utf8(body).unwrap()))
}

/// A file with an authority.
fn authority(cluster: &Cluster, name: &str, pem: &str) -> String {
    let path = cluster.dir().join(name);
    std::fs::write(&path, pem).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn webhooks_go_over_tls_to_servers_of_an_authority_that_the_channel_names() {
    let cluster = quick().start().await;
    // The secret is a variable, of any master that may come to lead.
    let master = cluster.master(0);
    master.process().restart_with(&[("MEEPO_SECRET_HOOK_KEY_2", "open sesame")]);
    master.wait_ready().await;
    let api = cluster.api();
    let (pem, acceptor) = certificate();
    let (other, _) = certificate();
    let server = Secure::start(acceptor).await;
    let (ca, other) = (authority(&cluster, "ca", &pem), authority(&cluster, "other", &other));
    let hook = |ca: Option<&str>| {
        let mut hook = json!({"url": server.url, "secret": "hook-key.2"});
        ca.map(|ca| hook.as_object_mut().unwrap().insert("ca".into(), ca.into()));
        json!({"webhook": hook})
    };
    put(&api, "channels/good", hook(Some(&ca))).await;
    put(&api, "channels/host", hook(None)).await;
    put(&api, "channels/other", hook(Some(&other))).await;
    put(&api, "channels/none", hook(Some("/nowhere/ca.pem"))).await;
    for (channel, words) in
        [("host", "certificate"), ("other", "certificate"), ("none", "webhook.ca: cannot use")]
    {
        let (_, tested) = api.post(&format!("/v1/notify/channels/{channel}/test"), json!({})).await;
        assert_eq!(tested["delivered"], false, "{channel}: {tested}");
        assert!(tested["error"].as_str().unwrap().contains(words), "{channel}: {tested}");
    }
    job(&api, "a", "exit 3", json!({"notify": {"to": ["good"]}})).await;
    let run = trigger(&api, "a").await;
    let (head, body) = server.wait(1).await.remove(0);
    let message: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(message["events"][0]["run_id"], run, "{message}");
    let header = |name: &str| {
        let line = head.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name}: {head}")).to_owned()
    };
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"open sesame");
    let signed = format!("{}.{body}", header("meepo-timestamp"));
    let tag = ring::hmac::sign(&key, signed.as_bytes());
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(header("meepo-signature"), format!("sha256={hex}"));
    assert_eq!(server.got.lock().unwrap().len(), 1, "nothing came from those who do not trust it");
    // Without the variable nothing is sent, and the words say which one is missing.
    master.process().restart();
    master.wait_ready().await;
    let (_, tested) = api.post("/v1/notify/channels/good/test", json!({})).await;
    let why = tested["error"].as_str().unwrap_or_default();
    assert!(why.contains("there is no variable MEEPO_SECRET_HOOK_KEY_2"), "{tested}");
}

#[tokio::test]
async fn mail_goes_over_tls_from_the_first_byte() {
    let cluster = quick().start().await;
    let master = cluster.master(0);
    master.process().restart_with(&[("MEEPO_SECRET_MAIL", "s3cret")]);
    master.wait_ready().await;
    let api = cluster.api();
    let (pem, acceptor) = certificate();
    let server = Smtp::start_tls(acceptor).await;
    let ca = authority(&cluster, "ca", &pem);
    let mail = |encryption: &str, ca: Option<&str>| {
        let mut mail = json!({"host": "127.0.0.1", "port": server.port, "encryption": encryption,
            "from": "meepo@example.org", "to": ["ops@example.org"],
            "user": "meepo", "secret": "mail", "ca": ca});
        mail.as_object_mut().unwrap().retain(|_, v| !v.is_null());
        json!({"email": mail})
    };
    put(&api, "channels/good", mail("tls", Some(&ca))).await;
    put(&api, "channels/host", mail("tls", None)).await;
    job(&api, "a", "exit 3", json!({"notify": {"to": ["good"]}})).await;
    let run = trigger(&api, "a").await;
    let got = server.wait(1).await.remove(0);
    assert!(got.protected && got.data.contains(&run), "{got:?}");
    // NUL meepo NUL s3cret
    assert_eq!(got.login.as_deref(), Some("AG1lZXBvAHMzY3JldA=="));
    wait_list(&api, "it as delivered", |list| list["notifications"][0]["state"] == "delivered")
        .await;
    let (_, tested) = api.post("/v1/notify/channels/host/test", json!({})).await;
    assert_eq!(tested["delivered"], false, "{tested}");
    assert_eq!(server.mails.lock().unwrap().len(), 1);
}
