//! Nodes that join by a token, once.

use super::{SOON, meepo, quick};
use crate::fleet::wait_session;
use meepo_runtime::tls::{Identity, request};
use meepo_tests::{Cluster, Output, Pair, Pki, Process, Spec, binary, eventually, free_port, run};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A cluster whose first master may sign.
async fn cluster(workers: usize) -> Cluster {
    let mut builder = quick().masters(0).workers(0).tls();
    // The key stands only in the file.
    let dir = meepo_tests::TestDir::new();
    let file = dir.path().join("master.toml");
    builder = builder.master_arg("--config").master_arg(file.to_str().unwrap());
    std::fs::write(&file, "").unwrap();
    let mut cluster = builder.start().await;
    let key = cluster.pki().ca_key();
    std::fs::write(&file, format!("[tls]\nca_key = {:?}\n", key.display().to_string())).unwrap();
    cluster.add_master().await;
    for _ in 0..workers {
        cluster.add_worker().await;
    }
    eventually(SOON, "the master leads", async || {
        let (status, body) = cluster.api().try_http("GET", "/readyz/all", None).await?;
        if status == 200 { Ok(()) } else { Err(format!("{status} {body}")) }
    })
    .await;
    cluster
}

async fn token(cluster: &Cluster, body: Value) -> String {
    let (status, made) = cluster.api().post("/v1/join-tokens", body).await;
    assert_eq!(status, 201, "{made}");
    made["token"].as_str().unwrap().to_owned()
}

/// Joins with the real command; answers what it said and where the files are.
async fn join(cluster: &Cluster, name: &str, token: &str, node: &str) -> (Output, PathBuf) {
    let dir = cluster.dir().join(format!("{name}.tls"));
    let file = cluster.dir().join(format!("{name}.token"));
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let mut spec = Spec::new(name, binary("meepo-worker"), &["join"], cluster.dir());
    for (flag, value) in [
        ("--master", cluster.api().base().to_owned()),
        ("--token-file", file.display().to_string()),
        ("--node", node.to_owned()),
        ("--dir", dir.display().to_string()),
    ] {
        spec.args.extend([flag.to_owned(), value]);
    }
    (run(spec).await, dir)
}

#[tokio::test]
async fn a_host_joins_by_a_token_and_renews_its_certificate_later() {
    let cluster = cluster(0).await;
    let made =
        cluster.cli(&["node", "join-token", "--node", "127.0.0.9", "-o", "json"]).await.json();
    let token = made["token"].as_str().unwrap();
    // What etcd holds is of no use to who reads it.
    let kept = cluster.etcd().ctl(&["get", "--prefix", "/meepo/join/"]).await;
    let secret = token.split('.').nth(2).unwrap();
    assert!(kept.ok().contains("hash") && !kept.ok().contains(secret), "{kept:?}");
    let (out, dir) = join(&cluster, "first", token, "127.0.0.9").await;
    assert!(out.ok().contains("joined as node 127.0.0.9"), "{out:?}");
    assert!(out.ok().contains(&cluster.etcd().urls()), "{out:?}");
    assert!(!format!("{out:?}").contains(secret));
    // It is gone.
    let list = cluster.cli(&["node", "join-token", "--list", "-o", "json"]).await.json();
    assert_eq!(list["tokens"], json!([]));

    // What was printed are settings.
    let settings = cluster.dir().join("worker.toml");
    let (_, text) = out.ok().split_once("worker.toml):\n").unwrap();
    std::fs::write(&settings, text).unwrap();
    let data = cluster.dir().join("joined.data").display().to_string();
    let metrics = format!("127.0.0.1:{}", free_port());
    let config = settings.display().to_string();
    let args = ["run", "--config", &config, "--data-dir", &data, "--metrics", &metrics];
    let worker = Process::start(Spec::new("joined", binary("meepo-worker"), &args, cluster.dir()));
    wait_session(&cluster.api(), "127.0.0.9").await;

    // Not before it is time …
    let renew = async |name: &str, within: &str| {
        let base = cluster.api().base().to_owned();
        let args = ["renew", "--config", &config, "--master", &base, "--within", within];
        run(Spec::new(name, binary("meepo-worker"), &args, cluster.dir())).await
    };
    let before = std::fs::read_to_string(dir.join("node.pem")).unwrap();
    assert!(renew("early", "1d").await.ok().contains("not renewed"));
    assert_eq!(std::fs::read_to_string(dir.join("node.pem")).unwrap(), before);
    // … and then with another key, for the same node and the same hosts.
    let out = renew("due", "400d").await;
    assert!(out.ok().starts_with("renewed, valid until"), "{out:?}");
    let after = std::fs::read_to_string(dir.join("node.pem")).unwrap();
    assert_ne!(after, before);
    let facts = meepo_runtime::tls::x509::facts_of_pem(&after).unwrap();
    assert_eq!(facts.identity, Some(Identity::Node("127.0.0.9".into())));
    assert_eq!(facts.hosts, ["127.0.0.9"]);
    // The worker takes it up by itself.
    worker.restart();
    wait_session(&cluster.api(), "127.0.0.9").await;
}

