//! Signatures: what masters have signed runs, and whoever may write to etcd starts nothing.

mod definitions;
mod forged;
mod time;

use crate::fleet::{SOON, quick};
use meepo_runtime::signing::{Signer, generate};
use meepo_tests::{Builder, Cluster, TestDir, eventually};
use serde_json::{Value, json};
use std::{os::unix::fs::PermissionsExt, path::PathBuf};

/// A key of the masters as files.
struct Keys {
    dir: TestDir,
}

impl Keys {
    fn new() -> Self {
        let keys = Self { dir: TestDir::new() };
        keys.renew();
        std::fs::write(keys.public(), keys.signer().public_pem()).unwrap();
        keys
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("signing.key")
    }

    fn public(&self) -> PathBuf {
        self.dir.path().join("signing.pub")
    }

    /// Makes another private key.
    fn renew(&self) {
        std::fs::write(self.key(), generate().unwrap()).unwrap();
        std::fs::set_permissions(self.key(), PermissionsExt::from_mode(0o600)).unwrap();
    }

    fn signer(&self) -> Signer {
        Signer::from_pem(&std::fs::read_to_string(self.key()).unwrap()).unwrap()
    }

    /// A cluster whose masters sign with it and whose workers run nothing else.
    fn cluster(&self) -> Builder {
        let (key, public) = (self.key(), self.public());
        quick()
            .master_arg("--signing-key")
            .master_arg(key.to_str().unwrap())
            .master_arg("--trusted-keys")
            .master_arg(public.to_str().unwrap())
            .worker_arg("--require-signature")
            .worker_arg("--trusted-keys")
            .worker_arg(public.to_str().unwrap())
    }
}

/// The value at a key as JSON, once it is there.
async fn value(cluster: &Cluster, key: &str) -> Value {
    let mut client = cluster.etcd().client().await;
    eventually(SOON, format!("{key} is there"), async || {
        let found = client.get(key, None).await.map_err(|e| e.to_string())?;
        let kv = found.kvs().first().ok_or("no such key")?;
        serde_json::from_slice(kv.value()).map_err(|e| e.to_string())
    })
    .await
}

/// Puts a value as anybody may who can write to etcd.
async fn put(cluster: &Cluster, key: &str, value: &Value) {
    cluster.etcd().client().await.put(key, value.to_string(), None).await.unwrap();
}

async fn delete(cluster: &Cluster, key: &str) {
    cluster.etcd().client().await.delete(key, None).await.unwrap();
}

/// Waits until a node says of what stands at a key that it does not believe it, for this
/// reason.
async fn refused(cluster: &Cluster, node: &str, key: &str, why: &str) {
    let health = format!("/agent/health/{node}");
    eventually(SOON, format!("{node} refuses {key}: {why}"), async || {
        let health = value(cluster, &health).await;
        let problems = health["problems"].as_array().cloned().unwrap_or_default();
        let told = problems.iter().find(|p| p["subject"] == key);
        match told.and_then(|p| p["reason"].as_str()) {
            Some(reason) if reason.contains(why) => Ok(()),
            _ => Err(format!("{problems:?}")),
        }
    })
    .await;
}

/// Waits until a node refuses nothing any more.
async fn content(cluster: &Cluster, node: &str) {
    let health = format!("/agent/health/{node}");
    eventually(SOON, format!("{node} refuses nothing"), async || {
        let problems = value(cluster, &health).await["problems"].clone();
        let none = problems.as_array().is_none_or(Vec::is_empty);
        if none { Ok(()) } else { Err(problems.to_string()) }
    })
    .await;
}

/// Waits until a metric of a worker shows a line that begins so.
async fn counted(cluster: &Cluster, worker: usize, line: &str) {
    eventually(SOON, format!("the metric {line}"), async || {
        let (_, text) = cluster.worker(worker).metrics().get("/metrics").await;
        let text = text.as_str().unwrap_or_default().to_owned();
        if text.lines().any(|l| l.starts_with(line)) { Ok(()) } else { Err(text) }
    })
    .await;
}

/// The metric of something that was not believed.
fn metric(kind: &str, reason: &str) -> String {
    format!("meepo_worker_signatures_refused_total{{kind=\"{kind}\",reason=\"{reason}\"}}")
}

fn each_second(name: &str, cmd: &str) -> Value {
    json!({"name": name, "cmd": cmd, "executor": "sh", "schedule": "* * * * * *"})
}
