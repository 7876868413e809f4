//! Settings: the file `/etc/meepo/worker.toml`, then the environment, then flags; the
//! later wins. `docs/reference/config.md` lists them.

use crate::secrets;
use crate::trust::{Expired, TrustOptions};
use anyhow::Context;
use clap::Args;
use meepo_coord::EtcdAccess;
use meepo_core::{duration::HumanDuration, id::NodeId, policy::Allow};
use meepo_runtime::{
    config,
    telemetry::{LogFormat, trace},
    tls::{EtcdTlsSettings, TlsFiles, TlsSettings},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

/// Where the settings are looked for when no file is named.
pub const DEFAULT_FILE: &str = "/etc/meepo/worker.toml";

/// Time between heartbeats: ten thousand workers send a thousand in a second.
pub const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);

/// How long output may wait in the spool: a long weekend, and time to notice.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Items of a backlog in a second: a share of what one log store takes from a fleet.
pub const DEFAULT_CATCHUP: u32 = 5_000;

/// Everything a worker can be told. `None` means: not set.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// URLs of etcd, separated by commas. [default: http://127.0.0.1:2379]
    #[arg(long, env = "MEEPO_ETCD", value_delimiter = ',')]
    pub etcd: Option<Vec<String>>,
    /// User of etcd, where it does not take the common name of the certificate for it.
    #[arg(long, env = "MEEPO_ETCD_USER")]
    pub etcd_user: Option<String>,
    /// File with the password of that user.
    #[arg(long, env = "MEEPO_ETCD_PASSWORD_FILE", value_name = "FILE")]
    pub etcd_password_file: Option<PathBuf>,
    /// What etcd is shown.
    #[command(flatten)]
    pub etcd_tls: EtcdTlsSettings,
    /// What this process shows, and whom it believes.
    #[command(flatten)]
    pub tls: TlsSettings,
    /// This node's id. [default: the source address of the route to etcd]
    #[arg(long, env = "MEEPO_NODE")]
    pub node: Option<NodeId>,
    /// Where journal, spool and snapshot live. [default: /var/lib/meepo-worker]
    #[arg(long, env = "MEEPO_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The log store, as mongodb://host/db. [default: through the leading master]
    #[arg(long, env = "MEEPO_LOGS")]
    pub logs: Option<Logs>,
    /// How runs and output get to the log store: `direct` or `master`. [default: direct with a
    /// log store, else master]
    #[arg(long, env = "MEEPO_LOGS_VIA")]
    pub logs_via: Option<Via>,
    /// Address of /metrics and /healthz. [default: 127.0.0.1:7602]
    #[arg(long, env = "MEEPO_METRICS")]
    pub metrics: Option<SocketAddr>,
    /// Serve metrics over TLS, to those who show a certificate. [default: beyond loopback, where
    /// there is one to show]
    #[arg(long, env = "MEEPO_METRICS_TLS", num_args = 0..=1, default_missing_value = "true")]
    pub metrics_tls: Option<bool>,
    /// Let /metrics listen beyond loopback although it has no authentication.
    #[arg(long, env = "MEEPO_ALLOW_INSECURE_LISTEN", num_args = 0..=1, default_missing_value = "true")]
    pub allow_insecure_listen: Option<bool>,
    /// Time after which a silent worker counts as gone. [default: 10s]
    #[arg(long, env = "MEEPO_LEASE_TTL")]
    pub lease_ttl: Option<HumanDuration>,
    /// Time between heartbeats to the leading master. [default: 10s]
    #[arg(long, env = "MEEPO_HEARTBEAT")]
    pub heartbeat: Option<HumanDuration>,
    /// Processes of jobs at the same time. [default: 512]
    #[arg(long, env = "MEEPO_MAX_RUNNING")]
    pub max_running: Option<usize>,
    /// Parts of tasks at the same time; 0: none. [default: the number of processors, 4 at
    /// least]
    #[arg(long, env = "MEEPO_TASK_SLOTS")]
    pub task_slots: Option<u32>,
    /// Control group (cgroup v2) below which those of runs are made, as a directory. [default:
    /// the worker's own]
    #[arg(long, env = "MEEPO_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,
    /// Directory with a file for each secret that jobs refer to. [default: /etc/meepo/secrets]
    #[arg(long, env = "MEEPO_SECRETS_DIR")]
    pub secrets_dir: Option<PathBuf>,
    /// Program and arguments, separated by spaces, that print the secret whose name they get as
    /// one more argument. [default: none]
    #[arg(long, env = "MEEPO_SECRETS_COMMAND", value_delimiter = ' ')]
    pub secrets_command: Option<Vec<String>>,
    /// Bytes the spool may hold while the log store is away. [default: 1 GiB]
    #[arg(long, env = "MEEPO_SPOOL_LIMIT")]
    pub spool_limit: Option<u64>,
    /// How long output may wait in the spool; records twice as long. [default: 7d]
    #[arg(long, env = "MEEPO_SPOOL_MAX_AGE")]
    pub spool_max_age: Option<HumanDuration>,
    /// Items in a second that a backlog is delivered at. [default: 5000]
    #[arg(long, env = "MEEPO_CATCHUP_RATE")]
    pub catchup_rate: Option<u32>,
    /// Run nothing that no master has signed.
    #[arg(long, env = "MEEPO_REQUIRE_SIGNATURE", num_args = 0..=1, default_missing_value = "true")]
    pub require_signature: Option<bool>,
    /// Files with the public keys of the masters, separated by commas.
    #[arg(long, env = "MEEPO_TRUSTED_KEYS", value_delimiter = ',')]
    pub trusted_keys: Option<Vec<PathBuf>>,
    /// What becomes of jobs whose signature has run out: `keep` or `stop`. [default: keep]
    #[arg(long, env = "MEEPO_EXPIRED_ASSIGNMENTS")]
    pub expired_assignments: Option<Expired>,
    /// What this node runs, whatever masters say; only in the file.
    #[arg(skip)]
    pub allow: Allow,
    /// `text` or `json`. [default: text]
    #[arg(long, env = "MEEPO_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// URL of a collector of traces (OTLP over gRPC), as http://127.0.0.1:4317. [default: none,
    /// no traces]
    #[arg(long, env = "MEEPO_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// File that holds the process id. [default: worker.pid in the data directory]
    #[arg(long, env = "MEEPO_PID_FILE")]
    pub pid_file: Option<PathBuf>,
    /// A label of this node as KEY=VALUE, may be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    #[serde(skip)]
    pub label: Vec<(String, String)>,
    /// Labels, from the file.
    #[arg(skip)]
    pub labels: BTreeMap<String, String>,
}

