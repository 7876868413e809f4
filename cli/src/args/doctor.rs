//! `meepo doctor`.

use clap::Args;
use meepo_runtime::tls::EtcdTlsSettings;
use std::{net::SocketAddr, path::PathBuf};

/// `meepo doctor`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Exits with 0 if all is well, 1 if somebody should look, 2 if something \
    does not work.")]
pub(crate) struct DoctorArgs {
    /// Look at this etcd oneself when no master answers; several with commas.
    #[arg(
        long,
        env = "MEEPO_ETCD",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379"
    )]
    pub(crate) etcd: Vec<String>,
    /// User of etcd, where it does not take the common name of the certificate for it.
    #[arg(long, env = "MEEPO_ETCD_USER", value_name = "USER")]
    pub(crate) etcd_user: Option<String>,
    /// File with the password of that user.
    #[arg(long, env = "MEEPO_ETCD_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) etcd_password_file: Option<PathBuf>,
    /// What etcd is shown.
    #[command(flatten)]
    pub(crate) etcd_tls: EtcdTlsSettings,
    /// Look at the worker of this host there.
    #[arg(long, env = "MEEPO_METRICS", value_name = "ADDR", default_value = "127.0.0.1:7602")]
    pub(crate) metrics: SocketAddr,
    /// Print what is well, too.
    #[arg(long)]
    pub(crate) all: bool,
}