#[tokio::test]
async fn a_token_is_good_once_for_one_node_for_its_time() {
    let cluster = cluster(0).await;
    // Spent by many at once: one of them joins.
    let one = token(&cluster, json!({})).await;
    let base = cluster.api();
    let tries = (0..8).map(|i| {
        let body = json!({
            "token": one,
            "node": format!("n{i}"),
            "request": request(&Identity::Node(format!("n{i}"))).unwrap().cert,
        });
        let base = base.clone();
        tokio::spawn(async move { base.post("/v1/join", body).await })
    });
    let tries: Vec<_> = tries.collect();
    let mut joined = 0;
    for task in tries {
        let (status, body) = task.await.unwrap();
        match status {
            200 => joined += 1,
            _ => {
                assert_eq!(status, 403, "{body}");
                assert!(body.to_string().contains("is spent"), "{body}");
            }
        }
    }
    assert_eq!(joined, 1);
    let (out, _) = join(&cluster, "again", &one, "n9").await;
    assert_eq!(out.code, 1);
    assert!(out.stderr.contains("is spent, revoked or has expired"), "{}", out.stderr);

    // For another node: refused, and not spent.
    let bound = token(&cluster, json!({"node": "n20"})).await;
    let (out, dir) = join(&cluster, "other-node", &bound, "n21").await;
    assert_eq!(out.code, 1);
    assert!(out.stderr.contains("for another node than n21"), "{}", out.stderr);
    assert!(!dir.join("node.key").exists() && !dir.join("node.pem").exists());
    join(&cluster, "right-node", &bound, "n20").await.0.ok();

    // Its time is over.
    let brief = token(&cluster, json!({"ttl": "1s"})).await;
    eventually(SOON, "the token has expired", async || {
        let (_, list) = cluster.api().try_http("GET", "/v1/join-tokens", None).await?;
        if list["tokens"] == json!([]) { Ok(()) } else { Err(list.to_string()) }
    })
    .await;
    let (out, _) = join(&cluster, "late", &brief, "n30").await;
    assert!(out.code == 1 && out.stderr.contains("has expired"), "{out:?}");

    // Revoked.
    let made = cluster.cli(&["node", "join-token", "-o", "json"]).await.json();
    let id = made["id"].as_str().unwrap();
    assert!(cluster.cli(&["node", "join-token", "--revoke", id]).await.ok().contains("revoked"));
    let (out, _) = join(&cluster, "revoked", made["token"].as_str().unwrap(), "n31").await;
    assert!(out.code == 1 && out.stderr.contains("revoked"), "{out:?}");

    // Made up.
    let forged = one.replace(one.split('.').nth(2).unwrap(), &"0".repeat(64));
    assert_eq!(join(&cluster, "forged", &forged, "n32").await.0.code, 1);
    for bad in [json!({"ttl": "0s"}), json!({"ttl": "8d"}), json!({"hosts": ["m1"]})] {
        assert_eq!(cluster.api().post("/v1/join-tokens", bad).await.0, 400);
    }
}