/// How runs and output get to the log store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// The worker writes to it.
    Direct,
    /// Through the leading master, so that the host holds no credentials.
    Master,
}

/// The log store: its URL, or in the file also a table with `url` and `via`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logs {
    url: Option<String>,
    via: Option<Via>,
}

impl FromStr for Logs {
    type Err = Infallible;

    fn from_str(url: &str) -> Result<Self, Infallible> {
        Ok(Self { url: Some(url.to_owned()), via: None })
    }
}

impl<'de> Deserialize<'de> for Logs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            url: Option<String>,
            via: Option<Via>,
        }
        impl<'de> Visitor<'de> for Either {
            type Value = Logs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or a table with `url` and `via`")
            }
            fn visit_str<E: de::Error>(self, url: &str) -> Result<Logs, E> {
                Ok(Logs { url: Some(url.to_owned()), via: None })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Logs, A::Error> {
                let table = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Logs { url: table.url, via: table.via })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The log store to write to; none: through the leading master.
fn logs_of(
    flags: (Option<Logs>, Option<Via>),
    file: (Option<Logs>, Option<Via>),
) -> anyhow::Result<Option<String>> {
    let (given, in_file) = (flags.0.unwrap_or_default(), file.0.unwrap_or_default());
    anyhow::ensure!(
        file.1.is_none() || in_file.via.is_none(),
        "logs_via: it stands in the file twice, also as `via` in the table `logs`; expected it once"
    );
    let url = given.url.or(in_file.url);
    match (flags.1.or(file.1).or(in_file.via), url) {
        (Some(Via::Direct), None) => anyhow::bail!(
            "logs_via: `direct` needs to know where to; expected the URL of the log store as `logs`, \
             or `master`"
        ),
        (Some(Via::Master), Some(_)) => anyhow::bail!(
            "logs_via: `master` and the URL of a log store contradict each other: this host needs \
             no credentials; expected `logs` to be left out, or `direct`"
        ),
        (_, url) => Ok(url),
    }
}

fn label(s: &str) -> Result<(String, String), String> {
    match s.split_once('=') {
        Some((k, v)) if !k.is_empty() => Ok((k.to_owned(), v.to_owned())),
        _ => Err(format!("{s:?} is not a label; expected KEY=VALUE")),
    }
}

/// What the node believes and runs.
fn trust_of(
    require: bool,
    keys: Option<Vec<PathBuf>>,
    expired: Option<Expired>,
    allow: Allow,
) -> anyhow::Result<TrustOptions> {
    anyhow::ensure!(
        !require || keys.as_ref().is_some_and(|keys| !keys.is_empty()),
        "trusted_keys: missing, and with require_signature nothing could run; expected files with \
         the public keys of the masters, as `meepo signing init` writes them"
    );
    allow.check_lists().map_err(anyhow::Error::msg)?;
    let keys = keys.filter(|_| require);
    Ok(TrustOptions { keys, expired: expired.unwrap_or_default(), allow })
}

/// Settings with every default filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// How etcd is reached.
    pub etcd: EtcdAccess,
    /// What this process shows and whom it believes; none: nothing is encrypted.
    pub tls: Option<TlsFiles>,
    /// This node's id, if it is set.
    pub node: Option<NodeId>,
    /// Where journal, spool and snapshot live.
    pub data_dir: PathBuf,
    /// The log store; none: through the leading master.
    pub logs: Option<String>,
    /// Address of `/metrics`.
    pub metrics: SocketAddr,
    /// Whether it is served over TLS, to those who show a certificate.
    pub metrics_tls: bool,
    /// Time to live of the worker's lease.
    pub lease_ttl: Duration,
    /// Time between heartbeats to the leading master, by and large.
    pub heartbeat: Duration,
    /// Processes of jobs at the same time.
    pub max_running: usize,
    /// Parts of tasks at the same time.
    pub task_slots: u32,
    /// Control group below which those of runs are made; none: the worker's own.
    pub cgroup_root: Option<PathBuf>,
    /// Directory with a file for each secret of jobs.
    pub secrets_dir: PathBuf,
    /// What prints a secret, and its arguments; empty: nothing does.
    pub secrets_command: Vec<String>,
    /// Bytes the spool may hold.
    pub spool_limit: u64,
    /// How long output may wait in the spool.
    pub spool_max_age: Duration,
    /// Items in a second that a backlog is delivered at.
    pub catchup_rate: u32,
    /// What this node believes and runs.
    pub trust: TrustOptions,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Where traces go, if anywhere.
    pub otlp_endpoint: Option<String>,
    /// File that holds the process id.
    pub pid_file: PathBuf,
    /// Labels of this node.
    pub labels: BTreeMap<String, String>,
}

