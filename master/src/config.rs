//! Settings: the file `/etc/meepo/master.toml`, then the environment, then flags; the
//! later wins. `docs/reference/config.md` lists them.

use crate::{
    auth::{AuthSettings, DEFAULT_CLIENT_TIMEOUT, DEFAULT_CONNECTIONS, OidcSettings},
    notify::Program,
    seal::{self, Signing},
};
use clap::Args;
use meepo_coord::EtcdAccess;
use meepo_core::{auth::Range, duration::HumanDuration, error::Invalid, id::Name, signing};
use meepo_logstore::{Class, Keep, Retention};
use meepo_runtime::{
    config,
    telemetry::{LogFormat, trace},
    tls::{EtcdTlsSettings, TlsFiles, TlsSettings},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the settings are looked for when no file is named.
pub const DEFAULT_FILE: &str = "/etc/meepo/master.toml";

/// Tasks that may be unfinished at the same time unless set.
pub const DEFAULT_TASKS_LIMIT: usize = 10_000;

/// Everything a master can be told. `None` means: not set.
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
    /// Address of the HTTP API. [default: 127.0.0.1:7600]
    #[arg(long, env = "MEEPO_HTTP")]
    pub http: Option<SocketAddr>,
    /// Address of the gRPC server. [default: 127.0.0.1:7601]
    #[arg(long, env = "MEEPO_GRPC")]
    pub grpc: Option<SocketAddr>,
    /// Host name or address under which workers and other masters reach this one.
    /// [default: the address listened on]
    #[arg(long, env = "MEEPO_ADVERTISE")]
    pub advertise: Option<String>,
    /// Listen beyond loopback also without TLS or without asking anybody who they are.
    #[arg(long, env = "MEEPO_ALLOW_INSECURE_LISTEN", num_args = 0..=1, default_missing_value = "true")]
    pub allow_insecure_listen: Option<bool>,
    /// Ask everybody who they are: true or false. [default: true beyond loopback, false on it
    /// and with --allow-insecure-listen]
    #[arg(long, env = "MEEPO_AUTH", num_args = 0..=1, default_missing_value = "true")]
    pub auth: Option<bool>,
    /// Requests per second that each client may make; 0: any number. [default: 200 with auth,
    /// any number without]
    #[arg(long, env = "MEEPO_RATE_LIMIT", value_name = "N")]
    pub rate_limit: Option<u32>,
    /// Connections to the HTTP API at the same time. [default: 4096]
    #[arg(long, env = "MEEPO_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,
    /// How long a client may take for the head of a request, or do nothing between two.
    /// [default: 75s]
    #[arg(long, env = "MEEPO_CLIENT_TIMEOUT")]
    pub client_timeout: Option<HumanDuration>,
    /// Addresses or ranges of proxies whose X-Forwarded-For says where a request comes from.
    /// [default: none]
    #[arg(long, env = "MEEPO_TRUSTED_PROXIES", value_delimiter = ',')]
    pub trusted_proxies: Option<Vec<Range>>,
    /// Whose bearer tokens count besides meepo's own; only in the file.
    #[arg(skip)]
    pub oidc: Option<OidcSettings>,
    /// The log store: mongodb://host/db or sqlite:///path.
    /// [default: sqlite, logs.db in the data directory]
    #[arg(long, env = "MEEPO_LOGS")]
    pub logs: Option<String>,
    /// Where an SQLite log store lives. [default: /var/lib/meepo]
    #[arg(long, env = "MEEPO_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Time after which a silent leader is replaced. [default: 10s]
    #[arg(long, env = "MEEPO_LEASE_TTL")]
    pub lease_ttl: Option<HumanDuration>,
    /// Tasks that may be unfinished at the same time; more are refused. [default: 10000]
    #[arg(long, env = "MEEPO_TASKS_LIMIT")]
    pub tasks_limit: Option<usize>,
    /// How long what is over is kept, as CLASS=DURATION or CLASS=forever, several with commas:
    /// success, failed, missed, output, tasks, audit. [default:
    /// success=30d,failed=90d,missed=30d,output=30d,tasks=90d,audit=365d]
    #[arg(long = "retention", env = "MEEPO_RETENTION", value_name = "CLASS=DURATION", value_delimiter = ',', value_parser = keep)]
    #[serde(skip)]
    pub keep: Vec<(Class, Keep)>,
    /// The same, from the file.
    #[arg(skip)]
    pub retention: BTreeMap<Class, Keep>,
    /// Directory with a file for each secret that notifications name.
    /// [default: /etc/meepo/secrets]
    #[arg(long, env = "MEEPO_SECRETS_DIR")]
    pub secrets_dir: Option<PathBuf>,
    /// Programs that notifications may run; only in the file.
    #[arg(skip)]
    pub notify_commands: BTreeMap<Name, Program>,
    /// File with the private key that work for nodes is signed with, as `meepo signing init`
    /// makes it. [default: none, nothing is signed]
    #[arg(long, env = "MEEPO_SIGNING_KEY")]
    pub signing_key: Option<PathBuf>,
    /// Files with further public keys whose definitions and tasks are believed.
    #[arg(long, env = "MEEPO_TRUSTED_KEYS", value_delimiter = ',')]
    pub trusted_keys: Option<Vec<PathBuf>>,
    /// How long the signature of an assignment holds; it is renewed at half of that.
    /// [default: 7d]
    #[arg(long, env = "MEEPO_SIGNATURE_VALIDITY")]
    pub signature_validity: Option<HumanDuration>,
    /// `text` or `json`. [default: text]
    #[arg(long, env = "MEEPO_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// URL of a collector of traces (OTLP over gRPC), as http://127.0.0.1:4317. [default: none,
    /// no traces]
    #[arg(long, env = "MEEPO_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

/// Reads `success=30d`.
///
/// # Errors
/// When there is no such class, or no such time.
pub fn keep(s: &str) -> Result<(Class, Keep), String> {
    let bad = || format!("{s:?} is not CLASS=DURATION");
    let (class, keep) = s.split_once('=').ok_or_else(bad)?;
    let told = |e: Invalid| format!("{}; expected {}", e.problem, e.expected);
    Ok((class.trim().parse().map_err(told)?, keep.parse().map_err(told)?))
}

/// Settings with every default filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// How etcd is reached.
    pub etcd: EtcdAccess,
    /// What this process shows and whom it believes; none: nothing is encrypted.
    pub tls: Option<TlsFiles>,
    /// Key of the authority, with which this master signs for workers that join.
    pub ca_key: Option<PathBuf>,
    /// Address of the HTTP API.
    pub http: SocketAddr,
    /// Address of the gRPC server.
    pub grpc: SocketAddr,
    /// Host under which others reach this master.
    pub advertise: Option<String>,
    /// Who is asked what.
    pub auth: AuthSettings,
    /// The log store.
    pub logs: String,
    /// Where an SQLite log store lives.
    pub data_dir: PathBuf,
    /// Time to live of the master's lease.
    pub lease_ttl: Duration,
    /// Tasks that may be unfinished at the same time.
    pub tasks_limit: usize,
    /// How long what is over is kept.
    pub retention: Retention,
    /// Directory with the secrets of notifications.
    pub secrets_dir: PathBuf,
    /// Programs that notifications may run.
    pub notify_commands: BTreeMap<Name, Program>,
    /// How work for nodes is signed, if it is.
    pub signing: Option<Signing>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Where traces go, if anywhere.
    pub otlp_endpoint: Option<String>,
}

