//! Certificates that are exchanged while everything runs.

use super::{SOON, echo, quick};
use crate::fleet::wait_session;
use meepo_runtime::tls::{self, x509};
use meepo_tests::{Cluster, Pair, Pki, eventually};
use rustls::pki_types::ServerName;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A connection to the first master's API.
async fn connect(cluster: &Cluster, ca: &Path, pair: Option<&Pair>) -> TlsStream<TcpStream> {
    let pair = pair.map(|pair| (&*pair.cert, &*pair.key));
    let config = tls::client_config(Some(ca), pair).unwrap();
    let address = cluster.api().base().trim_start_matches("https://").to_owned();
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// The fingerprint of the certificate that the first master shows.
async fn shown(cluster: &Cluster) -> String {
    let stream = connect(cluster, &cluster.pki().ca(), None).await;
    x509::fingerprint(&stream.get_ref().1.peer_certificates().unwrap()[0])
}

fn fingerprint(pair: &Pair) -> String {
    x509::fingerprint(&tls::certificates(&pair.cert).unwrap()[0])
}

#[tokio::test]
async fn new_certificates_are_used_without_a_restart_and_nobody_is_cut_off() {
    let cluster = quick().workers(1).tls().start().await;
    let pki = cluster.pki();
    let node = cluster.worker(0).node().to_owned();
    wait_session(&cluster.api(), &node).await;
    let before = shown(&cluster).await;
    // A stream that is open all the while, and requests on connections of their own.
    let events = cluster.cli_start(&["events", "-f", "-o", "json"]);
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (base, ca) = (cluster.api().base().to_owned(), pki.ca());
            let (stop, served) = (stop.clone(), served.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    // Each with a handshake of its own.
                    let api = meepo_tests::Api::encrypted(&base, &ca, None);
                    assert_eq!(api.get("/v1/jobs").await.0, 200);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let some = async |more: usize| {
        let from = served.load(Ordering::Relaxed);
        eventually(SOON, "requests are served", async || {
            let n = served.load(Ordering::Relaxed) - from;
            if n >= more { Ok(()) } else { Err(format!("{n}")) }
        })
        .await;
    };
    some(10).await;
    let master = pki.master("m0");
    let after = fingerprint(&master);
    assert_ne!(before, after);
    some(10).await;
    assert_eq!(shown(&cluster).await, after);
    // The worker's, too: the next session is had with it.
    pki.node(&node);
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
    assert!(echo(&cluster.api(), &node).await.contains("through"));
    // Whoever was connected is told what happens now.
    cluster.cli(&["job", "apply", "-f", &job(&cluster)]).await.ok();
    eventually(SOON, "the stream of before tells of the job", async || {
        assert!(events.is_running(), "{}", events.log());
        let told = events.stdout();
        if told.contains("after-the-change") { Ok(()) } else { Err(told) }
    })
    .await;
    assert!(cluster.master(0).process().log().contains("a new certificate is used"));
}

fn job(cluster: &Cluster) -> String {
    let path = cluster.dir().join("job.yaml");
    std::fs::write(&path, "name: after-the-change\ncmd: echo\nschedule: '@yearly'\n").unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn what_cannot_be_used_is_not_and_is_tried_again_when_it_changes() {
    let cluster = quick().workers(0).tls().start().await;
    let pki = cluster.pki();
    let before = shown(&cluster).await;
    let pair = Pair { cert: pki.dir().join("master-m0.pem"), key: pki.dir().join("master-m0.key") };
    // The key of another certificate: as between the two steps of a renewal.
    let right = std::fs::read_to_string(&pair.key).unwrap();
    let other = std::fs::read_to_string(pki.node("n1").key).unwrap();
    tls::replace(&pair.key, &other, 0o600).unwrap();
    assert_eq!(shown(&cluster).await, before);
    let log = cluster.master(0).process();
    log.wait_log("the new certificate cannot be used; the one before still is", SOON).await;
    tls::replace(&pair.cert, "nonsense", 0o644).unwrap();
    assert_eq!(shown(&cluster).await, before);
    // Put right again.
    let renewed = pki.master("m0");
    assert_ne!(std::fs::read_to_string(&renewed.key).unwrap(), right);
    assert_eq!(shown(&cluster).await, fingerprint(&renewed));
}

#[tokio::test]
async fn an_authority_is_exchanged_in_steps() {
    let cluster = quick().workers(0).tls().start().await;
    let pki = cluster.pki();
    let other = Pki::new(&cluster.dir().join("other"));
    let (old, new) = (pki.client("ann"), other.client("ann"));
    let ca = std::fs::read_to_string(pki.ca()).unwrap();
    let base = cluster.api().base().to_owned();
    let get = async |pair: &Pair| {
        let ca = cluster.dir().join("old-ca.pem");
        std::fs::write(&ca, std::fs::read_to_string(pki.dir().join("first.pem")).unwrap()).unwrap();
        meepo_tests::Api::encrypted(&base, &ca, Some(pair)).try_http("GET", "/v1/jobs", None).await
    };
    std::fs::write(pki.dir().join("first.pem"), &ca).unwrap();
    assert!(get(&old).await.is_ok());
    assert!(get(&new).await.is_err());
    // Both are believed …
    let both = format!("{ca}{}", std::fs::read_to_string(other.ca()).unwrap());
    tls::replace(&pki.ca(), &both, 0o644).unwrap();
    assert_eq!(get(&new).await.unwrap().0, 200);
    assert_eq!(get(&old).await.unwrap().0, 200);
    // … and then only the new one.
    tls::replace(&pki.ca(), &std::fs::read_to_string(other.ca()).unwrap(), 0o644).unwrap();
    assert_eq!(get(&new).await.unwrap().0, 200);
    assert!(get(&old).await.unwrap_err().contains("UnknownCA"));
}
