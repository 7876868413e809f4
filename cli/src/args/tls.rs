//! `meepo tls`, and how the client itself is encrypted.

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use meepo_core::{duration::HumanDuration, id::Name};
use std::path::PathBuf;

/// How requests to the master are encrypted.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ClientTls {
    /// The authority that the master has its certificate from, in PEM [default: those of the
    /// host].
    #[arg(long, global = true, env = "MEEPO_CA", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) ca: Option<PathBuf>,
    /// Certificate shown to the master, in PEM.
    #[arg(long = "client-cert", global = true, env = "MEEPO_CERT", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) client_cert: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long = "client-key", global = true, env = "MEEPO_KEY", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) client_key: Option<PathBuf>,
}

/// An authority of one's own and its certificates. These commands change files here and talk
/// to nobody.
#[derive(Debug, Subcommand)]
pub(crate) enum TlsCommand {
    /// Make an authority, and certificates of whoever is named.
    Init(InitArgs),
    /// Make a certificate and its key.
    Issue(IssueArgs),
    /// Make certificates anew that are about to expire, with new keys.
    Renew(RenewArgs),
    /// Say what stands in certificates.
    Show {
        /// Where the certificates are.
        #[command(flatten)]
        dir: TlsDir,
        /// Files with certificates [default: all of the directory].
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        files: Vec<PathBuf>,
    },
}

/// Where certificates are.
#[derive(Debug, Clone, Args)]
pub(crate) struct TlsDir {
    /// Directory of the authority (ca.pem, ca.key) and of what it makes.
    #[arg(long, default_value = "/etc/meepo/tls", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
}

/// `meepo tls init`.
#[derive(Debug, Clone, Args)]
pub(crate) struct InitArgs {
    /// Where to.
    #[command(flatten)]
    pub(crate) dir: TlsDir,
    /// A master, with the names and addresses it is reached under: `m1=m1.example.org,10.0.0.1`.
    #[arg(long, value_name = "NAME[=HOST,…]", value_parser = hosts)]
    pub(crate) master: Vec<Named>,
    /// A worker, by the id of its node.
    #[arg(long, value_name = "ID[=HOST,…]", value_parser = hosts)]
    pub(crate) node: Vec<Named>,
    /// Somebody who uses the API.
    #[arg(long, value_name = "NAME", value_parser = hosts)]
    pub(crate) client: Vec<Named>,
    /// A member of etcd. With the first comes also a certificate of etcd's user root.
    #[arg(long, value_name = "NAME[=HOST,…]", value_parser = hosts)]
    pub(crate) etcd: Vec<Named>,
    /// Another server, as of MongoDB.
    #[arg(long, value_name = "NAME[=HOST,…]", value_parser = hosts)]
    pub(crate) server: Vec<Named>,
    /// Days for which certificates are valid.
    #[arg(long, default_value_t = 365, value_name = "N")]
    pub(crate) days: u32,
    /// Days for which the authority is.
    #[arg(long, default_value_t = 3650, value_name = "N")]
    pub(crate) ca_days: u32,
}

/// A name, and the hosts it is reached under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: Name,
    /// Empty where none are given.
    pub(crate) hosts: Vec<String>,
}

fn hosts(s: &str) -> Result<Named, String> {
    let (name, hosts) = s.split_once('=').unwrap_or((s, ""));
    let name = Name::new(name).map_err(|e| format!("{}; expected {}", e.problem, e.expected))?;
    let hosts = hosts.split(',').map(str::trim).filter(|host| !host.is_empty());
    Ok(Named { name, hosts: hosts.map(str::to_owned).collect() })
}

/// Whose a certificate is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A master.
    Master,
    /// The worker of a node.
    Node,
    /// Somebody who uses the API.
    Client,
    /// A member of etcd.
    Etcd,
    /// Another server.
    Server,
    /// A user of etcd by just that name, as root.
    EtcdUser,
}

/// `meepo tls issue`.
#[derive(Debug, Clone, Args)]
pub(crate) struct IssueArgs {
    /// Where to.
    #[command(flatten)]
    pub(crate) dir: TlsDir,
    /// Whose.
    pub(crate) kind: Kind,
    /// Its name; of a node its id.
    pub(crate) name: Name,
    /// A host name or an address it is reached under, may be given several times [default: the
    /// name; none for clients].
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// Days for which it is valid.
    #[arg(long, default_value_t = 365, value_name = "N")]
    pub(crate) days: u32,
}

/// `meepo tls renew`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RenewArgs {
    /// Where the authority is.
    #[command(flatten)]
    pub(crate) dir: TlsDir,
    /// Certificates, each with its key beside it as NAME.key [default: all of the directory].
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) files: Vec<PathBuf>,
    /// Only those that expire within this time.
    #[arg(long, default_value = "30d", value_name = "DURATION")]
    pub(crate) within: HumanDuration,
    /// Days for which the new ones are valid.
    #[arg(long, default_value_t = 365, value_name = "N")]
    pub(crate) days: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_come_with_hosts() {
        let named = |name: &str, hosts: &[&str]| {
            let hosts = hosts.iter().map(|&h| h.to_owned()).collect();
            Ok(Named { name: Name::new(name).unwrap(), hosts })
        };
        assert_eq!(hosts("m1"), named("m1", &[]));
        assert_eq!(hosts("m1=a.example, 10.0.0.1"), named("m1", &["a.example", "10.0.0.1"]));
        assert!(hosts("=a").is_err());
        assert!(hosts("a b").is_err());
    }
}
