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
    /// A certificate to make as well, may be given several times: its kind, whose it is, and the
    /// names and addresses it is reached under: `master:m1=m1.example.org,10.0.0.1`. Kinds are
    /// those of `issue`. With the first of etcd comes one of etcd's user root.
    #[arg(long, value_name = "KIND:NAME[=HOST,…]", value_parser = wanted)]
    pub(crate) cert: Vec<Named>,
    /// Days for which certificates are valid.
    #[arg(long, default_value_t = 365, value_name = "N")]
    pub(crate) days: u32,
    /// Days for which the authority is.
    #[arg(long, default_value_t = 3650, value_name = "N")]
    pub(crate) ca_days: u32,
}

/// Whose a certificate is, and the hosts it is reached under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) kind: Kind,
    pub(crate) name: Name,
    /// Empty where none are given.
    pub(crate) hosts: Vec<String>,
}

fn wanted(s: &str) -> Result<Named, String> {
    let (kind, rest) = s.split_once(':').unwrap_or((s, ""));
    let kind = Kind::from_str(kind, false)
        .map_err(|_| format!("{kind:?} is no kind; expected one as in master:m1=10.0.0.1"))?;
    let (name, hosts) = rest.split_once('=').unwrap_or((rest, ""));
    let name = Name::new(name).map_err(|e| format!("{}; expected {}", e.problem, e.expected))?;
    let hosts = hosts.split(',').map(str::trim).filter(|host| !host.is_empty());
    Ok(Named { kind, name, hosts: hosts.map(str::to_owned).collect() })
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

    /// Names of options that every command has would be taken for those.
    #[test]
    fn every_command_can_be_said() {
        use clap::Parser;
        for line in [
            "tls init --dir d --cert master:m1=a --cert node:n1 --days 1 --ca-days 2",
            "tls issue node n1 --host a --host b --days 3 --dir d",
            "tls renew a.pem b.pem --within 5d --days 3 --dir d",
            "tls show a.pem --dir d --ca c --client-cert x --client-key y --master https://m1",
            "node join-token --node n1 --ttl 5m --host a",
            "node join-token --list",
            "node join-token --revoke 0f",
            "doctor --etcd https://e1 --etcd-ca a --etcd-cert b --etcd-key c --ca d",
        ] {
            let words = std::iter::once("meepo").chain(line.split(' '));
            crate::args::Cli::try_parse_from(words).unwrap();
        }
    }

    #[test]
    fn a_name_comes_with_its_kind_and_perhaps_with_hosts() {
        let named = |kind, name: &str, hosts: &[&str]| {
            let hosts = hosts.iter().map(|&h| h.to_owned()).collect();
            Ok(Named { kind, name: Name::new(name).unwrap(), hosts })
        };
        assert_eq!(wanted("master:m1"), named(Kind::Master, "m1", &[]));
        // Ids may have colons.
        assert_eq!(wanted("node:fe80::1=a, b"), named(Kind::Node, "fe80::1", &["a", "b"]));
        assert_eq!(wanted("etcd-user:root"), named(Kind::EtcdUser, "root", &[]));
        for bad in ["", "m1", "boss:m1", "master:", "master:=a", "master:a b"] {
            assert!(wanted(bad).is_err(), "{bad}");
        }
    }
}
