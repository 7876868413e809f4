//! What can go wrong in a store, sorted by what the caller can do about it.

/// The error a driver reported.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a call to a store failed.
///
/// `store` names the store without credentials (`mongodb://db:27017/meepo`,
/// `sqlite:/var/lib/meepo/logs.db`), `op` the operation (`append`, `list runs`, …).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names no store this program can open.
    #[error("log store URL {url:?}: {problem}; expected {expected}")]
    BadUrl {
        /// The URL, without credentials.
        url: String,
        /// What is wrong with it.
        problem: String,
        /// What would be right.
        expected: String,
    },
    /// The arguments cannot be accepted as they stand; no store would. Nothing was
    /// stored, not even the rest of the batch.
    #[error("{op}: {problem}; expected {expected}")]
    Refused {
        /// The operation.
        op: &'static str,
        /// What is wrong with the arguments.
        problem: String,
        /// What would be right.
        expected: String,
    },
    /// Answering took too long and was given up. Asking the same again is of no use.
    #[error(
        "{store}: {op}: there is too much to look at: no answer within {} s; expected a narrower \
         question: a job, a node, a shorter time",
        crate::LIST_PATIENCE.as_secs()
    )]
    TooMuch {
        /// The store.
        store: String,
        /// The operation.
        op: &'static str,
    },
    /// The store is away, busy or too slow. The same call may succeed later.
    #[error("{store}: {op}: the store is not available")]
    Unavailable {
        /// The store.
        store: String,
        /// The operation.
        op: &'static str,
        /// What the driver said.
        #[source]
        source: BoxError,
    },
    /// The store answers, but its schema is not there.
    #[error("{store}: {op}: the store has no schema yet; run `meepo-master migrate`")]
    NotMigrated {
        /// The store.
        store: String,
        /// The operation.
        op: &'static str,
        /// What the driver said.
        #[source]
        source: BoxError,
    },
    /// Something stored cannot be read as what it should be.
    #[error("{store}: {op}: {what} is stored in a form this version cannot read")]
    Unreadable {
        /// The store.
        store: String,
        /// The operation.
        op: &'static str,
        /// Which record.
        what: String,
        /// Why not.
        #[source]
        source: BoxError,
    },
    /// The store refuses or cannot do it: credentials, rights, configuration, a
    /// damaged file. It will not succeed before somebody changes that.
    #[error("{store}: {op} failed")]
    Failed {
        /// The store.
        store: String,
        /// The operation.
        op: &'static str,
        /// What the driver said.
        #[source]
        source: BoxError,
    },
}

impl StoreError {
    /// Whether the same call can succeed later without anybody changing anything.
    ///
    /// `false` is no licence to drop a batch: only [`StoreError::Refused`] says that
    /// the items themselves can never be stored.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::BadUrl { .. }
            | Self::Refused { .. }
            | Self::TooMuch { .. }
            | Self::NotMigrated { .. }
            | Self::Unreadable { .. }
            | Self::Failed { .. } => false,
        }
    }

    /// The message followed by those of all its sources, for logs and people.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(e) = next {
            let part = e.to_string();
            // Drivers often repeat their source in their own message.
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            next = e.source();
        }
        text
    }
}
