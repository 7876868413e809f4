//! `meepo tls`: what it makes is what masters, workers and clients need.

use super::meepo;
use crate::fleet::wait_session;
use meepo_runtime::tls::{certificates, x509};
use meepo_tests::{Api, Etcd, Pair, Process, Spec, TestDir, binary, free_port};
use std::{os::unix::fs::PermissionsExt, path::Path};

fn facts(path: &Path) -> x509::Facts {
    x509::facts(&certificates(path).unwrap()[0]).unwrap()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_fleet_runs_on_what_init_has_made() {
    let dir = TestDir::new();
    let tls = dir.path().join("tls");
    let at = tls.display().to_string();
    let args = [
        "tls",
        "init",
        "--dir",
        &at,
        "--cert",
        "master:m1=127.0.0.1",
        "--cert",
        "node:127.0.0.2",
        "--cert",
        "client:ann",
        "--cert",
        "etcd:e1=127.0.0.1",
    ];
    let out = meepo(dir.path(), "init", &[], &args).await;
    assert!(out.ok().contains("keep it safe"), "{out:?}");
    for stem in ["ca", "master-m1", "node-127.0.0.2", "client-ann", "etcd-e1", "etcd-user-root"] {
        assert_eq!(mode(&tls.join(format!("{stem}.key"))), 0o600, "{stem}");
        assert_eq!(mode(&tls.join(format!("{stem}.pem"))), 0o644, "{stem}");
    }
    assert_eq!(mode(&tls), 0o700);
    assert_eq!(facts(&tls.join("etcd-user-root.pem")).common_name, "root");
    assert_eq!(facts(&tls.join("master-m1.pem")).common_name, "master");
    assert_eq!(facts(&tls.join("node-127.0.0.2.pem")).common_name, "node:127.0.0.2");
    // Nothing is overwritten.
    let again = meepo(dir.path(), "again", &[], &args).await;
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("there is an authority"), "{}", again.stderr);

    let etcd = Etcd::start(1, dir.path()).await;
    let start = |name: &str, program: &str, stem: &str, args: &[&str]| {
        let mut spec = Spec::new(name, binary(program), args, dir.path());
        let pair =
            Pair { cert: tls.join(format!("{stem}.pem")), key: tls.join(format!("{stem}.key")) };
        spec.args.extend(pair.flags(&tls.join("ca.pem")));
        let data = dir.path().join(format!("{name}.data")).display().to_string();
        spec.args.extend(["--data-dir".to_owned(), data]);
        Process::start(spec)
    };
    let [http, grpc, metrics] = std::array::from_fn(|_| format!("127.0.0.1:{}", free_port()));
    let urls = etcd.urls();
    let args = ["--etcd", &urls, "--http", &http, "--grpc", &grpc];
    let _master = start("m1", "meepo-master", "master-m1", &args);
    let args = ["run", "--etcd", &urls, "--node", "127.0.0.2", "--metrics", &metrics];
    let _worker = start("w1", "meepo-worker", "node-127.0.0.2", &args);
    let ann = Pair { cert: tls.join("client-ann.pem"), key: tls.join("client-ann.key") };
    let api = Api::encrypted(&format!("https://{http}"), &tls.join("ca.pem"), Some(&ann));
    wait_session(&api, "127.0.0.2").await;
}

#[tokio::test]
async fn certificates_are_issued_shown_and_renewed() {
    let dir = TestDir::new();
    let at = dir.path().join("tls").display().to_string();
    let tls = async |name: &str, args: &[&str]| {
        let all = [&["tls"], args, &["--dir", &at]].concat();
        meepo(dir.path(), name, &[], &all).await
    };
    let none = tls("none", &["issue", "node", "n1"]).await;
    assert!(none.code == 1 && none.stderr.contains("meepo tls init"), "{none:?}");
    tls("init", &["init", "--ca-days", "100"]).await.ok();
    tls("node", &["issue", "node", "n1", "--host", "10.0.0.7", "--days", "20"]).await.ok();
    tls("server", &["issue", "server", "mongo1", "--host", "db1", "--days", "90"]).await.ok();
    let shown = tls("show", &["show", "-o", "json"]).await.json();
    let of = |file: &str| {
        let all = shown.as_array().unwrap();
        let found = all.iter().find(|s| s["file"].as_str().unwrap().ends_with(file));
        found.unwrap_or_else(|| panic!("{file} in {shown}")).clone()
    };
    assert_eq!(of("node-n1.pem")["subject"], "node:n1");
    assert_eq!(of("node-n1.pem")["hosts"], serde_json::json!(["10.0.0.7"]));
    assert_eq!(of("server-mongo1.pem")["subject"], "mongo1");
    assert_eq!(of("ca.pem")["authority"], true);
    let table = tls("table", &["show"]).await;
    assert!(table.ok().contains("authority meepo"), "{table:?}");
    // Within thirty days only one of them expires.
    let key = dir.path().join("tls/node-n1.key");
    let before = std::fs::read_to_string(&key).unwrap();
    let renewed = tls("renew", &["renew"]).await;
    assert!(renewed.ok().contains("node-n1.pem renewed"), "{renewed:?}");
    assert!(!renewed.ok().contains("mongo1") && !renewed.ok().contains("ca.pem"), "{renewed:?}");
    let after = facts(&dir.path().join("tls/node-n1.pem"));
    assert_eq!(after.identity.unwrap().to_string(), "node:n1");
    assert_eq!(after.hosts, ["10.0.0.7"]);
    // No longer than the authority.
    assert_eq!(after.not_after, facts(&dir.path().join("tls/ca.pem")).not_after);
    assert_ne!(std::fs::read_to_string(&key).unwrap(), before);
    assert!(tls("twice", &["renew"]).await.ok().contains("nothing to renew"));
    // Of somebody else's authority nothing is renewed.
    let other = dir.path().join("other").display().to_string();
    let args = ["tls", "init", "--dir", &other, "--cert", "node:n2", "--days", "1"];
    meepo(dir.path(), "other", &[], &args).await.ok();
    std::fs::write(dir.path().join("other/ca.pem"), "").unwrap();
    let foreign = dir.path().join("other/node-n2.pem").display().to_string();
    std::fs::write(dir.path().join("other/node-n2.key"), "x").unwrap();
    let out = tls("foreign", &["renew", &foreign]).await;
    // It has the same name: what tells them apart is the key.
    assert_eq!(out.code, 1, "{out:?}");
    assert!(out.stderr.contains("is not of the authority"), "{}", out.stderr);
}

#[tokio::test]
async fn a_key_is_read_by_its_owner_only_whatever_the_umask() {
    let dir = TestDir::new();
    let at = dir.path().join("tls").display().to_string();
    let script = format!("umask 000; exec {} tls init --dir {at}", binary("meepo").display());
    let spec = Spec::new("umask", "/bin/sh", &["-c", &script], dir.path());
    meepo_tests::run(spec).await.ok();
    assert_eq!(mode(&dir.path().join("tls/ca.key")), 0o600);
}
