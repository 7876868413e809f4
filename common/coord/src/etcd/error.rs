//! What may become of a call to etcd.

use std::time::Duration;
use tonic::Code;

/// Calls that only read, or do nothing to anybody who does not hear the answer.
const READS: [&str; 5] = ["get", "list", "watch", "grant", LOG_IN];
/// Before a call, where a user has a password.
pub(super) const LOG_IN: &str = "log in to etcd as";

/// A call to etcd that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CoordError {
    /// No answer in time; whether the call took effect is not known.
    #[error("{op} {key}: no answer from etcd within {waited:?}")]
    Timeout {
        /// What was tried.
        op: &'static str,
        /// On which key.
        key: String,
        /// For so long.
        waited: Duration,
    },
    /// etcd did not answer the last calls. This one was not made.
    #[error("{op} {key}: etcd did not answer lately and is not asked again for {retry_in:?}")]
    Away {
        /// What was wanted.
        op: &'static str,
        /// On which key.
        key: String,
        /// When it is worth asking again.
        retry_in: Duration,
    },
    /// What should lead to etcd does not.
    #[error(
        "etcd: {endpoint:?} is no address of etcd; expected a URL such as http://10.0.0.7:2379"
    )]
    Endpoint {
        /// As it was given.
        endpoint: String,
    },
    /// What would be shown to etcd cannot be used.
    #[error("etcd: {problem}")]
    Access {
        /// What is wrong with it.
        problem: String,
    },
    /// The lease that the key was bound to ended meanwhile.
    #[error("{key}: the lease ended while waiting")]
    LeaseLost {
        /// The key.
        key: String,
    },
    /// etcd or the connection refused.
    #[error("{op} {key}: {source}")]
    Etcd {
        /// What was tried.
        op: &'static str,
        /// On which key.
        key: String,
        /// Why.
        source: Box<etcd_client::Error>,
    },
}

impl CoordError {
    pub(crate) fn new(op: &'static str, key: &str, source: etcd_client::Error) -> Self {
        Self::Etcd { op, key: key.to_owned(), source: Box::new(source) }
    }

    /// Whether the revision asked for was compacted away.
    pub fn compacted(&self) -> bool {
        let Self::Etcd { source, .. } = self else { return false };
        matches!(source.as_ref(), etcd_client::Error::GRpcStatus(status)
            if status.code() == Code::OutOfRange && status.message().contains("compacted"))
    }

    /// Whether it is not known if the call took effect: it was a write, it may have
    /// reached etcd, and etcd did not say that it refused it.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Timeout { op, .. } => !READS.contains(op),
            Self::Etcd { op, source, .. } => {
                !READS.contains(op) && !never_arrived(source) && is_away(source)
            }
            Self::Away { .. }
            | Self::Endpoint { .. }
            | Self::Access { .. }
            | Self::LeaseLost { .. } => false,
        }
    }

    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        let Self::Etcd { source, .. } = self else {
            return !matches!(self, Self::Endpoint { .. } | Self::Access { .. });
        };
        match source.as_ref() {
            etcd_client::Error::GRpcStatus(status) => {
                !matches!(
                    status.code(),
                    Code::InvalidArgument
                        | Code::PermissionDenied
                        | Code::Unauthenticated
                        | Code::Unimplemented
                ) && !too_large(status)
            }
            etcd_client::Error::InvalidArgs(_) | etcd_client::Error::InvalidUri(_) => false,
            _ => true,
        }
    }

    /// Whether the lease that a write named is not there any more.
    pub fn no_such_lease(&self) -> bool {
        let Self::Etcd { source, .. } = self else { return false };
        matches!(source.as_ref(), etcd_client::Error::GRpcStatus(status)
            if status.code() == Code::NotFound && status.message().contains("lease not found"))
    }
}

/// Whether a request is larger than a server or client of gRPC takes. etcd's own limit is an
/// invalid argument; beyond half a megabyte more, gRPC refuses before etcd sees it.
fn too_large(status: &tonic::Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().contains("larger than max")
}

/// Whether the error says that etcd, or its quorum, cannot be reached.
pub(super) fn is_away(e: &etcd_client::Error) -> bool {
    match e {
        etcd_client::Error::GRpcStatus(status) => matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
        ),
        etcd_client::Error::IoError(_) | etcd_client::Error::TransportError(_) => true,
        _ => false,
    }
}

/// Whether etcd does not take who one says that one is any more, or not yet: the token has
/// expired, or users have changed since it was given.
pub(super) fn is_stale(e: &etcd_client::Error) -> bool {
    // The words of etcd's rpctypes.
    let stale = [
        "etcdserver: invalid auth token",
        "etcdserver: revision of auth store is old",
        "etcdserver: user name is empty",
    ];
    matches!(e, etcd_client::Error::GRpcStatus(status) if stale.contains(&status.message()))
}

/// Whether the call cannot have reached the quorum: there was no connection, or the
/// member that was asked knew of no leader and said so without trying.
pub(super) fn never_arrived(e: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = e else { return false };
    let mut cause = std::error::Error::source(status);
    while let Some(e) = cause {
        if e.is::<tonic::ConnectError>() {
            return true;
        }
        cause = e.source();
    }
    // The words of etcd's rpctypes.ErrGRPCNoLeader and ErrGRPCTooManyRequests.
    ["etcdserver: no leader", "etcdserver: too many requests"].contains(&status.message())
}

#[cfg(test)]
mod tests {
    use super::{super::CALL_TIMEOUT, *};

    #[test]
    fn what_is_too_large_stays_so_and_what_is_refused_has_not_happened() {
        let error = |code, message: &str| {
            let status = tonic::Status::new(code, message);
            CoordError::new("transaction", "x", etcd_client::Error::GRpcStatus(status))
        };
        let large = "grpc: received message larger than max (2200000 vs. 2097152)";
        let large = error(Code::ResourceExhausted, large);
        assert!(!large.retryable() && !large.outcome_unknown());
        let full = error(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        assert!(full.retryable() && !full.outcome_unknown());
        let away = error(Code::Unavailable, "etcdserver: leader changed");
        assert!(away.retryable() && away.outcome_unknown());
        let lease = error(Code::NotFound, "etcdserver: requested lease not found");
        assert!(lease.no_such_lease() && !lease.outcome_unknown());
        let timeout =
            CoordError::Timeout { op: "transaction", key: "x".into(), waited: CALL_TIMEOUT };
        assert!(timeout.retryable() && timeout.outcome_unknown());
    }
}
