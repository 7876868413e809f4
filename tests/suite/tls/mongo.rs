//! MongoDB that is encrypted and asks who one is: all of it stands in the URL.

use super::{SOON, quick};
use crate::fleet::{apply, wait_runs};
use meepo_tests::{Logs, Pair, Pki, Process, Spec, TestDir, eventually, free_port, workspace_root};
use mongodb::{
    Client,
    bson::{Document, doc},
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A server that demands TLS and a user.
struct Mongo {
    process: Process,
    port: u16,
    /// Certificate and key of a client, in one file as MongoDB wants it.
    client: PathBuf,
    pki: Pki,
}

fn together(pair: &Pair, path: PathBuf) -> PathBuf {
    let both = [&pair.cert, &pair.key].map(|path| std::fs::read_to_string(path).unwrap());
    std::fs::write(&path, both.concat()).unwrap();
    path
}

impl Mongo {
    async fn start(dir: &Path) -> Self {
        let pki = Pki::new(&dir.join("mongo-tls"));
        let server = together(&pki.server("mongo"), pki.dir().join("mongo-both.pem"));
        let client = together(&pki.client("meepo"), pki.dir().join("client-both.pem"));
        let script = workspace_root().join("scripts/fetch-mongod.sh");
        let found = std::process::Command::new(script).output().unwrap();
        let program = String::from_utf8(found.stdout).unwrap().trim().to_owned();
        let (port, data) = (free_port(), dir.join("mongo-data"));
        std::fs::create_dir_all(&data).unwrap();
        let [server, ca, data] = [&server, &pki.ca(), &data].map(|p| p.display().to_string());
        let number = port.to_string();
        let args = [
            "--bind_ip",
            "127.0.0.1",
            "--port",
            &number,
            "--dbpath",
            &data,
            "--auth",
            "--tlsMode",
            "requireTLS",
            "--tlsCertificateKeyFile",
            &server,
            "--tlsCAFile",
            &ca,
            "--wiredTigerCacheSizeGB",
            "0.25",
            "--nounixsocket",
            // Mechanisms: by password, and by certificate.
            "--setParameter",
            "authenticationMechanisms=SCRAM-SHA-256,MONGODB-X509",
        ];
        let process = Process::start(Spec::new("mongod", program, &args, dir));
        let mongo = Self { process, port, client, pki };
        // While there is no user, this host may make one.
        let user = doc! {"createUser": "meepo", "pwd": "secret",
        "roles": ["root"], "mechanisms": ["SCRAM-SHA-256"]};
        eventually(SOON, "the first user is made", async || {
            assert!(mongo.process.is_running(), "{}", mongo.process.log_tail());
            let client = Client::with_uri_str(mongo.url("admin", "", "")).await;
            let client = client.map_err(|e| e.to_string())?;
            let made = client.database("admin").run_command(user.clone()).await;
            made.map(drop).map_err(|e| e.to_string())
        })
        .await;
        let admin = mongo.url("admin", "meepo:secret@", "&authSource=admin");
        let external = doc! {"createUser": "CN=client:meepo", "roles": [{"role": "readWrite",
        "db": "meepo"}, {"role": "dbAdmin", "db": "meepo"}]};
        let admin = Client::with_uri_str(admin).await.unwrap();
        let made: Document = admin.database("$external").run_command(external).await.unwrap();
        assert_eq!(made.get_f64("ok"), Ok(1.0));
        mongo
    }

    fn url(&self, db: &str, user: &str, more: &str) -> String {
        let ca = self.pki.ca().display().to_string();
        let client = self.client.display().to_string();
        format!(
            "mongodb://{user}127.0.0.1:{}/{db}?tls=true&tlsCAFile={ca}&tlsCertificateKeyFile=\
             {client}{more}",
            self.port
        )
    }
}

/// Runs a job whose worker writes to this log store itself.
async fn works(url: &str) {
    let cluster = quick().logs(Logs::Uri(url.to_owned())).start().await;
    apply(&cluster.api(), json!({"name": "tick", "schedule": "* * * * * *", "cmd": "echo in"}))
        .await;
    let runs = wait_runs(&cluster.api(), "job=tick&state=success", 1).await;
    let out = cluster.cli(&["logs", runs[0]["run_id"].as_str().unwrap()]).await;
    assert!(out.ok().contains("in"), "{out:?}");
}

#[tokio::test]
async fn runs_are_kept_in_a_mongodb_that_demands_tls_and_a_user() {
    let dir = TestDir::new();
    let mongo = Mongo::start(dir.path()).await;
    works(&mongo.url("meepo", "meepo:secret@", "&authSource=admin")).await;
    works(&mongo.url("meepo", "", "&authMechanism=MONGODB-X509&authSource=$external")).await;
    // Nobody else gets in, and the master says why it waits.
    let nobody = mongo.url("meepo", "", "");
    let wrong = mongo.url("meepo", "meepo:wrong@", "&authSource=admin");
    let other = Pki::new(&dir.path().join("other"));
    let elsewhere = mongo
        .url("meepo", "meepo:secret@", "&authSource=admin")
        .replace(&mongo.pki.ca().display().to_string(), &other.ca().display().to_string());
    for (name, url, why) in [
        ("nobody", nobody, "requires authentication"),
        ("wrong", wrong, "uthentication"),
        ("elsewhere", elsewhere, "UnknownIssuer"),
    ] {
        let store = meepo_logstore::open(&url).await.unwrap();
        let e = tokio::time::timeout(SOON, store.migrate()).await.expect("an answer").unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(e));
        assert!(text.contains(why), "{name}: {text}");
        assert!(!text.contains("secret"), "{name}: {text}");
    }
}
