//! etcd that demands to know who asks: by certificate, and by password.

use super::{SOON, quick};
use crate::fleet::{apply, wait_runs, wait_session};
use meepo_runtime::tls;
use meepo_tests::{Cluster, Etcd, eventually, run};
use serde_json::json;

/// Makes users of etcd who may everything, and switches authentication on.
async fn switch_on(etcd: &Etcd, users: &[&str]) {
    let mut client = etcd.client().await;
    for user in ["root"].iter().chain(users) {
        client.user_add(*user, "secret", None).await.unwrap();
    }
    client.role_add("root").await.unwrap();
    for user in ["root"].iter().chain(users) {
        client.user_grant_role(*user, "root").await.unwrap();
    }
    client.auth_enable().await.unwrap();
}

#[tokio::test]
async fn etcd_knows_masters_and_workers_by_their_certificates() {
    let mut cluster = quick().masters(0).workers(0).tls_everywhere().start().await;
    switch_on(cluster.etcd(), &["master", "node:127.0.0.2"]).await;
    cluster.add_master().await;
    cluster.add_worker().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    apply(&cluster.api(), json!({"name": "tick", "schedule": "* * * * * *", "cmd": "true"})).await;
    wait_runs(&cluster.api(), "job=tick&state=success", 1).await;
    // Another one, whose certificate is as good, but whose name etcd does not know.
    let pki = cluster.pki();
    let stranger = pki.client("stranger");
    let [ca, cert, key] =
        [pki.ca(), stranger.cert, stranger.key].map(|path| path.display().to_string());
    let url = cluster.etcd().urls();
    let args = [
        "--endpoints",
        &url,
        "--cacert",
        &ca,
        "--cert",
        &cert,
        "--key",
        &key,
        "get",
        "/meepo/leader",
    ];
    let out = run(meepo_tests::Spec::new("stranger", "etcdctl", &args, cluster.dir())).await;
    assert_ne!(out.code, 0, "{out:?}");
    // `meepo doctor` without a master looks with the certificate it is given.
    cluster.master(0).process().kill9();
    let root = pki.user("root");
    let [cert, key] = [root.cert, root.key].map(|path| path.display().to_string());
    let args = [
        "doctor",
        "--etcd",
        &url,
        "--etcd-ca",
        &ca,
        "--etcd-cert",
        &cert,
        "--etcd-key",
        &key,
        "--all",
    ];
    let seen = cluster.cli(&args).await;
    assert!(seen.stdout.contains("etcd") && !seen.stdout.contains("UnknownIssuer"), "{seen:?}");
}

#[tokio::test]
async fn a_password_is_enough_and_whoever_is_forgotten_logs_in_again() {
    let cluster = quick().masters(0).workers(0).start().await;
    let password = cluster.dir().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let mut cluster = with_user(cluster, &password).await;
    cluster.etcd().log_in("root", "secret");
    cluster.add_master().await;
    cluster.add_worker().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    apply(&cluster.api(), json!({"name": "tick", "schedule": "* * * * * *", "cmd": "true"})).await;
    wait_runs(&cluster.api(), "job=tick&state=success", 1).await;
    // Every token is worth nothing from now on.
    cluster.etcd().client().await.auth_disable().await.unwrap();
    // Nobody is asked meanwhile, but a token that is none is refused.
    cluster.etcd().client_as(None).await.auth_enable().await.unwrap();
    apply(&cluster.api(), json!({"name": "tock", "schedule": "* * * * * *", "cmd": "true"})).await;
    wait_runs(&cluster.api(), "job=tock&state=success", 1).await;
    // A wrong password is named.
    std::fs::write(&password, "wrong\n").unwrap();
    cluster.worker(0).process().restart();
    cluster.worker(0).process().wait_log("authentication failed", SOON).await;
    // Right again, it is read again.
    std::fs::write(&password, "secret\n").unwrap();
    wait_session(&cluster.api(), "127.0.0.2").await;
}

/// The same etcd, with a user `meepo` as whom masters and workers log in.
async fn with_user(cluster: Cluster, password: &std::path::Path) -> Cluster {
    switch_on(cluster.etcd(), &["meepo"]).await;
    let file = password.display().to_string();
    cluster.with_args(&["--etcd-user", "meepo", "--etcd-password-file", &file])
}

#[tokio::test]
async fn a_certificate_for_etcd_is_exchanged_without_a_restart() {
    let mut cluster = quick().masters(0).workers(0).tls_everywhere().start().await;
    switch_on(cluster.etcd(), &["master", "node:127.0.0.2"]).await;
    cluster.add_master().await;
    cluster.add_worker().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    // The certificate of before would be refused: its user is gone.
    let pki = cluster.pki();
    let [cert, key] = ["pem", "key"].map(|ext| pki.dir().join(format!("node-127.0.0.2.{ext}")));
    let pair = meepo_tests::Pair { cert, key };
    let other = pki.user("node:other");
    let mut client = cluster.etcd().client().await;
    client.user_add("node:other", "x", None).await.unwrap();
    client.user_grant_role("node:other", "root").await.unwrap();
    let issued = tls::Issued {
        cert: std::fs::read_to_string(&other.cert).unwrap(),
        key: std::fs::read_to_string(&other.key).unwrap(),
    };
    let worker = cluster.worker(0).process();
    assert!(!worker.log().contains("connecting anew"));
    tls::replace_pair(&pair.cert, &pair.key, &issued).unwrap();
    apply(&cluster.api(), json!({"name": "tick", "schedule": "* * * * * *", "cmd": "true"})).await;
    worker.wait_log("what etcd is shown has changed: connecting anew", SOON).await;
    eventually(SOON, "the health record is there still", async || {
        let found = cluster.etcd().client().await.get("/agent/health/127.0.0.2", None).await;
        match found.map_err(|e| e.to_string())?.count() {
            1 => Ok(()),
            n => Err(format!("{n} records")),
        }
    })
    .await;
}
