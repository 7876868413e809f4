//! Encrypted channels: certificates of an authority of the test's own, and every way in which
//! they can be wrong.

mod channels;
mod etcd;
mod files;
mod join;
mod mongo;
mod reload;
mod workers;

use crate::fleet::{SOON, quick};
use meepo_tests::{Api, Cluster, Output, Spec, binary, run};
use serde_json::json;
use std::path::Path;

/// The `meepo` command with nothing in its environment but what is given.
async fn meepo(dir: &Path, name: &str, env: &[(&str, &str)], args: &[&str]) -> Output {
    let mut spec = Spec::new(name, binary("meepo"), args, dir);
    spec.env.extend(env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())));
    spec.split_output = true;
    run(spec).await
}

/// A command on a node, through this API; what it wrote.
async fn echo(api: &Api, node: &str) -> String {
    let body = json!({"id": "1", "hosts": [node], "method": "sync.bash", "cmd": "echo through"});
    let (status, answer) = api.post("/v1/exec", body).await;
    assert_eq!(status, 200, "{answer}");
    answer.to_string()
}

/// The URL of the HTTP API of the first master, where nothing is encrypted.
fn plain_url(cluster: &Cluster) -> String {
    cluster.master(0).api().base().replace("https://", "http://")
}