/// How work is signed; none without a key.
fn signing_of(
    key: Option<PathBuf>,
    trusted: Option<Vec<PathBuf>>,
    validity: Option<HumanDuration>,
) -> anyhow::Result<Option<Signing>> {
    let validity = validity.map_or(seal::DEFAULT_VALIDITY, |d| d.0);
    let longest = signing::LONGEST.unsigned_abs();
    anyhow::ensure!(
        (Duration::from_secs(2)..=longest).contains(&validity),
        "signature_validity: {validity:?} is out of range; expected 2s to 31d"
    );
    anyhow::ensure!(
        key.is_some() || trusted.is_none(),
        "trusted_keys: without signing_key a master checks nothing; expected both or neither"
    );
    let trusted = trusted.unwrap_or_default();
    Ok(key.map(|key| Signing { key, trusted, validity }))
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
        let (tls, ca_key) = (tls.files()?, tls.ca_key);
        let lease_ttl = self.lease_ttl.or(base.lease_ttl).map_or(Duration::from_secs(10), |d| d.0);
        anyhow::ensure!(
            (Duration::from_secs(2)..=Duration::from_secs(3600)).contains(&lease_ttl),
            "lease_ttl: {lease_ttl:?} is out of range; expected 2s to 1h"
        );
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let http = self.http.or(base.http).unwrap_or(local(7600));
        let grpc = self.grpc.or(base.grpc).unwrap_or(local(7601));
        let allowed = self.allow_insecure_listen.or(base.allow_insecure_listen).unwrap_or(false);
        for (name, address) in [("http", http), ("grpc", grpc)] {
            anyhow::ensure!(
                address.ip().is_loopback() || allowed || tls.is_some(),
                "{name}: whoever reaches {address} could run commands on every node, as nothing \
                 is encrypted; expected [tls] (see `meepo tls init`), a loopback address, or \
                 allow_insecure_listen = true on a network where everybody may"
            );
        }
        let beyond = !(http.ip().is_loopback() && grpc.ip().is_loopback());
        let auth = AuthSettings {
            on: self.auth.or(base.auth).unwrap_or(beyond && !allowed),
            oidc: base.oidc,
            rate_limit: self.rate_limit.or(base.rate_limit),
            trusted_proxies: self.trusted_proxies.or(base.trusted_proxies).unwrap_or_default(),
            max_connections: self
                .max_connections
                .or(base.max_connections)
                .unwrap_or(DEFAULT_CONNECTIONS),
            client_timeout: self
                .client_timeout
                .or(base.client_timeout)
                .map_or(DEFAULT_CLIENT_TIMEOUT, |d| d.0),
        };
        anyhow::ensure!(
            auth.on || allowed || !beyond,
            "auth: false, and whoever reaches {http} or {grpc} could run commands on every node; \
             expected auth = true, or allow_insecure_listen = true on a network where everybody may"
        );
        auth.validate()?;
        let advertise = self.advertise.or(base.advertise);
        anyhow::ensure!(
            !(http.ip().is_unspecified() || grpc.ip().is_unspecified()) || advertise.is_some(),
            "advertise: missing, and {grpc} is no address that others could connect to; expected \
             the host name or address under which workers reach this master"
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
        let data_dir = self.data_dir.or(base.data_dir).unwrap_or("/var/lib/meepo".into());
        let logs = self.logs.or(base.logs);
        let logs = logs.unwrap_or_else(|| format!("sqlite:{}", data_dir.join("logs.db").display()));
        let tasks_limit = self.tasks_limit.or(base.tasks_limit).unwrap_or(DEFAULT_TASKS_LIMIT);
        anyhow::ensure!(
            (1..=1_000_000).contains(&tasks_limit),
            "tasks_limit: {tasks_limit} is out of range; expected 1 to 1000000"
        );
        let mut retention = Retention::default();
        for (class, keep) in base.retention.into_iter().chain(self.keep) {
            retention.set(class, keep);
        }
        for (name, program) in &base.notify_commands {
            let first = program.command.first().map_or("", String::as_str);
            anyhow::ensure!(
                first.starts_with('/'),
                "notify_commands.{name}.command: {first:?} is no absolute path; expected a list \
                 such as [\"/usr/local/bin/page\", \"--now\"]"
            );
            anyhow::ensure!(
                program.timeout.is_none_or(
                    |t| (Duration::from_secs(1)..=Duration::from_secs(600)).contains(&t.0)
                ),
                "notify_commands.{name}.timeout: out of range; expected 1s to 10m"
            );
        }
        let signing = signing_of(
            self.signing_key.or(base.signing_key),
            self.trusted_keys.or(base.trusted_keys),
            self.signature_validity.or(base.signature_validity),
        )?;
        let otlp_endpoint = self.otlp_endpoint.or(base.otlp_endpoint);
        otlp_endpoint.as_deref().map_or(Ok(()), trace::check)?;
        Ok(Config {
            etcd,
            tls,
            ca_key,
            http,
            grpc,
            advertise,
            auth,
            logs,
            data_dir,
            lease_ttl,
            tasks_limit,
            retention,
            secrets_dir: self
                .secrets_dir
                .or(base.secrets_dir)
                .unwrap_or("/etc/meepo/secrets".into()),
            notify_commands: base.notify_commands,
            signing,
            log_format: self.log_format.or(base.log_format).unwrap_or_default(),
            otlp_endpoint,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.toml");
        std::fs::write(&file, "http = \"127.0.0.1:1\"\ngrpc = \"127.0.0.1:2\"\n").unwrap();
        let flags = Settings { grpc: Some("127.0.0.1:3".parse().unwrap()), ..Settings::default() };
        let c = flags.resolve(Some(&file)).unwrap();
        assert_eq!((c.http.port(), c.grpc.port()), (1, 3));
        assert_eq!(c.logs, "sqlite:/var/lib/meepo/logs.db");
    }

    #[test]
    fn each_class_is_kept_as_the_last_word_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.toml");
        std::fs::write(&file, "[retention]\nsuccess = \"7d\"\nfailed = \"forever\"\n").unwrap();
        let flags = Settings { keep: vec![keep("success=1h").unwrap()], ..Settings::default() };
        let c = flags.resolve(Some(&file)).unwrap();
        assert_eq!(c.retention.success, "1h".parse().unwrap());
        assert_eq!(c.retention.failed, Keep::Forever);
        assert_eq!(c.retention.output, Retention::default().output);
        for (bad, want) in [
            ("[retention]\nsucces = \"7d\"\n", "success"),
            ("[retention]\nsuccess = \"soon\"\n", "forever"),
            ("[retention]\nsuccess = 7\n", "string"),
        ] {
            std::fs::write(&file, bad).unwrap();
            let e = format!("{:#}", Settings::default().resolve(Some(&file)).unwrap_err());
            assert!(e.contains(want), "{bad}: {e}");
        }
        assert!(keep("all=7d").unwrap_err().contains("expected success, failed"));
        assert!(keep("success").unwrap_err().contains("CLASS=DURATION"));
    }

    #[test]
    fn listening_beyond_loopback_must_be_asked_for_in_so_many_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.toml");
        std::fs::write(&file, "http = \"0.0.0.0:7600\"\n").unwrap();
        let e = Settings::default().resolve(Some(&file)).unwrap_err();
        assert!(e.to_string().contains("allow_insecure_listen"), "{e}");
        std::fs::write(&file, "http = \"0.0.0.0:7600\"\nallow_insecure_listen = true\n").unwrap();
        let e = Settings::default().resolve(Some(&file)).unwrap_err();
        assert!(e.to_string().starts_with("advertise: missing"), "{e}");
        let named = Settings { advertise: Some("m1".into()), ..Settings::default() };
        assert!(!named.clone().resolve(Some(&file)).unwrap().auth.on, "asked for in so many words");
        let asked = Settings { auth: Some(true), ..named };
        assert!(asked.resolve(Some(&file)).unwrap().auth.on);
        std::fs::write(&file, "").unwrap();
        assert!(!Settings::default().resolve(Some(&file)).unwrap().auth.on, "on loopback");
    }
}
