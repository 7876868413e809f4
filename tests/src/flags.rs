//! The command lines of the binaries under test, all in this one place.

use std::path::Path;

/// What a master needs to know.
#[derive(Debug, Clone)]
pub struct MasterFlags<'a> {
    /// etcd's client URLs, joined with commas.
    pub etcd: &'a str,
    /// Port of the HTTP API on 127.0.0.1.
    pub http: u16,
    /// Port of the gRPC API on 127.0.0.1.
    pub grpc: u16,
    /// The log store, `sqlite://…` or `mongodb://…`.
    pub logs: &'a str,
    /// Its data directory.
    pub data_dir: &'a Path,
}

/// Arguments of `meepo-master`.
pub fn master(f: &MasterFlags<'_>) -> Vec<String> {
    args([
        ("--etcd", f.etcd.to_owned()),
        ("--http", loopback(f.http)),
        ("--grpc", loopback(f.grpc)),
        ("--logs", f.logs.to_owned()),
        ("--data-dir", f.data_dir.display().to_string()),
    ])
}

/// What a worker needs to know.
#[derive(Debug, Clone)]
pub struct WorkerFlags<'a> {
    /// etcd's client URLs, joined with commas.
    pub etcd: &'a str,
    /// Its node id.
    pub node: &'a str,
    /// Its data directory.
    pub data_dir: &'a Path,
    /// Port of its metrics on 127.0.0.1.
    pub metrics: u16,
    /// A log store to write to itself; absent: through the leading master.
    pub logs: Option<&'a str>,
    /// Labels, `key=value` each.
    pub labels: &'a [String],
}

/// Arguments of `meepo-worker` in the foreground.
pub fn worker(f: &WorkerFlags<'_>) -> Vec<String> {
    let mut all = vec!["run".to_owned()];
    all.extend(args([
        ("--etcd", f.etcd.to_owned()),
        ("--node", f.node.to_owned()),
        ("--data-dir", f.data_dir.display().to_string()),
        ("--metrics", loopback(f.metrics)),
    ]));
    all.extend(args(f.logs.map(|logs| ("--logs", logs.to_owned()))));
    all.extend(args(f.labels.iter().map(|label| ("--label", label.clone()))));
    all
}

/// What the one-process server needs to know.
#[derive(Debug, Clone)]
pub struct ServerFlags<'a> {
    /// Its data directory.
    pub data_dir: &'a Path,
    /// Port of the HTTP API on 127.0.0.1.
    pub http: u16,
    /// Port of the gRPC API on 127.0.0.1.
    pub grpc: u16,
    /// Client port of the etcd child.
    pub etcd: u16,
    /// Port of the worker's metrics on 127.0.0.1.
    pub metrics: u16,
}

/// Arguments of `meepo --server`.
pub fn server(f: &ServerFlags<'_>) -> Vec<String> {
    let mut all = vec!["--server".to_owned()];
    all.extend(args([
        ("--data-dir", f.data_dir.display().to_string()),
        ("--http", loopback(f.http)),
        ("--grpc", loopback(f.grpc)),
        ("--etcd-port", f.etcd.to_string()),
        ("--metrics", loopback(f.metrics)),
    ]));
    all
}

/// `127.0.0.1:<port>`.
pub fn loopback(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn args(pairs: impl IntoIterator<Item = (&'static str, String)>) -> Vec<String> {
    pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}
