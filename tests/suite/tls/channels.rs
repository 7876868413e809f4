//! Who may speak to masters, and to whom clients speak.

use super::{SOON, echo, meepo, plain_url, quick};
use crate::fleet::{apply, wait_runs, wait_session};
use meepo_runtime::tls::Identity;
use meepo_tests::{Cluster, Pki, TestDir};
use serde_json::json;

#[tokio::test]
async fn everything_works_encrypted_also_over_a_master_that_does_not_lead() {
    let cluster = quick().masters(2).workers(1).tls_everywhere().start().await;
    let node = cluster.worker(0).node().to_owned();
    let leader = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await.json();
    for url in ["http", "grpc"] {
        assert!(leader[url].as_str().unwrap().starts_with("https://"), "{leader}");
    }
    for i in 0..2 {
        let api = cluster.master(i).api();
        wait_session(&api, &node).await;
        assert!(echo(&api, &node).await.contains("through"), "master {i}");
        // What only the leader has by its sessions.
        let (status, nodes) = api.get("/v1/nodes").await;
        assert_eq!((status, nodes.get("stale")), (200, None), "{nodes}");
    }
    let job = json!({"name": "tick", "schedule": "* * * * * *", "cmd": "echo tick"});
    apply(&cluster.api(), job).await;
    let runs = wait_runs(&cluster.api(), "job=tick&state=success", 1).await;
    // Delivered through the master, and read again.
    let run = runs[0]["run_id"].as_str().unwrap();
    let output = cluster.cli(&["logs", run]).await;
    assert!(output.ok().contains("tick"), "{output:?}");
    assert!(cluster.cli(&["run", "-t", "all", "--", "echo", "hi"]).await.ok().contains("hi"));
}

#[tokio::test]
async fn a_client_speaks_to_no_master_of_an_authority_it_does_not_know() {
    let cluster = quick().workers(0).tls().start().await;
    let other = Pki::new(&cluster.dir().join("other"));
    let master = cluster.api().base().to_owned();
    let ca = other.ca().display().to_string();
    let args = ["--ca", &ca, "node", "list"];
    let out = meepo(cluster.dir(), "other-ca", &[("MEEPO_MASTER", &master)], &args).await;
    assert_eq!(out.code, 4, "{out:?}");
    assert!(out.stderr.contains("of an authority that is not trusted here"), "{}", out.stderr);
    assert!(out.stderr.contains("--ca"), "{}", out.stderr);
    // Nor of one that only browsers know.
    let none = meepo(cluster.dir(), "no-ca", &[("MEEPO_MASTER", &master)], &["node", "list"]).await;
    assert_eq!(none.code, 4, "{none:?}");
    // Under a name that its certificate does not have.
    let named = master.replace("127.0.0.1", "127.0.0.9");
    let right = cluster.pki().ca().display().to_string();
    let args = ["--ca", &right, "--master", &named, "node", "list"];
    let out = meepo(cluster.dir(), "other-name", &[], &args).await;
    assert_eq!(out.code, 4, "{out:?}");
}

#[tokio::test]
async fn a_worker_does_not_pass_for_a_master_before_clients() {
    let cluster = quick().workers(0).tls().start().await;
    // Whoever has got hold of a worker's key, on a port of his own.
    let node = cluster.pki().node("127.0.0.2");
    let mut thief = meepo_tests::Spec::new(
        "thief",
        meepo_tests::binary("meepo-master"),
        &["--etcd", &cluster.etcd().urls()],
        cluster.dir(),
    );
    let [http, grpc] = std::array::from_fn(|_| meepo_tests::free_port());
    thief.args.extend(["--http".to_owned(), format!("127.0.0.1:{http}")]);
    thief.args.extend(["--grpc".to_owned(), format!("127.0.0.1:{grpc}")]);
    let data = cluster.dir().join("thief.data").display().to_string();
    thief.args.extend(["--data-dir".to_owned(), data]);
    thief.args.extend(node.flags(&cluster.pki().ca()));
    let thief = meepo_tests::Process::start(thief);
    thief.wait_log("master starts", SOON).await;
    let ca = cluster.pki().ca().display().to_string();
    let url = format!("https://127.0.0.1:{http}");
    let out =
        meepo(cluster.dir(), "robbed", &[], &["--ca", &ca, "--master", &url, "job", "list"]).await;
    assert_eq!(out.code, 4, "{out:?}");
    let why = "its certificate is of node:127.0.0.2, not of a master";
    assert!(out.stderr.contains(why), "{}", out.stderr);
}

