//! Everything that changes in a range of keys, in the order of revisions, from any revision
//! that etcd still has.
//!
//! One watch over the whole range: several watches, even on one stream, may overtake each
//! other. etcd never splits a revision over two answers.

use crate::{
    etcd::{CoordError, Etcd},
    watch::{Change, changes, seen},
};
use etcd_client::{WatchOptions, WatchStream};

/// A range of keys as it changes.
pub struct History {
    stream: WatchStream,
    etcd: Etcd,
}

/// What a [`History`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What changed, in order; none when only time passed.
    pub changes: Vec<Change>,
    /// Everything up to this revision has been told.
    pub through: i64,
}

/// Why a [`History`] ends.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// What was asked for is gone; this is the oldest revision that etcd still has.
    #[error("compacted up to revision {0}")]
    Compacted(i64),
    /// The stream broke; ask again from where it stood.
    #[error("{0}")]
    Broken(String),
}

impl Etcd {
    /// What changed from `revision` on in the keys from `range.0` up to, without, `range.1`.
    pub async fn history(&self, range: (&str, &str), revision: i64) -> Result<History, CoordError> {
        self.ready().await?;
        let options = WatchOptions::new()
            .with_range(range.1)
            .with_start_revision(revision)
            .with_progress_notify();
        let open = || {
            let (mut client, key, options) =
                (self.watch_client(), range.0.to_owned(), options.clone());
            async move { client.watch(key, Some(options)).await }
        };
        let stream = self.call("watch", range.0, open).await?;
        Ok(History { stream, etcd: self.clone() })
    }

    /// The newest revision there is, confirmed by a quorum.
    pub async fn revision(&self) -> Result<i64, CoordError> {
        // Any key will do: what counts stands in the head of the answer.
        Ok(self.list(crate::keys::LEADER, None).await?.1)
    }
}

impl History {
    /// What comes next. Cancel safe.
    pub async fn next(&mut self) -> Result<Step, Ended> {
        let step = self.step().await;
        match &step {
            Ok(_) => {}
            Err(Ended::Compacted(_)) => self.etcd.restarted("compacted"),
            Err(Ended::Broken(_)) => self.etcd.restarted("broken"),
        }
        step
    }

    async fn step(&mut self) -> Result<Step, Ended> {
        loop {
            let response = match self.stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(Ended::Broken("stream ended".into())),
                Err(e) => return Err(Ended::Broken(e.to_string())),
            };
            if response.compact_revision() != 0 {
                return Err(Ended::Compacted(response.compact_revision()));
            }
            if response.canceled() {
                let reason = response.cancel_reason();
                return Err(Ended::Broken(format!("cancelled by etcd: {reason}")));
            }
            if let Some(through) = seen(&response) {
                return Ok(Step { changes: changes(&response), through });
            }
        }
    }
}
