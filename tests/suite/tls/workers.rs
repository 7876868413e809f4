//! Workers and masters: each must be who it says that it is.

use super::{SOON, quick};
use crate::terms::lead;
use meepo_proto::internal::{
    DeliverRequest, Hello, WorkerFrame, worker_frame::Frame, workers_client::WorkersClient,
};
use meepo_runtime::tls::{Acceptor, Credentials, Identity, Protocol, TlsFiles};
use meepo_tests::{Cluster, Pair, Pki, Process, Spec, binary, eventually, free_port};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Endpoint};

/// Opens a session as the worker of `node` with this certificate.
async fn session(cluster: &Cluster, pair: Option<&Pair>, node: &str) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(cluster.master(0).grpc_url()).unwrap();
    let endpoint = endpoint.tls_config(cluster.pki().tonic(pair)).unwrap();
    let channel = endpoint.connect().await.map_err(|e| format!("no connection: {e:?}"))?;
    let mut client = WorkersClient::new(channel);
    let (frames, rx) = mpsc::channel(4);
    let hello =
        Hello { node: node.to_owned(), instance: "test".to_owned(), version: "0".to_owned() };
    frames.send(WorkerFrame { frame: Some(Frame::Hello(hello)) }).await.unwrap();
    let told = |status: Status| format!("{:?}: {status:?}", status.code());
    let mut orders = client.session(ReceiverStream::new(rx)).await.map_err(told)?.into_inner();
    // It stays open, or is refused at once.
    match tokio::time::timeout(meepo_tests::millis(500), orders.message()).await {
        Err(_) => Ok(()),
        Ok(Ok(_)) => Err("closed".to_owned()),
        Ok(Err(status)) => Err(told(status)),
    }
}

#[tokio::test]
async fn a_session_is_had_only_by_the_node_it_is_of() {
    let cluster = quick().workers(0).tls().start().await;
    let pki = cluster.pki();
    let node = pki.node("127.0.0.7");
    eventually(SOON, "the master leads and takes the session of the node", async || {
        session(&cluster, Some(&node), "127.0.0.7").await
    })
    .await;
    // None, of another node, of a client, of a master.
    for pair in [None, Some(pki.node("127.0.0.8")), Some(pki.client("ann")), Some(pki.master("m9"))]
    {
        let e = session(&cluster, pair.as_ref(), "127.0.0.7").await.unwrap_err();
        assert!(e.starts_with("PermissionDenied") || e.starts_with("Unauthenticated"), "{e}");
    }
    // Of another authority, and of a time long gone: not even a connection.
    let other = Pki::new(&cluster.dir().join("other")).node("127.0.0.7");
    let expired = pki.expired(&Identity::Node("127.0.0.7".into()));
    for (pair, why) in [(other, "UnknownCA"), (expired, "CertificateExpired")] {
        let e = session(&cluster, Some(&pair), "127.0.0.7").await.unwrap_err();
        assert!(e.contains(why), "{e}");
    }
}

#[tokio::test]
async fn records_are_taken_only_from_nodes() {
    let cluster = quick().workers(0).tls().start().await;
    let deliver = async |pair: Option<&Pair>| {
        let endpoint = Endpoint::from_shared(cluster.master(0).grpc_url()).unwrap();
        let endpoint = endpoint.tls_config(cluster.pki().tonic(pair)).unwrap();
        let mut client = WorkersClient::new(endpoint.connect().await.unwrap());
        client.deliver(DeliverRequest::default()).await.map(drop).map_err(|s| s.code())
    };
    let (node, client) = (cluster.pki().node("127.0.0.7"), cluster.pki().client("ann"));
    assert_eq!(deliver(Some(&node)).await, Ok(()));
    for pair in [None, Some(&client)] {
        let code = deliver(pair).await.unwrap_err();
        assert!(matches!(code, Code::PermissionDenied | Code::Unauthenticated), "{code:?}");
    }
}

#[tokio::test]
async fn a_worker_obeys_nobody_but_masters() {
    let cluster = quick().masters(0).workers(1).tls().start().await;
    let worker = cluster.worker(0).process();
    // Whoever can write to etcd puts an address of his own there, not encrypted …
    lead(&cluster, "http://127.0.0.1:1").await;
    worker.wait_log("does not speak TLS and this process does", SOON).await;
    // … or encrypted, with the certificate of a node, or one of an authority of his own.
    let other = Pki::new(&cluster.dir().join("other")).master("m1");
    let node = cluster.pki().node("127.0.0.9");
    for (pair, why) in
        [(node, "its certificate is of node:127.0.0.9, not of a master"), (other, "UnknownIssuer")]
    {
        let files = TlsFiles { cert: pair.cert, key: pair.key, ca: cluster.pki().ca() };
        let acceptor = Acceptor::new(Some(Credentials::load(files).unwrap()), Protocol::Grpc);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        lead(&cluster, &format!("https://{}", listener.local_addr().unwrap())).await;
        let (tcp, address) = tokio::time::timeout(SOON, listener.accept()).await.unwrap().unwrap();
        // It hangs up before it has said anything.
        assert!(acceptor.accept(tcp, address).await.is_err());
        drop(listener);
        worker.wait_log(why, SOON).await;
    }
}

#[tokio::test]
async fn a_worker_without_certificates_says_what_is_missing() {
    let cluster = quick().workers(0).tls().start().await;
    let data = cluster.dir().join("bare.data").display().to_string();
    let metrics = format!("127.0.0.1:{}", free_port());
    let etcd = cluster.etcd().urls();
    let args =
        ["run", "--etcd", &etcd, "--node", "127.0.0.6", "--data-dir", &data, "--metrics", &metrics];
    let worker = Process::start(Spec::new("bare", binary("meepo-worker"), &args, cluster.dir()));
    worker.wait_log("expected [tls] to be set here too", SOON).await;
}

#[tokio::test]
async fn metrics_over_tls_are_for_those_with_a_certificate() {
    let cluster = quick().masters(0).workers(1).tls().worker_arg("--metrics-tls").start().await;
    let base = cluster.worker(0).metrics().base().replace("http://", "https://");
    let pki = cluster.pki();
    let prometheus = pki.client("prometheus");
    // A client that takes any certificate of the authority, as scrapers do.
    let get = async |pair: Option<&Pair>| {
        let mut builder =
            reqwest::Client::builder().tls_certs_only([reqwest::Certificate::from_pem(
                &std::fs::read(pki.ca()).unwrap(),
            )
            .unwrap()]);
        if let Some(pair) = pair {
            let both = [&pair.key, &pair.cert].map(|path| std::fs::read(path).unwrap()).concat();
            builder = builder.identity(reqwest::Identity::from_pem(&both).unwrap());
        }
        let url = format!("{base}/metrics");
        builder.build().unwrap().get(url).send().await.map(|answer| answer.status().as_u16())
    };
    assert_eq!(get(Some(&prometheus)).await.unwrap(), 200);
    let e = format!("{:?}", get(None).await.unwrap_err());
    assert!(e.contains("CertificateRequired"), "{e}");
    let (status, _) = cluster.worker(0).metrics().get("/metrics").await;
    assert_eq!(status, 400, "not encrypted");
}