#[tokio::test]
async fn a_token_for_new_nodes_makes_nobody_a_node_that_is_there() {
    let cluster = cluster(1).await;
    let node = cluster.worker(0).node();
    let any = token(&cluster, json!({})).await;
    let (out, _) = join(&cluster, "thief", &any, node).await;
    assert_eq!(out.code, 1);
    assert!(out.stderr.contains("there is a node 127.0.0.2 already"), "{}", out.stderr);
    // A certificate by it is for no host: it passes for no server.
    let (out, dir) = join(&cluster, "new", &any, "n40").await;
    out.ok();
    let cert = std::fs::read_to_string(dir.join("node.pem")).unwrap();
    assert!(meepo_runtime::tls::x509::facts_of_pem(&cert).unwrap().hosts.is_empty());
    // By one for that node the host joins again, as after its disk was lost.
    let bound = token(&cluster, json!({"node": node})).await;
    join(&cluster, "again", &bound, node).await.0.ok();
}

#[tokio::test]
async fn a_token_is_told_to_nobody_but_the_masters_it_vouches_for() {
    let cluster = cluster(0).await;
    let other = Pki::new(&cluster.dir().join("other"));
    let any = token(&cluster, json!({})).await;
    // As if another authority had made it.
    let ours = any.rsplit('.').next().unwrap();
    let theirs = meepo_runtime::tls::x509::fingerprint(
        &meepo_runtime::tls::certificates(&other.ca()).unwrap()[0],
    );
    let (out, _) = join(&cluster, "elsewhere", &any.replace(ours, &theirs), "n1").await;
    assert_eq!(out.code, 1);
    assert!(out.stderr.contains("of an authority that is not trusted here"), "{}", out.stderr);
    // Without TLS it is not sent at all.
    let base = cluster.api().base().replace("https://", "http://");
    let args = ["join", "--master", &base, "--token", &any, "--node", "n1", "--dir", "plain.tls"];
    let out = run(Spec::new("plain", binary("meepo-worker"), &args, cluster.dir())).await;
    assert!(out.code == 1 && out.stderr.contains("https://"), "{out:?}");
    // It is still good.
    join(&cluster, "after-all", &any, "n1").await.0.ok();
    assert_eq!(meepo(cluster.dir(), "version", &[], &["version"]).await.code, 0);
}

#[tokio::test]
async fn a_certificate_is_renewed_for_its_node_only() {
    let cluster = cluster(0).await;
    let pki = cluster.pki();
    let body = || json!({"request": request(&Identity::Master("m9".into())).unwrap().cert});
    let base = cluster.api().base().to_owned();
    let ask = async |pair: Option<&Pair>| {
        pki.api(&base, pair).http("POST", "/v1/renew", Some(&body())).await
    };
    let (status, signed) = ask(Some(&pki.node("n1"))).await;
    assert_eq!(status, 200, "{signed}");
    let cert = signed["certificate"].as_str().unwrap();
    let facts = meepo_runtime::tls::x509::facts_of_pem(cert).unwrap();
    // Whatever was asked for.
    assert_eq!(facts.identity, Some(Identity::Node("n1".into())));
    for pair in [None, Some(pki.client("ann")), Some(pki.master("m9"))] {
        let (status, body) = ask(pair.as_ref()).await;
        assert!(status == 403 || status == 401, "{status} {body}");
    }
    // It must be a request, and small.
    let node = pki.node("n1");
    let bad = json!({"request": "nonsense"});
    let (status, body) = pki.api(&base, Some(&node)).post("/v1/renew", bad).await;
    assert_eq!((status, &body["error"]["field"]), (400, &json!("request")), "{body}");
}

#[tokio::test]
async fn without_the_key_of_the_authority_nothing_is_signed_and_no_token_is_spent() {
    let cluster = quick().workers(0).tls().start().await;
    let any = token(&cluster, json!({})).await;
    let (out, _) = join(&cluster, "no-key", &any, "n1").await;
    assert_eq!(out.code, 1);
    assert!(out.stderr.contains("does not hold the key of the authority"), "{}", out.stderr);
    let (_, list) = cluster.api().get("/v1/join-tokens").await;
    assert_eq!(list["tokens"].as_array().unwrap().len(), 1, "{list}");
    // Without TLS there is nothing to join.
    let plain = quick().workers(0).start().await;
    assert_eq!(plain.api().post("/v1/join-tokens", json!({})).await.0, 403);
}
