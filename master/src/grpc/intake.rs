//! Batches of workers on their way to the log store: so many bytes at a time, and so many
//! batches written at once. What is more is refused; the worker keeps it and comes again.

use crate::{error::ApiError, ops::Ops};
use meepo_core::code::Code;
use meepo_proto::internal::DeliverRequest;
use prometheus_client::metrics::gauge::Gauge;
use prost::Message;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of batches that are written or wait for it, at most: a few of each of some dozens
/// of workers.
const ROOM: usize = 64 << 20;
/// Batches written at once. More of them do not make a log store faster.
const TURNS: usize = 8;

/// Who is let in.
#[derive(Clone)]
pub(super) struct Intake {
    room: Arc<Semaphore>,
    pub(super) turns: Arc<Semaphore>,
}

/// Room that a batch takes until it is dropped.
pub(super) struct Room {
    bytes: i64,
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.gauge.dec_by(self.bytes);
    }
}

impl Intake {
    pub(super) fn new() -> Self {
        Self::with(ROOM, TURNS)
    }

    fn with(room: usize, turns: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(room)), turns: Arc::new(Semaphore::new(turns)) }
    }

    /// Makes room for a batch.
    ///
    /// # Errors
    /// There is none; it is worth asking again.
    pub(super) fn enter(&self, ops: &Ops, batch: &DeliverRequest) -> Result<Room, ApiError> {
        let metrics = &ops.metrics;
        self.room(batch.encoded_len(), &metrics.receiving).ok_or_else(|| {
            metrics.receiving_refused.inc();
            let message = "more batches of workers are on their way to the log store than this \
                           master holds; try again";
            ApiError::new(Code::BUSY, message)
        })
    }

    fn room(&self, bytes: usize, gauge: &Gauge) -> Option<Room> {
        // One that is larger than all the room is let in when it is alone.
        let wanted = u32::try_from(bytes.min(ROOM)).ok()?;
        let permit = self.room.clone().try_acquire_many_owned(wanted).ok()?;
        let bytes = i64::from(wanted);
        gauge.inc_by(bytes);
        Some(Room { bytes, gauge: gauge.clone(), _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_is_bounded_and_counted() {
        let (intake, gauge) = (Intake::with(100, 1), Gauge::default());
        let first = intake.room(60, &gauge);
        assert!(first.is_some() && intake.room(60, &gauge).is_none());
        let second = intake.room(40, &gauge);
        assert!(second.is_some());
        assert_eq!(gauge.get(), 100);
        drop((first, second));
        assert_eq!(gauge.get(), 0);
        assert!(intake.room(100, &gauge).is_some());
    }
}
