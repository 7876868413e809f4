//! The connection to the leading master, found in etcd and followed on change.

use meepo_coord::election::Leadership;
use meepo_proto::internal::workers_client::WorkersClient;
use meepo_runtime::tls::{self, ChannelError, Credentials};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tonic::transport::Channel;
use tracing::warn;

/// The leader as a worker sees it.
#[derive(Clone)]
pub struct Leader {
    /// Its term.
    pub term: i64,
    /// A client of it; connects when first used and again when the connection breaks.
    pub client: WorkersClient<Channel>,
}

/// The connection to whichever master leads. Cloning is cheap.
#[derive(Clone)]
pub struct MasterLink {
    leader: watch::Receiver<Option<Arc<Leader>>>,
}

impl MasterLink {
    /// Follows `leadership`; the task ends with its sender. With credentials, only masters
    /// that show a certificate are spoken to.
    pub fn follow(
        mut leadership: watch::Receiver<Leadership>,
        credentials: Option<Arc<Credentials>>,
    ) -> Self {
        let (tx, leader) = watch::channel(None);
        tokio::spawn(async move {
            loop {
                let found = leadership.borrow_and_update().leader.clone();
                let next = found.and_then(|(record, term)| match connect(&record.grpc, credentials.as_ref()) {
                    Ok(channel) => {
                        let client = WorkersClient::new(channel)
                            .max_decoding_message_size(MAX_MESSAGE)
                            .max_encoding_message_size(MAX_MESSAGE);
                        Some(Arc::new(Leader { term, client }))
                    }
                    Err(e) => {
                        warn!(address = record.grpc, error = %e, "the leader's address is not usable");
                        None
                    }
                });
                tx.send_replace(next);
                if leadership.changed().await.is_err() {
                    return;
                }
            }
        });
        Self { leader }
    }

    /// A client of the leader, if there is one.
    pub fn client(&self) -> Option<WorkersClient<Channel>> {
        self.leader.borrow().as_ref().map(|l| l.client.clone())
    }

    /// Tells when the leader changes.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Leader>>> {
        self.leader.clone()
    }
}

/// Longest time until there is a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Largest message between worker and master.
pub const MAX_MESSAGE: usize = 16 << 20;

fn connect(url: &str, credentials: Option<&Arc<Credentials>>) -> Result<Channel, ChannelError> {
    tls::channel(url, credentials, |endpoint| {
        tls::usual(endpoint, CONNECT).keep_alive_while_idle(true)
    })
}
