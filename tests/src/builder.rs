//! What a [`Cluster`] is made of.

use crate::{cluster::Cluster, dirs::TestDir, etcd::Etcd, pki::Pki};
use meepo_logstore::testing::TestMongo;
use std::{
    path::Path,
    sync::{Arc, atomic::AtomicU32},
};
use tokio::sync::OnceCell;

/// Where runs and output are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Logs {
    /// An SQLite file of the cluster's own, shared by its masters.
    #[default]
    Sqlite,
    /// A database of its own on the MongoDB server all tests share, which no test may
    /// disturb; see [`shared_mongo`].
    Mongo,
    /// A MongoDB server of its own, to be killed and paused through [`Cluster::mongo`].
    OwnMongo,
    /// A store somebody else provides, e.g. `mongodb://127.0.0.1:27017/name`.
    Uri(String),
}

/// What a [`Cluster`] consists of.
#[derive(Debug, Clone)]
pub struct Builder {
    etcd: usize,
    masters: usize,
    workers: usize,
    logs: Logs,
    pub(crate) labels: Vec<(usize, String)>,
    pub(crate) master_args: Vec<String>,
    pub(crate) worker_args: Vec<String>,
    pub(crate) through_master: bool,
    tls: bool,
    etcd_tls: bool,
    etcd_args: Vec<String>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            etcd: 1,
            masters: 1,
            workers: 1,
            logs: Logs::default(),
            labels: Vec::new(),
            master_args: Vec::new(),
            worker_args: Vec::new(),
            through_master: false,
            tls: false,
            etcd_tls: false,
            etcd_args: Vec::new(),
        }
    }
}

impl Builder {
    /// Number of etcd members, 1 or 3. Default 1.
    pub fn etcd(mut self, n: usize) -> Self {
        self.etcd = n;
        self
    }

    /// Number of masters. Default 1.
    pub fn masters(mut self, n: usize) -> Self {
        self.masters = n;
        self
    }

    /// Number of workers, `127.0.0.2` and up. Default 1.
    pub fn workers(mut self, n: usize) -> Self {
        self.workers = n;
        self
    }

    /// Whether runs and output are kept in MongoDB instead of SQLite. Default false.
    pub fn mongo(self, yes: bool) -> Self {
        self.logs(if yes { Logs::Mongo } else { Logs::Sqlite })
    }

    /// Where runs and output are kept.
    pub fn logs(mut self, logs: Logs) -> Self {
        self.logs = logs;
        self
    }

    /// Workers deliver through the leading master also where they could write to the log
    /// store themselves.
    pub fn through_master(mut self) -> Self {
        self.through_master = true;
        self
    }

    /// Masters and workers have certificates of an authority of the cluster's own
    /// ([`Cluster::pki`]) and speak TLS; so do [`Cluster::api`] and [`Cluster::cli`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// As [`Self::tls`], and etcd speaks TLS too and demands certificates.
    pub fn tls_everywhere(mut self) -> Self {
        self.tls = true;
        self.etcd_tls = true;
        self
    }

    /// A label (`key=value`) of the worker number `worker`.
    pub fn label(mut self, worker: usize, label: &str) -> Self {
        self.labels.push((worker, label.to_owned()));
        self
    }

    /// One more argument of every master.
    pub fn master_arg(mut self, arg: &str) -> Self {
        self.master_args.push(arg.to_owned());
        self
    }

    /// One more argument of every worker.
    pub fn worker_arg(mut self, arg: &str) -> Self {
        self.worker_args.push(arg.to_owned());
        self
    }

    /// One more argument of every etcd member.
    pub fn etcd_arg(mut self, arg: &str) -> Self {
        self.etcd_args.push(arg.to_owned());
        self
    }

    /// Starts it all and waits until every part is ready.
    pub async fn start(self) -> Cluster {
        let dir = TestDir::new();
        let pki = self.tls.then(|| Pki::new(&dir.path().join("tls")));
        let etcd = match &pki {
            Some(pki) if self.etcd_tls => Etcd::start_tls(self.etcd, dir.path(), pki).await,
            _ => Etcd::start_with(self.etcd, dir.path(), &self.etcd_args).await,
        };
        let (mongo, logs) = self.open_logs(dir.path()).await;
        let count = self.workers;
        let masters = self.masters;
        let mut cluster = Cluster {
            workers: Vec::new(),
            masters: Vec::new(),
            etcd,
            mongo,
            logs,
            pki,
            dir,
            commands: AtomicU32::new(0),
            plan: self,
        };
        for _ in 0..masters {
            cluster.add_master().await;
        }
        for _ in 0..count {
            cluster.add_worker().await;
        }
        cluster
    }

    /// The MongoDB server, where there is one, and the URL of the log store.
    async fn open_logs(&self, dir: &Path) -> (Option<Arc<TestMongo>>, String) {
        let mongo = match &self.logs {
            Logs::Sqlite => return (None, format!("sqlite://{}", dir.join("logs.db").display())),
            Logs::Uri(uri) => return (None, uri.clone()),
            Logs::Mongo => shared_mongo().await,
            Logs::OwnMongo => Arc::new(TestMongo::start_own().await),
        };
        let uri = mongo.fresh_uri();
        (Some(mongo), uri)
    }
}

/// The MongoDB server all tests of this process share: started at its first use, ended
/// by the end of the process. Take a database of your own with
/// [`TestMongo::fresh_uri`]; who wants to kill a server starts another one.
pub async fn shared_mongo() -> Arc<TestMongo> {
    static SERVER: OnceCell<Arc<TestMongo>> = OnceCell::const_new();
    SERVER.get_or_init(async || Arc::new(TestMongo::start().await)).await.clone()
}