/// How many parts of tasks a worker takes at once unless set: one for each processor, four
/// at least.
pub fn default_task_slots() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(4, usize::from);
    u32::try_from(cpus).unwrap_or(u32::MAX).clamp(4, 10_000)
}

impl Settings {
    /// Reads the file and lays `self` (environment and flags) over it.
    ///
    /// # Errors
    /// When the file cannot be used or a value is out of range.
    pub fn resolve(self, file: Option<&Path>) -> anyhow::Result<Config> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let base: Settings = config::load(path, file.is_some())?;
        let tls = self.tls.over(base.tls);
        anyhow::ensure!(
            tls.ca_key.is_none(),
            "tls.ca_key: a worker signs for nobody; expected it on a master only"
        );
        let tls = tls.files()?;
        let mut labels = base.labels;
        labels.extend(self.label);
        let lease_ttl = self.lease_ttl.or(base.lease_ttl).map_or(Duration::from_secs(10), |d| d.0);
        anyhow::ensure!(
            (Duration::from_secs(2)..=Duration::from_secs(3600)).contains(&lease_ttl),
            "lease_ttl: {lease_ttl:?} is out of range; expected 2s to 1h"
        );
        let heartbeat = self.heartbeat.or(base.heartbeat).map_or(DEFAULT_HEARTBEAT, |d| d.0);
        anyhow::ensure!(
            (Duration::from_secs(1)..=Duration::from_secs(60)).contains(&heartbeat),
            "heartbeat: {heartbeat:?} is out of range; expected 1s to 1m"
        );
        let max_running = self.max_running.or(base.max_running).unwrap_or(512);
        anyhow::ensure!(max_running > 0, "max_running: 0 would run nothing; expected at least 1");
        let task_slots = self.task_slots.or(base.task_slots).unwrap_or_else(default_task_slots);
        anyhow::ensure!(
            task_slots <= 10_000,
            "task_slots: {task_slots} is out of range; expected 0 to 10000"
        );
        let metrics =
            self.metrics.or(base.metrics).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7602)));
        let allowed = self.allow_insecure_listen.or(base.allow_insecure_listen).unwrap_or(false);
        let metrics_tls = self.metrics_tls.or(base.metrics_tls);
        let metrics_tls = metrics_tls.unwrap_or(tls.is_some() && !metrics.ip().is_loopback());
        anyhow::ensure!(
            tls.is_some() || !metrics_tls,
            "metrics_tls: there is no certificate to show; expected [tls] with it"
        );
        anyhow::ensure!(
            metrics.ip().is_loopback() || allowed || metrics_tls,
            "metrics: {metrics} can be reached from other hosts and has no authentication; \
             expected [tls], a loopback address, or allow_insecure_listen = true"
        );
        let etcd = self.etcd.or(base.etcd).unwrap_or(vec!["http://127.0.0.1:2379".into()]);
        anyhow::ensure!(!etcd.is_empty(), "etcd: empty list; expected at least one URL");
        let etcd = EtcdAccess {
            tls: self.etcd_tls.over(base.etcd_tls).resolve(&etcd, tls.as_ref())?,
            user: EtcdAccess::user(
                self.etcd_user.or(base.etcd_user),
                self.etcd_password_file.or(base.etcd_password_file),
            )?,
            endpoints: etcd,
        };
        let data_dir = self.data_dir.or(base.data_dir).unwrap_or("/var/lib/meepo-worker".into());
        // Processes that outlive the worker use it from another working directory.
        let data_dir = std::path::absolute(&data_dir)
            .with_context(|| format!("data_dir: {} names no directory", data_dir.display()))?;
        let pid_file = self.pid_file.or(base.pid_file);
        let spool_max_age =
            self.spool_max_age.or(base.spool_max_age).map_or(DEFAULT_MAX_AGE, |d| d.0);
        anyhow::ensure!(
            (Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 3600))
                .contains(&spool_max_age),
            "spool_max_age: {spool_max_age:?} is out of range; expected 1s to 366d"
        );
        let catchup_rate = self.catchup_rate.or(base.catchup_rate).unwrap_or(DEFAULT_CATCHUP);
        anyhow::ensure!(
            catchup_rate > 0,
            "catchup_rate: 0 would never deliver a backlog; expected at least 1"
        );
        let logs = logs_of((self.logs, self.logs_via), (base.logs, base.logs_via))?;
        let trust = trust_of(
            self.require_signature.or(base.require_signature).unwrap_or(false),
            self.trusted_keys.or(base.trusted_keys),
            self.expired_assignments.or(base.expired_assignments),
            base.allow,
        )?;
        let otlp_endpoint = self.otlp_endpoint.or(base.otlp_endpoint);
        otlp_endpoint.as_deref().map_or(Ok(()), trace::check)?;
        Ok(Config {
            etcd,
            tls,
            node: self.node.or(base.node),
            pid_file: pid_file.unwrap_or_else(|| data_dir.join("worker.pid")),
            data_dir,
            logs,
            metrics,
            metrics_tls,
            lease_ttl,
            heartbeat,
            max_running,
            task_slots,
            cgroup_root: self.cgroup_root.or(base.cgroup_root),
            secrets_dir: self
                .secrets_dir
                .or(base.secrets_dir)
                .unwrap_or_else(|| secrets::DEFAULT_DIR.into()),
            secrets_command: self.secrets_command.or(base.secrets_command).unwrap_or_default(),
            spool_limit: self.spool_limit.or(base.spool_limit).unwrap_or(1 << 30),
            spool_max_age,
            catchup_rate,
            trust,
            log_format: self.log_format.or(base.log_format).unwrap_or_default(),
            otlp_endpoint,
            labels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.toml");
        let text = "max_running = 7\nlease_ttl = \"5s\"\n[labels]\ngroup = \"web\"\nrole = \"a\"\n";
        std::fs::write(&file, text).unwrap();
        let flags = Settings {
            max_running: Some(9),
            label: vec![("role".into(), "b".into())],
            ..Settings::default()
        };
        let c = flags.resolve(Some(&file)).unwrap();
        assert_eq!((c.max_running, c.lease_ttl), (9, Duration::from_secs(5)));
        assert_eq!(c.labels["group"], "web");
        assert_eq!(c.labels["role"], "b");
        assert_eq!(c.metrics.port(), 7602);
    }

    #[test]
    fn the_data_directory_is_the_same_from_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.toml");
        std::fs::write(&file, "").unwrap();
        let flags = Settings { data_dir: Some("here/w".into()), ..Settings::default() };
        let c = flags.resolve(Some(&file)).unwrap();
        assert_eq!(c.data_dir, std::env::current_dir().unwrap().join("here/w"));
        assert_eq!(c.pid_file, c.data_dir.join("worker.pid"));
    }

    #[test]
    fn the_way_to_the_log_store_is_chosen_by_its_url_or_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.toml");
        let url = || Some("mongodb://h/d".to_owned());
        for (text, want) in [
            ("", None),
            ("logs_via = \"master\"", None),
            ("logs.via = \"master\"", None),
            ("logs = \"mongodb://h/d\"", url()),
            ("logs = \"mongodb://h/d\"\nlogs_via = \"direct\"", url()),
            ("[logs]\nurl = \"mongodb://h/d\"\nvia = \"direct\"", url()),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(Settings::default().resolve(Some(&file)).unwrap().logs, want, "{text}");
        }
        // A flag wins over the file.
        std::fs::write(&file, "[logs]\nvia = \"master\"").unwrap();
        let flags = Settings {
            logs: Some("mongodb://h/d".parse().unwrap()),
            logs_via: Some(Via::Direct),
            ..Settings::default()
        };
        assert_eq!(flags.resolve(Some(&file)).unwrap().logs, url());
    }

    #[test]
    fn bad_settings_say_which() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.toml");
        for (text, word) in [
            ("lease_tl = \"5s\"", "lease_tl"),
            ("lease_ttl = \"5 parsecs\"", "lease_ttl"),
            ("lease_ttl = \"1ms\"", "lease_ttl"),
            ("heartbeat = \"500ms\"", "heartbeat"),
            ("max_running = 0", "max_running"),
            ("node = \"a/b\"", "node"),
            ("metrics = \"0.0.0.0:7602\"", "allow_insecure_listen"),
            ("etcd = []", "etcd"),
            ("spool_max_age = \"10ms\"", "spool_max_age"),
            ("catchup_rate = 0", "catchup_rate"),
            ("logs = 5", "a URL, or a table"),
            ("logs_via = \"mongodb\"", "logs_via"),
            ("logs_via = \"direct\"", "expected the URL"),
            ("logs = \"mongodb://h/d\"\nlogs_via = \"master\"", "contradict"),
            ("[logs]\nurl = \"mongodb://h/d\"\nvia = \"master\"", "contradict"),
            ("logs_via = \"master\"\n[logs]\nvia = \"master\"", "twice"),
            ("[logs]\nvai = \"master\"", "vai"),
        ] {
            std::fs::write(&file, text).unwrap();
            let e = Settings::default().resolve(Some(&file)).unwrap_err();
            assert!(format!("{e:#}").contains(word), "{text}: {e:#}");
        }
        let missing = Settings::default().resolve(Some(Path::new("/nonexistent/w.toml")));
        assert!(missing.is_err(), "a file that was named must exist");
    }
}
