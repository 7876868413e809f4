//! Where batches go, and what is made of the answers.

use crate::link::MasterLink;
use anyhow::anyhow;
use meepo_coord::records;
use meepo_core::{id::NodeId, run::Stream};
use meepo_logstore::{LogItem, LogStore, StoreError};
use meepo_proto::internal::{self as pb, item::Item as PbItem};
use std::{sync::Arc, time::Duration};

/// Longest time one batch may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where batches go.
pub enum Sink {
    /// Straight to the log store.
    Store(Arc<dyn LogStore>),
    /// Through the leading master.
    Master(MasterLink),
}

/// Why a batch was not taken.
pub(super) enum Failure {
    /// It never will be.
    Refused(String),
    /// It may be later.
    Later(anyhow::Error),
}

impl Sink {
    /// Hands a batch on; `Ok` when the log store has it.
    pub(super) async fn send(&self, node: &NodeId, items: &[LogItem]) -> Result<(), Failure> {
        if items.is_empty() {
            return Ok(());
        }
        let sending = async {
            match self {
                Self::Store(store) => store.append(items).await.map_err(|e| match e {
                    StoreError::Refused { .. } => Failure::Refused(e.to_string()),
                    e => Failure::Later(e.into()),
                }),
                Self::Master(link) => through(link, node, items).await,
            }
        };
        tokio::time::timeout(TIMEOUT, sending).await.unwrap_or_else(|_| {
            Err(Failure::Later(anyhow!("the log store did not answer in time")))
        })
    }

    /// Waits until a failure may be over before its time: another master leads.
    pub(super) async fn changed(&self) {
        match self {
            Self::Store(_) => std::future::pending().await,
            Self::Master(link) => {
                let mut leader = link.watch();
                // Who leads now has just failed: else there would be no pause at all.
                leader.mark_unchanged();
                if leader.changed().await.is_err() {
                    std::future::pending().await
                }
            }
        }
    }
}

async fn through(link: &MasterLink, node: &NodeId, items: &[LogItem]) -> Result<(), Failure> {
    let Some(mut client) = link.client() else {
        return Err(Failure::Later(anyhow!("no master leads at the moment")));
    };
    let items = items.iter().map(encode).collect();
    match client.deliver(pb::DeliverRequest { node: node.to_string(), items }).await {
        Ok(_) => Ok(()),
        Err(s) if s.code() == tonic::Code::InvalidArgument => {
            Err(Failure::Refused(s.message().to_owned()))
        }
        Err(s) => Err(Failure::Later(anyhow!("the master: {:?}: {}", s.code(), s.message()))),
    }
}

fn encode(item: &LogItem) -> pb::Item {
    let item = match item {
        LogItem::Run(record) => PbItem::Run(records::encode(record).into()),
        LogItem::Output(c) => PbItem::Output(pb::Output {
            run_id: c.run_id.to_string(),
            chunks: vec![pb::Chunk {
                seq: c.seq,
                stderr: c.stream == Stream::Stderr,
                at_ms: c.at.as_millisecond(),
                data: c.data.clone().into(),
            }],
        }),
    };
    pb::Item { item: Some(item) }
}
