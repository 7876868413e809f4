//! What a certificate of meepo says: whose it is.

use meepo_core::id::Name;
use std::{fmt, str::FromStr};

/// How the name in a certificate begins. It stands there as a subject alternative name, of
/// the kind URI.
const SCHEME: &str = "spiffe://meepo/";

/// Whose a certificate is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The worker of this node.
    Node(String),
    /// A master, by the name it was given.
    Master(String),
    /// Who uses the API: a person, a service.
    Client(String),
}

impl Identity {
    /// `node`, `master` or `client`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Node(_) => "node",
            Self::Master(_) => "master",
            Self::Client(_) => "client",
        }
    }

    /// The name within its kind: the id of the node, for one.
    pub fn name(&self) -> &str {
        match self {
            Self::Node(name) | Self::Master(name) | Self::Client(name) => name,
        }
    }

    /// As it stands in a certificate: `spiffe://meepo/node/10.0.0.7`.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.kind(), self.name())
    }

    /// The user of etcd: the common name of the certificate, as etcd takes it with
    /// `--client-cert-auth`. All masters are one user.
    pub fn etcd_user(&self) -> String {
        match self {
            Self::Master(_) => self.kind().to_owned(),
            Self::Node(_) | Self::Client(_) => self.to_string(),
        }
    }

    /// Reads what [`Self::uri`] writes; `None` for any other URI.
    pub fn from_uri(uri: &str) -> Option<Self> {
        let (kind, name) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        Self::new(kind, name)
    }

    /// `None` when there is no such kind, or nobody can have that name.
    pub fn new(kind: &str, name: &str) -> Option<Self> {
        let name = Name::new(name).ok()?.to_string();
        match kind {
            "node" => Some(Self::Node(name)),
            "master" => Some(Self::Master(name)),
            "client" => Some(Self::Client(name)),
            _ => None,
        }
    }
}

/// `node:10.0.0.7`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind(), self.name())
    }
}

impl FromStr for Identity {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = s.split_once(':').and_then(|(kind, name)| Self::new(kind, name));
        found.ok_or_else(|| {
            format!("{s:?} is nobody's name; expected node:ID, master:NAME or client:NAME")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_back_from_what_is_written() {
        for (kind, name) in [("node", "10.0.0.7"), ("node", "fe80::1"), ("client", "ann")] {
            let identity = Identity::new(kind, name).unwrap();
            assert_eq!(Identity::from_uri(&identity.uri()), Some(identity.clone()));
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
        for foreign in [
            "spiffe://other/node/a",
            "spiffe://meepo/root/a",
            "spiffe://meepo/node/",
            "spiffe://meepo/node/a/b",
            "spiffe://meepo/node/a b",
            "https://meepo/node/a",
        ] {
            assert_eq!(Identity::from_uri(foreign), None, "{foreign}");
        }
    }
}