#[tokio::test]
async fn whoever_does_not_speak_tls_is_told_so() {
    let cluster = quick().workers(0).tls().start().await;
    let url = plain_url(&cluster);
    let api = meepo_tests::Api::new(&url);
    let (status, body) = api.get("/v1/jobs").await;
    assert_eq!(status, 400);
    assert!(body.as_str().unwrap().contains("https://"), "{body}");
    let out = meepo(cluster.dir(), "plain", &[], &["--master", &url, "job", "list"]).await;
    assert_ne!(out.code, 0);
    assert!(out.stderr.contains("this port speaks TLS"), "{}", out.stderr);
    // The other way round.
    let plain = quick().workers(0).start().await;
    let url = plain.api().base().replace("http://", "https://");
    let ca = cluster.pki().ca().display().to_string();
    let args = ["--ca", &ca, "--master", &url, "job", "list"];
    let out = meepo(cluster.dir(), "encrypted", &[], &args).await;
    assert_eq!(out.code, 4, "{out:?}");
    assert!(out.stderr.contains("does not speak TLS"), "{}", out.stderr);
    let refused = cluster.master(0).process().log();
    assert!(refused.contains("it does not speak TLS"), "{refused}");
}

#[tokio::test]
async fn a_client_whose_certificate_is_wrong_is_not_listened_to() {
    let cluster = quick().workers(0).tls().start().await;
    let pki = cluster.pki();
    let base = cluster.api().base().to_owned();
    // With none, and with a good one.
    for pair in [None, Some(pki.client("ann"))] {
        assert_eq!(pki.api(&base, pair.as_ref()).get("/v1/jobs").await.0, 200);
    }
    let other = Pki::new(&cluster.dir().join("other")).client("ann");
    let expired = pki.expired(&Identity::Client("ann".into()));
    for (pair, why) in [(other, "UnknownCA"), (expired, "CertificateExpired")] {
        let api = pki.api(&base, Some(&pair));
        let e = api.try_http("GET", "/v1/jobs", None).await.unwrap_err();
        assert!(e.contains(why), "{e}");
        let [ca, cert, key] =
            [pki.ca(), pair.cert, pair.key].map(|path| path.display().to_string());
        let args = ["--ca", &ca, "--client-cert", &cert, "--client-key", &key, "job", "list"];
        let out = meepo(cluster.dir(), why, &[("MEEPO_MASTER", &base)], &args).await;
        assert_eq!(out.code, 4, "{out:?}");
        assert!(out.stderr.contains("does not accept the certificate"), "{}", out.stderr);
    }
}

#[tokio::test]
async fn a_master_whose_files_are_wrong_says_which() {
    let dir = TestDir::new();
    let pki = Pki::new(dir.path());
    let (one, two) = (pki.master("m1"), pki.node("n1"));
    let master = async |name: &str, args: &[String]| {
        let mut spec =
            meepo_tests::Spec::new(name, meepo_tests::binary("meepo-master"), &[], dir.path());
        spec.args = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--data-dir"]
            .map(str::to_owned)
            .to_vec();
        spec.args.push(dir.path().join(format!("{name}.data")).display().to_string());
        spec.args.extend(args.iter().cloned());
        let process = meepo_tests::Process::start(spec);
        let status = process.wait_exit(SOON).await;
        assert!(!status.success());
        process.log()
    };
    let mixed = meepo_tests::Pair { cert: one.cert.clone(), key: two.key };
    let log = master("mixed", &mixed.flags(&pki.ca())).await;
    assert!(
        log.contains("node-n1.key is not the key of") && log.contains("master-m1.pem"),
        "{log}"
    );
    let log = master("no-ca", &one.flags(&pki.ca())[..4]).await;
    assert!(log.contains("tls: ca missing"), "{log}");
    let log = master("no-cert", &one.flags(&dir.path().join("nowhere.pem"))).await;
    assert!(log.contains("nowhere.pem"), "{log}");
    let log = master("etcd", &["--etcd", "https://127.0.0.1:1"].map(str::to_owned)).await;
    assert!(log.contains("etcd_tls.ca: missing"), "{log}");
}

#[tokio::test]
async fn nothing_listens_beyond_loopback_without_tls() {
    let dir = TestDir::new();
    for (program, args) in [
        ("meepo-master", &["--http", "0.0.0.0:0", "--advertise", "m1"][..]),
        ("meepo-master", &["--grpc", "0.0.0.0:0", "--advertise", "m1"]),
        ("meepo-worker", &["run", "--metrics", "0.0.0.0:0"]),
    ] {
        let name = format!("{program}-{}", args.len());
        let spec = meepo_tests::Spec::new(&name, meepo_tests::binary(program), args, dir.path());
        let out = meepo_tests::run(spec).await;
        assert_ne!(out.code, 0, "{program} {args:?}");
        assert!(out.stderr.contains("allow_insecure_listen"), "{}", out.stderr);
    }
}

/// Runs a cluster only to see that the harness is what the others believe it is.
#[tokio::test]
async fn without_certificates_nothing_is_encrypted() {
    let cluster = Cluster::builder().workers(0).start().await;
    assert!(cluster.api().base().starts_with("http://"));
}
