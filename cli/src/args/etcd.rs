//! `meepo etcd`.

use clap::{Args, Subcommand, ValueHint};
use meepo_core::id::Name;
use meepo_runtime::tls::EtcdTlsSettings;
use std::path::PathBuf;

/// `meepo etcd …`.
#[derive(Debug, Subcommand)]
pub(crate) enum EtcdCommand {
    /// Make users and roles that let each worker touch the keys of its node only. Needs no master.
    InitAuth(InitAuthArgs),
}

/// `meepo etcd init-auth`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "What is there already is not done again. Users of etcd: `root`, `master` \
    for all masters, `node:ID` for the worker of each node; a user's role has the same name.\n\
    Without --passwords they prove who they are by certificates with these names, which etcd \
    asks for with --client-cert-auth.")]
pub(crate) struct InitAuthArgs {
    /// The etcd; several with commas.
    #[arg(
        long,
        env = "MEEPO_ETCD",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379"
    )]
    pub(crate) etcd: Vec<String>,
    /// What etcd is shown and believed.
    #[command(flatten)]
    pub(crate) tls: EtcdTlsSettings,
    /// User of etcd to do it as, once authentication is on: `root`.
    #[arg(long, env = "MEEPO_ETCD_USER", value_name = "NAME")]
    pub(crate) etcd_user: Option<String>,
    /// File with its password.
    #[arg(long, env = "MEEPO_ETCD_PASSWORD_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) etcd_password_file: Option<PathBuf>,
    /// A node to make a user for; may be given several times [default: all that ever registered].
    #[arg(long = "node", value_name = "ID")]
    pub(crate) nodes: Vec<Name>,
    /// Give each new user a password, in a file of its name in this directory.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) passwords: Option<PathBuf>,
    /// Switch authentication on at last: whoever does not log in has nothing from then on.
    #[arg(long)]
    pub(crate) enable: bool,
    /// Only print what would be done, as commands of etcdctl.
    #[arg(long)]
    pub(crate) dry_run: bool,
}
