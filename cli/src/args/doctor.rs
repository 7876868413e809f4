//! `meepo doctor`.

use clap::Args;
use std::net::SocketAddr;

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
    /// Look at the worker of this host there.
    #[arg(long, env = "MEEPO_METRICS", value_name = "ADDR", default_value = "127.0.0.1:7602")]
    pub(crate) metrics: SocketAddr,
    /// Print what is well, too.
    #[arg(long)]
    pub(crate) all: bool,
}
