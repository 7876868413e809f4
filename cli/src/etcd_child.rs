//! An etcd of our own, as a child process. (to come)

use anyhow::Result;
use std::path::{Path, PathBuf};

pub(crate) struct EtcdOptions {
    data_dir: PathBuf,
    port: u16,
}
impl EtcdOptions {
    pub(crate) fn new(data_dir: &Path, port: u16) -> Self {
        Self { data_dir: data_dir.to_owned(), port }
    }
}
pub(crate) struct EtcdChild {
    endpoint: String,
}
impl EtcdChild {
    pub(crate) async fn start(o: EtcdOptions) -> Result<Self> {
        let _ = o.data_dir;
        Ok(Self { endpoint: format!("http://127.0.0.1:{}", o.port) })
    }
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
    pub(crate) async fn stop(self) {}
}
