//! Mail, in a real conversation with a small server: with STARTTLS and a login, and without.

use super::{job, put, trigger, wait_list};
use crate::fleet::{SOON, quick};
use meepo_tests::eventually;
use serde_json::json;
use std::sync::{Arc, Mutex};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring::default_provider, pki_types::PrivatePkcs8KeyDer},
};

/// What was said to the server, commands and data, and whether it was protected.
#[derive(Debug, Default, Clone)]
pub(super) struct Mail {
    pub(super) protected: bool,
    pub(super) login: Option<String>,
    from: String,
    to: Vec<String>,
    pub(super) data: String,
}

pub(super) struct Smtp {
    pub(super) port: u16,
    pub(super) mails: Arc<Mutex<Vec<Mail>>>,
    serving: JoinHandle<()>,
}

impl Drop for Smtp {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Smtp {
    async fn start(tls: Option<TlsAcceptor>) -> Self {
        Self::serve(tls, false).await
    }

    /// Protected from the first byte.
    pub(super) async fn start_tls(tls: TlsAcceptor) -> Self {
        Self::serve(Some(tls), true).await
    }

    async fn serve(tls: Option<TlsAcceptor>, at_once: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mails: Arc<Mutex<Vec<Mail>>> = Arc::default();
        let taken = mails.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, taken) = (tls.clone(), taken.clone());
                tokio::spawn(async move {
                    // A client that goes away is no trouble here.
                    if let Ok(Some(mail)) = converse(stream, tls, at_once).await {
                        taken.lock().unwrap().push(mail);
                    }
                });
            }
        });
        Self { port, mails, serving }
    }

    pub(super) async fn wait(&self, n: usize) -> Vec<Mail> {
        eventually(SOON, format!("{n} mails"), async || {
            let mails = self.mails.lock().unwrap().clone();
            if mails.len() >= n { Ok(mails) } else { Err(format!("{mails:?}")) }
        })
        .await
    }
}

async fn converse(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    at_once: bool,
) -> std::io::Result<Option<Mail>> {
    let mut mail = Mail { protected: at_once, ..Mail::default() };
    let stream: Box<dyn Io> = match &tls {
        Some(acceptor) if at_once => Box::new(acceptor.accept(stream).await?),
        _ => Box::new(stream),
    };
    let mut io = BufReader::new(stream);
    io.write_all(b"220 test ESMTP\r\n").await?;
    let mut done = None;
    loop {
        let mut line = String::new();
        if io.read_line(&mut line).await? == 0 {
            return Ok(done);
        }
        let line = line.trim_end().to_owned();
        let upper = line.to_ascii_uppercase();
        let answer = if upper.starts_with("EHLO") {
            let offers = tls.is_some() && !mail.protected;
            let extra = if offers { "250-STARTTLS\r\n" } else { "250-AUTH PLAIN\r\n" };
            format!("250-test\r\n{extra}250 8BITMIME\r\n")
        } else if upper == "STARTTLS" {
            io.write_all(b"220 go ahead\r\n").await?;
            let acceptor = tls.clone().unwrap();
            let stream: Box<dyn Io> = Box::new(acceptor.accept(io.into_inner()).await?);
            io = BufReader::new(stream);
            mail.protected = true;
            continue;
        } else if let Some(login) = line.strip_prefix("AUTH PLAIN ") {
            mail.login = Some(login.to_owned());
            "235 welcome\r\n".into()
        } else if upper.starts_with("MAIL FROM:") {
            mail.from = line;
            "250 ok\r\n".into()
        } else if upper.starts_with("RCPT TO:") {
            mail.to.push(line);
            "250 ok\r\n".into()
        } else if upper == "DATA" {
            io.write_all(b"354 go on\r\n").await?;
            loop {
                let mut data = String::new();
                io.read_line(&mut data).await?;
                if data.trim_end() == "." {
                    break;
                }
                mail.data.push_str(&data);
            }
            done = Some(mail.clone());
            "250 taken\r\n".into()
        } else if upper == "QUIT" {
            io.write_all(b"221 bye\r\n").await?;
            return Ok(done);
        } else {
            "250 ok\r\n".into()
        };
        io.write_all(answer.as_bytes()).await?;
    }
}

/// A certificate for 127.0.0.1, as PEM, and what serves with it.
pub(super) fn certificate() -> (String, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    (made.cert.pem(), TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn mail_goes_protected_and_with_a_login_or_plain_to_loopback() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mail-password"), "s3cret").unwrap();
    let (pem, acceptor) = certificate();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let secrets = dir.path().to_str().unwrap();
    let cluster = quick().master_arg("--secrets-dir").master_arg(secrets).start().await;
    let api = cluster.api();
    let (protected, plain) = (Smtp::start(Some(acceptor)).await, Smtp::start(None).await);
    let mail = |server: &Smtp, encryption: &str, more: serde_json::Value| {
        let mut mail = json!({"host": "127.0.0.1", "port": server.port, "encryption": encryption,
            "from": "meepo <meepo@example.org>", "to": ["ops@example.org", "night@example.org"]});
        mail.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"email": mail})
    };
    let login = json!({"ca": ca, "user": "meepo", "secret": "mail-password"});
    put(&api, "channels/night", mail(&protected, "starttls", login)).await;
    let templates =
        json!({"subject": "{{ count }} from {{ rule }}", "body": "See {{ events[0].run_id }}\n"});
    put(&api, "channels/local", mail(&plain, "none", templates)).await;
    put(&api, "channels/strict", mail(&plain, "starttls", json!({}))).await;
    job(&api, "a", "echo 'it is'; echo '.'; exit 5", json!({"notify": {"to": ["night", "local"]}}))
        .await;
    let run = trigger(&api, "a").await;

    let mail = protected.wait(1).await.remove(0);
    assert!(mail.protected);
    // NUL meepo NUL s3cret
    assert_eq!(mail.login.as_deref(), Some("AG1lZXBvAHMzY3JldA=="));
    assert!(mail.from.contains("<meepo@example.org>"), "{mail:?}");
    assert_eq!(mail.to.len(), 2);
    assert!(
        mail.data.contains("Subject: meepo: job a on 127.0.0.2 failed: exit status 5"),
        "{}",
        mail.data
    );
    assert!(mail.data.contains("Auto-Submitted: auto-generated"), "{}", mail.data);
    assert!(mail.data.contains(&run) && mail.data.contains("| it is"), "{}", mail.data);
    let mail = plain.wait(1).await.remove(0);
    assert!(!mail.protected && mail.login.is_none());
    assert!(
        mail.data.contains("Subject: 1 from job:a") && mail.data.contains(&format!("See {run}")),
        "{}",
        mail.data
    );
    let list = wait_list(&api, "both delivered", |list| {
        let all = list["notifications"].as_array().unwrap();
        all.len() == 2 && all.iter().all(|m| m["state"] == "delivered")
    })
    .await;
    let id =
        list["notifications"].as_array().unwrap().iter().find(|m| m["channel"] == "local").unwrap()
            ["id"]
            .as_str()
            .unwrap()
            .to_owned();
    assert!(mail.data.contains(&format!("Message-ID: <{id}@meepo>")), "{}", mail.data);
    // A server without STARTTLS gets nothing from who insists on it.
    let (_, tested) = api.post("/v1/notify/channels/strict/test", json!({})).await;
    assert_eq!(tested["delivered"], false, "{tested}");
    assert_eq!(plain.mails.lock().unwrap().len(), 1);
}
